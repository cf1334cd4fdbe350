"""The attention half of a decoder layer, forward and backward by hand.

    x = norm(h)    q, k, v = x W_qkv    q, k = rope(head norm(q), head norm(k))    o = attention(q, k, v)
    out = h + o W_o

q, k and v are one product and stay in its one buffer: RoPE turns q and k in place, attention reads them there as
strided views, and in the backward their gradients are turned into one buffer again. The chain rule, from the end:

    do = dout W_o^T      dq, dk, dv by attention's own backward      dq, dk turned back (and through the head norms)
    dx = [dq dk dv] W_qkv^T      dh = norm backward of dx, plus dout (the residual path)

Shapes: M = B T positions, D width, H and K query and key/value heads of width E, N = (H + 2 K) E.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hasten.blocks.attention import Attended, View, attend
from hasten.blocks.norms import Norm
from hasten.blocks.operand import Operand
from hasten.blocks.projections import ProjectionGroup
from hasten.kernels.rope import op as rope
from hasten.kernels.rows import copy_rows
from hasten.policies import Keeps


@dataclass
class AttentionCall:
    """One forward's inputs beside the hidden states."""

    qkv: Operand
    out: Operand
    cos_CR: torch.Tensor
    sin_CR: torch.Tensor
    view: View
    batch: int


@dataclass
class AttentionSaved:
    """What the backward reads; None is made again."""

    rstd_M: torch.Tensor
    x_MD: torch.Tensor | None
    xa_MP: torch.Tensor
    qkv_MN: torch.Tensor | None
    """q, k, v before the head norms; None where there are none."""
    head_rstd: tuple[torch.Tensor, ...] | None
    attended: Attended
    oa_MP: torch.Tensor


@dataclass(frozen=True)
class AttentionHalf:
    """Norm, projections, RoPE, attention, output projection and residual of one layer."""

    norm: Norm
    qkv: ProjectionGroup
    out: ProjectionGroup
    heads: int
    key_value_heads: int
    head_width: int
    head_norms: tuple[Norm, Norm] | None = None
    interleaved: bool = False
    impl: str = "auto"

    def learnt(self, call: AttentionCall) -> list[torch.Tensor]:
        """Every parameter that may have a gradient, in the order of `backward`."""
        norms = [self.norm, *(self.head_norms or ())]
        return [*(norm.weight for norm in norms), *call.qkv.learnt, *call.out.learnt]

    def operands(self, call: AttentionCall) -> list[tuple[Operand, ProjectionGroup]]:
        """Operands of one forward, and the groups that made them."""
        return [(call.qkv, self.qkv), (call.out, self.out)]

    def forward(
        self, call: AttentionCall, h_MD: torch.Tensor, keeps: Keeps | None, *, output: bool = True
    ) -> tuple[torch.Tensor | None, AttentionSaved | None]:
        """The half-layer's output and what its backward reads.

        Args:
            call: this forward's inputs.
            h_MD: hidden states.
            keeps: how much of it is saved; None where nothing will be learnt.
            output: False where only what the backward reads is wanted.
        """
        learn = keeps is not None and keeps != "input"
        x_MDP = call.qkv.input_buffer(len(h_MD), h_MD)
        width = call.qkv.width
        eight = call.qkv.new_eight(len(h_MD), h_MD)
        rstd_M = self.norm.forward(h_MD, x_MDP[:, :width], eight)
        qkv_MN = call.qkv.forward(x_MDP, eight)
        del eight
        query, key, value = self._heads(qkv_MN)
        head_rstd, turned = None, qkv_MN
        if self.head_norms:
            turned = torch.empty_like(qkv_MN[:, : (self.heads + self.key_value_heads) * self.head_width])
            normed = (turned[:, : query[0].numel()], turned[:, query[0].numel() :])
            normed = tuple(part.view(len(h_MD), -1, self.head_width) for part in normed)
            pairs = zip(self.head_norms, (query, key), normed, strict=True)
            head_rstd = tuple(norm.forward(part, out) for norm, part, out in pairs)
            query, key = normed
        # q and k lie side by side, in either buffer: one call turns both.
        both = turned[:, : (self.heads + self.key_value_heads) * self.head_width]
        both = both.view(len(h_MD), -1, self.head_width)
        rope.rotate(both, call.cos_CR, call.sin_CR, out=both, interleaved=self.interleaved, impl=self.impl)
        shaped = [part.view(call.batch, -1, *part.shape[1:]) for part in (query, key, value)]
        attended = attend(shaped[0], shaped[1], shaped[2], call.view, learn=learn)
        out_MD, oa_MP = self._output(call, h_MD, attended, output or learn, output)
        if not learn:
            return out_MD, None
        xa_MP = x_MDP[:, width:]
        saved = AttentionSaved(
            rstd_M=rstd_M,
            x_MD=x_MDP[:, :width] if keeps == "all" else None,
            xa_MP=xa_MP if keeps == "all" else xa_MP.clone(),
            qkv_MN=qkv_MN if self.head_norms else None,
            head_rstd=head_rstd,
            attended=attended,
            oa_MP=oa_MP,
        )
        return out_MD, saved

    def backward(
        self, call: AttentionCall, saved: AttentionSaved, h_MD: torch.Tensor, dout_MD: torch.Tensor, need_dh: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor | None]]:
        """``dh`` (None where it is not needed) and the gradients of `learnt`."""
        dy_MD = dout_MD.to(call.out.dtype)
        do_MO, doa_MP = call.out.input_gradient(dy_MD)
        assert do_MO is not None
        output_BTHE = saved.attended.output_BTHD
        gradients_out = call.out.parameter_gradients(dy_MD, output_BTHE.reshape(len(h_MD), -1), saved.oa_MP, doa_MP)
        dquery, dkey, dvalue = saved.attended.backward(do_MO.view(output_BTHE.shape))
        dqkv_MN = do_MO.new_empty((len(h_MD), (self.heads + 2 * self.key_value_heads) * self.head_width))
        parts = dquery.flatten(0, 1), dkey.flatten(0, 1), dvalue.flatten(0, 1)
        head_gradients: list[torch.Tensor | None] = []
        if self.head_norms:
            head_gradients = self._through_head_norms(call, saved, dqkv_MN, *parts[:2])
            copy_rows(self._heads(dqkv_MN)[2], parts[2])
        else:
            rope.join(*parts, call.cos_CR, call.sin_CR, out=dqkv_MN, interleaved=self.interleaved, impl=self.impl)
        need_norm = need_dh or self.norm.weight.requires_grad
        dx_MD, dxa_MP = call.qkv.input_gradient(dqkv_MN, need_dx=need_norm)
        x_MD = saved.x_MD
        if x_MD is None:
            x_MD = call.qkv.input_buffer(len(h_MD), h_MD)[:, : call.qkv.width]  # strides as kept: the same sums
            self.norm.forward(h_MD, x_MD)
        gradients_qkv = call.qkv.parameter_gradients(dqkv_MN, x_MD, saved.xa_MP, dxa_MP)
        dh_MD, dnorm = None, None
        if dx_MD is not None:
            dh_MD, dnorm = self.norm.backward(dx_MD, h_MD, saved.rstd_M, dout_MD)
        return dh_MD if need_dh else None, [dnorm, *head_gradients, *gradients_qkv, *gradients_out]

    def _heads(self, qkv_MN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Views ``[M, heads, E]`` of queries, keys and values."""
        sizes = [count * self.head_width for count in (self.heads, self.key_value_heads, self.key_value_heads)]
        parts = qkv_MN.split(sizes, dim=1)
        query, key, value = (part.view(len(qkv_MN), -1, self.head_width) for part in parts)
        return query, key, value

    def _output(
        self, call: AttentionCall, h_MD: torch.Tensor, attended: Attended, need_oa: bool, output: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        o_MO = attended.output_BTHD.detach().reshape(len(h_MD), -1)
        if call.out.widened and need_oa:
            o_MOP = call.out.input_buffer(len(h_MD), h_MD)
            copy_rows(o_MOP[:, : call.out.width], o_MO)
        else:
            o_MOP = o_MO
        if output:
            y_MD = call.out.forward(o_MOP)
            out_MD = y_MD.add_(h_MD) if y_MD.dtype == h_MD.dtype else y_MD + h_MD
            return out_MD, o_MOP[:, call.out.width :].clone()
        if call.out.A_PK is not None:  # made as in the forward, so that it is the same to the bit
            torch.mm(o_MOP[:, : call.out.width], call.out.A_PK.t(), out=o_MOP[:, call.out.width :])
        return None, o_MOP[:, call.out.width :]

    def _through_head_norms(
        self,
        call: AttentionCall,
        saved: AttentionSaved,
        dqkv_MN: torch.Tensor,
        dquery_MHE: torch.Tensor,
        dkey_MKE: torch.Tensor,
    ) -> list[torch.Tensor | None]:
        """Writes the gradients of q and k before RoPE and head norms; returns those of the head norms' weights."""
        assert self.head_norms is not None
        assert saved.qkv_MN is not None
        assert saved.head_rstd is not None
        gradients: list[torch.Tensor | None] = []
        for place, turned in enumerate((dquery_MHE, dkey_MKE)):
            rope.rotate(
                turned,
                call.cos_CR,
                call.sin_CR,
                out=turned,
                backward=True,
                interleaved=self.interleaved,
                impl=self.impl,
            )
            source = self._heads(saved.qkv_MN)[place]
            dsource, dweight = self.head_norms[place].backward(turned, source, saved.head_rstd[place])
            self._heads(dqkv_MN)[place].copy_(dsource)
            gradients.append(dweight)
        return gradients

"""The MLP half of a decoder layer, forward and backward by hand.

    x = norm(h)      g, u = x W_gu      a = f(g) u      out = h + a W_down

    da = dout W_down^T      dg = da u f'(g), du = da f(g), written over g and u      dx = [dg du] W_gu^T
    dh = norm backward of dx, plus dout (the residual path)

gate and up are one product. The product a is wanted again only for the gradient of W_down's adapter: kept where memory
allows, otherwise made again by the kernel that computes dg and du.

Shapes: M positions, D width, I width of the MLP.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hasten.blocks.norms import Norm
from hasten.blocks.operand import Operand
from hasten.blocks.projections import ProjectionGroup
from hasten.kernels.gated_activation import op as gated_activation
from hasten.policies import Keeps


@dataclass
class MlpCall:
    """One forward's weights."""

    gate_up: Operand
    down: Operand


@dataclass
class MlpSaved:
    """What the backward reads; None is made again."""

    rstd_M: torch.Tensor
    x_MD: torch.Tensor | None
    xa_MP: torch.Tensor
    gate_up_MN: torch.Tensor
    a_MI: torch.Tensor | None
    aa_MP: torch.Tensor


@dataclass(frozen=True)
class MlpHalf:
    """Norm, gated MLP and residual of one layer."""

    norm: Norm
    gate_up: ProjectionGroup
    down: ProjectionGroup
    activation: str
    impl: str = "auto"

    def learnt(self, call: MlpCall) -> list[torch.Tensor]:
        """Every parameter that may have a gradient, in the order of `backward`."""
        return [self.norm.weight, *call.gate_up.learnt, *call.down.learnt]

    def operands(self, call: MlpCall) -> list[tuple[Operand, ProjectionGroup]]:
        """Operands of one forward, and the groups that made them."""
        return [(call.gate_up, self.gate_up), (call.down, self.down)]

    def forward(
        self, call: MlpCall, h_MD: torch.Tensor, keeps: Keeps | None, *, output: bool = True
    ) -> tuple[torch.Tensor | None, MlpSaved | None]:
        """The half-layer's output and what its backward reads; arguments as in `AttentionHalf.forward`."""
        learn = keeps is not None and keeps != "input"
        width, inner = call.gate_up.width, call.down.width
        x_MDP = call.gate_up.input_buffer(len(h_MD), h_MD)
        eight = call.gate_up.new_eight(len(h_MD), h_MD)
        rstd_M = self.norm.forward(h_MD, x_MDP[:, :width], eight)
        gate_up_MN = call.gate_up.forward(x_MDP, eight)
        a_MIP = call.down.input_buffer(len(h_MD), h_MD)
        gate, up = gate_up_MN[:, :inner], gate_up_MN[:, inner:]
        eight = call.down.new_eight(len(h_MD), h_MD) if output else None
        gated_activation.forward(gate, up, self.activation, out=a_MIP[:, :inner], eight=eight, impl=self.impl)
        out_MD = None
        if output:
            y_MD = call.down.forward(a_MIP, eight)
            del eight
            out_MD = y_MD.add_(h_MD) if y_MD.dtype == h_MD.dtype else y_MD + h_MD
        elif call.down.A_PK is not None:
            torch.mm(a_MIP[:, :inner], call.down.A_PK.t(), out=a_MIP[:, inner:])
        if not learn:
            return out_MD, None
        everything = keeps == "all"
        saved = MlpSaved(
            rstd_M=rstd_M,
            x_MD=x_MDP[:, :width] if everything else None,
            xa_MP=x_MDP[:, width:] if everything else x_MDP[:, width:].clone(),
            gate_up_MN=gate_up_MN,
            a_MI=a_MIP[:, :inner] if everything else None,
            aa_MP=a_MIP[:, inner:] if everything else a_MIP[:, inner:].clone(),
        )
        return out_MD, saved

    def backward(
        self, call: MlpCall, saved: MlpSaved, h_MD: torch.Tensor, dout_MD: torch.Tensor, need_dh: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor | None]]:
        """``dh`` (None where it is not needed) and the gradients of `learnt`. What was saved is used up."""
        inner = call.down.width
        dy_MD = dout_MD.to(call.down.dtype)
        da_MI, daa_MP = call.down.parts_of_input_gradient(dy_MD)
        used = call.down.occupied
        lora = None if call.down.A_PK is None else (daa_MP[:, :used], call.down.A_PK[:used])
        gate, up = saved.gate_up_MN[:, :inner], saved.gate_up_MN[:, inner:]
        a_MI = saved.a_MI
        again = call.down.input_buffer(len(h_MD), h_MD)[:, :inner] if a_MI is None else None
        gated_activation.backward(
            da_MI, gate, up, self.activation, dgate=gate, dup=up, out=again, lora=lora, impl=self.impl
        )
        a_MI = again if a_MI is None else a_MI
        assert a_MI is not None
        gradients_down = call.down.parameter_gradients(dy_MD, a_MI, saved.aa_MP, daa_MP)
        del a_MI, again, da_MI
        dgate_up_MN = saved.gate_up_MN
        need_norm = need_dh or self.norm.weight.requires_grad
        dx_MD, dxa_MP = call.gate_up.input_gradient(dgate_up_MN, need_dx=need_norm)
        x_MD = saved.x_MD
        if x_MD is None:
            x_MD = call.gate_up.input_buffer(len(h_MD), h_MD)[:, : call.gate_up.width]  # strides as kept: the same sums
            self.norm.forward(h_MD, x_MD)
        gradients_gate_up = call.gate_up.parameter_gradients(dgate_up_MN, x_MD, saved.xa_MP, dxa_MP)
        dh_MD, dnorm = None, None
        if dx_MD is not None:
            dh_MD, dnorm = self.norm.backward(dx_MD, h_MD, saved.rstd_M, dout_MD)
        return dh_MD if need_dh else None, [dnorm, *gradients_gate_up, *gradients_down]

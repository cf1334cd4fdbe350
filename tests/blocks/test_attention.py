"""Attention as blocks call it."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from hasten.blocks import attention
from hasten.blocks.attention import View, attend


def made(tokens, heads, width=16, seed=0):
    return torch.randn(1, tokens, heads, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ends(*lengths):
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def run(view, tokens=24):
    query, key, value = made(tokens, 4), made(tokens, 2, seed=1), made(tokens, 2, seed=2)
    attended = attend(query, key, value, view, learn=True)
    return [attended.output_BTHD, *attended.backward(made(tokens, 4, seed=3))]


@pytest.mark.parametrize(("lengths", "window"), [((8, 8, 8), None), ((24,), None), ((12, 12), 12)])
def test_documents_of_one_length_are_a_batch(lengths, window, monkeypatch):
    packed = run(View(cu_seq_lens=ends(*lengths), window=window))  # the longest is not known: one by one
    monkeypatch.setattr(attention, "packed_attention_forward", None)
    batch = run(View(cu_seq_lens=ends(*lengths), longest=lengths[0], window=window))
    for own, wanted in zip(batch, packed, strict=True):
        assert own.shape == wanted.shape
        torch.testing.assert_close(own, wanted)


@pytest.mark.parametrize(("lengths", "window"), [((8, 7, 9), None), ((12, 12), 5), ((10, 4, 10), None)])
def test_others_are_not(lengths, window):
    assert View(cu_seq_lens=ends(*lengths), longest=max(lengths), window=window).equal_documents(24) == 0


@pytest.mark.gpu
def test_gradients_do_not_depend_on_the_layout_that_came_first():
    """A plan of cuDNN's is found again by the layout of its inputs alone (seen with torch 2.11 on an H100)."""
    query, key, value = (made(512, heads, 64, seed).to("cuda", torch.bfloat16) for seed, heads in enumerate((8, 2, 2)))
    narrow = made(512, 8, 64, seed=3).to("cuda", torch.bfloat16)
    wide = torch.full((1, 512, 8 * 64 + 64), float("nan"), dtype=narrow.dtype, device="cuda")
    wide[:, :, : 8 * 64] = narrow.flatten(2)
    found = []
    for gradient in (wide[:, :, : 8 * 64].unflatten(2, (8, 64)), narrow):
        for view in (View(), View(cu_seq_lens=ends(256, 256).cuda(), longest=256)):
            found.append(attend(query, key, value, view, learn=True).backward(gradient))
    for one, other in ((found[0], found[2]), (found[1], found[3])):
        for own, wanted in zip(one, other, strict=True):
            assert wanted.isfinite().all()
            # Parts of a sum are added in any order, and rounded once.
            torch.testing.assert_close(own, wanted, rtol=2.0**-7, atol=2.0**-7 * float(wanted.abs().max()))


@pytest.mark.gpu
@pytest.mark.parametrize("first", ["attend(*[x.transpose(1, 2)] * 3, View(), learn=False)", "pass"])
def test_torchs_own_order_of_kernels_stays(first):
    """In a process of its own: torch chooses the order at the first attention of all."""
    program = (
        "import torch\nfrom torch.nn import functional as F\nfrom hasten.blocks.attention import View, attend\n"
        f"x = torch.zeros(1, 2, 256, 64, dtype=torch.bfloat16, device='cuda')\n{first}\n"
        "F.scaled_dot_product_attention(x, x, x)\nprint(torch._C._get_sdp_priority_order())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    x = torch.zeros(1, 2, 256, 64, dtype=torch.bfloat16, device="cuda")
    F.scaled_dot_product_attention(x, x, x)
    assert done.stdout.split("\n")[0] == str(torch._C._get_sdp_priority_order())

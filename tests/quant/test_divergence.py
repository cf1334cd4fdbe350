"""How far a model has moved."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from hasten.quant.divergence import Reference, logprobs


def test_it_is_the_mean_kl_over_tokens(windows, tiny_llama):
    texts = [windows.heldout[0], windows.heldout[1][:7]]
    with Reference(tiny_llama, texts) as before:
        assert before.divergence(tiny_llama) == pytest.approx(0.0, abs=1e-6)
        old = [logprobs(tiny_llama, text) for text in texts]
        tiny_llama.model.layers[0].mlp.up_proj.weight.data.mul_(1.5)
        new = [logprobs(tiny_llama, text) for text in texts]
        expected = sum(F.kl_div(q, p, log_target=True, reduction="sum") for p, q in zip(old, new, strict=True))
        assert before.divergence(tiny_llama) == pytest.approx(float(expected) / sum(map(len, texts)), rel=1e-5)
        folder = Path(before._folder.name)
        assert folder.is_dir()
    assert not folder.exists()


def test_no_gradient_is_kept(windows, tiny_llama):
    assert not logprobs(tiny_llama, windows.heldout[0]).requires_grad
    assert torch.allclose(logprobs(tiny_llama, windows.heldout[0]).exp().sum(-1), torch.ones(48))

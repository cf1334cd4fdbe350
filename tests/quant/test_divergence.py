"""How far a model has moved."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from hasten.quant.divergence import Reference, logprobs
from hasten.quant.stages import Stages


def test_it_is_the_mean_kl_over_tokens(windows, tiny_llama):
    texts, stages = [windows.heldout[0], windows.heldout[1][:7]], Stages(tiny_llama)
    with Reference(stages, texts) as before:
        assert before.divergence() == pytest.approx(0.0, abs=1e-6)
        old = list(logprobs(stages, texts))
        tiny_llama.model.layers[0].mlp.up_proj.weight.data.mul_(1.5)
        new = list(logprobs(stages, texts))
        expected = sum(F.kl_div(q, p, log_target=True, reduction="sum") for p, q in zip(old, new, strict=True))
        assert before.divergence() == pytest.approx(float(expected) / sum(map(len, texts)), rel=1e-5)
        folder = Path(before._folder.name)
        assert folder.is_dir()
    assert not folder.exists()


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_as_it_would_be_with_other_weights(windows, tiny_llama, device):
    stages = Stages(tiny_llama, device)
    own = {name: value.clone() for name, value in tiny_llama.state_dict().items()}
    with Reference(stages, windows.heldout) as before:
        would_be = before.divergence(lambda weight: 1.5 * weight)
        assert all(torch.equal(value, own[name]) for name, value in tiny_llama.state_dict().items())
        for layer in stages.layers:
            for linear in layer.linears().values():
                linear.weight.data.mul_(1.5)
        assert before.divergence() == would_be > 0


def test_no_gradient_is_kept(windows, tiny_llama):
    (found,) = logprobs(Stages(tiny_llama), windows.heldout[:1])
    assert not found.requires_grad and torch.is_grad_enabled()
    assert torch.allclose(found.exp().sum(-1), torch.ones(48))

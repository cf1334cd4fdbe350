"""What two models predict for the same text: divergence per token.

The divergence that rounding causes grows with the square of the weights' error. Of SmolLM2-135M it is about 35 times
the square (plain NF4: 0.277 nats at an error of 9 %); ten times that is the bound, and 3 nats is the end of it: a model
whose heads, positions or rows are in another order is beyond.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hasten.export.verify.checks import Check
from hasten.export.weights import Weights
from hasten.hardware.memory import budget, read_cgroup, read_meminfo

TEXT = (
    "The moon is the only natural satellite of the Earth. It was formed about 4.5 billion years ago. To compute the "
    "sum of two numbers in Python, write:\n\ndef add(a, b):\n    return a + b\n\nThe capital of France is "
    "Paris, and that of Germany is"
)
_FACTOR, _LEAST, _MOST = 350.0, 1e-3, 3.0


def bound(error: float) -> float:
    """Nats per token that weights may change predictions by.

    Args:
        error: of all weights, relative to their norm.
    """
    return min(_MOST, _LEAST + _FACTOR * error * error)


def room(weights: Weights, models: int = 1) -> str | None:
    """Why the model cannot be computed here in float32, or None.

    Args:
        weights: of the model.
        models: how many are in memory at once.
    """
    need = 4 * models * sum(int(torch.Size(shape).numel()) for shape in weights.shapes.values())
    free = budget("cpu", meminfo=read_meminfo(), cgroup=read_cgroup()).bytes
    return None if 1.3 * need < free else f"{need / 2**30:.1f} GiB are needed, {free / 2**30:.1f} are free"


def model_of(weights: Weights) -> Any:
    """A transformers model of weights that lie in no folder of their own, in float32 on the CPU."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**weights.config)
    state = {name: weights.read(name).to(torch.float32) for name in weights.shapes}
    kind: Any = AutoModelForCausalLM._model_mapping[type(config)]
    return kind.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32).eval()


def model_in(folder: Path) -> Any:
    """The model of a folder, in float32 on the CPU."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def predictions(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities ``[T, V]``, float32 on the CPU."""
    tokens = torch.tensor([list(ids)], device=model.device)
    return model(input_ids=tokens, use_cache=False).logits[0].float().log_softmax(-1).cpu()


def compare_logits(target: str, meant_TV: torch.Tensor, found_TV: torch.Tensor, most: float, what: str) -> Check:
    """Divergence of predictions from those that were meant.

    Args:
        target: for the check's line.
        meant_TV: from `predictions`.
        found_TV: of what is read back, for the same ids.
        most: nats per token.
        what: whose predictions they are compared with.
    """
    name = f"logits ({what})"
    if meant_TV.shape != found_TV.shape:
        return Check(target, name, "wrong", f"{tuple(found_TV.shape)} instead of {tuple(meant_TV.shape)}")
    nats = float((meant_TV.exp() * (meant_TV - found_TV)).sum(-1).mean())
    same = float((meant_TV.argmax(-1) == found_TV.argmax(-1)).float().mean())
    said = f"{max(nats, 0.0):.2g} nats per token (bound {most:.2g}), same first choice for {same:.0%}"
    return Check(target, name, "within" if nats <= most else "wrong", said)

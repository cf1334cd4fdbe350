"""How far a model has moved from itself: the Kullback-Leibler divergence of its next-token distributions.

KL = mean over positions of  sum over tokens of p (log p - log q)        p: before, q: now; nats per token, float32
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import torch

from hasten.errors import ModelError
from hasten.quant.placing import lent
from hasten.quant.stages import Stages

AsIf = Callable[[torch.Tensor], torch.Tensor]
"""From a projection's weight ``[N, K]`` to the values that are measured in its place."""


class Reference:
    """The distributions of a model on some windows, kept in a temporary file: they are large.

    Args:
        stages: the model as it is now.
        windows: int64 ``[T]`` each.

    Raises:
        ModelError: predictions that are not finite.
    """

    def __init__(self, stages: Stages, windows: Sequence[torch.Tensor]) -> None:
        self.windows, self._stages = windows, stages
        self._folder = tempfile.TemporaryDirectory(prefix="hasten-quantize-")
        for number, now in enumerate(logprobs(stages, windows)):
            if not now.isfinite().all():
                raise ModelError(
                    f"model_type '{stages.model.config.model_type}'",
                    "its predictions are not finite",
                    "What quantization costs is measured by them.",
                    "Check its weights, or load it in another dtype.",
                )
            torch.save(now, self._file(number))

    def __enter__(self) -> Reference:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def divergence(self, as_if: AsIf | None = None) -> float:
        """Nats per token between the model before and now, or as it would be with other weights."""
        total = 0.0
        for number, now in enumerate(logprobs(self._stages, self.windows, as_if)):
            before = torch.load(self._file(number), weights_only=True, map_location=now.device)
            total += float((before.exp() * (before - now)).sum())
        return total / sum(len(window) for window in self.windows)

    def _file(self, number: int) -> Path:
        return Path(self._folder.name) / f"{number}.pt"


@torch.no_grad()
def logprobs(stages: Stages, windows: Sequence[torch.Tensor], as_if: AsIf | None = None) -> Iterator[torch.Tensor]:
    """Log-probabilities of the next token at every position of each window, float32 ``[T, V]`` on the device.

    Args:
        stages: the model.
        windows: int64 ``[T]`` each.
        as_if: what projections hold meanwhile; their own weights without.
    """
    texts = stages.opened(windows)
    for number in range(len(stages.layers)):
        with stages.layer(number) as layer:
            weights = [module.weight for module in layer.linears().values()] if as_if else []
            with lent({weight: as_if(weight) for weight in weights} if as_if else {}):
                texts = stages.through(number, texts)
    with stages.closing() as logits:
        for text in texts:
            yield logits(text.hidden).float().log_softmax(-1)

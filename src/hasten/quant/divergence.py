"""How far a model has moved from itself: the Kullback-Leibler divergence of its next-token distributions.

KL = mean over positions of  sum over tokens of p (log p - log q)        p: before, q: now; nats per token, float32
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from hasten.errors import ModelError


class Reference:
    """The distributions of a model on some windows, kept in a temporary file: they are large.

    Args:
        model: as it is now.
        windows: int64 ``[T]`` each.

    Raises:
        ModelError: predictions that are not finite.
    """

    def __init__(self, model: Any, windows: Sequence[torch.Tensor]) -> None:
        self.windows = windows
        self._folder = tempfile.TemporaryDirectory(prefix="hasten-quantize-")
        for number, window in enumerate(windows):
            now = logprobs(model, window)
            if not now.isfinite().all():
                raise ModelError(
                    f"model_type '{model.config.model_type}'",
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

    def divergence(self, model: Any) -> float:
        """Nats per token between the model before and now."""
        total = 0.0
        for number, window in enumerate(self.windows):
            before = torch.load(self._file(number), weights_only=True, map_location=model.device)
            total += float((before.exp() * (before - logprobs(model, window))).sum())
        return total / sum(len(window) for window in self.windows)

    def _file(self, number: int) -> Path:
        return Path(self._folder.name) / f"{number}.pt"


def logprobs(model: Any, window: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the next token at every position, float32 ``[T, V]``."""
    with torch.no_grad():
        return model(input_ids=window[None].to(model.device), use_cache=False).logits[0].float().log_softmax(-1)

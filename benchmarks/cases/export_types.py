"""What each type of a GGUF file costs: bytes, seconds, divergence from the 16-bit model, and perplexity on held-out
text.

    python benchmarks/run.py export_types [models=demo,FOLDER] [rows=FILE] [types=q8_0,q4_k_m,dynamic] [quantizer=PATH]

Text that `dynamic` chooses by is never measured on. Predictions are those of the written file, converted back by
hasten's loader, in float32. Where llama-quantize is on PATH or named, it makes the same type from our F16 file with as
many threads, and types and bytes are compared tensor by tensor; what differs is measured too.

A model that was published in 4 bits has 16 values in each block of 32, which a type of the same steps keeps exactly.
Such blocks are moved by up to half a step first (`moved`), as the model that was rounded to them might have been;
without `spread=0` the result says how many weights that were.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from gguf_tool import compared, quantized
from safetensors.torch import save_file

from hasten.cli.quiet import quiet
from hasten.export.gguf import dynamic
from hasten.export.gguf.importance import Importance
from hasten.export.gguf.mixes import BASE
from hasten.export.gguf.source import Source
from hasten.export.gguf.write import Written, write_gguf
from hasten.export.hf.base import open_model
from hasten.export.hf.tokenizer import copied
from hasten.export.hf.write import load_tokenizer
from hasten.export.verify.logits import model_in
from hasten.export.weights import PlainFolder, Weights
from hasten.files import write_json
from hasten.hardware.probe import usable_cores
from hasten.loading.gguf import model_folder
from hasten.quant.calibration import read_windows

TYPES = (*BASE, dynamic.NAME)
SAME = 1e-6
"""Nats per token: what may lie between a model and its file of as many bits."""


def run(
    models: str = "demo",
    rows: str = "python-docs",
    types: str = ",".join(TYPES),
    tokens: int = 4096,
    size: str = "q4_k_m",
    quantizer: str = "llama-quantize",
    spread: int = 1,
) -> dict[str, Any]:
    """Every type of every model.

    Args:
        models: "demo", folders, or .gguf files.
        rows: files or data sets of text; half of what is read is held out.
        types: of `TYPES`; f16 is written in any case.
        tokens: to choose `dynamic`'s types by, and about as many to measure on.
        size: what `dynamic` spends the bytes of.
        quantizer: llama-quantize's name or path.
        spread: 0: 4-bit values are measured as they are.
    """
    quiet()
    wanted = [name.strip() for name in types.split(",")]
    if unknown := [name for name in wanted if name not in TYPES]:
        raise SystemExit(f"types: '{unknown[0]}' is none of {', '.join(TYPES)}")
    tool = shutil.which(quantizer)
    found = {}
    for name in models.split(","):
        with TemporaryDirectory(prefix="hasten-types-") as place:
            found[Path(name).name] = _model(
                name, Path(place), wanted, rows.split(","), tokens, size, tool, bool(spread)
            )
    return {
        "rows": [Path(part).name for part in rows.split(",")],
        "calibration_tokens": tokens,
        "threads": usable_cores(),
        "llama_quantize": tool is not None,
        "models": found,
    }


def _model(
    name: str, place: Path, types: list[str], rows: list[str], tokens: int, size: str, tool: str | None, spread: bool
) -> dict[str, Any]:
    weights, moved = reference(open_model(name).weights, place / "model", spread)
    tokenizer = load_tokenizer(weights.folder)
    windows = read_windows(rows, tokenizer, tokens, int(weights.config.get("max_position_embeddings") or 512))
    if not windows.heldout:
        raise SystemExit(f"rows: too few tokens to measure on; fewer than {tokens} may be asked for with tokens=")
    heldout = Heldout(model_in(weights.folder), windows.heldout, place)
    half = place / "f16.gguf"
    write_gguf(weights, {"f16": half})
    arms: dict[str, Any] = {}
    for kind in types:
        choices, importance, surveyed = None, None, 0.0
        if kind == dynamic.NAME:
            begun = time.perf_counter()
            made = _dynamic(weights, windows.calibration, size)
            choices, importance = {kind: made.choices}, by_name(made.importance, weights)
            surveyed = time.perf_counter() - begun
        file = place / f"{kind}-ours.gguf"
        begun = time.perf_counter()
        written = write_gguf(weights, {kind: file}, choices=choices, importance=importance)[kind]
        arms[kind] = {**figures(written), "write_s": time.perf_counter() - begun, **heldout.of(file)}
        if surveyed:
            arms[kind]["survey_s"] = surveyed
        if tool is not None and kind not in (dynamic.NAME, "f16"):
            arms[kind]["llama_quantize"] = _theirs(tool, half, file, kind, heldout)
        file.unlink()
        print(name, kind, arms[kind], file=sys.stderr, flush=True)
    for kind in {"f32", "f16"} & set(arms):
        if not arms[kind]["nats"] <= SAME:  # NaN, too
            raise SystemExit(f"{kind}: {arms[kind]['nats']} nats from the model itself: the file is another model's")
    return {
        "weights": sum(math.prod(shape) for shape in weights.shapes.values()),
        "moved": moved,
        "heldout_tokens": heldout.tokens,
        "perplexity": heldout.perplexity,
        "types": arms,
    }


def reference(weights: Weights, folder: Path, spread: bool) -> tuple[PlainFolder, float]:
    """The model in float16 in a folder of its own, and which part of its weights was moved off their 4 bits."""
    folder.mkdir()
    for path in copied(weights.folder):
        shutil.copyfile(path, folder / path.name)
    write_json(folder / "config.json", {**weights.config, "dtype": "float16"})
    random, state, moved = torch.Generator().manual_seed(0), {}, 0
    for name in weights.shapes:
        value = weights.read(name).float()
        if spread and value.ndim == 2 and value.shape[1] % 32 == 0:
            moved += _spread(value, random)
        state[name] = value.half().contiguous()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return PlainFolder(folder), moved / sum(value.numel() for value in state.values())


def _spread(value: torch.Tensor, random: torch.Generator) -> int:
    """Moves blocks of 32 that have at most 16 values by up to half a step, in place; how many weights these are."""
    blocks = value.view(-1, 32)
    moved = 0
    for part in blocks.split(2**17):
        steps = (part.sort(-1).values.diff(dim=-1) > 0).sum(-1, keepdim=True)
        step = (part.amax(-1, keepdim=True) - part.amin(-1, keepdim=True)) / 15 * (steps < 16)
        part += (torch.rand(part.shape, generator=random) - 0.5) * step
        moved += 32 * int((step > 0).sum())
    return moved


class Heldout:
    """Predictions on text that nothing was chosen by.

    Args:
        model: what files are compared with.
        windows: int64 ``[T]`` each.
        place: for predictions, which are large, and files that are converted back.
    """

    def __init__(self, model: Any, windows: Sequence[torch.Tensor], place: Path) -> None:
        self.windows, self.place = windows, place
        self.tokens = sum(map(len, windows))
        self.perplexity = self._passed(model, lambda number, now: torch.save(now, self._kept(number)))

    def of(self, file: Path) -> dict[str, float]:
        """A GGUF file's divergence (Kullback-Leibler, nats per token) and perplexity."""
        total = 0.0

        def compare(number: int, now: torch.Tensor) -> None:
            nonlocal total
            before = torch.load(self._kept(number), weights_only=True)
            total += float((before.exp() * (before - now)).sum(dtype=torch.float64))

        with TemporaryDirectory(dir=self.place) as cache:
            perplexity = self._passed(model_in(model_folder(file, Path(cache))), compare)
        return {"nats": total / self.tokens, "perplexity": perplexity}

    @torch.no_grad()
    def _passed(self, model: Any, each: Callable[[int, torch.Tensor], None]) -> float:
        lost = 0.0
        for number, window in enumerate(self.windows):
            now = model(input_ids=window[None], use_cache=False).logits[0].float().log_softmax(-1)
            lost -= float(now[:-1].gather(1, window[1:, None]).sum(dtype=torch.float64))
            each(number, now)
        return math.exp(lost / (self.tokens - len(self.windows)))

    def _kept(self, number: int) -> Path:
        return self.place / f"heldout-{number}.pt"


def figures(written: Written) -> dict[str, Any]:
    """Of one file."""
    return {
        "bytes": written.bytes,
        "bits_per_weight": written.bits_per_weight,
        "tensors": {kind.name: count for kind, count in written.tensors.items()},
        "fallbacks": len(written.fallbacks),
    }


def by_name(importance: Importance, weights: Weights) -> dict[str, Any]:
    """As `write_gguf` takes it."""
    found = {entry.tensor.name: importance.of(entry.tensor) for entry in Source(weights).entries}
    return {name: values for name, values in found.items() if values is not None}


def _dynamic(weights: PlainFolder, windows: Sequence[torch.Tensor], size: str) -> dynamic.Dynamic:
    source = Source(weights)
    return dynamic.survey(model_in(weights.folder), windows, source.by_layers(), source.model).choose(size)


def _theirs(tool: str, half: Path, ours: Path, kind: str, heldout: Heldout) -> dict[str, Any]:
    theirs = half.with_name(f"{kind}-theirs.gguf")
    seconds = quantized(tool, half, theirs, kind, usable_cores())
    found = {"seconds": seconds, **compared(ours, theirs)}
    if found["other_bytes"]:
        found |= heldout.of(theirs)
    theirs.unlink()
    return found

"""Exports of a model of Llama 3.1 8B's shapes with random 16-bit weights: a merge, and Q4_K_M against llama-quantize.

    python benchmarks/run.py export_8b [layers=32] [threads=2] [rounds=3] [arms=merge,ours,theirs] [quantizer=PATH]
        [folder=PLACE] [kind=q4_k_m]

`merge` writes a rank-16 adapter on all projections merged as a Hugging Face folder. `ours` writes the GGUF file from
the model's folder, `theirs` is llama-quantize on our F16 file with as many threads; they alternate, medians are
compared, and every tensor must have the same bytes. All processes are kept on `threads` of the cores that this one may
use.

Seconds are those of the work, from opening the model to the file's last name; `process_s` has Python's start and
imports too, and of llama-quantize it is all there is. Ours includes reading the file's head back and fsync, which
llama-quantize does not do; comparing tensors and predictions (`hasten export` does that unless told otherwise) is not
in it. Memory is `RssAnon`, read a hundred times a second: what is mapped from files is not counted.

With `folder=`, the model and its F16 file stay there and are used again by the next call, so that arms may be measured
in several short calls; without, they are temporary. 32 layers take about 45 GB of disk, 4 layers 11 GB.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from gguf_tool import compared, quantized
from random_8b import CONFIG, shapes, write_adapter, write_base

from hasten.export.gguf.write import write_gguf
from hasten.export.hf.base import open_model

HERE = Path(__file__).parents[1]
ARMS = ("merge", "ours", "theirs")


def run(
    layers: int = 32,
    threads: int = 2,
    rounds: int = 3,
    arms: str = ",".join(ARMS),
    quantizer: str = "llama-quantize",
    folder: str = "",
    kind: str = "q4_k_m",
    vocabulary: int = CONFIG["vocab_size"],
    width: int = CONFIG["hidden_size"],
    mlp: int = CONFIG["intermediate_size"],
) -> dict[str, Any]:
    """All arms, some times.

    Args:
        layers: of 32.
        threads: cores that every arm is kept on.
        rounds: of each arm.
        arms: of `ARMS`.
        quantizer: llama-quantize's name or path.
        folder: where the model stays; "": nowhere.
        kind: the file's type.
        vocabulary: rows of embedding and head.
        width: of the model.
        mlp: width of an MLP.
    """
    wanted = arms.split(",")
    if unknown := [arm for arm in wanted if arm not in ARMS]:
        raise SystemExit(f"arms: '{unknown[0]}' is none of {', '.join(ARMS)}")
    tool = shutil.which(quantizer)
    if "theirs" in wanted and tool is None:
        raise SystemExit(f"quantizer: there is no '{quantizer}'; name llama-quantize, or leave 'theirs' out of arms=")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < threads:
        raise SystemExit(f"threads: {threads} are asked for, and this process may use {len(cores)} cores")
    os.sched_setaffinity(0, cores[:threads])
    torch.set_num_threads(threads)
    shape = {"num_hidden_layers": layers, "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": mlp}
    shape["head_dim"] = width // CONFIG["num_attention_heads"]
    with TemporaryDirectory(prefix="hasten-export-") as temporary:
        place = Path(folder or temporary)
        _prepare(place, shape, "theirs" in wanted)
        found = _rounds(place, wanted, rounds, threads, kind, tool)
    weights = sum(torch.Size(one).numel() for one in shapes({**CONFIG, **shape}).values())
    return {"layers": layers, "of_layers": 32, "weights": weights, "threads": threads, "kind": kind, **found}


def _prepare(place: Path, shape: dict[str, int], for_theirs: bool) -> None:
    """The model, its adapter and its F16 file, unless they are there."""
    said = place / "shape.json"
    if said.is_file() and json.loads(said.read_text(encoding="utf-8")) != shape:
        raise SystemExit(f"folder: '{place}' holds a model of another shape; remove it, or name another folder")
    if not said.is_file() and (place / "base").exists():
        raise SystemExit(f"folder: '{place / 'base'}' is not complete; remove it, or name another folder")
    if not said.is_file():
        write_base(place / "base", torch.float16, **shape)
        write_adapter(place / "adapter", place / "base")
        said.write_text(json.dumps(shape), encoding="utf-8")
    if for_theirs and not (place / "f16.gguf").is_file():
        write_gguf(open_model(place / "base").weights, {"f16": place / "f16.gguf"})


def _rounds(place: Path, wanted: list[str], rounds: int, threads: int, kind: str, tool: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {arm: [] for arm in wanted}
    ours, theirs, same = place / "ours.gguf", place / "theirs.gguf", None
    for number in range(rounds):
        for arm in wanted if number % 2 == 0 else reversed(wanted):
            if arm == "theirs":
                assert tool is not None, "was required"
                seconds = quantized(tool, place / "f16.gguf", theirs, kind, threads)
                found[arm].append({"seconds": seconds, "process_s": seconds, "bytes": theirs.stat().st_size})
            elif arm == "ours":
                found[arm].append(_arm(kind, place, ours, threads))
            else:
                found[arm].append(_arm("merge", place, place / "merged", threads))
                shutil.rmtree(place / "merged")
            print(number, arm, found[arm][-1], file=sys.stderr, flush=True)
        if same is None and ours.is_file() and theirs.is_file():
            same = compared(ours, theirs)
            if same["other_types"] or same["other_bytes"]:
                raise SystemExit(f"the files differ: {same}; nothing is published")
        for file in (ours, theirs):
            file.unlink(missing_ok=True)
    return {"arms": {arm: _medians(runs) for arm, runs in found.items()}, "compared": same, **_ratios(found)}


def _arm(what: str, place: Path, target: Path, threads: int) -> dict[str, Any]:
    model = place / ("adapter" if what == "merge" else "base")
    told = {"what": what, "model": str(model), "tokenizer": str(place / "base"), "target": str(target)}
    spec = {**told, "threads": threads}
    command = [sys.executable, str(HERE / "export_arm.py"), json.dumps(spec)]
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{what}: {done.stderr[-1500:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "process_s": seconds}


def _medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    found = {f"{key}_median": statistics.median(run[key] for run in runs) for key in runs[0]}
    return {**found, "mb_per_s": found["bytes_median"] / found["seconds_median"] / 1e6, "runs": runs}


def _ratios(found: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Ours by theirs, of medians."""
    if not (found.get("ours") and found.get("theirs")):
        return {}
    other = statistics.median(run["seconds"] for run in found["theirs"])
    return {
        f"{key}_to_theirs": statistics.median(run[key] for run in found["ours"]) / other
        for key in ("seconds", "process_s")
    }

"""Tokenizing and packing chat rows: against the tokenizer's own batch call on the same rendered texts.

    python benchmarks/run.py data_path rows=FILE.json repeat=100

Arms, alternating, on the embedded model's tokenizer:
- `tokenizer`: ``tokenizer(texts, add_special_tokens=False)`` on texts that are rendered already.
- `prepare`: rows in memory to packed rows: formats, rendering, spans, tokens, labels, report, best-fit packing.
- `cached`: the same again, from the cache.

The tokens of both arms must be equal.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from hasten.data.bins import best_fit, efficiency
from hasten.data.formats import detect
from hasten.data.prepare import Prepared, prepare
from hasten.data.settings import DataSettings
from hasten.loading.model import LoadOptions, load_tokenizer
from hasten.loading.source import DEMO


def run(rows: str, repeat: int = 100, length: int = 2048, rounds: int = 3) -> dict[str, Any]:
    """Both arms over `repeat` copies of the rows of a JSON file; packing figures for ten copies too."""
    file = Path(rows)
    once = json.loads(file.read_text(encoding="utf-8"))
    many = once * repeat
    tokenizer = load_tokenizer(DEMO, LoadOptions())
    settings = DataSettings(max_length=length)
    kind = detect(once)
    talks = [kind.read(row).messages for row in once]  # type: ignore[union-attr]
    texts = tokenizer.apply_chat_template(talks, tokenize=False) * repeat
    seconds: dict[str, list[float]] = {"tokenizer": [], "prepare": [], "cached": []}
    with TemporaryDirectory() as folder:
        prepare(many, tokenizer, settings, cache=Path(folder))
        for _ in range(rounds):
            began = time.perf_counter()
            expected = tokenizer(texts, add_special_tokens=False).input_ids
            seconds["tokenizer"].append(time.perf_counter() - began)
            began = time.perf_counter()
            prepared = packed(prepare(many, tokenizer, settings), length)
            seconds["prepare"].append(time.perf_counter() - began)
            same(prepared, expected, length)
            began = time.perf_counter()
            packed(prepare(many, tokenizer, settings, cache=Path(folder)), length)
            seconds["cached"].append(time.perf_counter() - began)
    ten = prepare(once * 10, tokenizer, settings).documents.lengths
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "rows": len(many),
        "real_tokens": prepared.report.real_tokens,
        "seconds": seconds,
        "prepare_over_tokenizer": median["prepare"] / median["tokenizer"],
        "cached_s": median["cached"],
        "packing": {
            "copies": 10,
            "length": length,
            "documents": len(ten),
            "rows": len(best_fit(ten, length)),
            "full": efficiency(best_fit(ten, length), ten, length),
        },
    }


def packed(prepared: Prepared, length: int) -> Prepared:
    """Pack, for its time."""
    best_fit(prepared.documents.lengths, length)
    return prepared


def same(prepared: Prepared, expected: list[list[int]], length: int) -> None:
    """Refuse to publish when tokens differ."""
    whole = [ids for ids in expected if len(ids) <= length]
    made = [example["input_ids"] for example in prepared.documents]
    if len(whole) == len(expected) and not all(map(np.array_equal, made, expected)):
        raise SystemExit("tokens differ: nothing is published")

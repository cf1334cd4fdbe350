"""One arm of `export_8b`, in a process of its own: merges an adapter, or writes GGUF files; prints figures as JSON.

python benchmarks/export_arm.py '{"what": "merge", "model": ADAPTER, "tokenizer": FOLDER, "target": OUT, "threads": 2}'
python benchmarks/export_arm.py '{"what": "q4_k_m", "model": FOLDER, "tokenizer": FOLDER, "target": FILE, "threads": 2}'
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from memory import watched
from transformers import AutoTokenizer

from hasten.export.gguf.write import write_gguf
from hasten.export.hf.base import open_model
from hasten.export.hf.write import write_model


def main() -> None:
    """Do what the first argument says."""
    spec = json.loads(sys.argv[1])
    what, target = spec["what"], Path(spec["target"])
    torch.set_num_threads(spec["threads"])
    # What only the first use takes: transformers' import, and threads and buffers that torch keeps for good.
    AutoTokenizer.from_pretrained(spec["tokenizer"])
    torch.ones(512, 512) @ torch.ones(512, 512)
    with watched() as peak:
        begun = time.perf_counter()
        opened = open_model(spec["model"])
        if what == "merge":
            written = write_model(opened, target).nbytes
        else:
            written = write_gguf(opened.weights, {what: target})[what].bytes
        seconds = time.perf_counter() - begun
    memory = {"start_bytes": peak.start_bytes, "above_start_bytes": peak.above_start_bytes}
    print(json.dumps({"seconds": seconds, "bytes": written, **memory}))


if __name__ == "__main__":
    main()

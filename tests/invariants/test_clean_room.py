"""A25: import, prepare, train, merge and export to GGUF where nothing optional is there.

torch on the CPU only; triton, bitsandbytes, flash_attn, vllm and xllamacpp are absent for every importer (and raise
when imported all the same); no socket may connect; the start method is `spawn`; folders have blanks and umlauts; the
locale is ASCII.

Absent, not merely broken: transformers imports a flash_attn that it finds, and peft a bitsandbytes, and both fail with
it (transformers 5.24, peft 0.21). That is before any line of ours and cannot be mended without patching them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "support" / "clean_room_script.py"


def test_clean_room(tiny_model_folder, tmp_path):
    work = tmp_path / "ö ä" / "x y"
    work.mkdir(parents=True)
    rows = work / "rows é.jsonl"
    words = "red green blue one two three".split()
    rows.write_text(
        "".join(json.dumps({"question": f"say {w}", "answer": f"{w} {v}"}) + "\n" for w in words for v in words[:2]),
        encoding="utf-8",
    )
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "LC_", "LANG", "PYTHON", "CUDA"))
    }
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tiny_model_folder), str(rows), str(work)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["preferred_encoding"].lower() in ("ascii", "ansi_x3.4-1968", "us-ascii")
    assert report["connections"] == []
    assert report["replaced"] == []
    assert report["most_children"] <= 2
    assert report["steps"] == 3
    assert report["merged_equals_live"] < 0.2, "bfloat16 rounding of logits below 10: 2^-8 * 10, over two layers"
    assert report["files"] == {"tiny-Q8_0.gguf": "GGUF", "tiny-Q4_K_M.gguf": "GGUF"}, "read back by then, too"

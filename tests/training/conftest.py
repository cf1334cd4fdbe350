import json

import pytest

WORDS = "red green blue one two three cat dog".split()


@pytest.fixture
def rows_file(tmp_path):
    """Twelve short question-answer rows of different lengths."""
    file = tmp_path / "rows.jsonl"
    rows = [
        {"question": f"say {WORDS[i % 8]}", "answer": " ".join(WORDS[j % 8] for j in range(i, i + 1 + i % 4))}
        for i in range(12)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def tiny_values(tiny_model_folder, rows_file, tmp_path):
    """A configuration of plain values that trains the tiny model in a second."""
    return {
        "model": {"name": str(tiny_model_folder)},
        "data": {"source": str(rows_file), "heldout": 2, "max_length": 64, "cache": False},
        "lora": {"r": 4, "alpha": 8},
        "training": {
            "steps": 4,
            "batch_size": 2,
            "accumulation": 2,
            "learning_rate": 1e-2,
            "warmup_steps": 0,
            "samples": 1,
            "sample_tokens": 4,
        },
        "runs": str(tmp_path / "runs"),
    }

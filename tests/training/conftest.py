import json

import pytest

WORDS = "red green blue one two three cat dog".split()


def _rows(folder):
    file = folder / "rows.jsonl"
    rows = [
        {"question": f"say {WORDS[i % 8]}", "answer": " ".join(WORDS[j % 8] for j in range(i, i + 1 + i % 4))}
        for i in range(12)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def _values(model_folder, rows_file, folder):
    return {
        "model": {"name": str(model_folder)},
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
        "runs": str(folder / "runs"),
    }


@pytest.fixture
def rows_file(tmp_path):
    """Twelve short question-answer rows of different lengths."""
    return _rows(tmp_path)


@pytest.fixture
def tiny_values(tiny_model_folder, rows_file, tmp_path):
    """A configuration of plain values that trains the tiny model in a second."""
    return _values(tiny_model_folder, rows_file, tmp_path)


@pytest.fixture(scope="module")
def reference(_tiny_model_folder, tmp_path_factory):
    """The result of a run as `tiny_values` says, which tests read and leave as it is."""
    from hasten.training.config import combine
    from hasten.training.job import train

    folder = tmp_path_factory.mktemp("reference")
    return train(combine(_values(_tiny_model_folder, _rows(folder), folder)))

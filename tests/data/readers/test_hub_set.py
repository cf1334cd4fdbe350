"""Data sets of the hub: what is asked for, and every way it can fail. No test reaches a hub."""

import errno
import socket

import datasets
import pytest
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from hasten.data.readers.hub_set import is_hub_id, open_hub_set
from hasten.data.settings import DataSettings
from hasten.errors import ConfigError, DataError, StorageError

ROWS = [{"text": "a"}, {"text": "b"}, {"text": "c"}]
OTHERWISE = "Check the spelling."


@pytest.fixture
def hub(monkeypatch):
    """What `load_dataset` was called with; `answer` is what it returns or raises."""

    class Hub:
        calls = []
        answer = datasets.Dataset.from_list(ROWS)

    def load_dataset(*arguments, **options):
        Hub.calls.append((arguments, options))
        if isinstance(Hub.answer, Exception):
            raise Hub.answer
        return Hub.answer

    Hub.calls = []
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return Hub


def opened(name="org/name", **settings):
    return open_hub_set(name, DataSettings(**settings), OTHERWISE)


@pytest.mark.parametrize("name", ["org/name", "imdb", "Open-Orca/Slim.Orca_2", "a/b-1.0", "org/json"])
def test_names_that_could_be_ids(name):
    assert is_hub_id(name)


@pytest.mark.parametrize(
    "name", ["/a/b", "./a", "~/a", "a/b/c", "a.jsonl", "org/a.csv.gz", "a b", "..", "", "c:\\x", "https://x.y/z", "é/a"]
)
def test_names_that_are_none(name):
    assert not is_hub_id(name)


def test_what_is_asked_for(hub):
    rows = opened(subset="fine", split="test[:10]")
    assert hub.calls == [(("org/name", "fine"), {"split": "test[:10]", "streaming": False})]
    assert (list(rows), rows.name) == (ROWS, "org/name")
    assert rows.notes == ["split 'test[:10]' of org/name (subset 'fine') from the hub"]
    opened()
    assert hub.calls[1] == (("org/name", None), {"split": "train", "streaming": False})


def test_streaming_takes_only_the_limit(hub):
    hub.answer = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    rows = opened(streaming=True, limit=2, heldout=0)
    assert hub.calls[0][1]["streaming"] is True
    assert (list(rows), rows.notes) == (ROWS[:2], ["the first 2 rows of split 'train' of org/name"])


def test_streaming_without_a_limit_asks_for_nothing(hub):
    with pytest.raises(ConfigError, match="data.limit: 0 with data.streaming.*Set data.limit to the number of rows"):
        opened(streaming=True)
    assert hub.calls == []


def test_a_stream_that_breaks_off(hub):
    def broken():
        yield ROWS[0]
        raise ConnectionError("connection reset")

    hub.answer = datasets.IterableDataset.from_generator(broken)
    with pytest.raises(DataError, match="org/name: .*the hub cannot be asked .connection reset"):
        opened(streaming=True, limit=3)


@pytest.mark.parametrize("name", ["csv", "json", "text", "parquet", "imagefolder"])
def test_a_word_for_a_format_is_no_data_set(hub, name):
    with pytest.raises(DataError, match=f"{name}: no file, and a word for a file format.*Check the spelling"):
        opened(name)
    assert hub.calls == []


@pytest.mark.parametrize(
    ("cause", "kind", "subject", "parts"),
    [
        (
            ValueError("Config name is missing.\nPlease pick one among the available configs: ['main', 'socratic']"),
            ConfigError,
            "data.subset",
            ["'' for org/name", "['main', 'socratic']", "Set data.subset to one of them."],
        ),
        (
            ValueError("BuilderConfig 'x' not found. Available: ['main', 'socratic']"),
            ConfigError,
            "data.subset",
            ["Available: ['main', 'socratic']", "Set data.subset to one of them."],
        ),
        (
            ValueError("Unknown split \"train\". Should be one of ['test']."),
            ConfigError,
            "data.split",
            ["'train' for org/name", "Should be one of ['test']. Set data.split to one of them."],
        ),
        (
            ValueError("Bad split: train. Available splits: ['test']"),
            ConfigError,
            "data.split",
            ["Available splits: ['test']. Set data.split to one of them."],
        ),
        (
            DatasetNotFoundError("Dataset 'org/name' doesn't exist on the Hub or cannot be accessed."),
            DataError,
            "org/name",
            ["doesn't exist on the Hub", "Check the spelling. For a private or gated one, log in first."],
        ),
        (
            ConnectionError("Couldn't reach 'org/name' on the Hub (OfflineModeIsEnabled)"),
            DataError,
            "org/name",
            ["no such file, and the hub cannot be asked (Couldn't reach", "already downloaded. Check the spelling."],
        ),
        (
            RuntimeError("Dataset scripts are no longer supported, but found name.py"),
            DataError,
            "org/name",
            ["it is made by a script. A data set's own code is never run. Use a copy in Parquet or JSON lines."],
        ),
        (
            FileNotFoundError("No (supported) data files found in org/name"),
            DataError,
            "org/name",
            ["it cannot be loaded (No (supported) data files found", "Download its files."],
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/cache/x"),
            StorageError,
            "/cache/x",
            ["no space left on the disk", "Free some space"],
        ),
    ],
)
def test_what_the_library_raises_becomes_a_sentence(hub, cause, kind, subject, parts):
    hub.answer = cause
    with pytest.raises(kind) as caught:
        opened()
    assert caught.value.subject == subject
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert caught.value.__cause__ is cause


def test_the_reason_behind_a_failed_generation_is_said(hub):
    hub.answer = DatasetGenerationError("An error occurred while generating the dataset")
    hub.answer.__cause__ = ValueError("row 5 has another type\n" + "x" * 1000)
    with pytest.raises(DataError, match="generating the dataset: row 5 has another type x+ ....*Download its files"):
        opened()


def test_errors_of_the_http_library_are_known(hub):
    from huggingface_hub.errors import HfHubHTTPError

    hub.answer = HfHubHTTPError.__bases__[0]("the server hung up")
    with pytest.raises(DataError, match="the hub cannot be asked .the server hung up"):
        opened()


def test_the_real_library_offline(monkeypatch):
    def refuse(self, address):
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(DataError, match="hasten-no-such-org/name: no such file, and the hub cannot be asked"):
        opened("hasten-no-such-org/name")


@pytest.mark.parametrize("streaming", [False, True])
def test_the_real_librarys_words_for_subsets_and_splits(tmp_path, monkeypatch, streaming):
    """A local folder stands in for the hub's: what the library says is not ours to invent."""
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files:\n  - split: train\n    path: a.jsonl\n"
        "- config_name: two\n  data_files: a.jsonl\n---\n",
        encoding="utf-8",
    )
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    real = datasets.load_dataset
    cache = str(tmp_path / "cache")
    monkeypatch.setattr(
        datasets, "load_dataset", lambda _, *rest, **options: real(str(tmp_path), *rest, **options, cache_dir=cache)
    )
    options = {"streaming": streaming, "limit": 1}
    with pytest.raises(ConfigError, match=r"data.subset: '' for org/name.*'one', 'two'.*Set data.subset"):
        opened(**options)
    with pytest.raises(ConfigError, match=r"data.subset: 'three'.*'one', 'two'.*Set data.subset"):
        opened(subset="three", **options)
    with pytest.raises(ConfigError, match=r"data.split: 'test'.*'train'.*Set data.split"):
        opened(subset="one", split="test", **options)
    assert list(opened(subset="one", **options)) == [{"text": "a"}]

"""The cache is emptied of what hasten made, and of nothing else."""

import pytest

from hasten.cache import KINDS, clear, contents, foreign, kinds_named
from hasten.data import cache as rows_cache
from hasten.errors import ConfigError, StorageError
from hasten.loading import gguf

MODEL = gguf.folder_name("SmolLM2-135M.Q4_1", "b179c9523d0e6a0f" + "0" * 48)
ROWS = "ab" * 32


def fill(cache):
    for name in (f"models/{MODEL}", "models/.demo-x1y2", f"models/.{MODEL}.0123456789ab.tmp", f"data/{ROWS}",
                 f"data/{rows_cache._UNFINISHED}abc", "judges/convert"):  # fmt: skip
        (cache / name).mkdir(parents=True)
        (cache / name / "file").write_bytes(b"x" * 10)
    return cache


def sizes(cache):
    return {content.kind.name: (len(content.entries), content.bytes) for content in contents(cache)}


def test_sizes_by_kind(tmp_path):
    assert sizes(tmp_path / "none") == {"models": (0, 0), "data": (0, 0), "judges": (0, 0)}
    assert sizes(fill(tmp_path / "c")) == {"models": (3, 30), "data": (2, 20), "judges": (1, 10)}
    assert foreign(tmp_path / "c") == []


def test_clearing_leaves_nothing(tmp_path):
    done = clear(KINDS, fill(tmp_path / "c"))
    assert (len(done.removed), done.bytes, done.left) == (6, 60, [])
    assert list(tmp_path.iterdir()) == []
    assert clear(KINDS, tmp_path / "c").removed == []


def test_one_kind(tmp_path):
    clear(kinds_named("data"), fill(tmp_path / "c"))
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["judges", "models"]
    with pytest.raises(ConfigError, match="Did you mean 'models'"):
        kinds_named("model")


def test_what_is_not_ours_stays_and_is_named(tmp_path):
    cache = fill(tmp_path / "c")
    theirs = [cache / "notes.txt", cache / "data" / "mine.jsonl", cache / "models" / "my-model"]
    for file in theirs:
        file.write_text("keep", "utf-8")
    done = clear(KINDS, cache)
    assert sorted(done.left) == sorted(theirs)
    assert sorted(path for path in cache.rglob("*") if path.is_file()) == sorted(theirs)


def test_links_are_never_followed(tmp_path):
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "file").write_text("keep", "utf-8")
    cache = fill(tmp_path / "c")
    (cache / "models" / MODEL / "inside").symlink_to(treasure)
    other = MODEL.replace("Q4_1", "Q8_0")
    (cache / "models" / other).symlink_to(treasure)
    clear(KINDS, cache)
    assert (treasure / "file").read_text("utf-8") == "keep" and not cache.exists()


@pytest.mark.parametrize("place", ["", "data"])
def test_a_link_or_file_in_the_place_of_a_folder_is_refused_before_anything_is_removed(tmp_path, place):
    target = fill(tmp_path / "target")
    cache = tmp_path / "c"
    if place:
        fill(cache)
        (cache / place).rename(tmp_path / "moved")
    (cache / place).symlink_to(target)
    before = sorted(tmp_path.rglob("*"))
    for call in (clear, lambda kinds, folder: contents(folder)):
        with pytest.raises(StorageError) as caught:
            call(KINDS, cache)
        assert caught.value.subject == str(cache / place)
        assert "a link to" in caught.value.value and caught.value.rule and caught.value.remedy
    assert sorted(tmp_path.rglob("*")) == before
    (cache / place).unlink()
    (cache / place).write_text("", "utf-8")
    with pytest.raises(StorageError, match="a file"):
        clear(KINDS, cache)

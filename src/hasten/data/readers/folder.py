"""A folder: its texts, each a row, or its data files, one after another; with everything below it, in sorted order.

What is in it decides. Texts and data together, or data of several kinds, are refused, because no guess would be
right for all; only a README or a licence beside data is nothing to train on. A folder that `datasets` saved is read by
`datasets`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hasten.data.readers.files import DataFile
from hasten.data.readers.kinds import RULE, TEXTS, kind_of, open_file
from hasten.data.readers.objects import from_dataset, split_of
from hasten.data.readers.texts import TextFiles
from hasten.data.rows import Mixture, RowSource
from hasten.data.settings import DataSettings
from hasten.errors import DataError

_ABOUT = ("readme", "license", "licence", "notice", "changelog")
_SAVED = (("state.json", "dataset_info.json"), ("dataset_dict.json",))
_MOST_NAMED = 4


def open_folder(folder: Path, name: str) -> RowSource:
    """The rows of all files in a folder.

    Args:
        folder: where it is.
        name: what messages call it.

    Raises:
        DataError: it holds nothing to read, or kinds of file that are not read together.
    """
    texts, data = _files(folder)
    texts = [path for path in texts if not data or path.stem.lower() not in _ABOUT]
    kinds = sorted({kind_of(path) for path in [*texts, *data]})
    if not kinds:
        raise DataError(name, "a folder without data", RULE, "Put such files into it, or name another.")
    if data and len(kinds) > 1:
        rule = "A folder holds texts, or data files of one kind."
        raise DataError(
            name, f"a folder with {' and '.join(kinds)} files", rule, _remedy(name, folder, [*data, *texts])
        )
    found = data or texts
    if data:
        parts = [open_file(path, _named(name, folder, path)) for path in found]
        source: RowSource = parts[0] if len(parts) == 1 else Mixture(parts, name=name, alike=True)
    else:
        source = TextFiles([DataFile(path, _named(name, folder, path)) for path in found], name)
    names = [path.relative_to(folder).as_posix() for path in found]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    source.notes.insert(0, f"{name} is a folder: {', '.join(names[:_MOST_NAMED])}{more}")
    return source


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of `datasets`."""
    return any(all((folder / name).is_file() for name in names) for names in _SAVED)


def open_saved(folder: Path, name: str, settings: DataSettings) -> RowSource:
    """The rows that `datasets` saved there.

    Args:
        folder: where they are.
        name: what messages call it.
        settings: `split` picks from several splits.

    Raises:
        ConfigError: the split is not there.
        DataError: `datasets` cannot read it.
    """
    from datasets import load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except (OSError, ValueError) as cause:
        rule = "It was saved by `datasets`, which must be able to read it."
        raise DataError(name, f"it cannot be read ({cause})", rule, "Save it again.") from cause
    if isinstance(saved, dict):
        return from_dataset(split_of(saved, settings, name), name, [f"split '{settings.split}' of {name}"])
    return from_dataset(saved, name)


def _files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Texts and data files, sorted by the parts of their names; hidden ones are left out."""
    found: list[Path] = []
    for where, folders, names in os.walk(folder):
        folders[:] = [entry for entry in folders if not entry.startswith(".")]
        found += [Path(where, entry) for entry in names if not entry.startswith(".")]
    found = sorted((path for path in found if kind_of(path)), key=lambda path: path.relative_to(folder).parts)
    texts = [path for path in found if kind_of(path) in TEXTS]
    return texts, [path for path in found if kind_of(path) not in TEXTS]


def _named(name: str, folder: Path, path: Path) -> str:
    return f"{name.rstrip('/')}/{path.relative_to(folder).as_posix()}"


def _remedy(name: str, folder: Path, files: Sequence[Path]) -> str:
    return f"Name the files in data.source, such as '{_named(name, folder, files[0])}'."

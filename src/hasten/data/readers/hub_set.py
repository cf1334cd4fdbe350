"""A data set of the hub, through `datasets`, which never runs code of the data set (it has not since version 4).

Nothing is asked of the hub before the settings are known to be enough, and every way in which it can fail ends as one
sentence that keeps what the library said: it names the subsets and splits that there are.
"""

from __future__ import annotations

import errno
import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from hasten.data.readers.kinds import kind_of
from hasten.data.readers.objects import first_rows, from_dataset
from hasten.data.rows import RowSource
from hasten.data.settings import DataSettings
from hasten.errors import ConfigError, DataError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_MOST_TEXT = 400


def is_hub_id(name: str) -> bool:
    """Whether a name without a file could be a data set's: `org/name` or `name`, and not a data file's name."""
    return _ID.fullmatch(name) is not None and not kind_of(Path(name))


def open_hub_set(name: str, settings: DataSettings, otherwise: str) -> RowSource:
    """The rows of a data set.

    Args:
        name: its id.
        settings: subset, split, and whether it is streamed (then its first rows are kept in memory).
        otherwise: a remedy for a name that was meant as a file.

    Raises:
        ConfigError: subset or split are missing or wrong; streaming without `limit`.
        DataError: there is no such data set, it cannot be reached, or it needs code.
        StorageError: the disk is full.
    """
    if settings.streaming and not settings.limit:
        rule = "A data set that is read as it comes has no end that could be waited for."
        raise ConfigError("data.limit", "0 with data.streaming", rule, "Set data.limit to the number of rows.")
    with _asking(name, settings, otherwise):
        import datasets

        # Such a name would be taken for a builder, which reads every file below the working folder.
        if name.isidentifier() and importlib.util.find_spec(f"datasets.packaged_modules.{name}"):
            raise DataError(name, "no file, and a word for a file format", "Data needs a name.", otherwise)
        loaded = datasets.load_dataset(
            name, settings.subset or None, split=settings.split, streaming=settings.streaming
        )
        subset = f" (subset '{settings.subset}')" if settings.subset else ""
        what = f"split '{settings.split}' of {name}{subset}"
        if settings.streaming:
            return first_rows(loaded, settings, name, what)
    return from_dataset(loaded, name, [f"{what} from the hub"])


@contextmanager
def _asking(name: str, settings: DataSettings, otherwise: str) -> Iterator[None]:
    """Turn what `datasets` raises into one sentence."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    # The root of its HTTP library, which is httpx for one version of the hub's client and httpx2 for another.
    http_error = cast(type[Exception], HfHubHTTPError.__bases__[0])
    try:
        yield
    except (DataError, ConfigError):
        raise
    except DatasetNotFoundError as cause:
        rule = "It must be a file, a folder, or a data set of the hub that you may read."
        raise DataError(name, _said(cause), rule, f"{otherwise} For a private or gated one, log in first.") from cause
    except (ConnectionError, HfHubHTTPError, http_error) as cause:
        value = f"no such file, and the hub cannot be asked ({_said(cause)})"
        rule = "A data set of the hub must be reachable or already downloaded."
        raise DataError(name, value, rule, otherwise) from cause
    except (ValueError, RuntimeError, DatasetsError, OSError) as cause:
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            from hasten.files import storage_error

            raise storage_error(Path(cause.filename or "the cache of datasets"), cause) from cause
        raise _refused(name, settings, cause) from cause


def _refused(name: str, settings: DataSettings, cause: Exception) -> ConfigError | DataError:
    said = _said(cause)
    if isinstance(cause, ValueError) and "config" in said.lower():
        value = f"'{settings.subset}' for {name}"
        return ConfigError("data.subset", value, f"The library says: {said}.", "Set data.subset to one of them.")
    if isinstance(cause, ValueError) and "split" in said.lower():
        value = f"'{settings.split}' for {name}"
        return ConfigError("data.split", value, f"The library says: {said}.", "Set data.split to one of them.")
    if "scripts are no longer supported" in said:
        rule = "A data set's own code is never run."
        return DataError(name, "it is made by a script", rule, "Use a copy in Parquet or JSON lines.")
    return DataError(name, f"it cannot be loaded ({said})", "It must be readable by `datasets`.", "Download its files.")


def _said(cause: BaseException) -> str:
    inner = f": {cause.__cause__}" if cause.__cause__ is not None and str(cause.__cause__) not in str(cause) else ""
    text = " ".join(f"{cause}{inner}".split()).rstrip(".")
    return text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + " ..."

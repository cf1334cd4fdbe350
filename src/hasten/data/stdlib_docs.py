"""A real data set that every machine has: questions about Python's standard library, answered by its own docstrings.

The source files are parsed, never imported, so nothing of theirs runs. Order and content depend on the installed
Python version alone.
"""

from __future__ import annotations

import ast
import inspect
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from hasten.errors import DataError

_MIN_CHARACTERS, _MAX_CHARACTERS = 80, 900
_MODULES = (
    "argparse asyncio/tasks asyncio/queues base64 bisect bz2 calendar cmd code codecs collections/__init__ colorsys "
    "configparser contextlib copy csv datetime dataclasses decimal difflib dis email/message enum filecmp fileinput "
    "fnmatch fractions ftplib functools getopt getpass gettext glob graphlib gzip heapq html/parser http/client "
    "imaplib importlib/util inspect io ipaddress json/__init__ json/decoder json/encoder keyword linecache locale "
    "logging/__init__ logging/handlers lzma mailbox mimetypes multiprocessing/pool netrc ntpath numbers operator "
    "optparse os pathlib pdb pickle pickletools pkgutil platform plistlib poplib posixpath pprint queue quopri random "
    "reprlib sched secrets selectors shelve shlex shutil smtplib socket socketserver ssl stat statistics string "
    "stringprep subprocess tarfile tempfile textwrap threading timeit token tokenize trace traceback types typing "
    "unittest/case unittest/mock urllib/parse urllib/request urllib/robotparser uuid warnings wave weakref webbrowser "
    "xml/etree/ElementTree xmlrpc/client zipapp zipfile zoneinfo/_zoneinfo"
).split()


def question_rows() -> list[dict[str, str]]:
    """Rows with `question` and `answer`, in a fixed order.

    Raises:
        DataError: the standard library's source files are not installed.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    for module in _MODULES:
        file = _source_file(library, module)
        if file is None:
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for name, kind, doc in _documented(tree, module.removesuffix("/__init__").replace("/", ".")):
            answer = inspect.cleandoc(doc).strip()
            if _MIN_CHARACTERS <= len(answer) <= _MAX_CHARACTERS and answer not in seen:
                seen.add(answer)
                rows.append({"question": f"What does the Python {kind} `{name}` do?", "answer": answer})
    if not rows:
        raise DataError(
            "python-docs",
            f"no Python source files below '{library}'",
            "This data set is made from the standard library's own docstrings.",
            "Use a Python that ships its sources, or name a data file of your own.",
        )
    return rows


def _source_file(library: Path, module: str) -> Path | None:
    # A module may be a file in one Python version and a package in another.
    for candidate in (library / f"{module}.py", library / module / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _documented(node: ast.AST, prefix: str) -> Iterator[tuple[str, str, str]]:
    """Dotted name, kind and docstring of every public class, function and method."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or child.name.startswith("_"):
            continue
        name = f"{prefix}.{child.name}"
        doc = ast.get_docstring(child, clean=False)
        if isinstance(child, ast.ClassDef):
            if doc:
                yield name, "class", doc
            yield from _documented(child, name)
        elif doc:
            yield name, "method" if isinstance(node, ast.ClassDef) else "function", doc

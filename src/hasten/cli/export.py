"""`hasten export`: what was trained, for Hugging Face, llama.cpp, Ollama and vLLM, and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hasten.cli.output import DEFAULT_RUNS, JsonFlag, Output

OPTIONS: dict[str, Any] = {
    "name": "export",
    "help": "Export a run, an adapter or a model, and read back what was written.",
}


def command(
    model: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run (its name, its folder, or 'last'), an adapter folder, or any model."),
    ],
    to: Annotated[
        list[str],
        typer.Option(
            "--to",
            help="gguf:q4_k_m,q8_0 | gguf:dynamic | hf | fp8 | lora | gguf-lora | ollama[:NAME] | "
            "vllm | vllm-lora; may be repeated.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="The folder of all targets. [default: RUN/export, or exports/NAME]")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Merge the adapter into this model instead of its own base.")] = None,
    name: Annotated[str | None, typer.Option(help="What GGUF files are called.")] = None,
    importance: Annotated[
        bool, typer.Option("--importance", help="Measure an importance matrix for the GGUF types.")
    ] = False,
    imatrix: Annotated[Path | None, typer.Option(help="Use this importance matrix of llama-imatrix's.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Rows to measure on: a file, a folder or a data set. [default: python-docs]"),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to measure on.")] = 16384,
    size: Annotated[str, typer.Option(help="What gguf:dynamic spends: a type's bytes, or bits per weight.")] = "q4_k_m",
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Read back and compare.")] = True,
    runs: Annotated[Path | None, typer.Option(help="The folder that holds the runs. [default: runs]")] = None,
    json_mode: JsonFlag = False,
) -> None:
    """Export, compare, and say what was compared.

    Raises:
        HastenError: a target, the model, an adapter or the folder cannot be used; or what was read back differs.
    """
    out = Output(json_mode)
    from hasten.export.targets import parse

    wanted = parse(to)
    from hasten.cli.quiet import quiet

    quiet()
    from hasten.export.hf.base import open_model
    from hasten.export.job import Request, export
    from hasten.export.verify.checks import lines
    from hasten.report.bytes_progress import bytes_progress

    place = _run(model, runs)
    opened = open_model(place, base=base)
    folder = output or (opened.run.path / "export" if opened.run is not None else Path("exports") / Path(model).name)
    request = Request(
        wanted=wanted, output=folder, verify=verify, sources=tuple(data or ["python-docs"]), tokens=tokens,
        importance=imatrix or importance, size=_size(size), name=name,
    )  # fmt: skip
    with bytes_progress(out.console) as progress:
        done = export(opened, request, tell=out.say, progress=progress)
    for note in done.notes:
        out.say(f"note: {note}")
    for line in lines(done.checks):
        out.say(line)
    if not verify:
        out.say("not verified (--no-verify)")
    for target, facts in done.targets.items():
        out.say(f"{target}: {facts['path']} ({facts['bytes'] / 2**20:,.1f} MiB)")
    for text in done.commands:
        out.say(f"  {text}")
    out.result({"ok": True, "verified": verify, **done.as_dict()})


def _run(name: str, runs: Path | None) -> str:
    """A run's folder where a run is meant, otherwise the name itself."""
    from hasten.runs.folder import LATEST, RECORD
    from hasten.runs.listing import find_run

    own = (runs or DEFAULT_RUNS) / name
    if name == LATEST or (not Path(name).exists() and (own / RECORD).is_file()):
        return str(find_run(runs or DEFAULT_RUNS, name).path)
    return name


def _size(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text

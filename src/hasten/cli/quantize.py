"""`hasten quantize`: a 4-bit checkpoint in which the weights that matter keep 16 bit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hasten.cli.output import JsonFlag, Output

OPTIONS: dict[str, Any] = {
    "name": "quantize",
    "help": "Make a 4-bit checkpoint in which the weights that matter keep 16 bit.",
}


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="'demo', a model folder, a .gguf file, or a hub id.")],
    output: Annotated[Path, typer.Option(help="The new folder.")],
    bits: Annotated[int, typer.Option(help="Bits of a quantized weight; 4.")] = 4,
    budget: Annotated[float, typer.Option(help="Bytes of linear weights as a multiple of plain NF4's.")] = 1.10,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Calibration rows: a file, a folder or a data set; may be repeated. [default: python-docs]"),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to calibrate on; as many others are measured on.")] = 4096,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="One layer at a time on the device. [default: where the whole model does not fit there]",
        ),
    ] = None,
    json_mode: JsonFlag = False,
) -> None:
    """Quantize a model, write the new folder, and show what was kept at which precision.

    Raises:
        HastenError: a setting, a row, the model or the folder cannot be used.
    """
    out = Output(json_mode)

    from hasten.cli.quiet import quiet

    quiet()
    from hasten.hardware.probe import probe
    from hasten.loading.model import LoadOptions
    from hasten.plan import choose_dtype
    from hasten.quant.checkpoint import PAGE, PYTHON_DOCS, Request, quantize_checkpoint
    from hasten.quant.dynamic import QuantizeSettings
    from hasten.quant.table import table

    request = Request(
        model=model,
        output=output,
        settings=QuantizeSettings(bits=bits, budget=budget),
        sources=tuple(data or [PYTHON_DOCS]),
        tokens=tokens,
        stream=stream,
    )
    hardware = probe()
    dtype, _ = choose_dtype(hardware, "auto")
    figures = quantize_checkpoint(request, LoadOptions(device=hardware.device, dtype=dtype), out.say)
    for line in table(figures):
        out.say(line)
    out.say(f"\nThe model is in {output}; the map is {output / PAGE}.")
    out.result({"ok": True, "model": model, "output": str(output), "page": str(output / PAGE), **figures.as_dict()})

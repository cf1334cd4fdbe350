"""A model's name in, a folder out that transformers loads as any 4-bit model and QLoRA trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hasten.errors import ConfigError, ModelError
from hasten.files import new_folder, require_writable, write_json, write_text
from hasten.hardware.probe import free_bytes, probe
from hasten.loading.model import LoadOptions, config_of, load, load_tokenizer
from hasten.loading.ollama_store import PREFIX
from hasten.loading.source import Source
from hasten.plan import choose_streaming
from hasten.quant.calibration import read_windows
from hasten.quant.dynamic import Quantized, QuantizeSettings, quantize, storage_dtype
from hasten.quant.layers import decoder_layers, refuse_quantized
from hasten.quant.modules import require_bitsandbytes, to_bitsandbytes
from hasten.quant.page import page
from hasten.quant.placing import tensors_of
from hasten.quant.working import working_bytes

FIGURES, PAGE = "quantization.json", "quantization.html"
TOKENS = 4096
"""Tokens to calibrate on; as many others are measured on."""
PYTHON_DOCS = "python-docs"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is quantized, and with what."""

    model: str
    """What `hasten.loading.model.load` takes."""
    output: Path
    """The new folder."""
    settings: QuantizeSettings
    sources: tuple[str, ...] = (PYTHON_DOCS,)
    """Calibration rows; see `hasten.data.settings.DataSettings.source`."""
    rows: Any = None
    """Rows of a program's instead of `sources`."""
    tokens: int = TOKENS
    """How many tokens to calibrate on."""
    stream: bool | None = None
    """One layer at a time on the device; None: where the whole model does not fit there."""


def quantize_checkpoint(
    request: Request, options: LoadOptions, tell: Callable[[str], None] = lambda text: None
) -> Quantized:
    """Quantize a model and save it; the folder appears when it is complete.

    Beside the model stand its figures (`quantization.json`) and a page to look at (`quantization.html`). The figures
    name the original as it is found from every folder: local ones by their whole path.

    Args:
        request: what, where to, within which budget.
        options: how the original is loaded, and the device that computes.
        tell: told what is being done.

    Raises:
        ConfigError: settings that do not fit, or the folder is there already.
        DataError: rows that cannot be used, or too few.
        ModelError: the model is not there, is quantized already, or is an adapter.
        CapabilityError: the model has no layers that can be quantized.
        MissingPackageError: bitsandbytes is not installed.
        StorageError: the folder cannot be written.
    """
    _check(request)
    config = config_of(request.model, options)
    refuse_quantized(config)
    tell("reading rows")
    longest = int(getattr(config, "max_position_embeddings", None) or 2**31)
    tokenizer = load_tokenizer(request.model, options)
    windows = read_windows(list(request.sources), tokenizer, request.tokens, longest, request.rows)
    tell("loading the model")
    loaded = load(request.model, replace(options, device="cpu"))
    if loaded.source != loaded.base:
        rule = "Only a whole model is quantized."
        raise ModelError(request.model, "it is an adapter", rule, "Merge it into its base first, and name that folder.")
    model = loaded.model.eval()
    device = _device(model, request, options, windows.length, tell)
    codes, figures = quantize(model, windows, request.settings, tell, device)
    to_bitsandbytes(model, codes, storage_dtype(model))
    tell(f"saving to {request.output}")
    with new_folder(request.output) as folder:
        model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        original = {"model": _called(request.model, loaded.base), "revision": options.revision}
        write_json(folder / FIGURES, {**original, "settings": asdict(request.settings), **figures.as_dict()})
        write_text(folder / PAGE, page(request.model, figures))
    return figures


def _called(name: str, source: Source) -> str:
    """What the original is called wherever one stands; an Ollama model by its name there, not its manifest's path."""
    return name if name.startswith(PREFIX) else source.name


def _device(
    model: Any, request: Request, options: LoadOptions, window: int, tell: Callable[[str], None]
) -> torch.device | None:
    """Where layers are placed one at a time; None once the whole model is where it is computed."""
    hardware = replace(probe(), device=options.device)
    streamed, decision = choose_streaming(
        hardware,
        asked=request.stream,
        weights_bytes=sum(tensor.nbytes for tensor in tensors_of(model)),
        working_bytes=working_bytes(model, decoder_layers(model), window),
        free_bytes=free_bytes(hardware),
    )
    tell(f"{decision.part}: {decision.choice} ({decision.why})")
    if streamed:
        return torch.device(options.device)
    model.to(options.device)
    return None


def _check(request: Request) -> None:
    require_bitsandbytes()
    if request.settings.upgrade_bits != 16:
        raise ConfigError(
            "upgrade_bits",
            str(request.settings.upgrade_bits),
            "transformers cannot load 8-bit and 4-bit modules in one model.",
            "Use 16; 8 is for measuring, with hasten.quant.dynamic.quantize.",
        )
    if request.output.exists():
        rule = "Nothing is overwritten."
        raise ConfigError(
            "output", f"'{request.output}' is there already", rule, "Choose another folder, or delete it."
        )
    require_writable(request.output)
    least = 64
    if request.tokens < least:
        raise ConfigError("tokens", str(request.tokens), f"It is {least} or more.", f"{TOKENS} is a good number.")

"""A folder whose weights are kept in 4 or 8 bits, read as the values that they stand for.

    bitsandbytes, 4 bits      levels[code] * absmax       per block of 64 values; absmax in 8 bits again, or float32
    bitsandbytes, 8 bits      code * SCB / 127            per output
    8-bit floats              code * scale                per output, block or weight (`hasten.loading.published`)

No other package is needed for that. An adapter fits these values, for it was trained on them; what they were made from
is better to merge into, where that is at hand (`hasten.export.hf.base`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hasten.errors import ModelError
from hasten.export.weights import PlainFolder
from hasten.kernels.nf4.packed import Nested, Packed
from hasten.kernels.nf4.reference import dequantize
from hasten.loading.published import FP8_METHODS, Published, published
from hasten.loading.source import read_json

_STATE = ".quant_state.bitsandbytes__"
_BESIDE = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", _STATE)
_SCB, _FORMAT = ".SCB", ".weight_format"
_UNUSED = ("input_scale", "output_scale", "k_scale", "v_scale", "q_scale", "activation_scale", "input_scale_ub")
"""What checkpoints keep for inference in 8 bits; a model of plain weights has no use for it."""


class DequantizedFolder:
    """A quantized model folder as plain weights; itself `hasten.export.weights.Weights`.

    Args:
        folder: config.json with a ``quantization_config`` of bitsandbytes or in 8-bit floats, safetensors, tokenizer.

    Raises:
        ModelError: a file is missing, or weights are kept in a way that is not read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = read_json(folder / "config.json")
        quantization: Any = config.get("quantization_config")
        self.config: dict[str, Any] = {key: value for key, value in config.items() if key != "quantization_config"}
        method = str(quantization.get("quant_method"))
        self._layout: Published | None = None
        if method in FP8_METHODS:
            self._layout = published(str(folder), quantization)
        elif method != "bitsandbytes":
            raise ModelError(
                str(folder),
                f"its weights are quantized by {method}",
                f"Read are bitsandbytes and 8-bit floats ({', '.join(FP8_METHODS)}).",
                "Name the model that it was quantized from as base.",
            )
        self._stored = PlainFolder.of_any(folder, copy.deepcopy(self.config))
        named = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
        self._dtype: torch.dtype = getattr(torch, str(named).removeprefix("torch."))

    @cached_property
    def in_nf4(self) -> frozenset[str]:
        """The weights that are kept in NF4."""
        return frozenset(name.partition(_STATE)[0] for name in self._stored.shapes if name.endswith(f"{_STATE}nf4"))

    @cached_property
    def in_fp8(self) -> frozenset[str]:
        """The weights that are kept in 8-bit floats."""
        if self._layout is None:
            return frozenset()
        end = f".{self._layout.scale}"
        stems = (name.removesuffix(end) for name in self._stored.shapes if name.endswith(end))
        return frozenset(f"{stem}.weight" for stem in stems)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every weight's shape, by its name, in the order of the files."""
        return self._shapes

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for name, shape in self._stored.shapes.items():
            if self._beside(name):
                continue
            state = self._state(name)
            found[name] = tuple(state["shape"]) if state else shape
        return found

    def read(self, name: str) -> torch.Tensor:
        """One weight's values: in the dtype it had before, or the configuration's."""
        value = self._stored.read(name)
        state = self._state(name)
        if state is not None:
            return self._four_bits(name, value, state)
        stem = name.removesuffix(".weight")
        if f"{stem}{_SCB}" in self._stored.shapes:
            scale = self._stored.read(f"{stem}{_SCB}").float() / 127
            return (value.float() * scale[:, None]).to(self._dtype)
        if self._layout is not None and name in self.in_fp8:
            return self._fp8(name, value, self._stored.read(f"{stem}.{self._layout.scale}").float())
        if value.dtype in (torch.int8, torch.uint8, torch.float8_e4m3fn):
            raise ModelError(
                f"'{name}' in {self.folder}",
                f"{str(value.dtype).removeprefix('torch.')} without scales",
                "Codes mean nothing without their scales.",
                "Check the checkpoint's files, or name the original 16-bit model.",
            )
        return value

    def _beside(self, name: str) -> bool:
        if any(part in name for part in _BESIDE) or name.endswith((_SCB, _FORMAT)):
            return True
        last = name.rpartition(".")[2]
        return self._layout is not None and (last == self._layout.scale or last in _UNUSED)

    def _state(self, name: str) -> dict[str, Any] | None:
        """What bitsandbytes says of a weight in 4 bits."""
        for kind in ("nf4", "fp4"):
            if f"{name}{_STATE}{kind}" in self._stored.shapes:
                return json.loads(bytes(self._stored.read(f"{name}{_STATE}{kind}").tolist()))
        return None

    def _four_bits(self, name: str, codes: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        read = self._stored.read
        nested = None
        if "nested_blocksize" in state:
            nested = Nested(
                read(f"{name}.nested_absmax"), read(f"{name}.nested_quant_map"), torch.tensor(state["nested_offset"]),
                state["nested_blocksize"],
            )  # fmt: skip
        shape = (int(state["shape"][0]), int(state["shape"][1]))
        dtype = getattr(torch, state["dtype"])
        levels, absmax = read(f"{name}.quant_map"), read(f"{name}.absmax")
        packed = Packed(codes.view(-1), absmax, levels, shape, int(state["blocksize"]), dtype, nested)
        out = torch.empty(shape, dtype=dtype)
        dequantize(packed, out)
        return out

    def _fp8(self, name: str, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        assert self._layout is not None, "asked for where there is one"
        blocks = self._layout.blocks
        if blocks is None:
            scale = scale.reshape(-1, 1)
            fits = len(scale) in (1, len(codes))
        else:
            fits = scale.shape == tuple(-(-size // side) for size, side in zip(codes.shape, blocks, strict=True))
            scale = scale.repeat_interleave(blocks[0], 0)[: len(codes)]
            scale = scale.repeat_interleave(blocks[1], 1)[:, : codes.shape[1]]
        if not fits:
            raise ModelError(
                f"'{name}' in {self.folder}",
                f"its scales are {' x '.join(map(str, scale.shape))}",
                f"A weight of {' x '.join(map(str, codes.shape))} has {self._layout.said}.",
                "Check the checkpoint's files, or name the original 16-bit model.",
            )
        return (codes.float() * scale).to(self._dtype)

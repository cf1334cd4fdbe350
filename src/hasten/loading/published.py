"""Checkpoints that are published in 8-bit floats, read as they are: codes and scales, nothing rounded again.

Three programs write them. What differs is where scales stand and what they are for:

fp8                  ``weight_scale_inv``, one for each block (DeepSeek, Qwen) or one for all
fbgemm_fp8           ``weight_scale``, one for each output
compressed-tensors   ``weight_scale``, one for each output, for each block or for all (llm-compressor, vLLM)

In all of them a value is ``code * scale``, whatever the name says. What they also keep for inference, scales of
activations and of the cache, is not read: here activations stay in 16 bits.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Any

from hasten.errors import ModelError

FP8_METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors")
_BLOCK = (128, 128)


@dataclass(frozen=True)
class Published:
    """What a checkpoint says of itself."""

    scale: str
    """The name of the scales beside a weight."""
    per: str
    """``output``, ``block`` or ``tensor``."""
    blocks: tuple[int, int] | None
    """Rows and columns that share a scale."""
    plain: tuple[str, ...]
    """Layers that are not in 8 bits: names, ends of names, or patterns behind ``re:``."""

    @property
    def said(self) -> str:
        """How scales are shared, in words."""
        if self.blocks:
            return f"a scale for each block of {self.blocks[0]} x {self.blocks[1]}"
        return "one scale per output" if self.per == "output" else "one scale per weight"

    def leaves(self, name: str) -> bool:
        """Whether a layer is kept as it is."""
        for each in self.plain:
            if each.startswith("re:"):
                if re.match(each[3:], name):
                    return True
            elif name == each or name.startswith(f"{each}.") or name.endswith(f".{each}"):
                return True
        return False


def published(name: str, config: dict[str, Any]) -> Published:
    """Read a ``quantization_config`` of one of `FP8_METHODS`.

    Args:
        name: of the model, for errors.
        config: as config.json has it.

    Raises:
        ModelError: another layout than those above.
    """
    method = config["quant_method"]
    if method == "compressed-tensors":
        return _compressed(name, config)
    plain = tuple(config.get("modules_to_not_convert") or ())
    if method == "fbgemm_fp8":
        return Published("weight_scale", "output", None, plain)
    block = config.get("weight_block_size", _BLOCK)
    return Published("weight_scale_inv", "block" if block else "tensor", (block[0], block[1]) if block else None, plain)


def _compressed(name: str, config: dict[str, Any]) -> Published:
    groups = list((config.get("config_groups") or {}).values())
    weights = groups[0].get("weights") or {} if len(groups) == 1 else {}
    strategy = weights.get("strategy")
    others = [key for key in ("sparsity_config", "transform_config") if config.get(key)]
    if (
        len(groups) != 1
        or groups[0].get("targets") != ["Linear"]
        or (weights.get("num_bits"), weights.get("type"), weights.get("symmetric", True)) != (8, "float", True)
        or strategy not in ("channel", "tensor", "block")
        or others
    ):
        kept = (
            f"{weights.get('num_bits')}-bit {weights.get('type')}, {strategy}" if weights else f"{len(groups)} groups"
        )
        kept = ", ".join((kept, *others))
        raise ModelError(
            name,
            f"its weights are kept by compressed-tensors ({kept})",
            "Of these, 8-bit floats are read, all linear layers alike: scales for each output, block or weight.",
            "Name the original 16-bit model.",
        )
    block = weights.get("block_structure") or _BLOCK
    blocks = (block[0], block[1]) if strategy == "block" else None
    per = {"channel": "output"}.get(strategy, strategy)
    return Published("weight_scale", per, blocks, tuple(config.get("ignore") or ()))


@dataclass(frozen=True)
class PublishedFp8:
    """How one such checkpoint is read."""

    name: str
    layout: Published
    arguments: dict[str, Any]
    """For transformers' ``from_pretrained``."""
    dtype: str
    """What is computed in, and what weights are read into where they are widened."""
    widened: bool
    """Whether plain weights come out."""
    by_transformers: bool
    """Whether it is transformers that widens them: experts, which are no linear layers."""
    in_config: frozenset[str] = frozenset()
    """Keywords that are in the configuration already."""

    @classmethod
    def of(
        cls, name: str, config: Any, dtype: str, *, widen: bool, in_config: frozenset[str] = frozenset()
    ) -> PublishedFp8:
        """Decide.

        Args:
            name: of the model, for errors.
            config: its configuration, with a ``quantization_config`` of one of `FP8_METHODS`.
            dtype: a name in torch.
            widen: whether plain weights are wanted.
            in_config: keywords that became part of `config`.

        Raises:
            ModelError: a layout that is not read here.
        """
        own: dict[str, Any] = config.quantization_config
        layout = published(name, own)
        if not _has_experts(config):
            from hasten.loading.published_fp8 import published_config

            plain = copy.deepcopy(config)
            del plain.quantization_config
            arguments = {"config": plain, "quantization_config": published_config(layout, dtype)}
            return cls(name, layout, arguments, dtype, widen, by_transformers=False, in_config=in_config)
        if own["quant_method"] != "fp8":
            raise ModelError(
                name,
                f"a mixture of experts whose weights are kept by {own['quant_method']}",
                "Experts in 8-bit floats are read where scales are for blocks ('fp8').",
                "Name the original 16-bit model.",
            )
        from transformers import FineGrainedFP8Config

        arguments = {"quantization_config": FineGrainedFP8Config(dequantize=True)}
        return cls(name, layout, arguments, dtype, widened=True, by_transformers=True)

    @property
    def note(self) -> str:
        """What a run's header says."""
        if self.widened:
            why = " (experts are trained on in 16 bits only)" if self.by_transformers else ""
            return f"the checkpoint's 8-bit weights ({self.layout.said}) are read into {self.dtype}{why}"
        return f"frozen weights stay as they are published: 8-bit floats, {self.layout.said}"

    def finish(self, model: Any, found: dict[str, Any]) -> None:
        """Check what was loaded, and widen it where that is wanted.

        Args:
            model: a transformers model.
            found: transformers' loading info.

        Raises:
            ModelError: scales are missing, belong to nothing, or are for blocks that transformers reads wrongly.
        """
        if self.by_transformers:
            _require_whole_blocks(self.name, self.layout, model)
            return
        _require_scales(self.name, self.layout, found)
        if self.widened:
            import torch

            from hasten.loading.published_fp8 import widen

            widen(model, getattr(torch, self.dtype))


def _has_experts(config: Any) -> bool:
    values = config.get_text_config().to_dict().items()
    return any("experts" in key and isinstance(value, int) and value > 1 for key, value in values)


def _require_scales(name: str, layout: Published, found: dict[str, Any]) -> None:
    end = f".{layout.scale}"
    for kind, fault in (("missing_keys", "no scales"), ("unexpected_keys", "scales, but is no linear layer in 8 bits")):
        layers = sorted(each.removesuffix(end) for each in found[kind] if each.endswith(end))
        if layers:
            raise ModelError(
                name,
                f"'{layers[0]}' has {fault}",
                "Codes mean nothing without their scales.",
                "Check the checkpoint's files, or name the original 16-bit model.",
            )


def _require_whole_blocks(name: str, layout: Published, model: Any) -> None:
    """transformers takes a block for the rows divided by the scales, which is wrong where the last one is cut short."""
    import torch

    for place, module in model.named_modules():
        if not layout.blocks or type(module) is not torch.nn.Linear or layout.leaves(place):
            continue
        if any(width > side and width % side for width, side in zip(module.weight.shape, layout.blocks, strict=True)):
            raise ModelError(
                name,
                f"'{place}' is {' x '.join(map(str, module.weight.shape))}, in blocks of {layout.blocks[0]} x "
                f"{layout.blocks[1]}",
                "8-bit weights beside experts are read where they are whole blocks.",
                "Name the original 16-bit model.",
            )

"""What is in a PEFT LoRA adapter's folder, sorted by what it does to which weight. Nothing is computed here.

Names in the file are the live model's, behind ``base_model.model.``; what peft puts around a layer shows in them:

    M.lora_A.weight  M.lora_B.weight         [R, K] and [N, R]: M.weight becomes W + s B A
    M.lora_embedding_A  M.lora_embedding_B   [R, V] and [H, R]: of an embedding [V, H], W + s (B A)^T
    M.lora_magnitude_vector                  DoRA: the norms that the sum is given
    M.lora_B.bias                            added to M.bias, s times
    M.token_adapter.trainable_tokens_delta   rows of an embedding, by the configuration's indices
    M.base_layer.x, M.modules_to_save.x, M.x a whole tensor in place of the base's
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hasten.errors import CapabilityError, ModelError
from hasten.loading.source import begins_inside, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_BASE_LAYER = ".base_layer"
_TRAINED, _COPY = ".modules_to_save.", ".original_module."
_WRAPPED = r"(\.token_adapter)?\.base_layer\.|\.modules_to_save\."
_ENDS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.bias": "bias",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".token_adapter.trainable_tokens_delta": "rows",
}
_OTHER_KINDS = (
    "use_qalora", "layer_replication", "alora_invocation_tokens", "monteclora_config", "kasa_config", "use_bdlora",
    "arrow_config",
)  # fmt: skip
"""Fields of the configuration that make another thing of an adapter than a sum."""


@dataclass(frozen=True)
class Factors:
    """Two factors of one weight; names are the file's."""

    module: str
    """The live model's name of the layer."""
    depth: int
    """How many adapters of the same module lie around it: peft wraps each parameter of a module once more."""
    a: str
    b: str
    embedding: bool
    magnitude: str | None = None
    bias: str | None = None


class AdapterFile:
    """An adapter's folder.

    Args:
        folder: adapter_config.json and adapter_model.safetensors.

    Raises:
        ModelError: a file is missing or damaged, a name means nothing, or a factor is alone.
        CapabilityError: an adapter of a kind whose merge is no sum.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise ModelError(
                    str(folder),
                    f"it has no {name}",
                    f"An adapter's folder holds {CONFIG} and {WEIGHTS}.",
                    "Name another folder; adapters that are pickles are not read.",
                )
        self.config: dict[str, Any] = read_json(folder / CONFIG)
        self._refuse_other_kinds()
        try:
            with safe_open(str(self.file), "pt") as opened:
                self.shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except SafetensorError as cause:
            raise ModelError(
                str(self.file), f"it cannot be read ({cause})", "It is a safetensors file.", "Copy it again."
            ) from cause
        self.factors: list[Factors] = []
        self.tables: dict[str, str] = {}
        """Weights that the file holds whole: the live model's name -> the file's."""
        self.rows: dict[str, str] = {}
        """Modules of which the file holds single rows -> the file's name."""
        self._sort()

    @property
    def file(self) -> Path:
        """The tensors."""
        return self.folder / WEIGHTS

    def read(self, name: str) -> torch.Tensor:
        """One tensor, by the file's name."""
        with safe_open(str(self.file), "pt") as opened:
            return opened.get_tensor(name)

    def frozen(self, weight: str) -> bool:
        """Whether a whole tensor is one that an adapter lies on, not one that was trained."""
        return f"{_BASE_LAYER}." in self.tables.get(weight, "")

    def scale(self, key: str, rank: int) -> float:
        """The factor s of an adapter.

        Args:
            key: the live model's name of the module, or of the parameter.
            rank: as its factors have it.

        Raises:
            ModelError: the configuration says another rank.
        """
        said = int(self._pattern("rank_pattern", key, self.config.get("r", 8)))
        if said != rank:
            raise ModelError(
                f"'{key}' in {self.folder}",
                f"factors of rank {rank}, and {CONFIG} says {said}",
                "Both belong to one adapter.",
                "Copy the folder again.",
            )
        alpha = float(self._pattern("alpha_pattern", key, self.config.get("lora_alpha", 8)))
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)

    def row_numbers(self, module: str) -> list[int]:
        """Which rows of an embedding the adapter holds."""
        said = self.config.get("trainable_token_indices") or []
        if isinstance(said, list):
            return said
        return next((rows for name, rows in said.items() if module == name or module.endswith(f".{name}")), [])

    @cached_property
    def transposed(self) -> bool:
        """Whether the base keeps linear weights as ``[K, N]`` (GPT-2's Conv1D)."""
        return bool(self.config.get("fan_in_fan_out"))

    def _pattern(self, field: str, key: str, otherwise: Any) -> Any:
        patterns: dict[str, Any] = self.config.get(field) or {}
        # As peft reads them: a pattern is a regular expression for the end of the name, and the first one counts.
        return next((value for name, value in patterns.items() if re.match(rf"(.*\.)?({name})$", key)), otherwise)

    def _sort(self) -> None:
        parts: dict[tuple[str, int], dict[str, str]] = {}
        for name in self.shapes:
            if not name.startswith(PREFIX):
                raise self._meaningless(name)
            plain = name.removeprefix(PREFIX)
            end = next((end for end in _ENDS if plain.endswith(end)), None)
            if end is not None:
                module = plain.removesuffix(end)
                parts.setdefault((module.replace(_BASE_LAYER, ""), module.count(_BASE_LAYER)), {})[_ENDS[end]] = name
            elif _COPY in plain:  # what a module was before it was trained, as the base has it
                continue
            else:
                weight = re.sub(_WRAPPED, ".", plain)
                if ".lora_" in weight or ".token_adapter." in weight:
                    raise self._meaningless(name)
                if weight not in self.tables or _TRAINED in plain:  # peft may write a trained module by both names
                    self.tables[weight] = name
        for (module, depth), found in parts.items():
            if "rows" in found:
                self.rows[module] = found.pop("rows")
            if found:
                self._pair(module, depth, found)

    def _pair(self, module: str, depth: int, found: dict[str, str]) -> None:
        for a, b in (("a", "b"), ("embedding_a", "embedding_b")):
            if a in found and b in found:
                self.factors.append(
                    Factors(
                        module, depth, found.pop(a), found.pop(b), a != "a", found.pop("magnitude", None),
                        found.pop("bias", None),
                    )
                )  # fmt: skip
        if found:
            raise ModelError(
                f"'{next(iter(found.values()))}' in {self.folder}",
                "what belongs to it is missing",
                "A change of low rank has two factors.",
                "Copy the folder again.",
            )

    def _meaningless(self, name: str) -> ModelError:
        return ModelError(
            f"'{name}' in {self.folder}",
            "a tensor that LoRA has no use for",
            "Every tensor of an adapter is merged, or none.",
            "Let peft merge it (merge_and_unload), if it knows the kind.",
        )

    def _refuse_other_kinds(self) -> None:
        kind = str(self.config.get("peft_type", "")).upper()
        odd = [f"{name}={self.config[name]!r}" for name in _OTHER_KINDS if self.config.get(name)]
        if kind != "LORA" or odd:
            raise CapabilityError(
                str(self.folder),
                f"an adapter of kind {kind or 'unknown'}{f' with {odd[0]}' if odd else ''}",
                "LoRA, rsLoRA and DoRA are merged.",
                "Let peft merge it: merge_and_unload, then save_pretrained.",
            )
        init = self.config.get("init_lora_weights")
        if begins_inside(init) or init == "lora_ga":
            raise ModelError(
                str(self.folder),
                f"a checkpoint of an adapter that began inside the weights (init_lora_weights '{init}')",
                "It is read on a base that nobody else has.",
                "Export what the finished run saved, a plain adapter.",
            )

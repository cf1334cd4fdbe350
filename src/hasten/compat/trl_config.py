"""`SFTConfig`: trl's, with the defaults scripts rely on and the argument names they were written with.

Two classes: `Defaults` is the dataclass (so that `dataclasses.fields`, `HfArgumentParser` and copies work), `SFTConfig`
translates older names before it is made. The values a script gives are never changed; what is left open is decided by
the trainer, which knows the model.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass, field
from typing import Any

from hasten.compat.notes import say_once
from hasten.compat.trl_imports import TrlConfig
from hasten.errors import ConfigError, did_you_mean
from hasten.hardware.probe import probe

UNNAMED_OUTPUT = "unsloth_training_checkpoints"
"""The folder's name when a script gives none; nothing is saved then."""
WARMUP = 0.1
_RENAMED = {
    "max_seq_length": "max_length",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "push_to_hub_token": "hub_token",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
}
# Removed by transformers or trl; each changed only speed, files or messages.
_WITHOUT_EFFECT = (
    "overwrite_output_dir",
    "save_safetensors",
    "logging_dir",
    "half_precision_backend",
    "dataset_batch_size",
    "num_of_sequences",
    "chars_per_token",
    "fp16_opt_level",
    "fp16_backend",
    "use_mps_device",
    "jit_mode_eval",
    "tpu_num_cores",
    "past_index",
)


@dataclass
class Defaults(TrlConfig):
    """trl's configuration with other defaults."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder for checkpoints; none: nothing is saved."})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Rows per device and micro-batch."})
    per_device_eval_batch_size: int = field(default=4, metadata={"help": "Rows per device in evaluation."})
    gradient_accumulation_steps: int = field(default=2, metadata={"help": "Micro-batches per optimizer step."})
    weight_decay: float = field(default=0.001, metadata={"help": "Weight decay."})
    learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate."})
    optim: Any = field(default="adamw_8bit", metadata={"help": "Optimizer, as in transformers."})
    warmup_steps: float = field(default=WARMUP, metadata={"help": "Steps of warmup; below 1: a share of all steps."})
    seed: int = field(default=3407, metadata={"help": "Seed of data order and dropout."})
    logging_steps: float = field(default=1, metadata={"help": "Log every so many steps."})
    torch_empty_cache_steps: int | None = field(default=250, metadata={"help": "Empty the device cache so often."})
    report_to: Any = field(default="none", metadata={"help": "Where metrics are reported."})
    # None is trl's False; hasten's trainer then leaves padding out itself (`hasten.compat.padding_free`).
    padding_free: bool | None = field(default=None, metadata={"help": "Flatten batches; none: decided here."})  # pyright: ignore[reportIncompatibleVariableOverride]
    # False: the trainer picks from the model's dtype.
    bf16: bool | None = field(default=False, metadata={"help": "bfloat16 autocast; neither: by the model's dtype."})
    # None leaves the model as get_peft_model or the loader made it.
    gradient_checkpointing: bool | None = field(default=None, metadata={"help": "Recompute layers."})  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        if self.output_dir is None:
            self.output_dir, self.save_strategy = UNNAMED_OUTPUT, "no"
        if not probe().is_cuda:
            self.use_cpu = True
        self.padding_free_given = self.padding_free
        self.padding_free = bool(self.padding_free)
        if "8bit" in str(self.optim) and importlib.util.find_spec("bitsandbytes") is None:
            say_once(f"optim {self.optim}: bitsandbytes is not installed, adamw_torch is used")
            self.optim = "adamw_torch"
        super().__post_init__()

    @property
    def n_gpu(self) -> int:
        """At most one: several visible GPUs never become a silent DataParallel."""
        return min(super().n_gpu, 1)


class SFTConfig(Defaults):
    """Training arguments of `SFTTrainer`.

    Args:
        *args: as `Defaults`.
        **kwargs: its fields, and older names: ``max_seq_length``, ``warmup_ratio``, ``evaluation_strategy``,
            ``group_by_length``, ``no_cuda`` and the like.

    Raises:
        ConfigError: an unknown argument, or one thing said twice with different values.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.length_given = "max_length" in kwargs or "max_seq_length" in kwargs
        super().__init__(*args, **translate(type(self), kwargs))

    @property
    def max_seq_length(self) -> int | None:
        """The older name of `max_length`."""
        return self.max_length


def translate(cls: type[Any], given: dict[str, Any]) -> dict[str, Any]:
    """Older argument names as the installed libraries call them.

    Args:
        cls: the configuration class.
        given: what the script passed.

    Raises:
        ConfigError: an unknown argument, or one thing said twice with different values.
    """
    known = {each.name for each in dataclasses.fields(cls) if each.init}
    made: dict[str, Any] = {}
    for name, value in given.items():
        if name == "warmup_ratio":
            continue
        if name in known:
            _put(made, name, value, name)
        elif name in _RENAMED and _RENAMED[name] in known:
            _put(made, _RENAMED[name], value, name)
        elif name == "group_by_length":
            if value:
                _put(made, "train_sampling_strategy", "group_by_length", name)
        elif name in _WITHOUT_EFFECT:
            say_once(f"SFTConfig({name}=...) has no effect any more: transformers and trl dropped it")
        else:
            remedy = did_you_mean(name, known, "Remove it.")
            raise ConfigError(
                f"SFTConfig({name}=...)", "unknown argument", "transformers and trl do not know it.", remedy
            )
    if given.get("warmup_ratio") is not None and not given.get("warmup_steps"):
        made["warmup_steps"] = given["warmup_ratio"]  # below 1, transformers 5 reads steps as a share
    return made


def _put(made: dict[str, Any], name: str, value: Any, said: str) -> None:
    if name in made and made[name] != value:
        raise ConfigError(
            f"SFTConfig({said}=...)",
            f"{value!r}, but it was also given as {made[name]!r}",
            f"It is the older name of {name}.",
            f"Give {name} alone.",
        )
    made[name] = value

"""`SFTTrainer`: trl's, taking arguments where scripts put them and choosing what they leave open.

A subclass, nothing more: trl's own classes and functions stay as they are. It adds: older argument names, the model's
length and precision where the script gives none, evaluation settings that do not run out of memory, training batches
without padding, one banner line, and adapters that keep their dtype (trl rounds the adapter of a 4-bit model to
bfloat16, where small updates are lost).
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import inspect
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from hasten import __version__
from hasten.compat.binding import bind
from hasten.compat.formatting import TEXT, format_dataset
from hasten.compat.notes import say, say_once
from hasten.compat.origin import origin_of
from hasten.compat.padding_free import PaddingFree, reading, why_padded
from hasten.compat.trl_config import Defaults, SFTConfig, translate
from hasten.compat.trl_imports import TrlConfig, TrlTrainer
from hasten.errors import CapabilityError, ConfigError, did_you_mean
from hasten.hardware.probe import probe
from hasten.hardware.tested import newer_than_tested
from hasten.lora.attach import value_count
from hasten.lora.merge import quantized_weights, weights_in_4_bits
from hasten.plan import choose_watch
from hasten.training.record import versions
from hasten.training.watchdog import Watchdog, host_budget

__all__ = ["SFTConfig", "SFTTrainer", "UnslothTrainer", "UnslothTrainingArguments", "unsloth_train"]

_MOVED = (
    "dataset_text_field",
    "max_seq_length",
    "max_length",
    "packing",
    "eval_packing",
    "dataset_num_proc",
    "dataset_kwargs",
    "dataset_batch_size",
    "neftune_noise_alpha",
    "model_init_kwargs",
    "num_of_sequences",
    "chars_per_token",
)
"""Arguments of the trainer that trl moved into its configuration, or dropped."""


class SFTTrainer(TrlTrainer):
    """Supervised fine-tuning by trl, on a model from `FastLanguageModel` or any other.

    Args:
        model: a transformers model, a `PeftModel`, or a name for trl to load.
        args: `SFTConfig`, trl's own, or plain `TrainingArguments`.
        data_collator: as in trl.
        train_dataset: as in trl.
        eval_dataset: as in trl.
        processing_class: the tokenizer.
        **kwargs: further arguments of trl's trainer; ``tokenizer``, the older name of `processing_class`; and what trl
            moved into its configuration: ``dataset_text_field``, ``max_seq_length``, ``packing``,
            ``dataset_num_proc`` ...

    Raises:
        ConfigError: an unknown argument, or a `formatting_func` that returns no list of strings.
    """

    last_metrics: ClassVar[dict[str, float] | None] = None
    """Final metrics of the latest training in this process."""

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        _require_working_trl()
        processing_class = _tokenizer(processing_class, kwargs.pop("tokenizer", None))
        moved = {name: kwargs.pop(name) for name in _MOVED if name in kwargs}
        _require_known(kwargs)
        configured = _configured(args, moved)
        settings = _settled(configured, model, has_eval=eval_dataset is not None)
        formatting = kwargs.pop("formatting_func", None)
        if formatting is not None:
            settings = copy.copy(settings)
            settings.dataset_text_field = TEXT
            workers = settings.dataset_num_proc
            train_dataset = format_dataset(train_dataset, formatting, workers)
            eval_dataset = _each(eval_dataset, lambda dataset: format_dataset(dataset, formatting, workers))
        trained = _trained(model)
        super().__init__(
            model=model,
            args=settings,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        _restore_dtype(trained)
        own_loss = kwargs.get("compute_loss_func") is not None or type(self).compute_loss is not TrlTrainer.compute_loss
        self.why_padded = why_padded(self, getattr(configured, "padding_free_given", False), own_loss)
        if self.model is not model and not isinstance(model, str):
            bind(self.model)
        self.watchdog = _watchdog(self.args)
        if self.watchdog is not None:
            self.add_callback(self.watchdog)

    def get_train_dataloader(self) -> Any:
        """trl's, whose batches have no padding where nothing speaks against it (`why_padded`)."""
        padded = self.data_collator
        if not self.why_padded:
            self.data_collator = PaddingFree(padded)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = padded

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """trl's, in the context in which the model reads these inputs."""
        with reading(self.model, inputs):
            return super().training_step(model, inputs, *args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; one line says what is trained, and transformers' metrics come back.

        Raises:
            TrainingError: the machine's memory was running out; there is a checkpoint.
        """
        say(banner(self))
        if newer := newer_than_tested(versions()):
            say(f"newer than tested; going on: {', '.join(newer)}")
        output = super().train(*args, **kwargs)
        SFTTrainer.last_metrics = dict(output.metrics)
        if self.watchdog is not None:
            self.watchdog.raise_if_stopped()
        return output


@dataclass
class _UnslothDefaults(Defaults):
    embedding_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of embedding and head where they are trained in full."}
    )
    q_galore_config: Any = field(default=None, metadata={"help": "Must be None."})


class UnslothTrainingArguments(SFTConfig, _UnslothDefaults):
    """`SFTConfig` with a learning rate of its own for embedding and head.

    Args:
        *args: as `SFTConfig`.
        **kwargs: as `SFTConfig`, and ``embedding_learning_rate``.

    Raises:
        CapabilityError: ``q_galore_config`` is given.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("q_galore_config") is not None:
            raise CapabilityError(
                "UnslothTrainingArguments(q_galore_config=...)",
                repr(kwargs["q_galore_config"]),
                "hasten does not offer this yet.",
                "Leave it None, or use optim='galore_adamw' of transformers.",
            )
        super().__init__(*args, **kwargs)


class UnslothTrainer(SFTTrainer):
    """`SFTTrainer` that obeys ``embedding_learning_rate``."""

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' optimizer, with embedding and head in groups of their own rate."""
        optimizer = super().create_optimizer(*args, **kwargs)
        rate = getattr(self.args, "embedding_learning_rate", None)
        if rate is not None:
            split_embeddings(optimizer, self.model, rate)
        return optimizer


def split_embeddings(optimizer: Any, model: Any, rate: float) -> None:
    """Move trained embeddings of a fresh optimizer to groups with another learning rate.

    Args:
        optimizer: made, but not stepped yet.
        model: whose embedding and head are meant.
        rate: their learning rate.
    """
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    ids = {id(weight) for end in ends for weight in end.parameters() if weight.requires_grad}
    if not ids:
        say_once("embedding_learning_rate has no effect: neither embedding nor head is trained")
    for group in list(optimizer.param_groups):
        moved = [weight for weight in group["params"] if id(weight) in ids]
        if moved:
            group["params"] = [weight for weight in group["params"] if id(weight) not in ids]
            optimizer.add_param_group({**group, "params": moved, "lr": rate})


def unsloth_train(trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """`trainer.train()`: gradient accumulation is exact there."""
    return trainer.train(*args, **kwargs)


def banner(trainer: Any) -> str:
    """One line: version, model, device, dtype, what is trained, and the batch."""
    model, args = trainer.model, trainer.args
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    total = sum(value_count(weight) for weight in model.parameters())
    origin = origin_of(model)
    name = origin.name if origin else model.config.name_or_path or model.config.model_type
    kept = " (4-bit)" if weights_in_4_bits(model) else " (8-bit)" if quantized_weights(model) else ""
    dtype = str(model.dtype).removeprefix("torch.") + kept
    batch = f"{args.per_device_train_batch_size} x {args.gradient_accumulation_steps}"
    batch += f", padded: {trainer.why_padded}" if getattr(trainer, "why_padded", "") else ""
    return (
        f"{__version__} | {name} | {args.device} | {dtype} | {trained:,} of {total:,} parameters trained "
        f"({trained / total:.2%}) | batch {batch} | length {args.max_length}"
    )


def _require_working_trl() -> None:
    """trl 1.15 computes its loss in a Triton kernel alone and fails at the first step where no GPU is."""
    version = importlib.metadata.version("trl")
    if version.startswith("1.15.") and not torch.cuda.is_available():
        raise CapabilityError(
            "SFTTrainer",
            f"trl {version} without a GPU",
            "This release of trl computes its loss with a Triton kernel, which needs one.",
            'Run `pip install "trl>=1.16"`.',
        )


def _tokenizer(processing_class: Any, tokenizer: Any) -> Any:
    if processing_class is not None and tokenizer is not None and processing_class is not tokenizer:
        raise ConfigError(
            "SFTTrainer(tokenizer=...)",
            "another object than processing_class",
            "They are one argument.",
            "Give one of them.",
        )
    return tokenizer if processing_class is None else processing_class


def _require_known(kwargs: dict[str, Any]) -> None:
    known = set(inspect.signature(TrlTrainer.__init__).parameters) - {"self"}
    for name in kwargs:
        if name not in known:
            remedy = did_you_mean(name, {*known, *_MOVED, "tokenizer"}, "Remove it.")
            raise ConfigError(f"SFTTrainer({name}=...)", "unknown argument", "trl does not know it.", remedy)


def _configured(args: Any, moved: dict[str, Any]) -> Any:
    """The configuration with the trainer's own arguments in it; the script's object is not touched."""
    if args is None:
        return SFTConfig(**moved)
    if not isinstance(args, TrlConfig):
        values = {**args.to_dict(), "hub_token": args.hub_token}  # to_dict hides the token
        known = {each.name for each in dataclasses.fields(SFTConfig)}
        return SFTConfig(**{name: value for name, value in values.items() if name in known}, **moved)
    made = copy.copy(args)
    for name, value in translate(type(args), moved).items():
        setattr(made, name, value)
        if name == "max_length" and isinstance(made, SFTConfig):
            made.length_given = True
    return made


def _settled(args: Any, model: Any, *, has_eval: bool) -> Any:
    """What a script leaves open, decided from the model."""
    changes: dict[str, Any] = {}
    longest = getattr(model, "max_seq_length", None)
    if longest is not None and isinstance(args, SFTConfig):
        if not args.length_given:
            changes["max_length"] = longest
        elif args.max_length is not None and args.max_length > longest:
            say_once(f"max_length {args.max_length} is more than the model was loaded for; {longest} is used")
            changes["max_length"] = longest
    if not args.bf16 and not args.fp16:
        precision = {"torch.bfloat16": "bf16", "torch.float16": "fp16"}.get(str(getattr(model, "dtype", None)))
        if precision:
            changes[precision] = True
    if has_eval:
        if args.per_device_eval_batch_size > args.per_device_train_batch_size:
            changes["per_device_eval_batch_size"] = args.per_device_train_batch_size
        if args.eval_accumulation_steps is None:
            changes["eval_accumulation_steps"] = args.gradient_accumulation_steps
    changes |= _on_shared_memory(args)
    return dataclasses.replace(args, **changes) if changes else args


_UNPAGED = {"paged_adamw_32bit": "adamw_torch", "paged_ademamix_32bit": "ademamix"}
"""Where the name without pages is another than the rest of it."""


def _on_shared_memory(args: Any) -> dict[str, Any]:
    """Where a GPU has the machine's own memory, nothing is pinned, and nothing is paged out of it into itself."""
    if not probe().unified_memory:
        return {}
    changes: dict[str, Any] = {"dataloader_pin_memory": False}
    optimizer = str(getattr(args.optim, "value", args.optim))
    if optimizer.startswith("paged_"):
        changes["optim"] = _UNPAGED.get(optimizer, optimizer.removeprefix("paged_"))
        say_once(
            f"optim '{optimizer}' pages into the memory that it is in; '{changes['optim']}' is used, without pages"
        )
    return changes


def _watchdog(args: Any) -> Watchdog | None:
    """Where a GPU has the machine's own memory. Not for several processes: one would stop and the others wait."""
    hardware = probe()
    if args.world_size > 1 or not choose_watch(hardware, "auto"):
        return None
    remedy = (
        "Close what else uses memory, lower max_length or per_device_train_batch_size, or use load_in_4bit; then "
        f"trainer.train(resume_from_checkpoint=True) goes on from the checkpoint in '{args.output_dir}'. "
        "trainer.remove_callback(trainer.watchdog) trains without this watch."
    )
    return Watchdog(lambda: host_budget(hardware), remedy)


def _each(datasets: Any, function: Any) -> Any:
    if datasets is None:
        return None
    if isinstance(datasets, dict):
        return {name: function(dataset) for name, dataset in datasets.items()}
    return function(datasets)


def _trained(model: Any) -> list[tuple[Any, torch.Tensor]]:
    if not isinstance(model, torch.nn.Module):
        return []
    return [(weight, weight.data) for weight in model.parameters() if weight.requires_grad]


def _restore_dtype(trained: list[tuple[Any, torch.Tensor]]) -> None:
    for weight, before in trained:
        if weight.dtype != before.dtype:
            weight.data = before.to(weight.device)

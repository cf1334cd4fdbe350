"""Documents, an adapted tiny model and a trainer on them: what tests of optimizer steps share."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from support import tiny

UNEVEN = (3, 30, 5, 20)
"""Lengths of the rows in case A9 of the pains."""


def documents(lengths: Any = UNEVEN, *, masked: Any = (), seed: int = 0) -> list[dict[str, Any]]:
    """Random documents, every token learnt but those of the `masked` ones."""
    import torch

    from hasten.data.packing import IGNORED

    generator = torch.Generator().manual_seed(seed)
    made = []
    for number, length in enumerate(lengths):
        ids = torch.randint(3, 128, (length,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [IGNORED] * length if number in masked else list(ids)})
    return made


def adapted(**changes: Any) -> Any:
    """`TL` with a LoRA on every layer, whose B is not zero: all gradients are felt."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = tiny.llama(**changes)
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, config)


def trainer(folder: Path, examples: list[Any], **options: Any) -> Any:
    """An `SftTrainer` with plain SGD, so that a step's update is its gradient.

    Args:
        folder: for checkpoints.
        examples: documents to train on.
        **options: `batch_size`, `accumulation`, `layout`, `rounded`, `budget`, `rows`, `heldout`, `model`, `kind`
            (the class); everything else is a training argument.
    """
    from transformers.trainer_callback import PrinterCallback

    from hasten.training.trainer import Arguments, SftTrainer

    kind = options.pop("kind", SftTrainer)
    ours = {
        "model": options.pop("model", None) or adapted(),
        "plan": SimpleNamespace(layout=options.pop("layout", "packed"), rounded=options.pop("rounded", False)),
        "heldout_examples": options.pop("heldout", []),
        "token_budget": options.pop("budget", 64),
        "accumulation": options.pop("accumulation", 1),
        "rows": options.pop("rows", None),
    }
    arguments = {
        "per_device_train_batch_size": options.pop("batch_size", 4),
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "seed": 0,
        "use_cpu": True,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        **options,
    }
    made = kind(args=Arguments(output_dir=str(folder), **arguments), train_examples=examples, pad_id=0, **ours)
    made.remove_callback(PrinterCallback)
    return made


def trained(model: Any) -> dict[str, Any]:
    """Copies of the adapter's weights by name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def gradients(model: Any) -> dict[str, Any]:
    """Copies of all gradients by name."""
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}

"""Import hasten among others in several orders and report every foreign function that is not what it was.

    purity_script.py all                  hasten after every set of modules that a choice of the others loads
    purity_script.py step MODEL_FOLDER    after one packed LoRA step

Each order runs in a process of its own, forked where it leaves the others, so that a library is loaded once for all
orders that begin alike. The last line is a JSON object: orders tried, and what was found.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
import tempfile
from pathlib import Path

LIBRARIES = {
    "hasten": ["hasten"],
    "torch": ["torch", "torch.nn", "torch.nn.functional", "torch.nn.modules.module", "torch.utils.checkpoint"],
    "transformers": ["transformers", "transformers.models.llama.modeling_llama", "transformers.modeling_utils"],
    "peft": ["peft", "peft.tuners.lora.layer", "peft.peft_model"],
    "trl": ["trl", "trl.trainer.sft_trainer"],
}
WATCHED = [name for library, names in LIBRARIES.items() if library != "hasten" for name in names]
HOOKS = ("meta_path", "path_hooks", "path")


def callables(owner, prefix):
    """Functions, classes and methods by name; the objects themselves, so that no number is used twice."""
    for name, value in list(vars(owner).items()):
        if callable(value) or isinstance(value, (staticmethod, classmethod, property)):
            yield f"{prefix}.{name}", value
            if inspect.isclass(value) and inspect.ismodule(owner) and value.__module__ == owner.__name__:
                yield from callables(value, f"{prefix}.{name}")


def snapshot():
    """What every watched module that is loaded holds now, and the hooks of the import system."""
    held = {name: list(getattr(sys, name)) for name in HOOKS}
    for name in WATCHED:
        if name in sys.modules:
            held |= callables(sys.modules[name], name)
    return held


def differences(before):
    """Names that were there and hold something else now."""
    after = snapshot()
    return [
        name
        for name, value in before.items()
        if (after.get(name) != value if name in HOOKS else after.get(name, value) is not value or name not in after)
    ]


def ours():
    """Foreign names that hold something of hasten's."""
    return [
        name
        for name, value in snapshot().items()
        if name not in HOOKS and str(getattr(value, "__module__", "")).partition(".")[0] == "hasten"
    ]


def touch_public_names():
    """Load every public name of hasten."""
    import hasten

    for name in hasten.__all__:
        getattr(hasten, name)


def load(library):
    before = snapshot()
    for name in LIBRARIES[library]:
        importlib.import_module(name)
    return differences(before) if library == "hasten" else []


def visit(orders, report, done=()):
    """All orders that begin with `done`; each branch in a child process."""
    for library in dict.fromkeys(order[len(done)] for order in orders):
        child = os.fork()
        if child:
            if os.waitpid(child, 0)[1]:
                record(report, {"order": [*done, library], "found": ["the process failed"]})
            continue
        loaded = [name for name in WATCHED if name in sys.modules]
        found = load(library)
        path = (*done, library)
        if library == "hasten":
            record(report, {"before": done, "loaded": loaded, "found": found})
            found = []
        rest = [order for order in orders if order[: len(path)] == path]
        if len(path) == len(LIBRARIES):
            before = snapshot()
            touch_public_names()
            found += differences(before) + ours()
            record(report, {"order": path, "found": found})
        else:
            visit(rest, report, path)
        os._exit(0)


def record(report, entry):
    with open(report, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def try_orders(orders):
    """Every order, and what was found in it; what was loaded before hasten, and what its first import changed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        report.touch()
        visit(orders, report)
        return [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]


def one_step(folder):
    """One LoRA step on packed rows, with everything of hasten loaded."""
    for library in ("torch", "transformers", "peft", "trl"):
        load(library)
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before, functions = snapshot(), dict(ALL_ATTENTION_FUNCTIONS)
    touch_public_names()
    import torch

    from hasten.blocks.packed_attention import packed_attention
    from hasten.data.packing import PackedCollator
    from hasten.loading.model import LoadOptions
    from hasten.loading.model import load as load_model
    from hasten.lora.attach import attach
    from hasten.lora.settings import LoraSettings
    from hasten.objectives.sft import token_loss_sum

    model = attach(load_model(folder, LoadOptions()).model, LoraSettings(r=4)).model
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}, {"input_ids": [9, 10], "labels": [9, 10]}]
    inputs = PackedCollator()(rows)
    del inputs["counts"]
    labels = inputs.pop("labels")
    with packed_attention(model):
        token_loss_sum(model(**inputs).logits, labels).backward()
    optimizer.step()
    moved = any(value.any() for name, value in model.named_parameters() if "lora_B" in name)
    after = dict(ALL_ATTENTION_FUNCTIONS)
    replaced = [name for name, function in functions.items() if after.get(name) is not function]
    return {
        "found": differences(before) + ours() + replaced,
        "moved": moved,
        "added": sorted(set(after) - set(functions)),
    }


CHOICES = [
    (), ("torch",), ("transformers",), ("peft",), ("transformers", "peft"), ("trl",), ("transformers", "trl"),
]  # fmt: skip
"""One for every set of modules that can be there before hasten: what a library loads itself need not be named, too.

transformers loads torch, peft both but for one model's module, which is loaded when it is asked for, and trl peft.
"""


def after_every_choice():
    """Where hasten stands among the others is what matters, not how they stand among themselves."""
    others = [name for name in LIBRARIES if name != "hasten"]
    return [(*chosen, "hasten", *(name for name in others if name not in chosen)) for chosen in CHOICES]


def main(command, *arguments):
    if command == "step":
        result = one_step(*arguments)
    else:
        result = try_orders(after_every_choice())
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""hasten leans on nothing that other libraries call private, but for what is listed here with its reason.

A private name may be gone in any release, and then yesterday's notebook dies at `import`.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

SRC = Path(__file__).parents[2] / "src" / "hasten"

# Name -> why nothing public does it, and the files that read it. All are read at use, none at import.
ATTRIBUTES = {
    # transformers
    "_attn_implementation": (
        "which attention a config has chosen: there is a public setter and no public getter",
        {"blocks/layer.py", "blocks/packed_attention.py"},
    ),
    "_commit_hash": ("which revision a config came from; read with a default", {"lora/originals.py"}),
    "_keep_in_fp32_modules": ("what a quantizer has to leave alone", {"estimate/facts.py", "loading/eight_bit.py"}),
    "_keep_in_fp32_modules_strict": (
        "the same, while weights are read",
        {"estimate/facts.py", "loading/published_fp8.py"},
    ),
    "_model_mapping": ("the class that belongs to a config", {"export/verify/logits.py"}),
    "_name_or_path": ("the name in a record; read with a default", {"quant/layers.py"}),
    "_weight_conversions": ("how runtime names become those on disk; read with a default", {"compat/merged.py"}),
    "_clip_grad_norm": ("Trainer's method, extended: no callback sees the gradients' norm", {"training/trainer.py"}),
    "_maybe_log_save_evaluate": ("Trainer's method, extended: the step's own figures", {"training/trainer.py"}),
    "_prepare_inputs": ("Trainer's own placing of a batch", {"training/trainer.py"}),
    # accelerate
    "_hf_hook": ("whether accelerate hangs on a module; asked with a default", {"blocks/projections.py"}),
    "_set_sync_gradients": ("accumulation that Trainer does not know of", {"training/trainer.py"}),
    # torch
    "_apply": ("torch's documented way to see a module being moved", {"loading/eight_bit.py"}),
    "_backward_hooks": ("whether a module may be fused", {"blocks/projections.py"}),
    "_forward_hooks": ("whether a module may be fused", {"blocks/apply.py", "blocks/projections.py"}),
    "_forward_pre_hooks": ("whether a module may be fused", {"blocks/projections.py"}),
    "_is_fsdp_managed_module": ("whether FSDP holds a module; asked with a default", {"blocks/projections.py"}),
    "_version": ("whether a tensor was changed in place", {"blocks/projections.py"}),
    # tokenizers of people who come from Unsloth
    "_ollama_modelfile": ("left there by a script; read with a default", {"compat/apply_template.py"}),
    "_instruction_part": ("left there by a script; read with a default", {"compat/apply_template.py"}),
    "_response_part": ("left there by a script; read with a default", {"compat/apply_template.py"}),
}


def trees() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(SRC.rglob("*.py")):
        yield str(path.relative_to(SRC)), ast.parse(path.read_text(encoding="utf-8"))


def private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Private names that a file imports from others."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] not in ("hasten", "__future__") and any(private(part) for part in parts):
                yield name


def defined(tree: ast.AST) -> Iterator[str]:
    """Private names that a file makes: functions, variables, fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "ctx"):
                yield node.attr


def read(tree: ast.AST, ours: set[str]) -> Iterator[str]:
    """Private attributes of others: by name, in `getattr(x, "_name")`, and through `super()` whoever defines it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            extended = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "super"
            if extended or node.attr not in ours:
                yield node.attr
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr")
            and isinstance(node.args[1], ast.Constant)
            and private(str(node.args[1].value))
            and node.args[1].value not in ours
        ):
            yield str(node.args[1].value)


def test_no_private_name_is_imported():
    assert {file: list(imported(tree)) for file, tree in trees() if list(imported(tree))} == {}


def test_private_attributes_of_others_are_those_listed():
    ours = {name for _, tree in trees() for name in defined(tree)}
    found: dict[str, set[str]] = {}
    for file, tree in trees():
        for name in read(tree, ours):
            found.setdefault(name, set()).add(file)
    assert found == {name: files for name, (_, files) in ATTRIBUTES.items()}


def test_the_rule_itself():
    source = (
        "import trl._x\nfrom peft.utils import _y\ndef f(self):\n  super()._a(); m._b; getattr(m, '_c', 0); self._own"
    )
    tree = ast.parse(source)
    assert list(imported(tree)) == ["trl._x", "peft.utils._y"]
    assert sorted(read(tree, {"_own", "_a"})) == ["_a", "_b", "_c"]

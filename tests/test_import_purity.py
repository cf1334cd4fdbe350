"""Importing hasten loads nothing heavy, and neither importing nor using it changes anything of another library.

Two exceptions, by design: packed attention adds one entry, `hasten_packed`, to transformers' own table of attention
functions, and loading in 8-bit floats one, `hasten_fp8`, to its tables of quantizers, through the extension points that
are made for it (`AttentionInterface.register`, `register_quantizer`), when they are first used.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import hasten

SCRIPT = Path(__file__).parent / "support" / "purity_script.py"
HEAVY = {
    "torch",
    "transformers",
    "triton",
    "bitsandbytes",
    "peft",
    "trl",
    "datasets",
    "accelerate",
    "safetensors",
    "numpy",
}
LIGHT = [
    "hasten",
    "hasten.errors",
    "hasten.schema",
    "hasten.plan",
    "hasten.hardware.probe",
    "hasten.families.base",
    "hasten.loading.source",
    "hasten.data.sources",
    "hasten.data.formats",
    "hasten.training.config",
]


def run(*arguments):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_light_modules_load_nothing_heavy():
    program = (
        "import importlib, json, sys\nfound = {}\n"
        f"for name in {LIGHT!r}:\n"
        "    importlib.import_module(name)\n"
        "    found[name] = [heavy for heavy in sys.argv[1:] if heavy in sys.modules]\n"
        "print(json.dumps(found))"
    )
    assert run("-c", program, *sorted(HEAVY)) == {name: [] for name in LIGHT}


def test_every_public_name_is_there():
    for name in hasten.__all__:
        assert getattr(hasten, name) is not None
    assert set(dir(hasten)) == set(hasten.__all__)
    with pytest.raises(AttributeError, match="module 'hasten' has no attribute 'FastLanguageModle'"):
        hasten.FastLanguageModle  # noqa: B018


def test_public_names_for_type_checkers_are_the_same():
    """What a type checker reads in `if TYPE_CHECKING` is what `__getattr__` gives."""
    import ast

    tree = ast.parse(Path(hasten.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    declared = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert declared == hasten._HOME


@pytest.mark.slow
def test_nothing_is_changed_after_any_of_the_others():
    report = run(str(SCRIPT), "all")
    assert [entry for entry in report if entry["found"]] == []
    loaded = {tuple(entry["before"]): set(entry["loaded"]) for entry in report if "before" in entry}
    assert len(loaded) == 7 and len([entry for entry in report if "order" in entry]) == 7
    # With these, any choice of the four loads one of the seven sets.
    assert set() == loaded[()] < loaded["torch",] < loaded["transformers",]
    assert loaded["torch",] < loaded["peft",] < loaded["trl",]
    assert loaded["transformers", "peft"] == loaded["transformers",] | loaded["peft",]
    assert loaded["transformers", "trl"] == loaded["transformers",] | loaded["trl",]


def test_nothing_is_changed_by_training(tiny_model_folder):
    report = run(str(SCRIPT), "step", str(tiny_model_folder))
    assert report == {"found": [], "moved": True, "added": ["hasten_packed"]}


def test_the_watchman_is_awake():
    """The script finds a replaced function, a method and an import hook; otherwise the tests above say nothing."""
    program = (
        f"import json, sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import purity_script as watch\n"
        "watch.load('torch'); import torch; before = watch.snapshot()\n"
        "torch.nn.functional.gelu = lambda x: x\n"
        "torch.nn.Module.half = lambda self: self\n"
        "sys.meta_path.append(object())\n"
        "def forward(): pass\n"
        "forward.__module__ = 'hasten.compat.x'; torch.nn.functional.new = forward\n"
        "print(json.dumps([watch.differences(before), watch.ours()]))"
    )
    replaced, ours = run("-c", program)
    assert set(replaced) == {"meta_path", "torch.nn.functional.gelu", "torch.nn.modules.module.Module.half"}
    assert ours == ["torch.nn.functional.new"]

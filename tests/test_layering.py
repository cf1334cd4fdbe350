"""Imports point one way, wherever in a file they stand, and every module has its tests."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "hasten"
TESTS = Path(__file__).parent

# A unit may import what stands in an earlier row, and itself. Units of one row know nothing of each other.
LAYERS = [
    ["errors"],
    ["cache", "schema", "files", "policies", "storage"],
    ["hardware", "families", "kernels"],
    ["plan", "loading", "data", "runs"],
    ["blocks", "lora", "objectives", "generate", "report"],
    ["training", "quant", "estimate"],
    ["export"],
    ["compat"],
    ["cli"],
    ["__main__"],
]
# `hasten/__init__.py` names what it loads on first use; it is the door, not a layer.
DOOR = "__init__.py"
# What may be read from the door itself: the version.
FROM_DOOR = {"__version__"}

# Modules without a test file of their own name: the file that tests them as part of something larger.
TESTED_BY = {
    "__init__.py": "test_import_purity.py",
    "blocks/attention_half.py": "families/test_parity.py",
    "blocks/factors.py": "blocks/test_projections.py",
    "blocks/head.py": "families/test_parity.py",
    "blocks/layer.py": "blocks/test_apply.py",
    "blocks/mlp_half.py": "families/test_parity.py",
    "blocks/norms.py": "families/test_parity.py",
    "blocks/operand.py": "blocks/test_projections.py",
    "cli/cache.py": "cli/test_cache_command.py",
    "cli/chat.py": "cli/test_train_command.py",
    "cli/doctor.py": "cli/test_doctor_command.py",
    "cli/data.py": "cli/test_data_command.py",
    "cli/export.py": "cli/test_export_command.py",
    "cli/demo.py": "cli/test_demo_command.py",
    "cli/output.py": "cli/test_main.py",
    "cli/plan.py": "cli/test_plan_command.py",
    "cli/quantize.py": "cli/test_quantize_command.py",
    "cli/quiet.py": "cli/test_main.py",
    "cli/run.py": "cli/test_run_command.py",
    "cli/runs.py": "cli/test_runs_commands.py",
    "cli/show.py": "cli/test_runs_commands.py",
    "cli/stop.py": "cli/test_runs_commands.py",
    "cli/train.py": "cli/test_train_command.py",
    "cli/verify.py": "cli/test_verify_command.py",
    "compat/__init__.py": "compat/test_namespace.py",
    "compat/binding.py": "compat/test_signatures.py",
    "compat/dtypes.py": "compat/test_loaders.py",
    "compat/fast.py": "compat/test_adapters.py",
    "compat/later.py": "compat/test_saving.py",
    "compat/markers.py": "compat/test_responses.py",
    "compat/merged.py": "compat/test_saving.py",
    "compat/modes.py": "compat/test_adapters.py",
    "compat/named_templates.py": "compat/test_chat_template.py",
    "compat/notes.py": "compat/test_namespace.py",
    "compat/offered.py": "compat/test_namespace.py",
    "compat/origin.py": "compat/test_saving.py",
    "compat/small.py": "compat/test_namespace.py",
    "compat/stand_ins.py": "compat/test_script.py",
    "compat/target_choice.py": "compat/test_adapters.py",
    "export/dressed.py": "export/test_job.py",
    "export/hf/adapter_file.py": "export/hf/test_merged.py",
    "export/hf/card.py": "export/hf/test_write.py",
    "export/hf/ends.py": "export/hf/test_merged.py",
    "export/hf/experts.py": "export/hf/test_merged.py",
    "export/hf/low_rank.py": "export/hf/test_merged.py",
    "export/hf/placing.py": "export/hf/test_merged.py",
    "export/hf/settings.py": "export/hf/test_write.py",
    "export/hf/shards.py": "export/hf/test_write.py",
    "export/ollama/chat_parts.py": "export/ollama/test_translate.py",
    "export/ollama/compose.py": "export/ollama/test_translate.py",
    "export/ollama/go_functions.py": "export/ollama/test_go_template.py",
    "export/ollama/go_lexer.py": "export/ollama/test_go_template.py",
    "export/ollama/go_syntax.py": "export/ollama/test_go_template.py",
    "export/ollama/go_values.py": "export/ollama/test_go_template.py",
    "export/ollama/proof.py": "export/ollama/test_translate.py",
    "export/ollama/tool_proof.py": "export/ollama/test_tool_parts.py",
    "export/prove.py": "export/test_job.py",
    "export/verify/checks.py": "export/test_job.py",
    "hardware/checks/compiler.py": "hardware/test_doctor.py",
    "hardware/checks/driver.py": "hardware/test_doctor.py",
    "hardware/checks/surroundings.py": "hardware/test_doctor.py",
    "hardware/checks/torch.py": "hardware/test_doctor.py",
    "hardware/child.py": "hardware/test_reading.py",
    "hardware/finding.py": "hardware/test_doctor.py",
    "loading/gguf_cuts.py": "loading/test_gguf_tokenizer.py",
    "loading/gguf_names.py": "loading/test_gguf_config.py",
    "loading/gguf_numbers.py": "loading/test_gguf_config.py",
    "loading/plain_adapter.py": "lora/test_initial.py",
    "loading/published_fp8.py": "loading/test_published.py",
    "lora/checkpointing.py": "lora/test_attach.py",
    "training/record.py": "training/test_job.py",
    "training/rows.py": "cli/test_data_command.py",
}


def modules():
    return sorted(path for path in SRC.rglob("*.py") if path.parent.name != "__pycache__")


def unit_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of everything of hasten's that a file imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def of_hasten(tree: ast.AST) -> Iterator[list[str]]:
    return (parts for name in imports(tree) if (parts := name.split("."))[0] == "hasten")


def faults(importer: str, tree: ast.AST, attributes: bool = True) -> list[str]:
    """What an importer may not import."""
    rank = {unit: row for row, units in enumerate(LAYERS) for unit in units}
    found = []
    for parts in of_hasten(tree):
        imported = parts[1] if len(parts) > 1 else None
        if imported is None or imported in FROM_DOOR:
            used = {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hasten"
            }
            found += [f"{importer} reads hasten.{name}" for name in used - FROM_DOOR if name not in rank]
        elif imported not in rank:
            found.append(f"{importer} imports {'.'.join(parts)}, which is in no layer")
        elif imported != importer and rank[imported] >= rank[importer]:
            found.append(f"{importer} imports {'.'.join(parts)}")
    return found


def test_every_unit_has_a_layer():
    units = {unit_of(path) for path in modules() if path != SRC / DOOR}
    assert units == {unit for row in LAYERS for unit in row}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SRC)))
def test_imports_point_down(path):
    if path == SRC / DOOR:
        return
    assert faults(unit_of(path), ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("importer", "source", "fault"),
    [
        ("schema", "from hasten.errors import ConfigError", None),
        ("data", "from hasten.data.formats import x", None),
        ("cli", "from hasten import schema", None),
        ("training", "import hasten\nhasten.__version__", None),
        ("loading", "from hasten.plan import Plan", "loading imports hasten.plan.Plan"),
        ("errors", "def f():\n    from hasten import schema", "errors imports hasten.schema"),
        (
            "data",
            "if TYPE_CHECKING:\n    from hasten.loading.model import Loaded",
            "data imports hasten.loading.model.Loaded",
        ),
        ("schema", "import hasten.files", "schema imports hasten.files"),
        ("training", "from hasten.compat.loaders import x", "training imports hasten.compat.loaders.x"),
        ("data", "import hasten\nhasten.FastModel", "data reads hasten.FastModel"),
        ("data", "from hasten import FastModel", "data imports hasten.FastModel, which is in no layer"),
    ],
)
def test_the_rule_itself(importer, source, fault):
    assert faults(importer, ast.parse(source)) == ([fault] if fault else [])


def has_code(path: Path) -> bool:
    """Whether a file defines a function or has a class with methods; declarations alone need no test of their own."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) for node in ast.walk(tree))


def twin_of(path: Path) -> Path:
    relative = path.relative_to(SRC)
    if len(relative.parts) == 3 and relative.parts[0] == "kernels":  # a kernel's folder is tested as one
        return TESTS / "kernels" / f"test_{relative.parts[1]}.py"
    return TESTS / relative.with_name(f"test_{relative.name}")


def test_every_module_with_code_has_its_tests():
    without = [str(path.relative_to(SRC)) for path in modules() if has_code(path) and not twin_of(path).is_file()]
    assert [name for name in without if name not in TESTED_BY] == []


def test_no_exception_is_out_of_date():
    for module, tests in TESTED_BY.items():
        assert (SRC / module).is_file(), f"{module} is gone"
        assert not twin_of(SRC / module).is_file(), f"{module} has a test file of its own now"
        assert (TESTS / tests).is_file(), f"{tests} is gone"

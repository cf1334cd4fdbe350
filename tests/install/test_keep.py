"""What an installation must leave alone, and how it is told to pip (tools/keep.py)."""

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

PATH = Path(__file__).parents[2] / "tools" / "keep.py"
spec = importlib.util.spec_from_file_location("keep", PATH)
assert spec is not None and spec.loader is not None
keep = importlib.util.module_from_spec(spec)
sys.modules["keep"] = keep  # dataclasses look their module up
spec.loader.exec_module(keep)
Package = keep.Package

# What NVIDIA's PyTorch 25.11 holds, as far as its users have printed it, and some of what lies beside it there.
VENDOR = [
    Package("torch", "2.10.0a0+b558c986e8.nv25.11", ("filelock", "sympy"), compiled=True),
    Package("triton", "3.5.0", compiled=True),
    Package("torchvision", "0.25.0a0+6ac54ef7", ("numpy", "torch"), compiled=True),
    Package("transformer-engine", "2.9.0+70f53666", ("torch",), compiled=True),
    Package("flash-attn", "2.7.4.post1", ("torch", "einops"), compiled=True),
    Package("torch-tensorrt", "2.10.0a0", ("torch",), compiled=True),
    Package("apex", "0.1", ("packaging",), compiled=True),
    Package("nvidia-dali-cuda130", "1.52.0", compiled=True),
    Package("numpy", "2.1.0", compiled=True),
    Package("mamba-ssm", "2.3.0", ("causal-conv1d",), compiled=True),
    Package("causal-conv1d", "1.6.0", ("torch",), compiled=True),
    Package("lightning-thunder", "0.2.6", ("torch",)),
    Package("safetensors", "0.5.3", compiled=True),
    Package("packaging", "23.2"),
    Package("einops", "0.8.1"),
]


def names(packages):
    return [package.name for package in packages]


def test_torch_and_what_is_built_on_it_stays_and_the_rest_may_be_renewed():
    assert names(keep.kept(VENDOR)) == [
        "apex",
        "causal-conv1d",
        "flash-attn",
        "mamba-ssm",
        "numpy",
        "nvidia-dali-cuda130",
        "torch",
        "torch-tensorrt",
        "torchvision",
        "transformer-engine",
        "triton",
    ]


def test_an_environment_without_torch_has_nothing_to_keep():
    assert keep.kept([Package("numpy", "2.1.0", compiled=True), Package("packaging", "23.2")]) == []


def test_constraints_admit_the_installed_version_and_no_other():
    lines = keep.constraints(keep.kept(VENDOR))
    assert "torch==2.10.0a0+b558c986e8.nv25.11" in lines
    torch = Requirement(next(line for line in lines if line.startswith("torch==")))
    assert torch.specifier.contains("2.10.0a0+b558c986e8.nv25.11", prereleases=True)
    for other in ("2.10.0", "2.10.0a0", "2.13.0", "2.10.0a0+b558c986e8.nv25.12"):
        assert not torch.specifier.contains(other, prereleases=True)


def test_our_own_requirement_admits_a_vendors_pre_release_of_the_oldest_torch():
    import tomllib

    project = tomllib.loads((PATH.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    torch = next(r for line in project["dependencies"] if (r := Requirement(line)).name == "torch")
    # PEP 440: 2.10.0a0 comes before 2.10, so that `torch>=2.10` would have it replaced.
    assert torch.specifier.contains("2.10.0a0+b558c986e8.nv25.11", prereleases=True)
    assert not torch.specifier.contains("2.9.1")
    # No upper pin and none at all on what is built on torch: a vendor's builds stay.
    assert {specifier.operator for specifier in torch.specifier} == {">="}
    assert not {Requirement(line).name for line in project["dependencies"]} & {"triton", "bitsandbytes", "torchvision"}


def test_another_name_for_triton_forbids_the_usual_one():
    lines = keep.constraints(keep.kept([*VENDOR[:1], Package("pytorch-triton", "3.3.0+git96316ce5", compiled=True)]))
    assert "pytorch-triton==3.3.0+git96316ce5" in lines
    assert "triton<0  # the module triton is pytorch-triton's" in lines


def test_a_version_that_is_none_is_left_to_the_check():
    lines = keep.constraints(keep.kept([*VENDOR[:1], Package("vendor-lib", "r25-unknown!", compiled=True)]))
    assert lines[-1] == "# vendor-lib r25-unknown!: no version that pip can compare"


@given(st.from_regex(keep._VERSION, fullmatch=True))
def test_every_line_is_one_that_pip_can_read(version):
    """The pattern knows no version that PEP 440 does not."""
    lines = keep.constraints([Package("torch", version)])
    assert Requirement(lines[0]).specifier.contains(version, prereleases=True)


def test_what_became_of_them():
    before = [Package("torch", "2.10.0a0+nv", place="/a", digest="1"), Package("triton", "3.5.0", place="/a")]
    assert keep.differences(before, before) == []
    assert keep.differences(before, before[:1]) == ["triton 3.5.0 is gone"]
    changed = [Package("torch", "2.13.0", place="/a"), before[1]]
    assert keep.differences(before, changed) == ["torch changed from 2.10.0a0+nv to 2.13.0"]
    hidden = [before[0], Package("triton", "3.5.0", place="/b")]
    assert keep.differences(before, hidden) == ["triton 3.5.0 is hidden by a copy in /b"]
    overwritten = [Package("torch", "2.10.0a0+nv", place="/a", digest="2"), before[1]]
    assert keep.differences(before, overwritten) == ["torch 2.10.0a0+nv has other files than before"]


def test_what_became_of_the_modules():
    before = {"torch": "/a/torch/__init__.py", "apex": "failed: no GPU"}
    assert keep.import_differences(before, before) == []
    assert keep.import_differences(before, {"torch": "/b", "apex": "failed: other"}) == [
        "import torch gives '/b', not '/a/torch/__init__.py' as before"
    ]
    assert keep.import_differences(before, {"torch": "failed: no libcudart", "apex": "/a"}) == [
        "import torch gives 'failed: no libcudart', not '/a/torch/__init__.py' as before"
    ]


def test_reads_this_environment():
    found = {package.name: package for package in keep.installed()}
    assert found["torch"].modules and found["torch"].compiled and "sympy" in found["torch"].needs
    assert not found["peft"].compiled and "torch" in found["peft"].needs
    assert "torch" in names(keep.kept(found.values()))
    assert "peft" not in names(keep.kept(found.values()))


@pytest.mark.parametrize(("name", "normal"), [("Flash_Attn", "flash-attn"), ("a.-b", "a-b"), ("torch", "torch")])
def test_names_are_compared_as_pip_does(name, normal):
    assert keep.normalized(name) == normal

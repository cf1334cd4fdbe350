"""Each check of a verification run, passed and failed."""

import math

import pytest
import torch
from safetensors.torch import save_file

from hasten.training.verdict import adapter_check, fallback_check, learning_check, noted_fallbacks, reload_check

ONE = "base_model.model.layers.0.q_proj.lora_{}.weight"
KERNELS = {"part": "kernels", "choice": "plain torch", "why": "Triton is not installed", "fallback": True}
MODULES = {"part": "modules", "choice": "generic", "why": "no family", "fallback": True}


@pytest.mark.parametrize(
    ("losses", "passed"),
    [([4.0, 3.0, 2.0, 2.0, 2.0], True), ([4.0, 2.0, 2.0, 2.1], False), ([4.0, 2.1], False), ([4.0, math.nan], False)],
)
def test_the_loss_falls_by_half(losses, passed):
    check = learning_check(losses)
    assert check.passed is passed and f"loss {losses[0]:.4f} -> " in check.found and "50%" in check.rule


def test_a_run_that_was_stopped_proves_nothing():
    assert not learning_check([4.0, 1.0, 1.0, 1.0], whole=False).passed
    assert not learning_check([]).passed and not learning_check([3.0]).passed
    assert learning_check([3.0, 0.1]).passed, "the first step is not among the last"


@pytest.mark.parametrize(
    ("a", "b", "fault"),
    [(1.0, 1.0, None), (1.0, 0.0, "1 of 2 tensors zero"), (math.inf, 1.0, "1 of 2 tensors not finite"),
     (1.0, math.nan, "1 of 2 tensors not finite")],
)  # fmt: skip
def test_the_adapter_is_finite_and_not_zero(tmp_path, a, b, fault):
    tensors = {ONE.format("A"): torch.full((2, 3), a), ONE.format("B"): torch.full((3, 2), b)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    check = adapter_check(tmp_path)
    assert check.passed is (fault is None) and (fault or "2 tensors") in check.found


def test_an_adapter_that_cannot_be_read(tmp_path):
    assert not adapter_check(tmp_path).passed
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nonsense")
    assert "cannot be read" in adapter_check(tmp_path).found
    save_file({}, tmp_path / "adapter_model.safetensors")
    assert adapter_check(tmp_path).found == "it is empty"


def test_answers():
    assert [reload_check(equal).passed for equal in (True, False, None)] == [True, False, True]


def test_fallbacks_of_the_installation_fail_and_those_of_the_model_are_noted():
    assert fallback_check([MODULES, {**KERNELS, "fallback": False}]).passed
    assert "Triton is not installed" in fallback_check([KERNELS, MODULES]).found
    assert noted_fallbacks([KERNELS, MODULES], ["no room"]) == ["modules: generic: no family", "no room"]

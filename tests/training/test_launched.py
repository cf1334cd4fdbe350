"""A launched step's numbers, and the times of the device's work."""

import time

import pytest
import torch

from hasten.training.launched import LaunchedStep, Moment, StepCounts

CPU = torch.device("cpu")


def test_on_a_cpu_a_moment_is_a_time():
    first = Moment(CPU)
    time.sleep(0.01)
    second = Moment(CPU)
    second.wait()
    assert 0.01 <= second.seconds_since(first) < 1


# A step without gradients has a norm of its own making, float32 on the processor.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_keeps_its_numbers(dtype):
    began = Moment(CPU)
    loss = torch.tensor(1.5, dtype=dtype)
    counts = StepCounts(supervised=7, real=9, started=Moment(CPU))
    step = LaunchedStep(
        number=3, epoch=0.5, learning_rate=0.1, counts=counts, loss=loss, grad_norm=torch.tensor(float("inf"))
    )
    loss.zero_()  # the trainer reuses its sum
    entry = step.read(began)
    assert 0 < entry.pop("step_s") < entry.pop("elapsed_s")
    assert entry == {
        "loss": 1.5,
        "grad_norm": float("inf"),
        "learning_rate": 0.1,
        "supervised_tokens": 7,
        "real_tokens": 9,
    }

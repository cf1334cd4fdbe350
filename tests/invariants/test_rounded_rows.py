"""Lengthening packed rows to round sizes changes neither loss nor gradients (it is done on GPUs alone)."""

import pytest
import torch

from hasten.blocks.apply import apply
from support import stepping

EQUAL = 1e-5
"""float32 sums of the same terms over matrices of another size."""


def step(folder, *, fast, rounded, lengths, masked=()):
    """Loss and gradients of one step."""
    model = stepping.adapted()
    if fast:
        assert apply(model).complete
    trainer = stepping.trainer(
        folder, stepping.documents(lengths, masked=masked), model=model, budget=70, rounded=rounded
    )
    inputs = trainer.step_inputs([[row] for row in range(len(lengths))])
    loss = trainer.training_step(model, inputs)
    sizes = [batch["input_ids"].shape[1] for batch in inputs["micro_batches"]]
    return loss, {name: each.grad for name, each in model.named_parameters() if each.grad is not None}, sizes


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("lengths", "masked"), [(stepping.UNEVEN, ()), ((9, 9), (0,)), ((30, 50, 11), (2,))])
def test_a_rounded_step_is_the_step(tmp_path, fast, lengths, masked):
    loss, gradients, sizes = step(tmp_path, fast=fast, rounded=False, lengths=lengths, masked=masked)
    again, rounded_gradients, rounded_sizes = step(tmp_path, fast=fast, rounded=True, lengths=lengths, masked=masked)
    assert rounded_sizes != sizes and all(size % 128 == 0 for size in rounded_sizes)
    torch.testing.assert_close(again, loss, rtol=EQUAL, atol=0)
    assert gradients.keys() == rounded_gradients.keys() and gradients
    for name, gradient in gradients.items():
        assert (rounded_gradients[name] - gradient).norm() <= EQUAL * gradient.norm()

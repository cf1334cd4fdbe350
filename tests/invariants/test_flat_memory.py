"""Memory does not grow with held-out rows or with steps (A23)."""

import gc
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import TrainerCallback

from hasten.generate import answer
from support import stepping, tiny

VOCABULARY = 32_000
LENGTH, BUDGET = 4, 64


class Live(TorchDispatchMode):
    """Bytes of tensors made while it is on, and the most that were there at once."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self.known:
                self.known.add(storage)
                size = storage.nbytes()
                self.bytes += size
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self.freed, size)
        return made

    def freed(self, size):
        self.bytes -= size


def wide():
    return stepping.adapted(vocab=VOCABULARY)


def peak_of_evaluation(folder, rows):
    trainer = stepping.trainer(
        folder, stepping.documents(), model=wide(), budget=BUDGET, heldout=stepping.documents([LENGTH] * rows)
    )
    with Live() as live:
        assert trainer.heldout_loss() > 0
    return live.peak


def test_a23_evaluation_takes_no_more_for_more_rows(tmp_path):
    few, many = (peak_of_evaluation(tmp_path, rows) for rows in (64, 256))
    assert few > BUDGET * VOCABULARY * 2, "the logits of a micro-batch were seen, in 16 bits or more"
    assert many <= 1.1 * few


class Counted(TrainerCallback):
    """Evaluates, generates and counts the tensors that are alive."""

    def __init__(self, trainer):
        self.trainer, self.tokenizer, self.at = trainer, tiny.tokenizer(), {}

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step % 20 == 0:
            self.trainer.evaluate()
            answer(model, self.tokenizer, [{"role": "user", "content": "one"}], max_new_tokens=4)
            gc.collect()
            self.at[state.global_step] = sum(isinstance(each, torch.Tensor) for each in gc.get_objects())


def test_a23_steps_leave_no_tensors(tmp_path):
    trainer = stepping.trainer(
        tmp_path, stepping.documents(), max_steps=60, layout="padded", heldout=stepping.documents([LENGTH] * 4),
        optim="adamw_torch",
    )  # fmt: skip
    counted = Counted(trainer)
    trainer.add_callback(counted)
    trainer.train()
    assert counted.at[20] > 0 and counted.at[20] == counted.at[40] == counted.at[60]
    assert sum("loss" in entry for entry in trainer.state.log_history) == 60

"""Requests from outside: save, evaluate, stop."""

from pathlib import Path

from hasten.runs.folder import RunFolder
from hasten.training import job as jobs
from hasten.training.checkpoints import last_checkpoint
from hasten.training.config import combine


def test_save_and_evaluate_are_done_at_the_next_step(tiny_values, tmp_path, monkeypatch):
    from transformers import TrainerCallback

    output = tmp_path / "asked"

    class Ask(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                for name in ("save", "evaluate"):
                    (Path(output) / "control" / name).touch()

    original = jobs.make_trainer

    def with_request(job, checkpoints):
        trainer = original(job, checkpoints)
        trainer.add_callback(Ask())
        return trainer

    monkeypatch.setattr(jobs, "make_trainer", with_request)
    result = jobs.train(combine(tiny_values, {"output": str(output)}))
    run = RunFolder.open(output)
    assert result.steps == 4 and not result.stopped
    assert last_checkpoint(run.checkpoints) == run.checkpoints / "checkpoint-2"
    measured = {row["step"]: row["heldout_loss"] for row in run.metrics() if "heldout_loss" in row}
    assert sorted(measured) == [0, 2, 4]
    assert list(run.control.iterdir()) == []

"""What happens between steps: metrics and status are recorded, and requests are taken."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hasten.hardware.probe import Hardware, peak_bytes
from hasten.report.progress import TrainingProgress
from hasten.runs import control as run_control
from hasten.runs.folder import RunFolder
from hasten.runs.status import StatusWriter
from hasten.training.checkpoints import mark
from hasten.training.guard import Guard
from hasten.training.trainer import SftTrainer


class Recorder(TrainerCallback):
    """Writes every step to the run folder and the progress display."""

    def __init__(self, *, run: RunFolder, status: StatusWriter, progress: TrainingProgress, hardware: Hardware) -> None:
        self.run, self.status, self.progress, self.hardware = run, status, progress, hardware
        self.losses: list[float] = []
        self.supervised = self.real = 0
        self.train_s = 0.0
        self.first_at: float | None = None
        """When the first step's numbers were there, on `time.perf_counter`'s clock."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tell the readers where we are."""
        self.status.set(step=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append one row of metrics."""
        logs = logs or {}
        if "heldout_loss" in logs:
            self.run.log_metrics({"step": state.global_step, "heldout_loss": logs["heldout_loss"]})
        if "loss" not in logs:
            return
        self.first_at = self.first_at or time.perf_counter()
        loss, step_s = logs["loss"], max(logs["step_s"], 1e-9)  # a GPU's clock ticks in half microseconds
        self.losses.append(loss)
        self.train_s += step_s  # evaluation and saving are not training time
        self.supervised += int(logs["supervised_tokens"])
        self.real += int(logs["real_tokens"])
        speed = logs["supervised_tokens"] / step_s
        self.run.log_metrics(
            {
                "step": state.global_step,
                "loss": loss,
                "learning_rate": logs["learning_rate"],
                "grad_norm": logs["grad_norm"],
                "supervised_tokens_per_s": speed,
                "real_tokens_per_s": logs["real_tokens"] / step_s,
                "peak_bytes": peak_bytes(self.hardware),
                "elapsed_s": logs["elapsed_s"],
            }
        )
        self.progress.update(state.global_step, loss, speed)


class Requests(TrainerCallback):
    """Takes what readers ask of the running job through the run's control folder."""

    def __init__(self, run: RunFolder, status: StatusWriter) -> None:
        self.run, self.status = run, status
        self.stopped = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save, evaluate or stop after this step."""
        asked = run_control.take(self.run)
        control.should_save = control.should_save or bool(asked & {"save", "stop"})
        control.should_evaluate = control.should_evaluate or "evaluate" in asked
        if "stop" in asked:
            self.stopped = control.should_training_stop = True
            self.status.set(state="stopping", message="asked to stop")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint as complete: the marker is the last file written."""
        if state.is_world_process_zero:
            mark(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")


def trainer_callbacks(trainer: SftTrainer, recorder: Recorder, requests: Requests) -> None:
    """Attach our callbacks to a trainer, the recorder first: what the guard refuses is on record."""
    for callback in (recorder, Guard(scaled=trainer.accelerator.scaler is not None), requests):
        trainer.add_callback(callback)

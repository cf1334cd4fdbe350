"""The trainer: `transformers.Trainer` with four things of ours.

1. One batch is one optimizer step (`hasten.training.steps`): its documents are cut into the fewest micro-batches, and
   the loss is the token mean of the whole step (`SftLoss` through the official ``compute_loss_func``). So
   transformers' own accumulation is always 1; the user's is part of how many rows a step reads.
2. Held-out loss is a token mean too (the stock evaluation averages batches), computed by the same code.
3. It counts the learnt and the real tokens of each step, because speed is reported in learnt tokens.
4. Every step is logged, and none waits for the device (`hasten.training.launched`): on a GPU a step's entry is written
   when the next step has been launched, or before anything is evaluated or saved.

Composability: everything else (resume, schedules, DDP, FSDP) is transformers' and accelerate's own. Under DDP each rank
computes its share of the step; gradients are exchanged with the last micro-batch only.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainingArguments

from hasten.blocks.apply import forget_offloaded, gives_loss, replay_state
from hasten.blocks.packed_attention import packed_attention
from hasten.data.packing import Example, PackedCollator, PaddedCollator
from hasten.hardware.probe import shares_memory
from hasten.objectives.sft import SftLoss, summed_loss
from hasten.plan import Plan
from hasten.training.launched import LaunchedStep, Moment, StepCounts
from hasten.training.replay import Replay
from hasten.training.steps import EachAlone, Rows, StepCollator, StepLoader, Steps

_WHOLE = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
"""How a model is spread that every process has whole."""


class Arguments(TrainingArguments):
    """Training arguments for one device per process: several visible GPUs never become a silent DataParallel."""

    @property
    def n_gpu(self) -> int:
        """At most one; more processes are torchrun's business."""
        return min(super().n_gpu, 1)


class SftTrainer(Trainer):
    """Supervised fine-tuning on prepared documents.

    Args:
        model: a `PeftModel` or a plain transformers model.
        args: training arguments; ``per_device_train_batch_size`` counts rows, ``gradient_accumulation_steps`` stays 1.
        plan: decides the layout of micro-batches.
        train_examples: documents to train on.
        heldout_examples: documents to measure on.
        pad_id: padding id for padded rows.
        token_budget: most tokens of a packed micro-batch; one document may have more.
        accumulation: how many times the rows of ``per_device_train_batch_size`` make a step.
        rows: for each training row the indices of its documents; None is each document alone.
        replayed_tokens: micro-batches of at most so many tokens are recorded and replayed (`hasten.training.replay`).
        **kwargs: handed to `transformers.Trainer`.
    """

    def __init__(
        self,
        *,
        model: Any,
        args: Arguments,
        plan: Plan,
        train_examples: Sequence[Example],
        heldout_examples: Sequence[Example],
        pad_id: int,
        token_budget: int,
        accumulation: int = 1,
        rows: Rows | None = None,
        replayed_tokens: int = 0,
        **kwargs: Any,
    ) -> None:
        assert args.gradient_accumulation_steps == 1, "a step is one batch; accumulation is an argument of its own"
        self.plan = plan
        self.counts = StepCounts()
        self._began: Moment | None = None
        self._launched: deque[LaunchedStep] = deque()
        self._trained: list[torch.nn.Parameter] | None = None
        self.replayed_tokens = replayed_tokens
        self.replay: Replay | None = None
        self.late = 1 if args.device.type == "cuda" else 0
        """How many launched steps may still be on the device when the next one has been; only then they are logged."""
        self._just_skipped = False
        self.skipped_steps = 0
        """Steps without learnt tokens: nothing was computed for them, and no weight changed."""
        packed = plan.layout == "packed"
        self.micro_batch = PackedCollator(rounded=plan.rounded) if packed else PaddedCollator(pad_id)
        super().__init__(
            model=model,
            args=args,
            train_dataset=EachAlone(len(train_examples)) if rows is None else rows,  # type: ignore[arg-type]
            eval_dataset=heldout_examples,  # type: ignore[arg-type]  # any sized sequence is a dataset
            compute_loss_func=SftLoss(),
            **kwargs,
        )
        steps = Steps(
            batch_size=args.per_device_train_batch_size,
            accumulation=accumulation,
            layout=plan.layout,
            token_budget=token_budget,
            ranks=args.world_size,
            seed=args.seed if args.data_seed is None else args.data_seed,
        )
        # Held-out documents are measured whole on every rank.
        whole = replace(steps, batch_size=args.per_device_eval_batch_size, ranks=1)
        self.step_inputs = StepCollator(train_examples, steps, self.micro_batch, args.process_index)
        self.heldout = StepCollator(heldout_examples, whole, self.micro_batch)

    def get_train_dataloader(self) -> StepLoader:
        """One batch per optimizer step; every rank draws the same one, so accelerate has nothing to divide."""
        return StepLoader(
            self.train_dataset,  # type: ignore[arg-type]
            self.step_inputs,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory
            and self.args.device.type == "cuda"
            and not shares_memory(self.args.device),
        )

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """The context in which the model reads micro-batches of this plan's layout."""
        return packed_attention(self.model) if self.plan.layout == "packed" else contextlib.nullcontext()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' training, in the context in which the model reads this plan's micro-batches."""
        with self.reading():
            self._trained, self.replay = None, None
            try:
                return super().train(*args, **kwargs)
            finally:
                if self.replay is not None:
                    self.replay.close()

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One optimizer step's forwards and backwards; its tokens are counted.

        Args:
            model: as transformers wrapped it.
            inputs: `StepInputs`.
            num_items_in_batch: not used; a step knows its own number.

        Returns:
            The step's loss (this rank's share of it, times the ranks: transformers logs their mean).
        """
        self.counts.started = self.counts.started or Moment(self.args.device)
        self._began = self._began or self.counts.started
        tokens: int = inputs["supervised"]
        self.counts.supervised += tokens
        self.counts.real += inputs["real"]
        loss = torch.zeros((), device=self.args.device)
        self._forget_skipped()
        if not tokens:
            return self._skipped(loss)
        if not model.training:
            model.train()
        *first, last = inputs["micro_batches"]
        replay = self._replay(model)
        with self.reading():
            if replay is not None:
                for micro_batch in inputs["micro_batches"]:
                    loss += replay.run(self._named(micro_batch), tokens)
                return loss
            # On the device, as where steps are replayed: torch divides by a plain number with another rounding.
            divisor = torch.full((), tokens, device=self.args.device)
            for micro_batch in first:
                with self.accelerator.no_sync(model):
                    loss += self._forward_backward(model, self._for_model(micro_batch), divisor)
            loss += self._forward_backward(model, self._for_model(last), divisor)
        return loss

    def _replay(self, model: Any) -> Replay | None:
        """The recordings of this model's micro-batches, where there may be some."""
        if not self.replayed_tokens or self.accelerator.distributed_type != DistributedType.NO:
            return None
        if self.replay is None:
            self.replay = Replay(
                lambda inputs, tokens: self._forward_backward(model, inputs, tokens),
                self._parameters(model),
                replay_state(self.model),
                lambda inputs: inputs["input_ids"].numel() <= self.replayed_tokens,
                lambda: forget_offloaded(self.model),
            )
        return self.replay

    @property
    def replay_refused(self) -> set[str]:
        """Why micro-batches were not replayed although they should have been; at most one reason."""
        why = "" if self.replay is None else self.replay.stopped or self.replay.full
        return {f"launched one by one: {why}"} if why else set()

    def _forward_backward(self, model: Any, inputs: dict[str, Any], tokens: torch.Tensor) -> torch.Tensor:
        """One micro-batch's share of the loss, its gradients added up.

        transformers' own training step sets every module's mode first, a walk over thousands of them each time.
        """
        with self.compute_loss_context_manager():
            loss: torch.Tensor = self.compute_loss(model, dict(inputs), num_items_in_batch=tokens)  # type: ignore[arg-type, assignment]
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self.accelerator.backward(loss, **({"scale_wrt_gas": False} if deepspeed else {}))
        return loss.detach()

    def _parameters(self, model: Any) -> list[torch.nn.Parameter]:
        """The trained ones; looked for once."""
        if self._trained is None:
            self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return self._trained

    def _clip_grad_norm(self, model: Any) -> Any:
        """The gradient's length before clipping, as transformers gives it; only trained parameters are walked over.

        Those who shard the model compare its parameters with what they are given, and get all of them.
        """
        if self.accelerator.distributed_type not in _WHOLE:
            return super()._clip_grad_norm(model)
        return self.accelerator.clip_grad_norm_(self._parameters(model), self.args.max_grad_norm)

    def _skipped(self, loss: torch.Tensor) -> torch.Tensor:
        """No forward, no gradient, and accelerate's optimizer leaves out a step whose gradients are not complete."""
        self.skipped_steps += 1
        self._just_skipped = True
        self.accelerator.gradient_state._set_sync_gradients(False)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.scale(loss)  # makes its state, which clipping reads even without gradients
        return loss

    def _forget_skipped(self) -> None:
        """A loss scaler counts on an update after each clipping; it gets the one that a skipped step left out."""
        if self._just_skipped and self.accelerator.scaler is not None:
            self.accelerator.scaler.update(self.accelerator.scaler.get_scale())
        self._just_skipped = False

    def _for_model(self, micro_batch: dict[str, Any]) -> dict[str, Any]:
        """The model's inputs on the device: transformers' own copy would wait for all work launched before it."""
        return {
            name: value.to(self.args.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in self._named(micro_batch).items()
        }

    def _named(self, micro_batch: dict[str, Any]) -> dict[str, Any]:
        """The model's inputs; a fast head gets its targets, and gives the loss without logits."""
        inputs = {name: value for name, value in micro_batch.items() if name != "counts"}
        if "logits_to_keep" in inputs and gives_loss(self.model):
            inputs["hasten_targets"] = inputs["labels"]
        return inputs

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not estimated: transformers' estimate is that of training every weight."""
        return 0

    def take_counts(self) -> StepCounts:
        """What the step at hand has read so far; a copy."""
        return replace(self.counts)

    def _maybe_log_save_evaluate(
        self,
        tr_loss: torch.Tensor,
        grad_norm: torch.Tensor | float | None,
        *args: Any,
        learning_rate: float | None = None,
        **kwargs: Any,
    ) -> None:
        """The end of a step or an epoch: a step's numbers set out, and those that are there are logged.

        Whatever is evaluated or written comes after the log of all steps before it; so bad numbers stop the run first.
        """
        control, late = self.control, 0
        if self.counts.started is not None:
            self._launched.append(self._launch(tr_loss, grad_norm, learning_rate))
            late = self.late
        if control.should_evaluate or control.should_save:
            late = 0
        self._log_launched(late)
        self.control.should_log = False  # transformers' own log of the step would wait for the device
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, learning_rate=learning_rate, **kwargs)

    def _launch(
        self, tr_loss: torch.Tensor, grad_norm: torch.Tensor | float | None, learning_rate: float | None
    ) -> LaunchedStep:
        """The step that has just been launched, with the mean of all ranks' losses; the next one's numbers begin."""
        assert grad_norm is not None and learning_rate is not None, "transformers gives both of a step"
        if not isinstance(grad_norm, torch.Tensor):  # DeepSpeed has read it already
            grad_norm = torch.tensor(grad_norm)
        launched = LaunchedStep(
            number=self.state.global_step,
            epoch=self.state.epoch,
            learning_rate=learning_rate,
            counts=self.counts,
            loss=self.accelerator.reduce(tr_loss, reduction="mean"),  # type: ignore[arg-type]
            grad_norm=grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm,
        )
        self.counts = StepCounts()
        tr_loss.zero_()  # it is the sum of all losses that were not logged
        return launched

    def _log_launched(self, late: int) -> None:
        """Log steps in their order, all but the `late` ones, with the state that transformers was in after each."""
        while len(self._launched) > late:
            step, state = self._launched.popleft(), self.state
            now = state.global_step, state.epoch
            state.global_step, state.epoch = step.number, step.epoch
            assert self._began is not None, "a step was launched"
            entry = step.read(self._began)
            self._total_loss_scalar += entry["loss"]  # transformers' mean over the whole run is of what was logged
            self.log(entry)
            state.global_step, state.epoch = now

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The held-out loss, as the log entry `heldout_loss`."""
        metrics = {"heldout_loss": self.heldout_loss()}
        self.log(metrics)
        return metrics

    def heldout_loss(self) -> float:
        """Token mean over all held-out documents, computed by the training's own code.

        Returns:
            nats per learnt token; NaN when there are no held-out documents.
        """
        from hasten.generate import inference_mode

        total, tokens = 0.0, int(self.heldout.supervised.sum())
        with inference_mode(self.model), self.reading(), self.accelerator.autocast():
            for micro_batch in self.heldout.micro_batches(range(len(self.heldout.lengths))):
                inputs = self._prepare_inputs(self._for_model(micro_batch))
                labels = inputs.pop("labels")
                total += float(summed_loss(self.model(**inputs), labels))  # type: ignore[misc]
        return total / tokens if tokens else float("nan")

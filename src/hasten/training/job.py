"""The training job: from a configuration to an adapter on disk, with everything about it in one run folder.

Order matters: whatever can be wrong with the user's input is found before the run folder exists, and the run folder
exists before the first expensive step, so a run either never was or can be looked at.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from hasten import schema
from hasten.blocks.apply import Applied, apply, kept_values, refused_in_training, set_policies, widths_of
from hasten.blocks.projections import Compute8
from hasten.data.generation_tag import without_markers
from hasten.data.packing import Example, lengths_of, round_up
from hasten.data.prepare import Prepared, split
from hasten.data.rows import RowSource
from hasten.data.settings import DataSettings
from hasten.data.sources import open_rows
from hasten.errors import ConfigError, DataError, MissingPackageError, StorageError, TrainingError
from hasten.families.base import Family, family_of
from hasten.files import require_writable
from hasten.hardware.memory import Budget
from hasten.hardware.probe import Hardware, free_bytes, memory_budget, peak_bytes, probe
from hasten.hardware.tested import newer_than_tested
from hasten.kernels.choice import has_triton, triton_failure
from hasten.loading.beginning import beginning_in
from hasten.loading.model import Loaded, config_of, load
from hasten.loading.source import DEMO, begins_inside
from hasten.lora.attach import attach, trainable_parameters
from hasten.lora.checkpointing import enable_checkpointing
from hasten.lora.save import refuse_untouched, save_adapter
from hasten.plan import (
    Decision,
    Plan,
    Request,
    choose_activations,
    choose_kernels,
    choose_replay,
    choose_turned,
    choose_watch,
    make_plan,
    say_memory,
    say_products,
)
from hasten.report.console import make_console
from hasten.report.progress import TrainingProgress
from hasten.report.rows_progress import rows_progress
from hasten.runs import control as run_control
from hasten.runs.folder import RunFolder
from hasten.runs.status import StatusWriter
from hasten.storage import asked_storage
from hasten.training import record
from hasten.training.callbacks import Recorder, Requests, trainer_callbacks
from hasten.training.checkpoints import last_checkpoint, left_out
from hasten.training.config import RunConfig
from hasten.training.determinism import deterministic
from hasten.training.rows import model_tokenizer, options_of, prepared_rows
from hasten.training.samples import Sample, answer_all, choose
from hasten.training.signals import job_signals
from hasten.training.steps import Steps, steps_of, steps_report, training_rows
from hasten.training.trainer import Arguments, SftTrainer
from hasten.training.watchdog import Watchdog, host_budget


@dataclass
class Result:
    """What a finished run has to show."""

    run: Path
    adapter: Path
    losses: list[float]
    heldout_loss_before: float
    heldout_loss_after: float
    supervised_tokens_per_s: float
    real_tokens_per_s: float
    peak_bytes: int
    train_s: float
    total_s: float
    steps: int
    stopped: bool
    first_step_s: float | None = None
    """From the start of everything to the first step's numbers; None: no step was made."""
    fallbacks: list[str] = field(default_factory=list)
    """What was slower in training than the header says, and why; empty: nothing."""
    samples: list[Sample] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `result.json` and ``--json``."""
        values = {**vars(self), "run": str(self.run), "adapter": str(self.adapter)}
        values["samples"] = [
            {"prompt": sample.prompt, "before": sample.before, "after": sample.after} for sample in self.samples
        ]
        return values


@dataclass(frozen=True)
class Fitted:
    """The fast modules of a model, and what was decided for them."""

    applied: Applied = field(default_factory=Applied)
    replayed_tokens: int = 0
    decisions: tuple[Decision, ...] = ()


@dataclass
class Job:
    """A run whose inputs are proven: model on the device, adapter attached, rows tokenized."""

    config: RunConfig
    hardware: Hardware
    memory: Budget
    """What the machine had for the run before anything was loaded."""
    family: Family
    plan: Plan
    loaded: Loaded
    model: Any
    training: Prepared
    heldout: Sequence[Example]
    samples: list[Sample]
    data_hash: str
    notes: list[str]
    watched: bool = False
    """Whether the run stops before the machine runs out of memory."""
    rows: list[list[int]] | None = None
    """The documents of each training row; None: each document is a row."""
    fast: Fitted = field(default_factory=Fitted)


def train(
    config: RunConfig,
    *,
    rows: Any = None,
    console: Console | None = None,
    command: str = "train",
    resume: bool = False,
) -> Result:
    """Train an adapter.

    Args:
        config: model, data, adapter, training; see `RunConfig`.
        rows: rows in memory (dicts, a `datasets.Dataset`, an iterable) in place of `config.data.source`.
        console: where people's text goes; None is standard output.
        command: what started it, for the run record.
        resume: continue in `config.output` from its newest complete checkpoint.

    Raises:
        HastenError: its category tells whose the trouble is; once training has begun, the run folder has it too.
    """
    import sys

    console = console or make_console(sys.stdout)
    started = time.perf_counter()
    if config.output and not resume:
        RunFolder.refuse_taken(Path(config.output))
    resumed = RunFolder.open(Path(config.output)) if resume and config.output else None
    job = prepare_job(config, console, rows, resumed)
    run = _run_folder(config, resume)
    run_control.take(run)  # a request to an earlier job in this folder is not one to this job
    with StatusWriter(run.status_file) as status, _recorded_failure(run), job_signals(run, console):
        decisions = _decisions(job)
        made = record.make(job.config, job.hardware, job.memory, decisions, job.data_hash, job.loaded, command)
        if not resume:
            run.write_record({**made, "data": job.training.report.as_dict()})
        _print_header(console, run, decisions, job)
        checkpoint = _resume(run, console, made) if resume else None
        result = _run(job, run, status, console, started, checkpoint)
        run.write_result(result.as_dict())
        status.close("stopped" if result.stopped else "finished", "")
    return result


def prepare_job(config: RunConfig, console: Console, rows: Any = None, resumed: RunFolder | None = None) -> Job:
    """Prove every input: settings, rows, model, adapter targets. Writes nothing but the cache of prepared rows.

    Rows come before weights: they are where most mistakes are, and they are there in seconds.

    Raises:
        HastenError: the first thing that is wrong (all settings' problems together).
    """
    schema.check(config)
    require_writable(Path(config.output or config.runs))
    if config.training.optimizer == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise MissingPackageError(
            "training.optimizer",
            "'adamw_8bit', but bitsandbytes is not installed",
            "Its 8-bit state is bitsandbytes'.",
            'Run `pip install "hasten[bnb]"`, or use adamw.',
        )
    if not (config.training.steps or config.training.epochs):
        rule = "A run has at least one step."
        raise ConfigError("training.epochs", "0, as is training.steps", rule, "Set one of them.")
    source = open_rows(config.data, rows)
    if resumed is not None:
        _require_same_rows(resumed, source)
    training_source, heldout_source = split(source, config.data)
    hardware = probe()
    memory = memory_budget(hardware)
    settings = config.model
    options = options_of(settings)
    if settings.name == DEMO:
        console.print("model: SmolLM2-135M-Instruct (downloaded and converted on first use)", highlight=False)
    model_type = config_of(settings.name, options).model_type
    family = family_of(model_type)
    request = Request(
        dtype=settings.dtype,
        storage=asked_storage(
            load_in_4bit=settings.load_in_4bit,
            load_in_8bit=settings.load_in_8bit,
            load_in_fp8=settings.load_in_fp8,
            load_in_16bit=settings.load_in_16bit,
        ),
        compute=settings.compute,
        packing=config.training.packing,
        checkpointing=config.training.checkpointing,
        optimizer=config.training.optimizer,
        deterministic=config.training.deterministic,
    )
    plan = make_plan(hardware, family, model_type, request)
    tokenizer = model_tokenizer(settings, config.data)
    with rows_progress(console, len(training_source)) as advance:
        training = prepared_rows(training_source, tokenizer, config.data, advance)
    if resumed is not None:
        _require_same_documents(resumed, training)
    rows_of_documents = training_rows(training.documents, config.data, plan.layout)
    heldout = _prepare_heldout(heldout_source, tokenizer, config.data)
    if config.data.template:  # what is saved is read by programs that do not know the markers
        tokenizer.chat_template = without_markers(tokenizer.chat_template)
    samples = choose(heldout_source, config.data, tokenizer, config.training.samples)
    loaded = load(settings.name, replace(options, device=plan.device, dtype=plan.dtype, storage=plan.storage))
    loaded = replace(loaded, tokenizer=tokenizer)
    notes = [*source.notes, *loaded.notes]
    model = loaded.model
    if loaded.source == loaded.base:
        checkpoint = last_checkpoint(resumed.checkpoints) if resumed is not None else None
        began = beginning_in(checkpoint) if checkpoint else None
        if checkpoint and began is None and begins_inside(config.lora.init):
            notes.append(f"{checkpoint.name} does not say what the adapter began with: it is computed again")
        attached = attach(model, config.lora, began=began)
        model, notes = attached.model, notes + attached.notes
    else:
        notes.append("the adapter that was named is trained on; lora settings are its own")
    steps = steps_of(config.training, config.data, plan.layout)
    fast = _make_fast(model, config.training.checkpointing, hardware, plan, steps, training)
    return Job(
        config=config,
        hardware=hardware,
        memory=memory,
        family=family,
        plan=plan,
        loaded=loaded,
        model=model,
        training=training,
        heldout=heldout,
        samples=samples,
        data_hash=source.fingerprint,
        notes=notes,
        watched=choose_watch(hardware, config.training.watch_memory),
        rows=rows_of_documents,
        fast=fast,
    )


def _make_fast(
    model: Any, asked: Literal["auto", "on", "off"], hardware: Hardware, plan: Plan, steps: Steps, training: Prepared
) -> Fitted:
    """Swap the fast modules in and let each layer keep what memory allows."""
    compute8, asked_8 = None, None
    if plan.compute == "fp8":
        turned, asked_8 = choose_turned(*kept_values(model), free_bytes(hardware))
        compute8 = Compute8(turned=turned)
    fast = apply(model, compute8=compute8)
    products = say_products(asked_8, fast.layers, fast.of, fast.refused_8) if asked_8 else ()
    if not fast.layers:
        if asked == "on":
            enable_checkpointing(model)
        return Fitted(fast, decisions=products)
    tokens = max(steps.token_budget, int(lengths_of(training.documents).max()))
    sizes: dict[str, Any] = {
        "tokens": round_up(tokens) if plan.rounded else tokens,
        "widths": widths_of(model),
        "free_bytes": free_bytes(hardware),
        "trained_bytes": sum(part.nbytes for part in model.parameters() if part.requires_grad),
        "vocabulary": model.config.get_text_config().vocab_size,
    }
    policies, activations = choose_activations(hardware, asked=asked, layers=fast.of, **sizes)
    set_policies(model, policies)
    replayed_tokens, launches = choose_replay(
        hardware,
        fast=fast.complete,
        alone=int(os.environ.get("WORLD_SIZE", "1")) == 1,  # torchrun says so
        dtype=plan.dtype,
        layout=plan.layout,
        policies=policies,
        **sizes,
    )
    return Fitted(fast, replayed_tokens, (*products, activations, *((launches,) if launches else ())))


def _prepare_heldout(source: RowSource, tokenizer: Any, settings: DataSettings) -> Sequence[Example]:
    """The held-out documents; none where none are asked for.

    Raises:
        DataError: rows are held out and none of them can be used.
    """
    if not len(source):
        return []
    try:
        return prepared_rows(source, tokenizer, settings).documents
    except DataError as cause:
        remedy = "Raise data.heldout so that usable rows are among them, or set it to 0."
        raise DataError(f"the {len(source)} held-out rows", cause.value, cause.rule, remedy) from cause


def _require_same_rows(resumed: RunFolder, source: RowSource) -> None:
    """Refuse to continue a run on other rows: steps are counted in them.

    Raises:
        DataError: the rows have changed since the run began.
    """
    before = resumed.record().get("hashes", {}).get("data")
    if before is not None and before != source.fingerprint:
        raise DataError(
            source.name,
            "its rows are not those that the run began with",
            "A resumed run continues in the order of its rows.",
            "Put the old rows back, or train the adapter on in a new run (--model RUN/adapter).",
        )


def _require_same_documents(resumed: RunFolder, training: Prepared) -> None:
    """Refuse to continue a run whose rows have become other documents.

    Raises:
        DataError: their numbers have changed since the run began.
    """
    now, before = training.report.as_dict(), resumed.record().get("data", {})
    names = ("documents", "real_tokens", "supervised_tokens")
    if any(before.get(name, now[name]) != now[name] for name in names):
        value, known = (", ".join(f"{counts.get(name)} {name}" for name in names) for counts in (now, before))
        raise DataError(
            "data",
            f"{value} (when the run began: {known})",
            "A resumed run continues in the order of its documents.",
            "Take back what was changed in the settings of data or the model, or train the adapter on in a new run "
            "(--model RUN/adapter).",
        )


def _run_folder(config: RunConfig, resume: bool) -> RunFolder:
    if resume and config.output:
        return RunFolder.open(Path(config.output))
    return RunFolder.create_at(Path(config.output)) if config.output else RunFolder.create(Path(config.runs), None)


def _decisions(job: Job) -> list[Decision]:
    trained, total = trainable_parameters(job.model)
    fast = job.fast.applied
    device, *others = job.plan.decisions
    newer = ", ".join(newer_than_tested(record.versions()))
    return [
        device,
        *say_memory(job.memory, watched=job.watched),
        *others,
        Decision(
            part="modules",
            choice=f"{job.family.name}, {fast.word}",
            why=fast.line(),
            fallback=not fast.complete,
        ),
        *([_kernels(job.hardware)] if fast.layers or fast.head else []),
        *job.fast.decisions,
        Decision(part="adapter", choice=f"{trained:,} of {total:,} values trained", why=f"LoRA r{job.config.lora.r}"),
        *(Decision(part="note", choice=found, why="found while loading") for found in job.notes),
        *([Decision(part="versions", choice=newer, why="newer than tested; going on")] if newer else []),
    ]


def _kernels(hardware: Hardware) -> Decision:
    has = has_triton()
    return choose_kernels(hardware, has, triton_failure() if has and hardware.is_cuda else "")


def _print_header(console: Console, run: RunFolder, decisions: Sequence[Decision], job: Job) -> None:
    lines = [f"run: {run.path}"]
    for decision in decisions:
        mark = " (fallback)" if decision.fallback else ""
        lines.append(f"  {decision.part}: {decision.choice}{mark}: {decision.why}")
    lines += [f"  data: {line}" for line in _data_lines(job)]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _data_lines(job: Job) -> list[str]:
    training = job.training
    lines = training.report.lines()
    if training.key:
        known = "prepared earlier" if training.from_cache else "prepared now"
        lines.append(f"{known}, cache key {training.key[:12]}")
    if job.config.data.heldout:
        lines.append(f"held out: {len(job.heldout)} documents of {job.config.data.heldout} rows")
    steps = steps_of(job.config.training, job.config.data, job.plan.layout)
    return [*lines, *steps_report(training.documents, job.rows, steps)]


def _resume(run: RunFolder, console: Console, made: Mapping[str, Any]) -> Path | None:
    """The checkpoint to go on from, said and stored with what this job has decided."""
    checkpoint = last_checkpoint(run.checkpoints)
    left = left_out(run.checkpoints, checkpoint)
    taken = checkpoint.name if checkpoint else None
    run.log_resumption({"checkpoint": taken, "left_out": left, **{name: made[name] for name in record.OF_A_JOB}})
    for name in left:
        console.print(f"{name} is not whole: left out", highlight=False)
    console.print(f"continued from {taken}" if taken else "no complete checkpoint: it begins again", highlight=False)
    return checkpoint


def _run(
    job: Job, run: RunFolder, status: StatusWriter, console: Console, started: float, checkpoint: Path | None
) -> Result:
    settings = job.config.training
    trainer = make_trainer(job, run.checkpoints)
    total = trainer_steps(trainer)
    before = _heldout_loss(trainer, run, console, "before", 0)
    _sample(job, run, "before", 0)
    requests = Requests(run, status)
    status.set(state="running", total_steps=total)
    ordered = settings.deterministic and job.hardware.is_cuda
    with TrainingProgress(console, total) as progress, deterministic(ordered):
        recorder = Recorder(run=run, status=status, progress=progress, hardware=job.hardware)
        trainer_callbacks(trainer, recorder, requests)
        watchdog = Watchdog(lambda: host_budget(job.hardware)) if job.watched else None
        if watchdog is not None:
            trainer.add_callback(watchdog)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if watchdog is not None:
        watchdog.raise_if_stopped()
    refuse_untouched(job.model)
    save_adapter(job.model, job.loaded.tokenizer, run.adapter, job.loaded.base.name)
    after = _heldout_loss(trainer, run, console, "after", trainer.state.global_step)
    _sample(job, run, "after", trainer.state.global_step)
    train_s = recorder.train_s or float("nan")
    return Result(
        run=run.path,
        adapter=run.adapter,
        losses=recorder.losses,
        heldout_loss_before=before,
        heldout_loss_after=after,
        supervised_tokens_per_s=recorder.supervised / train_s,
        real_tokens_per_s=recorder.real / train_s,
        peak_bytes=peak_bytes(job.hardware),
        train_s=recorder.train_s,
        total_s=time.perf_counter() - started,
        steps=trainer.state.global_step,
        stopped=requests.stopped,
        first_step_s=None if recorder.first_at is None else recorder.first_at - started,
        fallbacks=sorted(refused_in_training(job.model) | trainer.replay_refused),
        samples=job.samples if settings.samples else [],
    )


def _heldout_loss(trainer: SftTrainer, run: RunFolder, console: Console, when: str, step: int) -> float:
    loss = trainer.heldout_loss()
    if math.isfinite(loss):
        run.log_metrics({"step": step, "heldout_loss": loss})
        console.print(f"held-out loss {when}: {loss:.4f}", highlight=False)
    return loss


def _sample(job: Job, run: RunFolder, when: str, step: int) -> None:
    answers = answer_all(job.model, job.loaded.tokenizer, job.samples, job.config.training.sample_tokens)
    for sample, text in zip(job.samples, answers, strict=True):
        setattr(sample, when, text)
        run.log_sample({"step": step, "when": when, "prompt": sample.prompt, "answer": text})


def make_trainer(job: Job, checkpoints: Path) -> SftTrainer:
    """The trainer of a prepared job.

    Args:
        job: proven inputs.
        checkpoints: the folder for checkpoints.
    """
    from transformers.trainer_callback import PrinterCallback

    settings, plan = job.config.training, job.plan
    cuda = job.hardware.is_cuda
    arguments = Arguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        max_steps=settings.steps or -1,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule if settings.schedule != "constant" else "constant_with_warmup",
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused" if plan.optimizer == "adamw" else plan.optimizer,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=plan.autocast and plan.dtype == "bfloat16",
        fp16=plan.autocast and plan.dtype == "float16",
        use_cpu=not cuda,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if settings.evaluate_every and job.heldout else "no",
        eval_steps=settings.evaluate_every or None,
        save_strategy="steps" if settings.save_every else "no",
        save_steps=settings.save_every or 500,
        save_total_limit=settings.keep_checkpoints,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=cuda and not job.hardware.unified_memory,
    )
    steps = steps_of(settings, job.config.data, plan.layout)
    trainer = SftTrainer(
        model=job.model,
        args=arguments,
        plan=plan,
        train_examples=job.training.documents,
        heldout_examples=job.heldout,
        pad_id=job.loaded.tokenizer.pad_token_id,
        token_budget=steps.token_budget,
        accumulation=steps.accumulation,
        rows=job.rows,
        replayed_tokens=job.fast.replayed_tokens,
        processing_class=job.loaded.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def trainer_steps(trainer: SftTrainer) -> int:
    """How many optimizer steps the trainer will make."""
    arguments = trainer.args
    if arguments.max_steps > 0:
        return arguments.max_steps
    return math.ceil(arguments.num_train_epochs * len(trainer.get_train_dataloader()))


@contextmanager
def _recorded_failure(run: RunFolder) -> Iterator[None]:
    """Whatever ends the run is written in full where its readers look, then raised on."""
    try:
        with _memory_error():
            yield
    except BaseException as error:
        if not isinstance(error, (KeyboardInterrupt, SystemExit)):
            with contextlib.suppress(StorageError):  # a full disk must not hide what happened
                run.write_error(traceback.format_exc())
        raise


@contextmanager
def _memory_error() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as cause:
        raise TrainingError(
            "device memory",
            str(cause).splitlines()[0],
            "Weights, activations and gradients of one micro-batch must fit.",
            "Lower training.batch_size (raise training.accumulation by as much: the update stays the same), "
            "set training.checkpointing: on, or lower data.max_length.",
        ) from cause

"""One arm of a whole-job case, in a process of its own: `python benchmarks/job_arm.py SPEC.json`.

From a model's folder and a file of rows to trained steps, as a user's script goes: loading, tokenizing, attaching,
training. `hasten` is the trainer of `hasten train`; `trl` is `trl.SFTTrainer` with its defaults. Both read the same
rows in the same order. The processor and the device are waited for at two moments only: after the steps that warm up
and after the last one. Prints one JSON object on its last line.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

STARTED = time.perf_counter()

import torch  # noqa: E402  # importing it is part of the time to the first step
from step_arm import TARGETS, summary  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

MARKS: dict[str, float] = {}
"""When an arm had done what it does before it trains."""
SEED = 3407
LEARNING_RATE = 2e-4


class Clock(TrainerCallback):
    """When each step ended; waits for the device after the first step, the last that warms up, and the last of all.

    Args:
        skip: steps that warm up.
        steps: all steps.
        counted: called after each step; its real and supervised tokens.
    """

    def __init__(self, skip: int, steps: int, counted: Callable[[int], tuple[int, int]]) -> None:
        self.skip, self.steps, self.counted = skip, steps, counted
        self.ends: list[float] = []
        self.tokens: list[tuple[int, int]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step has been asked for, or done where it is waited for."""
        if state.global_step in (1, self.skip, self.steps) and torch.cuda.is_available():
            torch.cuda.synchronize()
        self.tokens.append(self.counted(state.global_step - 1))
        self.ends.append(time.perf_counter())


class Profile(TrainerCallback):
    """One step's device work, with the launch of the next: where the time of a running job goes.

    Args:
        step: which one.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self.run: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts before the step."""
        from torch.profiler import ProfilerActivity, profile

        if state.global_step == self.step:
            torch.cuda.synchronize()
            self.run = profile(activities=[ProfilerActivity.CUDA])
            self.run.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends after the next one, when both are done."""
        if self.run is not None and state.global_step == self.step + 2:
            torch.cuda.synchronize()
            self.run.__exit__(None, None, None)
            self.events, self.run = self.run.events(), None


def hasten(spec: dict[str, Any], folder: str) -> tuple[Any, Clock]:
    """The trainer that `hasten train` makes, and its clock."""
    from hasten.cli.quiet import quiet
    from hasten.report.console import make_console
    from hasten.training.config import combine
    from hasten.training.job import make_trainer, prepare_job

    quiet()
    MARKS["imported_s"] = time.perf_counter() - STARTED
    settings = {
        "model": {"name": spec["model"], "compute": "fp8" if spec["arm"].endswith("-fp8") else "bf16"},
        "data": {
            "source": spec["rows"],
            "heldout": 0,
            "loss_on": "all",
            "max_length": spec["length"],
            "pack_length": spec["length"] if spec["packed"] else 0,
            "cache": False,
        },
        "training": {
            "steps": spec["steps"],
            "batch_size": spec["batch"],
            "accumulation": spec["accumulation"],
            "learning_rate": LEARNING_RATE,
            "schedule": "constant",
            "warmup_steps": 0,
            "samples": 0,
            "seed": SEED,
        },
        "output": f"{folder}/run",
    }
    job = prepare_job(combine({}, settings), make_console(sys.stderr))
    MARKS["prepared_s"] = time.perf_counter() - STARTED
    trainer = make_trainer(job, Path(folder) / "checkpoints")

    if spec["arm"] == "hasten-launched":
        trainer.replayed_tokens = 0

    def counted(step: int) -> tuple[int, int]:
        counts = trainer.take_counts()
        return counts.real, counts.supervised

    return trainer, Clock(spec["skip"], spec["steps"], counted)


def trl(spec: dict[str, Any], folder: str) -> tuple[Any, Clock]:
    """TRL's trainer with its defaults, and its clock."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    texts = [json.loads(line)["text"] for line in Path(spec["rows"]).read_text(encoding="utf-8").splitlines()]
    if not spec["packed"]:  # in the order that hasten reads them in
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(SEED)).tolist()
        texts = [texts[row] for row in order]
    cuda = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(
        spec["model"], dtype=torch.bfloat16 if cuda else torch.float32, device_map={"": "cuda:0" if cuda else "cpu"}
    )
    torch.manual_seed(SEED)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=16, target_modules=TARGETS))
    arguments = SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=spec["batch"],
        gradient_accumulation_steps=spec["accumulation"],
        max_steps=spec["steps"],
        max_length=spec["length"],
        packing=spec["packed"],
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        bf16=cuda,
        use_cpu=not cuda,
        optim="adamw_torch_fused",
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=SEED,
    )
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    trainer = SFTTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_dict({"text": texts}), processing_class=tokenizer
    )
    rows = spec["batch"] * spec["accumulation"]
    lengths, documents = _lengths(trainer.train_dataset)

    def counted(step: int) -> tuple[int, int]:
        own = slice(step * rows, (step + 1) * rows)
        real = sum(lengths[own])
        return real, real - sum(documents[own])

    return trainer, Clock(spec["skip"], spec["steps"], counted)


def _lengths(dataset: Any) -> tuple[list[int], list[int]]:
    """Tokens and documents of each row; the first token of a document is nobody's target."""
    lengths = [len(ids) for ids in dataset["input_ids"]]
    names: Sequence[str] = dataset.column_names
    return lengths, [len(part) for part in dataset["seq_lengths"]] if "seq_lengths" in names else [1] * len(lengths)


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Times, memory and losses of one job."""
    spec = {**spec, **spec["of_arm"].get(spec["arm"], {})}
    with TemporaryDirectory() as folder:
        trainer, clock = (hasten if spec["arm"].startswith("hasten") else trl)(spec, folder)
        trainer.add_callback(clock)
        if spec.get("profile"):
            trainer.add_callback(watch := Profile(spec["steps"]))
            trainer.args.max_steps += 2  # after the steps that are timed
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        ready = time.perf_counter()
        trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    clock.ends, clock.tokens = clock.ends[: spec["steps"]], clock.tokens[: spec["steps"]]
    logs = logs[: spec["steps"]]
    seconds = clock.ends[-1] - clock.ends[spec["skip"] - 1]
    steps = spec["steps"] - spec["skip"]
    real, supervised = (sum(part) for part in zip(*clock.tokens[spec["skip"] :], strict=True))
    each = [later - earlier for earlier, later in pairwise(clock.ends[spec["skip"] - 1 :])]
    result = {
        "supervised_tok_s": supervised / seconds,
        "real_tok_s": real / seconds,
        "samples_s": spec["batch"] * spec["accumulation"] * steps / seconds,
        "tokens_per_step": real / steps,
        "first_step_tokens": clock.tokens[0],
        "step_ms_mean": 1e3 * seconds / steps,
        "step_ms_p50": 1e3 * statistics.median(each),
        "step_ms": [round(1e3 * seconds, 1) for seconds in each],
        "warm_up_ms": [round(1e3 * (end - start), 1) for start, end in pairwise(clock.ends[: spec["skip"]])],
        "step_tokens": [tokens for tokens, _ in clock.tokens[spec["skip"] :]],
        **MARKS,
        "ready_s": ready - STARTED,
        "first_step_s": clock.ends[0] - STARTED,
        "loss_first": float(logs[0]["loss"]),
        "loss_last": float(logs[-1]["loss"]),
        "grad_norm": float(logs[0]["grad_norm"]),
    }
    if getattr(trainer, "replay", None) is not None:
        result["replayed"] = trainer.replay.replayed
    if torch.cuda.is_available():
        result["peak_allocated_gb"] = torch.cuda.max_memory_allocated() / 1e9
        result["peak_reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
        result["device_allocations"] = torch.cuda.memory_stats()["num_device_alloc"]
    if spec.get("profile"):
        result["profile"] = {"steps": 2, **summary(watch.events, spec["profile"])}
    return result


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))

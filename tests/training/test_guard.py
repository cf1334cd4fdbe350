"""A run whose numbers are not worth having stops, says which parameter is to blame, and leaves nothing behind."""

import json
import math

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hasten.cli import main as cli
from hasten.errors import TrainingError
from hasten.runs.folder import RunFolder
from hasten.runs.status import effective_state
from hasten.training import job as jobs
from hasten.training.checkpoints import last_checkpoint
from hasten.training.config import combine
from hasten.training.guard import MOST_OVERFLOWS, Guard, suspect_of
from hasten.training.job import train
from support import stepping, tiny

FAULTY = "model.layers.1.mlp.down_proj.weight"
LATE = pytest.mark.parametrize("late", [0, 1])
"""Whether numbers are read when the next step has been launched, as on a GPU, or at once."""


def one_infinity(weight):
    weight[0, 0] = math.inf


def far_too_large(weight):
    """The last norm's squares overflow: its output is 0, whatever comes in, and so are all gradients."""
    weight.mul_(1e30)


FAULTS = pytest.mark.parametrize(
    ("fault", "found"),
    [
        (one_infinity, "it holds infinity; at step {step} loss is nan, grad_norm is nan. Training on would destroy"),
        (far_too_large, r"its largest entry is .*e\+2\d .*loss is 4.852, grad_norm is 0. No gradient reaches"),
    ],
)


def spoil(folder, fault):
    """Put a fault into the file of a model."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    fault(weights[FAULTY])
    save_file(weights, file, metadata={"format": "pt"})


def set_up(monkeypatch, late, *callbacks):
    """Let the jobs' trainers read as late as asked for, and tell callbacks of this test's."""
    original = jobs.make_trainer

    def changed(job, checkpoints):
        trainer = original(job, checkpoints)
        trainer.late = late
        for callback in callbacks:
            trainer.add_callback(callback)
        return trainer

    monkeypatch.setattr(jobs, "make_trainer", changed)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def require_finite(folder):
    """Every tensor that was saved below a folder is finite; there is at least one."""
    tensors = [tensor for file in folder.rglob("*.safetensors") for tensor in load_file(file).values()]
    assert tensors and all(tensor.isfinite().all() for tensor in tensors)


@LATE
@FAULTS
@pytest.mark.parametrize("change", [{}, {"packing": "off"}, {"checkpointing": "on"}, {"max_grad_norm": 0.0}], ids=str)
def test_a13_a_faulty_weight_is_named_and_nothing_is_saved(
    tiny_values, tiny_model_folder, tmp_path, monkeypatch, fault, found, late, change
):
    spoil(tiny_model_folder, fault)
    set_up(monkeypatch, late)
    output = tmp_path / "broken"
    tiny_values["training"] |= {"save_every": 1, **change}
    with pytest.raises(TrainingError, match=found.format(step=1)) as caught:
        train(combine(tiny_values, {"output": str(output)}))
    assert caught.value.subject == FAULTY and "checksums" in caught.value.remedy
    run = RunFolder.open(output)
    assert effective_state(run.status()) == "failed" and FAULTY in run.status().message
    assert not run.adapter.exists() and list(run.checkpoints.iterdir()) == []
    assert list(output.rglob("*.safetensors")) == list(output.rglob("*.bin")) == []
    assert [row["step"] for row in run.metrics() if "loss" in row] == [1], "what the guard refuses is on record"
    for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in a file"))


@FAULTS
def test_a13_the_command_fails(tiny_values, tiny_model_folder, tmp_path, capsys, fault, found):
    spoil(tiny_model_folder, fault)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(tiny_values), encoding="utf-8")
    with pytest.raises(SystemExit) as left:
        cli.main(["train", str(file), "--json"])
    assert left.value.code == TrainingError.exit_code != 0
    said = json.loads(capsys.readouterr().out)
    assert not said["ok"] and said["subject"] == FAULTY


@LATE
@FAULTS
def test_a13_an_earlier_checkpoint_stays_as_it_was(
    tiny_values, tiny_model_folder, tmp_path, monkeypatch, fault, found, late
):
    output = tmp_path / "run"
    tiny_values["training"] |= {"save_every": 2, "steps": 2}
    train(combine(tiny_values, {"output": str(output)}))
    run = RunFolder.open(output)
    before, adapter = contents(run.checkpoints), contents(run.adapter)
    spoil(tiny_model_folder, fault)
    set_up(monkeypatch, late)
    tiny_values["training"]["steps"] = 6
    with pytest.raises(TrainingError, match=found.format(step=3)):
        train(combine(tiny_values, {"output": str(output)}), resume=True)
    assert contents(run.checkpoints) == before and contents(run.adapter) == adapter
    assert last_checkpoint(run.checkpoints) == run.checkpoints / "checkpoint-2"


class Spoil(TrainerCallback):
    """Puts a fault into the model that is being trained, before a step."""

    def __init__(self, fault, step):
        self.fault, self.step = fault, step

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step - 1:
            with torch.no_grad():
                self.fault(model.get_base_model().model.layers[1].mlp.down_proj.base_layer.weight)


@LATE
@FAULTS
@pytest.mark.parametrize("step", [3, 4, 5])
def test_a13_in_the_middle_of_a_run(tiny_values, tmp_path, monkeypatch, fault, found, late, step):
    """Checkpoints after every second step, the last step 5: the bad one, and one launched behind it, are not saved."""
    output = tmp_path / "run"
    set_up(monkeypatch, late, Spoil(fault, step))
    tiny_values["training"] |= {"save_every": 2, "steps": 5}
    with pytest.raises(TrainingError, match=found.format(step=step)) as caught:
        train(combine(tiny_values, {"output": str(output)}))
    assert caught.value.subject == FAULTY
    run = RunFolder.open(output)
    kept = ["checkpoint-2", "checkpoint-4"] if step == 5 else ["checkpoint-2"]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == kept
    require_finite(run.checkpoints)
    assert not run.adapter.exists()


@pytest.mark.parametrize("rate", [1e2, 1e10, 1e30])
def test_a_learning_rate_that_destroys_the_adapter_is_blamed(tiny_values, tmp_path, rate):
    """The adapter becomes so large that the last norm overflows, or not finite; the model is sound."""
    tiny_values["training"] |= {"learning_rate": rate, "schedule": "constant", "steps": 8}
    output = tmp_path / "run"
    with pytest.raises(TrainingError, match="^step [234]: loss is .*Lower training.learning_rate"):
        train(combine(tiny_values, {"output": str(output)}))
    assert not RunFolder.open(output).adapter.exists()


def entry(**changes):
    """The log of a sound step, with changes."""
    return {"loss": 2.0, "grad_norm": 0.5, "learning_rate": 0.0, "supervised_tokens": 8, **changes}


def logged(guard, folder, *entries):
    """Let a guard see log entries of steps 1, 2, ..."""
    arguments, model = TrainingArguments(output_dir=str(folder), report_to="none"), stepping.adapted()
    for step, one in enumerate(entries, 1):
        guard.on_log(arguments, TrainerState(global_step=step), TrainerControl(), logs=one, model=model)


SOUND = [
    entry(),
    entry(loss=0.0),  # nothing left to learn, nearly
    entry(loss=0.0, grad_norm=0.0, supervised_tokens=0),  # nothing to learn in this step
    {"heldout_loss": math.nan},  # no held-out documents
    {"train_loss": 2.0},
]
INFINITE, NONE = entry(grad_norm=math.inf), entry(grad_norm=0.0)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("one", SOUND, ids=str)
def test_sound_entries_pass(tmp_path, scaled, one):
    logged(Guard(scaled=scaled), tmp_path, *[one] * 30)


@pytest.mark.parametrize("one", [INFINITE, NONE, entry(grad_norm=math.nan), entry(loss=-math.inf)], ids=str)
def test_a_sound_model_is_not_blamed(tmp_path, one):
    with pytest.raises(TrainingError, match="^step 2: loss is .*, grad_norm is .*learning_rate"):
        logged(Guard(scaled=False), tmp_path, entry(), one)


@pytest.mark.parametrize("bad", [INFINITE, NONE], ids=str)
def test_a_loss_scaler_may_overflow_while_it_searches(tmp_path, bad):
    searching = [bad] * MOST_OVERFLOWS
    logged(Guard(scaled=True), tmp_path, *searching, entry(), *searching)
    with pytest.raises(TrainingError, match=f"^step {MOST_OVERFLOWS + 1}: "):
        logged(Guard(scaled=True), tmp_path, *searching, bad)
    with pytest.raises(TrainingError, match="^step 1: "):
        logged(Guard(scaled=True), tmp_path, entry(loss=math.nan))


# Warm-up begins at a learning rate of 0; then, B is 0 and A has no gradient.
@pytest.mark.parametrize("change", [{"warmup_steps": 2}, {"max_grad_norm": 0.0}, {"learning_rate": 1e-30}], ids=str)
def test_sound_runs_are_let_through(tiny_values, change):
    tiny_values["training"] |= change
    result = train(combine(tiny_values))
    rows = [row for row in RunFolder.open(result.run).metrics() if row.get("loss") is not None]
    assert result.steps == 4 and all(row["grad_norm"] > 0 for row in rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 6e4])
@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", FAULTY, "model.norm.weight"]
)
def test_the_faulty_parameter_is_found(dtype, value, name):
    model = stepping.adapted().to(dtype)
    places = dict(tiny_names(model))
    assert suspect_of(model) is None
    with torch.no_grad():
        places[name].view(-1)[-1] = value
    suspect = suspect_of(model)
    assert suspect is not None and suspect.name == name
    assert {math.nan: "NaN", 6e4: "6.0e+04"}.get(value, "infinity") in suspect.line()


def tiny_names(model):
    """Parameters of an adapted model by the names that the plain one has for them."""
    plain = dict(tiny.llama().named_parameters())
    for name, parameter in model.named_parameters():
        own = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if own in plain:
            yield own, parameter


@pytest.mark.parametrize("value", [math.nan, 1e30])
def test_trained_weights_are_not_to_blame(value):
    model = stepping.adapted()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.fill_(value)
    assert suspect_of(model) is None
    with torch.no_grad():
        dict(tiny_names(model))[FAULTY][3, 4] = math.inf
    assert suspect_of(model).name == FAULTY


def test_what_has_no_values_to_compare_is_passed_over():
    model = torch.nn.Module()
    assert suspect_of(model) is None
    packed, large = torch.full((4,), 255, dtype=torch.uint8), torch.full((3,), 1e30)
    zeros = {f"bias_{number}": torch.zeros(3) for number in range(5)}
    for name, value in {"packed": packed, "nothing": torch.empty(0), "large": large, **zeros}.items():
        model.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
    assert suspect_of(model) is None, "one parameter alone is not out of line"
    model.register_parameter("small", torch.nn.Parameter(torch.full((3,), 1e27), requires_grad=False))
    assert suspect_of(model) is None, "a thousand times the usual may be"
    model.small.fill_(1.0)
    assert suspect_of(model).name == "large"

"""On a CUDA device: packed attention is right in 16 bit, a run learns without waits, and CPU and GPU agree."""

import pytest
import torch

from hasten.blocks import packed_attention as packed
from hasten.training.config import combine
from hasten.training.job import train

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [(8, 8), (8, 2), (9, 3)])
def test_varlen_is_no_worse_than_per_document_sdpa(dtype, heads):
    generator = torch.Generator("cuda").manual_seed(0)
    lengths = [1, 7, 128, 33, 300]
    starts = torch.tensor([0, *lengths], dtype=torch.int32, device="cuda").cumsum(0, dtype=torch.int32)

    def inputs(wanted):
        torch_dtype = torch.float64 if wanted == "truth" else dtype
        made = [
            torch.randn(1, h, sum(lengths), 64, generator=generator, device="cuda") for h in (heads[0], *[heads[1]] * 2)
        ]
        return [part.to(dtype).to(torch_dtype).requires_grad_() for part in made]

    def attend(parts):
        out, _ = packed.packed_attention_forward(
            torch.nn.Module(), *parts, None, cu_seq_lens_q=starts, max_length_q=max(lengths)
        )
        out.square().sum().backward()
        return [out, *(part.grad for part in parts)]

    results = {}
    for name in ("truth", "varlen", "sdpa"):
        generator.manual_seed(0)
        parts = inputs(name)
        assert packed._varlen_fits(parts[0], parts[2], None, 0.0, False) == (name != "truth")
        if name == "sdpa":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(packed, "_varlen_fits", lambda *_: False)
                results[name] = attend(parts)
        else:
            results[name] = attend(parts)
    for truth, varlen, sdpa in zip(*results.values(), strict=True):
        error, allowed = (float((part.double() - truth).norm()) for part in (varlen, sdpa))
        assert error <= 1.2 * allowed


def test_gradients_repeat_bit_by_bit_when_asked_for():
    from hasten.training.determinism import deterministic

    lengths = [330, 260, 90, 140]
    starts = torch.tensor([0, *lengths], dtype=torch.int32, device="cuda").cumsum(0, dtype=torch.int32)
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(1, heads, sum(lengths), 64) for heads in (9, 3, 3)]
    made = [torch.randn(shape, generator=generator, device="cuda").bfloat16() for shape in shapes]

    def gradients():
        parts = [part.clone().requires_grad_() for part in made]
        boundaries = {"cu_seq_lens_q": starts, "max_length_q": max(lengths)}
        out, _ = packed.packed_attention_forward(torch.nn.Module(), *parts, None, **boundaries)
        out.square().sum().backward()
        return [part.grad for part in parts]

    with deterministic(True):
        first = gradients()
        for _ in range(10):
            assert all(torch.equal(a, b) for a, b in zip(first, gradients(), strict=True))


def test_a_run_learns_on_the_gpu(tiny_values):
    tiny_values["training"] |= {"steps": 20, "deterministic": True}
    result = train(combine(tiny_values))
    assert result.heldout_loss_after < result.heldout_loss_before
    assert result.peak_bytes > 0
    repeated = train(combine(tiny_values))
    assert repeated.losses == result.losses


def test_gpu_and_cpu_give_the_same_run_in_float32(tiny_values, monkeypatch):
    from hasten.training import job as jobs

    tiny_values["model"]["dtype"] = "float32"
    gpu = train(combine(tiny_values))
    real = jobs.probe()
    monkeypatch.setattr(jobs, "probe", lambda: __import__("dataclasses").replace(real, device="cpu", bf16=False))
    cpu = train(combine(tiny_values))
    # Four steps of float32 in another summation order (and TF32 off, torch's default for products).
    assert gpu.losses == pytest.approx(cpu.losses, abs=2e-4)


def each_trainer(patch, change):
    """Change the trainers that jobs make."""
    from hasten.training import job as jobs

    original = jobs.make_trainer

    def changed(job, checkpoints):
        trainer = original(job, checkpoints)
        change(trainer)
        return trainer

    patch.setattr(jobs, "make_trainer", changed)


# Packed rows: for padded ones transformers asks the device whether the mask is needed, in every forward. In float32
# attention has no kernel that reads boundaries on the device.
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_no_step_waits_for_the_gpu(tiny_values, monkeypatch, dtype, clip):
    """Torch itself refuses whatever would wait, from the beginning of step 4 until step 7 has been launched."""
    from transformers import TrainerCallback

    class Forbid(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                torch.cuda.set_sync_debug_mode("error")

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 7:
                torch.cuda.set_sync_debug_mode("default")

    each_trainer(monkeypatch, lambda trainer: trainer.add_callback(Forbid()))
    tiny_values["model"]["dtype"] = dtype
    # Each document is a micro-batch of its own, four of them a step.
    tiny_values["training"] |= {"batch_size": 1, "accumulation": 4, "token_budget": 1, "packing": "on"}
    tiny_values["training"] |= {"steps": 8, "max_grad_norm": clip, "learning_rate": 1e-4}
    try:
        result = train(combine(tiny_values))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(result.losses) == 8


def test_numbers_read_late_are_those_read_at_once(tiny_values):
    from hasten.runs.folder import RunFolder

    tiny_values["training"] |= {"steps": 8, "deterministic": True, "save_every": 3}
    found = []
    for late in (1, 0):
        with pytest.MonkeyPatch.context() as patch:
            each_trainer(patch, lambda trainer, late=late: setattr(trainer, "late", late))
            result = train(combine(tiny_values))
        rows = [row for row in RunFolder.open(result.run).metrics() if row.get("loss") is not None]
        assert [row["step"] for row in rows] == list(range(1, 9))
        times = [row["elapsed_s"] for row in rows]
        assert times == sorted(times) and 0 < result.train_s <= times[-1] * 1.001 and times[-1] <= result.total_s
        found.append([(row["loss"], row["grad_norm"], row["learning_rate"]) for row in rows])
    assert found[0] == found[1]


def run(values, *, replayed, change=None):
    """A finished run and its trainer."""
    made = []
    with pytest.MonkeyPatch.context() as patch:

        def change_trainer(trainer):
            made.append(trainer)
            trainer.replayed_tokens = trainer.replayed_tokens if replayed else 0
            if change is not None:
                change(trainer)

        each_trainer(patch, change_trainer)
        return train(combine(values)), made[0]


@pytest.mark.parametrize("budget", [0, 1], ids=["one micro-batch", "one per document"])
@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_replayed_steps_are_the_launched_ones_bit_by_bit(tiny_values, budget, checkpointing):
    tiny_values["training"] |= {"steps": 16, "deterministic": True, "token_budget": budget}
    tiny_values["training"] |= {"checkpointing": checkpointing}
    replayed, trainer = run(tiny_values, replayed=True)
    launched, other = run(tiny_values, replayed=False)
    assert trainer.replay.replayed >= 8 and not trainer.replay.stopped and other.replay is None
    assert replayed.losses == launched.losses
    assert replayed.heldout_loss_after == launched.heldout_loss_after
    assert replayed.fallbacks == []


def test_recordings_are_forgotten_where_what_they_depend_on_changes(tiny_values):
    from transformers import TrainerCallback

    from hasten.blocks.apply import set_policies

    class Change(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 8:
                before.append(trainer.replay.replayed)
                set_policies(model, ["recompute"] * model.config.num_hidden_layers)
            if state.global_step == 9:
                assert not trainer.replay.recordings

    before, trainer = [], None

    def change(made):
        nonlocal trainer
        trainer = made
        made.add_callback(Change())

    tiny_values["training"] |= {"steps": 16, "deterministic": True}
    changed, _ = run(tiny_values, replayed=True, change=change)
    launched, _ = run(tiny_values, replayed=False)
    assert trainer.replay.replayed > before[0] > 0
    assert changed.losses == launched.losses


def test_what_waits_for_the_device_is_never_recorded():
    from hasten.training.replay import Replay

    weight = torch.nn.Parameter(torch.ones(4, device="cuda"))

    def waiting(inputs, divisor):
        loss = (weight * inputs["x"]).sum() / divisor
        loss.backward()
        assert loss.item() == loss.item()
        return loss.detach()

    replay = Replay(waiting, [weight], lambda: [0])
    for turn in range(4):
        weight.grad = None
        assert float(replay.run({"x": torch.full((4,), float(turn))}, 2)) == 2.0 * turn
        assert weight.grad.tolist() == [turn / 2] * 4
    assert replay.replayed == 0 and "waits" in replay.stopped


def test_only_what_fits_is_recorded():
    from hasten.training.replay import Replay

    weight = torch.nn.Parameter(torch.ones(4, device="cuda"))

    def product(inputs, divisor):
        loss = (weight[: len(inputs["x"])] * inputs["x"]).sum() / divisor
        loss.backward()
        return loss.detach()

    replay = Replay(product, [weight], lambda: [0], lambda inputs: len(inputs["x"]) < 4)
    for _ in range(4):
        for size in (3, 4):
            assert float(replay.run({"x": torch.ones(size)}, 1)) == size
    assert len(replay.recordings) == 1 and replay.replayed == 3


def test_gradients_of_a_step_add_up_over_launched_and_replayed_parts():
    from hasten.training.replay import Replay

    weight = torch.nn.Parameter(torch.ones(5, device="cuda"))

    def product(inputs, divisor):
        loss = (weight * inputs["x"]).sum() / divisor
        loss.backward()
        return loss.detach()

    replay = Replay(product, [weight], lambda: [0])
    for turn in range(5):
        weight.grad = None
        parts = [torch.full((5,), float(turn + part)) for part in range(3)]
        losses = [float(replay.run({"x": x, "kind": part % 2}, 4)) for part, x in enumerate(parts)]
        assert losses == [5 * (turn + part) / 4 for part in range(3)]
        assert weight.grad.tolist() == [(3 * turn + 3) / 4] * 5
    assert replay.replayed > 6 and not replay.stopped

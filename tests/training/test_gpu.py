"""On a CUDA device: packed attention is right in 16 bit, a run learns without waits, and CPU and GPU agree."""

import pytest
import torch

from hasten.blocks import packed_attention as packed
from hasten.training.config import combine
from hasten.training.job import train
from support.jobs import each_trainer

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

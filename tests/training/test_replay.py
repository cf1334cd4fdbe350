"""Recordings of micro-batches: fixed gradients, states, and on a GPU the same bits as launched steps."""

import pytest
import torch
from transformers import TrainerCallback

from hasten.blocks.apply import set_policies
from hasten.training.config import combine
from hasten.training.job import train
from hasten.training.replay import EXPOSED, FixedGradients, Replay, same_state
from support.jobs import each_trainer


def test_gradients_stay_at_their_addresses():
    parameters = [
        torch.nn.Parameter(torch.ones(shape, dtype=dtype))
        for shape, dtype in (((3, 5), torch.float32), ((70,), torch.float64), ((2, 2), torch.float32))
    ]
    fixed = FixedGradients(parameters)

    def step(factor):
        fixed.attach()
        sum((parameter * factor).sum() for parameter in parameters).backward()
        return [parameter.grad.data_ptr() for parameter in parameters]

    places = step(2.0)
    assert step(1.0) == places  # without zeroing, gradients add up
    assert all((parameter.grad == 3.0).all() for parameter in parameters)
    assert all(place % 64 == places[0] % 64 for place in (places[0], places[2]))
    for parameter in parameters:
        parameter.grad = None
    assert step(5.0) == places
    assert all((parameter.grad == 5.0).all() and parameter.grad.is_contiguous() for parameter in parameters)


def test_states_are_compared_by_identity_and_plain_values_by_value():
    one, other = torch.ones(2), torch.ones(2)
    word = "".join(["ke", "ep"])
    assert same_state([one, "keep", 1000], [one, word, 999 + 1])
    assert not same_state([one], [other])
    assert not same_state([one], [one, one])
    assert not same_state(["keep"], ["recompute"])
    assert not same_state([one], None)


@pytest.fixture
def at_once(monkeypatch):
    """Sizes are recorded when they come the second time, however fast they are launched."""
    monkeypatch.setattr("hasten.training.replay.EXPOSED", 0)


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


@pytest.mark.gpu
@pytest.mark.usefixtures("at_once")
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


@pytest.mark.gpu
@pytest.mark.usefixtures("at_once")
def test_recordings_are_forgotten_where_what_they_depend_on_changes(tiny_values):
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


@pytest.mark.gpu
@pytest.mark.usefixtures("at_once")
def test_inputs_that_wait_in_host_memory_are_recorded_too(tiny_values):
    def offload(trainer):
        set_policies(trainer.model, ["offload"] * trainer.model.config.num_hidden_layers)

    tiny_values["training"] |= {"steps": 16, "deterministic": True}
    replayed, trainer = run(tiny_values, replayed=True, change=offload)
    launched, _ = run(tiny_values, replayed=False)
    assert trainer.replay.replayed >= 8 and not trainer.replay.stopped
    assert replayed.losses == launched.losses


@pytest.mark.gpu
@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("four_bit", [False, True])
def test_8_bit_products_are_recorded_too(tiny_values, four_bit):
    tiny_values["training"] |= {"steps": 16, "deterministic": True}
    tiny_values["model"] |= {"compute": "fp8", "load_in_4bit": four_bit}
    replayed, trainer = run(tiny_values, replayed=True)
    launched, _ = run(tiny_values, replayed=False)
    assert trainer.replay.replayed >= 8 and not trainer.replay.stopped
    assert replayed.losses == launched.losses
    assert replayed.heldout_loss_after == launched.heldout_loss_after < replayed.heldout_loss_before


@pytest.mark.gpu
@pytest.mark.usefixtures("at_once")
def test_what_waits_for_the_device_is_never_recorded():
    weight = torch.nn.Parameter(torch.ones(4, device="cuda"))

    def waiting(inputs, divisor):
        loss = (weight * inputs["x"]).sum() / divisor
        loss.backward()
        loss.item()  # waits
        return loss.detach()

    replay = Replay(waiting, [weight], lambda: [0])
    for turn in range(4):
        weight.grad = None
        assert float(replay.run({"x": torch.full((4,), float(turn))}, 2)) == 2.0 * turn
        assert weight.grad.tolist() == [turn / 2] * 4
    assert replay.replayed == 0 and "waits" in replay.stopped


def linear(weight):
    """A loss whose gradient is its input."""

    def compute(inputs, divisor):
        loss = (weight[: len(inputs["x"])] * inputs["x"]).sum() / divisor
        loss.backward()
        return loss.detach()

    return compute


@pytest.mark.gpu
@pytest.mark.usefixtures("at_once")
def test_only_what_fits_is_recorded():
    weight = torch.nn.Parameter(torch.ones(4, device="cuda"))
    replay = Replay(linear(weight), [weight], lambda: [0], lambda inputs: len(inputs["x"]) < 4)
    for _ in range(4):
        for size in (3, 4):
            assert float(replay.run({"x": torch.ones(size)}, 1)) == size
    assert len(replay.recordings) == 1 and replay.replayed == 3


@pytest.mark.gpu
@pytest.mark.usefixtures("at_once")
def test_no_more_sizes_than_there_is_room_for_and_it_is_said(monkeypatch):
    monkeypatch.setattr("hasten.training.replay.MOST", 2)
    weight = torch.nn.Parameter(torch.ones(9, device="cuda"))
    replay = Replay(linear(weight), [weight], lambda: [0])
    with pytest.warns(UserWarning, match="2 sizes are recorded"):
        for _ in range(4):
            for size in (3, 4, 5):
                assert float(replay.run({"x": torch.ones(size)}, 1)) == size
    assert len(replay.recordings) == 2 and replay.replayed == 6 and replay.full and not replay.stopped


@pytest.mark.gpu
@pytest.mark.usefixtures("at_once")
def test_sizes_are_recorded_again_after_a_change():
    weight = torch.nn.Parameter(torch.ones(9, device="cuda"))
    state = [0]
    replay = Replay(linear(weight), [weight], lambda: list(state))
    for value in (0, 1):
        state[0] = value
        for _ in range(4):
            assert float(replay.run({"x": torch.ones(5)}, 1)) == 5
    assert replay.replayed == 6 and len(replay.recordings) == 1


@pytest.mark.gpu
@pytest.mark.usefixtures("at_once")
def test_an_evaluation_forgets_no_recording(tiny_values):
    tiny_values["training"] |= {"steps": 16, "evaluate_every": 4, "deterministic": True}
    _, trainer = run(tiny_values, replayed=True)
    tiny_values["training"] |= {"evaluate_every": 0}
    _, other = run(tiny_values, replayed=True)
    assert trainer.replay.replayed == other.replay.replayed >= 8


@pytest.mark.gpu
@pytest.mark.usefixtures("at_once")
def test_gradients_of_a_step_add_up_over_launched_and_replayed_parts():
    weight = torch.nn.Parameter(torch.ones(5, device="cuda"))
    replay = Replay(linear(weight), [weight], lambda: [0])
    for turn in range(5):
        weight.grad = None
        parts = [torch.full((5,), float(turn + part)) for part in range(3)]
        losses = [float(replay.run({"x": x, "kind": part % 2}, 4)) for part, x in enumerate(parts)]
        assert losses == [5 * (turn + part) / 4 for part in range(3)]
        assert weight.grad.tolist() == [(3 * turn + 3) / 4] * 5
    assert replay.replayed > 6 and not replay.stopped


@pytest.mark.gpu
@pytest.mark.parametrize("busy", [False, True])
def test_recorded_only_where_the_device_waits_for_launches(busy):
    """A device that has not done the last micro-batch when the next one comes has not waited."""
    weight = torch.nn.Parameter(torch.ones(5, device="cuda"))

    def compute(inputs, divisor):
        loss = linear(weight)(inputs, divisor)
        if busy:
            torch.cuda._sleep(50_000_000)
        return loss

    replay = Replay(compute, [weight], lambda: [0])
    for _ in range(6):
        if not busy:
            torch.cuda.synchronize()
        replay.run({"x": torch.ones(5)}, 1)
    assert weight.grad.tolist() == [6.0] * 5
    assert replay.replayed == (0 if busy else 5 - EXPOSED) and not replay.stopped  # the first is watched

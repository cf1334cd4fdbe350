"""Predictions of two models, and the bound between them."""

import torch

from hasten.export.verify import logits
from hasten.export.weights import PlainFolder
from hasten.hardware.memory import Meminfo


def test_a_model_of_weights_is_the_folder_s(tiny_model_folder):
    weights, ids = PlainFolder(tiny_model_folder), [3, 4, 5, 6]
    one, other = (
        logits.predictions(model, ids) for model in (logits.model_of(weights), logits.model_in(tiny_model_folder))
    )
    assert torch.equal(one, other) and one.shape == (4, 128)
    check = logits.compare_logits("x", one, other, logits.bound(0.0), "y")
    assert check.state == "within" and check.what == "logits (y)" and "same first choice for 100%" in check.said


def test_other_predictions_are_wrong():
    one = torch.tensor([[0.0, 12.0, 1.0, 3.0], [9.0, 0.0, 0.0, 1.0]]).log_softmax(-1)
    check = logits.compare_logits("x", one, one.flip(-1), logits.bound(0.1), "y")
    assert check.state == "wrong" and "nats per token (bound 3)" in check.said
    assert logits.compare_logits("x", one, one[:1], 1.0, "y").said == "(1, 4) instead of (2, 4)"
    assert logits.compare_logits("x", one, one * float("nan"), 3.0, "y").state == "wrong"


def test_bounds_grow_with_the_square_of_the_error():
    assert logits.bound(0.0) == 1e-3 and logits.bound(1.0) == 3.0
    assert abs((logits.bound(0.04) - 1e-3) / (logits.bound(0.02) - 1e-3) - 4.0) < 1e-9


def test_room(tiny_model_folder, monkeypatch):
    weights = PlainFolder(tiny_model_folder)
    assert logits.room(weights) is None
    monkeypatch.setattr(logits, "read_meminfo", lambda: Meminfo(total=2**30, free=1000, available=1000))
    assert "GiB are needed" in logits.room(weights)

"""Kernels run on the CUDA device where there is one, and in Triton's interpreter elsewhere."""

import pytest
import torch


@pytest.fixture
def device():
    """Where kernels are tested."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _poison(monkeypatch):
    """Memory that nobody has written yet holds NaN, so that reading it shows."""
    empty, empty_like, new_empty = torch.empty, torch.empty_like, torch.Tensor.new_empty

    def poisoned(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return made

    monkeypatch.setattr(torch, "empty", poisoned(empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(new_empty))


@pytest.fixture(params=["torch", "triton"])
def impl(request):
    """Both implementations of an operator."""
    if request.param == "triton":
        pytest.importorskip("triton", reason="Triton is not installed; its kernels are tested where it is")
    return request.param

"""The smallest kernel: in the interpreter here, on the device where there is one."""

import pytest
import torch

pytest.importorskip("triton", reason="the kernel needs Triton")

from hasten.kernels.trial import trial  # noqa: E402


def test_it_computes():
    assert trial("cuda" if torch.cuda.is_available() else "cpu")

"""Windows of random tokens for the tiny models, and figures of a model that was never quantized."""

import pytest
import torch

from hasten.quant.calibration import Windows
from hasten.quant.dynamic import Projection, Quantized

PROJECTIONS = (
    Projection("model.layers.0.self_attn.q_proj", 0, "self_attn.q_proj", (64, 64), 4, 64, 3000, 3000, 1e-5),
    Projection("model.layers.0.mlp.<b>", 0, "mlp.<b>", (64, 64), 16, 0, 8192, 3000, 2e-2),
    Projection("model.layers.1.self_attn.q_proj", 1, "self_attn.q_proj", (64, 64), 4, 32, 3000, 3000, 0.0),
    Projection("model.layers.1.mlp.odd", 1, "mlp.odd", (64, 100), 16, 0, 12800, 12800, 0.0, "its width 100 is odd"),
)


@pytest.fixture
def windows():
    """Eight windows to calibrate on and four to measure on, of 48 tokens each."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(0, 128, (12, 48), generator=generator)
    return Windows(tuple(drawn[:8]), tuple(drawn[8:]))


@pytest.fixture
def figures():
    """Two layers, one projection that keeps 16 bit by choice and one by its shape."""
    return Quantized(
        PROJECTIONS,
        budget=1.6,
        bytes=14192,
        plain_bytes=9000,
        divergence=0.05,
        plain_divergence=0.2,
        calibration_tokens=4096,
        heldout_tokens=2048,
    )

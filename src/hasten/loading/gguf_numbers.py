"""Numbers of a GGUF are float32; configurations spell them in decimals."""

from __future__ import annotations

import numpy as np


def plain(value: float) -> float:
    """The shortest decimal that is the same float32: 9.999999747378752e-06 was 1e-05."""
    return float(str(np.float32(value)))

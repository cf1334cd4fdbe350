"""The parts of trl that are extended, or one sentence about what is missing.

Not `from trl import ...`: under `hasten run` the name ``trl`` stands for hasten's own classes.
"""

from __future__ import annotations

from hasten.errors import MissingPackageError

try:
    from trl.trainer.sft_config import SFTConfig as TrlConfig
    from trl.trainer.sft_trainer import SFTTrainer as TrlTrainer
except ModuleNotFoundError as cause:
    _ROOT = (cause.name or "trl").partition(".")[0]
    raise MissingPackageError(
        "SFTTrainer",
        f"it needs {cause.name}, which is not installed",
        "SFTTrainer is trl's, with older argument names accepted.",
        'Run `pip install "hasten[trl]"`.' if _ROOT == "trl" else f"Run `pip install {_ROOT}`.",
    ) from cause

__all__ = ["TrlConfig", "TrlTrainer"]

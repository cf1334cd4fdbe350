"""The parts of trl that are extended, or one sentence about what is missing.

Not `from trl import ...`: under `hasten run` the name ``trl`` stands for hasten's own classes.
"""

from __future__ import annotations

from hasten.errors import MissingPackageError
from hasten.hardware.tested import NEWEST
from hasten.training.record import versions

try:
    from trl.trainer.sft_config import SFTConfig as TrlConfig
    from trl.trainer.sft_trainer import SFTTrainer as TrlTrainer
except ImportError as cause:
    _NAME = cause.name or "trl"
    _ROOT = _NAME.partition(".")[0]
    if _NAME == "trl" and isinstance(cause, ModuleNotFoundError):
        _WHAT, _REMEDY = f"it needs {_NAME}, which is not installed", 'Run `pip install "hasten[trl]"`.'
    elif _ROOT == "trl":  # it is there, and is another than the one we know
        _WHAT = f"trl {versions().get('trl', '(of no version)')} does not have what it needs: {cause}"
        _REMEDY = f"Run `pip install trl=={NEWEST['trl']}.*`."
    elif isinstance(cause, ModuleNotFoundError):
        _WHAT, _REMEDY = f"it needs {_NAME}, which is not installed", f"Run `pip install {_ROOT}`."
    else:
        _WHAT = f"trl {versions().get('trl', '(of no version)')} cannot be imported here: {cause}"
        _REMEDY = f"Make `python -c 'import {_ROOT}'` work, or run `pip install trl=={NEWEST['trl']}.*`."
    raise MissingPackageError(
        "SFTTrainer", _WHAT, "SFTTrainer is trl's, with older argument names accepted.", _REMEDY
    ) from cause

__all__ = ["TrlConfig", "TrlTrainer"]

"""Other libraries' chatter, turned down in our own processes through their own switches."""

from __future__ import annotations

import logging
import warnings


def quiet() -> None:
    """Leave the terminal to us: no loading bars, no notices that a user of the command cannot act on."""
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)

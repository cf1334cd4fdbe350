"""Two processes make the update of one: each takes its share of the step, and there is one divisor for both (A9)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support import stepping

SCRIPT = Path(__file__).parents[1] / "support" / "two_ranks_script.py"
LENGTHS = (3, 30, 5, 20, 9, 14, 27, 4, 11)
"""Three steps of four rows an epoch; the last has one row, so one rank runs an empty micro-batch."""
MASKED = (1, 4)
# As in test_accumulation, through six updates.
EQUAL = 1e-5


LAYOUTS = ("packed", "padded")
OPTIONS = {"batch_size": 2, "budget": 32}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two ranks wrote, by layout."""
    folder, ranks = tmp_path_factory.mktemp("two"), 2
    options = {**OPTIONS, "ddp_backend": "gloo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", str(SCRIPT)]
    command += [str(folder), *(json.dumps(value) for value in (LENGTHS, MASKED, LAYOUTS, options))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return {layout: [torch.load(folder / f"{layout}{rank}.pt") for rank in range(ranks)] for layout in LAYOUTS}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a9_two_ranks_make_the_update_of_one(two, tmp_path, layout):
    examples = stepping.documents(LENGTHS, masked=MASKED)
    how = {"layout": layout, "accumulation": 2, **OPTIONS}
    alone = stepping.trainer(tmp_path, examples, max_steps=-1, num_train_epochs=2, **how)
    alone.train()
    losses = [entry["loss"] for entry in alone.state.log_history if "loss" in entry]
    assert len(losses) == 6
    ranks = two[layout]
    for rank in ranks:
        assert rank["ranks"] == 2
        for name, weight in stepping.trained(alone.model).items():
            torch.testing.assert_close(rank["weights"][name], weight, rtol=0, atol=EQUAL, msg=name)
    assert ranks[0]["losses"] == pytest.approx(losses, abs=EQUAL)

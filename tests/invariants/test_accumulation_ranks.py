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


def run(folder, ranks, options):
    """What each rank wrote."""
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", str(SCRIPT)]
    command += [str(folder), *(json.dumps(value) for value in (LENGTHS, MASKED, options))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(ranks)]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a9_two_ranks_make_the_update_of_one(tmp_path, layout):
    examples = stepping.documents(LENGTHS, masked=MASKED)
    options = {"layout": layout, "batch_size": 2, "budget": 32}
    alone = stepping.trainer(tmp_path, examples, max_steps=-1, num_train_epochs=2, accumulation=2, **options)
    alone.train()
    losses = [entry["loss"] for entry in alone.state.log_history if "loss" in entry]
    assert len(losses) == 6
    ranks = run(tmp_path / "two", 2, {**options, "ddp_backend": "gloo"})
    for rank in ranks:
        assert rank["ranks"] == 2
        for name, weight in stepping.trained(alone.model).items():
            torch.testing.assert_close(rank["weights"][name], weight, rtol=0, atol=EQUAL, msg=name)
    assert ranks[0]["losses"] == pytest.approx(losses, abs=EQUAL)

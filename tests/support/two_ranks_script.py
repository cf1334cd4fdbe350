"""Trains the tiny model for two epochs in each layout, writes losses and weights; torchrun starts it once per rank."""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from support import stepping


def main() -> None:
    """Arguments: the output folder, the lengths, the layouts and the trainer's other options as JSON."""
    folder = Path(sys.argv[1])
    lengths, masked, layouts, options = (json.loads(argument) for argument in sys.argv[2:])
    examples = stepping.documents(lengths, masked=masked)
    for layout in layouts:
        trainer = stepping.trainer(folder, examples, max_steps=-1, num_train_epochs=2, layout=layout, **options)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        seen = {"losses": losses, "weights": stepping.trained(trainer.model), "ranks": trainer.args.world_size}
        torch.save(seen, folder / f"{layout}{trainer.args.process_index}.pt")


if __name__ == "__main__":
    main()

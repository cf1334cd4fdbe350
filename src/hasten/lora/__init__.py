"""LoRA: which modules, how they are attached, and how they are merged. The format is PEFT's."""

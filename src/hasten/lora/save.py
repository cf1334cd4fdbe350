"""An adapter on disk: PEFT's own files, written completely or not at all, with a base that others can find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hasten.errors import TrainingError
from hasten.files import new_folder
from hasten.loading.beginning import beginning_of
from hasten.loading.source import read_json
from hasten.lora.initial import as_it_began, initial_of, save_plain


def save_adapter(model: Any, tokenizer: Any, folder: Path, base_name: str, *, plain: bool = False) -> None:
    """Write an adapter and its tokenizer; an existing folder is replaced once the new one is complete.

    Args:
        model: a `PeftModel`.
        tokenizer: saved beside it, so that the chat template travels along.
        folder: where to.
        base_name: how the base model is called ("demo", a hub id, a folder); it is what a loader will look for.
        plain: an adapter that began as what 4 bits lost is written as one of twice the rank, without its beginning:
            for 16-bit weights, and programs that know no beginnings.

    Raises:
        StorageError: the folder cannot be written, or the disk is full.
        TrainingError: a value of the adapter is not finite.
    """
    refuse_nonfinite(model)
    config = model.peft_config[model.active_adapter]
    before = config.base_model_name_or_path
    with new_folder(folder) as temporary:
        # peft would ask the hub whether the embedding was resized; whether it was trained is known here.
        trains_embedding = any(name in ("embed_tokens", "lm_head") for name in config.target_modules or ()) or _grew(
            model
        )
        config.base_model_name_or_path = base_name
        try:
            began = initial_of(model) or (beginning_of(model) if plain else None)
            if began is None:
                model.save_pretrained(str(temporary), save_embedding_layers=trains_embedding)
            else:
                save_plain(model, began, temporary, embedding=trains_embedding)
        finally:
            config.base_model_name_or_path = before
        tokenizer.save_pretrained(str(temporary))


def _grew(model: Any) -> bool:
    """Whether the vocabulary is larger than the base's files have it: others need the rows to load the adapter."""
    base = model.get_base_model()
    file = Path(str(base.name_or_path)) / "config.json"
    if not file.is_file():
        return False
    before = read_json(file).get("vocab_size")
    return isinstance(before, int) and len(base.get_input_embeddings().weight) > before


def refuse_nonfinite(model: Any) -> None:
    """Refuse an adapter that holds NaN or infinity.

    Raises:
        TrainingError: naming the first such parameter.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            raise TrainingError(
                name,
                "it holds NaN or infinity",
                "Such an adapter is never saved.",
                "Train again with a lower learning rate.",
            )


def refuse_untouched(model: Any) -> None:
    """Refuse an adapter whose every B matrix is what it began as: nothing was learnt.

    Raises:
        TrainingError: if so.
    """
    matrices = [parameter for name, parameter in model.named_parameters() if "lora_B" in name]
    began = initial_of(model) or beginning_of(model)
    if as_it_began(model, began) if began else matrices and not any(matrix.any() for matrix in matrices):
        raise TrainingError(
            "the adapter",
            f"every B matrix is still {'what it began as' if began else 'zero'}",
            "Nothing was learnt.",
            "Raise training.learning_rate, or check that rows have something to learn.",
        )

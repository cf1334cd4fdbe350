"""The Modelfile of an exported model, and the check that it says what the model needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.data.templates import ChatEncoder
from hasten.errors import CapabilityError, ConfigError, ModelError
from hasten.export.ollama.modelfile import modelfile, parse, sampling
from hasten.export.ollama.translate import prove, translate
from hasten.files import write_text

FILE = "Modelfile"
_RAW = (
    "There is no TEMPLATE here, and Ollama may take one that resembles the model's. Send finished prompts instead:\n"
    'POST /api/generate with "raw": true. Why:\n'
)


@dataclass(frozen=True)
class Written:
    """A Modelfile that was written.

    Attributes:
        path: where.
        stops: the texts that end an answer.
        proven: on how many conversations its template writes what the chat template writes; 0 where it has none.
        refused: why it has no template; empty where it has one.
        notes: what is not as in the chat template.
    """

    path: Path
    stops: tuple[str, ...]
    proven: int
    refused: str = ""
    notes: tuple[str, ...] = ()


def write_modelfile(
    folder: Path,
    gguf_name: str,
    encoder: ChatEncoder,
    *,
    generation_config: Any = None,
    system: str | None = None,
    num_ctx: int | None = None,
    adds_bos: bool | None = None,
) -> Written:
    """Write the Modelfile of a GGUF file beside it.

    A chat template that cannot be proven equal in Ollama's language is left out, with a hint in the file.

    Args:
        folder: with the GGUF file.
        gguf_name: its name.
        encoder: the tokenizer with the chat template of training.
        generation_config: transformers' configuration or what its file holds: end tokens and sampling.
        system: a system text; None is the chat template's own where it has one.
        num_ctx: the context window; None leaves it to Ollama.
        adds_bos: whether the GGUF file says that a begin token is added; None goes by what the tokenizer does.

    Raises:
        ConfigError: a name, a text or a number that no Modelfile can have.
        ModelError: an end token that the tokenizer does not have.
        StorageError: the disk is full or not writable.
    """
    ends = stops(encoder, generation_config)
    numbers = sampling(generation_config, num_ctx)
    template, refused, proven, notes = None, "", 0, ()
    try:
        made = translate(encoder, adds_bos)
    except (CapabilityError, ModelError) as problem:
        refused = str(problem)
    else:
        template, proven, notes = made.template, made.proven, made.notes
        system = _own_system(made.system) if system is None else system
    comments = (f"{_RAW}{refused}",) if refused else notes
    text = modelfile(gguf_name, template, ends, system, numbers, comments=comments)
    path = folder / FILE
    write_text(path, text)
    return Written(path, tuple(ends), proven, refused, notes)


def check_modelfile(
    path: Path, encoder: ChatEncoder, *, generation_config: Any = None, adds_bos: bool | None = None
) -> int:
    """Read a Modelfile back and prove it again.

    Args:
        path: of the file.
        encoder: the tokenizer.
        generation_config: as it was written with.
        adds_bos: as it was written with.

    Returns:
        On how many conversations its template writes what the chat template writes; 0 where it has none.

    Raises:
        ModelError: the file cannot be read, its model is missing, or an end of turn is no stop.
        CapabilityError: its template writes something else.
    """
    made = parse(path.read_bytes().decode("utf-8"))  # newlines as they are
    if not (path.parent / made.source).is_file():
        raise ModelError(f"{path}", f"no file '{made.source}'", "FROM names a file beside it.", "Export it again.")
    missing = [end for end in stops(encoder, generation_config) if end not in made.parameters.get("stop", ())]
    if missing:
        raise ModelError(f"{path}", f"no stop {missing[0]!r}", "Every end of turn is a stop.", "Export it again.")
    return 0 if made.template is None else prove(encoder, made.template, adds_bos)


def stops(encoder: ChatEncoder, generation_config: Any = None) -> list[str]:
    """The texts of every token that ends an answer: the tokenizer's, the model's, and the template's.

    Args:
        encoder: the tokenizer.
        generation_config: transformers' configuration, or what its file holds.

    Raises:
        ModelError: the configuration names a token that the tokenizer does not have.
    """
    if isinstance(generation_config, dict):
        generation_config = _Ends(generation_config.get("eos_token_id"))
    ids = encoder.end_ids(generation_config)
    texts = [encoder.tokenizer.decode([token], skip_special_tokens=False) for token in ids]
    if "" in texts:
        raise ModelError(
            "generation_config.eos_token_id",
            str(ids[texts.index("")]),
            "An end token has a text in the tokenizer.",
            "Correct generation_config.json, or load the model's own tokenizer.",
        )
    return texts


@dataclass(frozen=True)
class _Ends:
    eos_token_id: int | list[int] | None


def _own_system(text: str) -> str | None:
    """The chat template's own system text, for a Modelfile that can carry it; the template has it anyway."""
    try:
        modelfile("x.gguf", None, (), text)
    except ConfigError:
        return None
    return text or None

"""A GGUF file becomes an ordinary model folder: dequantized once, cached by content.

Reading a GGUF takes transformers many seconds each time, and a model loaded straight from one still calls itself
quantized: it can be neither saved nor trained. Converting once, with ``GgufConfig(dequantize=True)``, gives the same
weights as plain safetensors.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

from hasten.errors import ModelError
from hasten.files import make_folder, new_folder

_READ_BYTES = 1 << 20
_CONVERSION = 2
"""Raised when the conversion changes what it writes, so that folders made before are not taken."""


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def folder_name(stem: str, content: str) -> str:
    """The name of a converted model's folder: the file's own, its SHA-256, and which conversion made it."""
    return f"{stem}-{content[:16]}-v{_CONVERSION}"


def model_folder(gguf_path: Path, cache: Path) -> Path:
    """The folder with the dequantized weights and the tokenizer of a GGUF file; converted if it is not cached yet.

    Args:
        gguf_path: the GGUF file.
        cache: the folder that keeps converted models.

    Raises:
        ModelError: the file is no GGUF, or its architecture is unknown to transformers.
        StorageError: the cache cannot be written.
    """
    try:
        with gguf_path.open("rb") as file:
            magic = file.read(4)
        content = sha256(gguf_path)
    except OSError as cause:
        reason = f"it cannot be read ({cause.strerror})"
        raise ModelError(str(gguf_path), reason, "A model is read from this file.", "Check its permissions.") from cause
    if magic != b"GGUF":
        rule = "Its first four bytes must be 'GGUF'."
        raise ModelError(str(gguf_path), "not a GGUF file", rule, "Download it again.")
    folder = cache / folder_name(gguf_path.stem, content)
    if folder.is_dir():
        return folder
    make_folder(cache)
    with new_folder(folder) as temporary:
        _convert(gguf_path, temporary)
    return folder


def _convert(gguf_path: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(gguf_path.parent), "gguf_file": gguf_path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
    except (ValueError, LookupError, OSError, RuntimeError, struct.error) as cause:
        reason = str(cause).strip().splitlines() or [type(cause).__name__]
        raise ModelError(
            str(gguf_path),
            f"transformers cannot read it ({reason[0][:300]})",
            "It is cut off, or its architecture or one of its tensor types is not supported.",
            "Download it again, or use the model's Hugging Face folder instead.",
        ) from cause
    _name_special_tokens(tokenizer, gguf_path)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _name_special_tokens(tokenizer: Any, gguf_path: Path) -> None:
    """Set begin, end, unknown and padding token as the file says; transformers 5.17 takes the wrong end token."""
    from gguf import GGUFReader, Keys

    fields = GGUFReader(gguf_path).fields
    names = {
        "bos_token": Keys.Tokenizer.BOS_ID,
        "eos_token": Keys.Tokenizer.EOS_ID,
        "unk_token": Keys.Tokenizer.UNK_ID,
        "pad_token": Keys.Tokenizer.PAD_ID,
    }
    for name, key in names.items():
        if key in fields:
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(int(fields[key].contents())))

"""Everything that is read back of one export, as checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hasten.data.templates import ChatEncoder
from hasten.errors import HastenError
from hasten.export.dressed import Dressed
from hasten.export.gguf.mixes import Chosen
from hasten.export.gguf.source import Source
from hasten.export.hf.base import Opened
from hasten.export.hf.dequantized import DequantizedFolder
from hasten.export.hf.merged import MergedWeights
from hasten.export.hf.write import load_tokenizer
from hasten.export.ollama.write import check_modelfile
from hasten.export.verify import logits, text
from hasten.export.verify.checks import Check
from hasten.export.verify.weights import compare_weights
from hasten.export.weights import PlainFolder, Weights
from hasten.loading.beginning import FILE
from hasten.loading.gguf import model_folder
from hasten.loading.gguf_file import open_gguf

_OF_DTYPE = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_TOKENS = 160


@dataclass
class Proof:
    """The model that was meant, and what it predicts.

    Args:
        opened: the model.
        meant: it, as it is exported.
        scratch: a folder for files that are read back; as large as the model in 16 bits.
    """

    opened: Opened
    meant: Dressed
    scratch: Path

    @cached_property
    def ids(self) -> list[int]:
        """Of the text that predictions are compared on."""
        most = min(_TOKENS, int(self.meant.config.get("max_position_embeddings") or _TOKENS))
        return self.meant.tokenizer(logits.TEXT, add_special_tokens=True)["input_ids"][:most]

    @cached_property
    def predicted(self) -> torch.Tensor:
        """By the weights that were meant."""
        return logits.predictions(logits.model_of(self.meant), self.ids)

    @cached_property
    def no_room(self) -> str | None:
        """Why no model is computed, or None."""
        return "no tokenizer" if self.meant.tokenizer is None else logits.room(self.meant)

    def adapter(self) -> list[Check]:
        """Merged weights against PEFT's own adapter on the base."""
        adapter = self.opened.adapter
        if adapter is None:
            return []
        name = "logits (adapter on its base)"
        why = self.no_room or ("it began as what 4 bits lost" if (adapter / FILE).is_file() else None)
        if why is not None:
            return [Check("merge", name, "skipped", why)]
        from peft import PeftModel

        base = logits.model_of(self.opened.base)
        rows, own = (each.shapes[_embedding(each)][0] for each in (self.meant, self.opened.base))
        if rows != own:
            base.resize_token_embeddings(rows)
        live = logits.predictions(PeftModel.from_pretrained(base, str(adapter)).eval(), self.ids)
        dtype = str(self.opened.base.config.get("dtype") or self.opened.base.config.get("torch_dtype") or "bfloat16")
        rounding = {"float32": 2.0**-20, "float16": 2.0**-11}.get(dtype, 2.0**-9)
        return [logits.compare_logits("merge", live, self.predicted, logits.bound(rounding), "adapter on its base")]

    def folder(self, folder: Path, dtype: str) -> list[Check]:
        """A model folder of 16-bit or 32-bit weights."""
        kind = _OF_DTYPE[dtype]
        return self._both("hf", PlainFolder(folder), lambda name: kind, exact=True)

    def fp8(self, folder: Path) -> list[Check]:
        """A model folder in 8-bit floats, read as the values that they stand for."""
        return self._both("fp8", DequantizedFolder(folder), lambda name: "E4M3", exact=False)

    def lora(self, folder: Path) -> list[Check]:
        """An adapter's folder, merged again."""
        merged = MergedWeights(self.opened.base, folder)
        check, _ = compare_weights("lora", self.meant, merged, lambda name: "F32", exact=True)
        if check.state == "equal":
            check = Check("lora", "weights", "equal", "merged again, the same model")
        if self.meant.tokenizer is None:
            return [check]
        other, own = load_tokenizer(folder), self.meant.tokenizer
        return [check, text.compare_tokens("lora", own, other), text.compare_templates("lora", own, other)]

    def gguf(self, file: Path, kind: str, chosen: Mapping[str, Chosen]) -> list[Check]:
        """A GGUF file, converted back by the loader."""
        if Source(self.meant).model.experts:
            return [Check(f"gguf {kind}", "read back", "skipped", "files with experts are written, but not read here")]
        target, entries = f"gguf {kind}", {entry.name: entry.tensor.name for entry in Source(self.meant).entries}
        plain = kind in ("f16", "bf16", "f32")
        with self._converted(file) as folder:
            return self._both(target, folder, lambda name: chosen[entries[name]].kind.name, exact=plain)

    def modelfile(self, path: Path, source: str) -> list[Check]:
        """A Modelfile and the GGUF file that it names: stops, and its template on conversations."""
        encoder = ChatEncoder(self.meant.tokenizer)
        try:
            proven = check_modelfile(
                path, encoder, generation_config=dict(self.meant.generation), adds_bos=adds_bos(path.parent / source)
            )
        except HastenError as problem:
            return [Check("ollama", "Modelfile", "wrong", str(problem))]
        said = (
            f"template equal on {proven} conversations"
            if proven
            else "no template (the file says why); stops are there"
        )
        return [Check("ollama", "Modelfile", "equal" if proven else "skipped", said)]

    @contextmanager
    def _converted(self, file: Path) -> Iterator[PlainFolder]:
        with TemporaryDirectory(dir=self.scratch) as cache:
            yield PlainFolder(model_folder(file, Path(cache)))

    def _both(self, target: str, found: PlainFolder | DequantizedFolder, kind_of: Any, *, exact: bool) -> list[Check]:
        own, error = compare_weights(target, self.meant, found, kind_of, exact=exact)
        checks = [own]
        tokenizer = self.meant.tokenizer
        if tokenizer is not None:
            other = load_tokenizer(found.folder)
            checks += [text.compare_tokens(target, tokenizer, other), text.compare_templates(target, tokenizer, other)]
        if own.state == "wrong":
            return checks
        if self.no_room is not None:
            return [*checks, Check(target, "logits", "skipped", self.no_room)]
        plain = isinstance(found, PlainFolder)
        model = logits.model_in(found.folder) if plain else logits.model_of(found)
        predicted = logits.predictions(model, self.ids)
        return [*checks, logits.compare_logits(target, self.predicted, predicted, logits.bound(error), "as merged")]


def adds_bos(file: Path) -> bool | None:
    """Whether a GGUF file says that a begin token is put in front of every text; None: it says nothing."""
    found = open_gguf(file).fields.get("tokenizer.ggml.add_bos_token")
    return None if found is None else bool(found)


def _embedding(weights: Weights) -> str:
    return next(name for name in weights.shapes if name.endswith("embed_tokens.weight"))

"""Everything that is read back of one export, as checks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from hasten.data.templates import ChatEncoder
from hasten.errors import HastenError
from hasten.export.dressed import Dressed
from hasten.export.gguf.mixes import Chosen
from hasten.export.gguf.source import Source
from hasten.export.hf.adapter_file import AdapterFile
from hasten.export.hf.base import Opened
from hasten.export.hf.dequantized import DequantizedFolder
from hasten.export.hf.ends import vocabulary_rows
from hasten.export.hf.fp8 import Fp8Format
from hasten.export.hf.merged import MergedWeights
from hasten.export.hf.settings import chosen_dtype
from hasten.export.hf.write import load_tokenizer
from hasten.export.ollama.write import check_modelfile
from hasten.export.verify import llama_cpp, logits, text
from hasten.export.verify.checks import Check
from hasten.export.verify.gguf_lora import compare_adapter
from hasten.export.verify.weights import BOUNDS, compare_weights
from hasten.export.weights import PlainFolder
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
        scratch: a folder for files that are read back: of quantized GGUF files, the model in 32 bits.
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

        merged = self.predicted  # before the other model is made: one of them in memory
        base = logits.model_of(self.opened.base)
        rows = vocabulary_rows(AdapterFile(adapter))
        if rows is not None and rows != len(base.get_input_embeddings().weight):
            base.resize_token_embeddings(rows, mean_resizing=False)
        live = logits.predictions(PeftModel.from_pretrained(base, str(adapter)).eval(), self.ids)
        del base
        common = min(live.shape[-1], merged.shape[-1])
        live, merged = (each[:, :common].log_softmax(-1) for each in (live, merged))
        dtype = str(self.opened.base.config.get("dtype") or self.opened.base.config.get("torch_dtype") or "bfloat16")
        rounding = BOUNDS[_OF_DTYPE.get(dtype, "BF16")] / sqrt(3)  # of errors that are spread evenly over half a step
        return [logits.compare_logits("merge", live, merged, logits.bound(rounding), "adapter on its base")]

    def folder(self, folder: Path, dtype: str) -> list[Check]:
        """A model folder of 16-bit or 32-bit weights."""
        kind = _OF_DTYPE[dtype]
        return self._both("hf", PlainFolder(folder), lambda name: kind)[0]

    def fp8(self, folder: Path) -> list[Check]:
        """A model folder in 8-bit floats, read as the values that they stand for."""
        found, eight = DequantizedFolder(folder), Fp8Format(self.meant).linear
        rest = _OF_DTYPE[chosen_dtype(self.opened.weights.config, None)]
        return self._both("fp8", found, lambda name: "E4M3" if name in eight else rest)[0]

    def lora(self, folder: Path) -> list[Check]:
        """An adapter's folder, merged again."""
        adapter = self.opened.adapter
        if adapter is not None and (adapter / FILE).is_file():
            said = "it began as what 4 bits lost: written as a plain one of twice the rank, which rounds otherwise"
            return [Check("lora", "weights", "skipped", said)]
        merged = MergedWeights(self.opened.base, folder)
        check, _ = compare_weights("lora", self.meant, merged, lambda name: "F32", exact=True)
        if check.state == "equal":
            check = Check("lora", "weights", "equal", "merged again, the same model")
        if self.meant.tokenizer is None:
            return [check]
        other, own = load_tokenizer(folder), self.meant.tokenizer
        return [check, text.compare_tokens("lora", own, other), text.compare_templates("lora", own, other)]

    def gguf_lora(self, file: Path) -> list[Check]:
        """An adapter's GGUF file, by PEFT's names."""
        assert self.opened.adapter is not None, "it was made of one"
        return [compare_adapter(file, self.opened.adapter, self.opened.base.config)]

    def gguf(self, file: Path, kind: str, chosen: Mapping[str, Chosen]) -> list[Check]:
        """A GGUF file: converted back by the loader, and run by llama.cpp where that is installed."""
        target, kinds = f"gguf {kind}", {each.kind.name for each in chosen.values()}
        checks, error = self._read_back(target, file, chosen, 2 if kind in ("f16", "bf16") else 4)
        if any(check.state == "wrong" for check in checks):
            return checks
        if self.no_room is not None:
            return [*checks, Check(target, llama_cpp.NAME, "skipped", self.no_room)]
        # Of weights that were not read back, the worst that their types can do.
        error = max(BOUNDS[name] for name in kinds) if error is None else error
        most = llama_cpp.bound(error, kinds)
        experts = bool(Source(self.meant).model.experts)
        return [*checks, llama_cpp.compare(target, file, self.ids, self.predicted, most, experts=experts)]

    def _read_back(
        self, target: str, file: Path, chosen: Mapping[str, Chosen], value_bytes: int
    ) -> tuple[list[Check], float | None]:
        """A GGUF file as the loader reads it: checks, and its weights' error; None: it was not read."""
        entries = {
            name: entry.tensor.name for entry in Source(self.meant).entries for name in entry.parts or (entry.name,)
        }
        need = sum(torch.Size(shape).numel() for shape in self.meant.shapes.values()) * value_bytes
        free = shutil.disk_usage(self.scratch).free
        if need > free:
            said = f"{need / 1e9:.1f} GB are needed to convert it back, {free / 1e9:.1f} are free"
            return [Check(target, "read back", "skipped", said)], None
        with self._converted(file) as folder:
            return self._both(target, folder, lambda name: chosen[entries[name]].kind.name, self._added)

    def _added(self, name: str) -> float:
        """What GGUF adds to a weight's values."""
        return 1.0 if Source(self.meant).form.plus_one and name.endswith("norm.weight") else 0.0

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

    def _both(
        self,
        target: str,
        found: PlainFolder | DequantizedFolder,
        kind_of: Callable[[str], str],
        added: Callable[[str], float] = lambda name: 0.0,
    ) -> tuple[list[Check], float]:
        """Weights, texts and predictions: checks, and the weights' error."""
        own, error = compare_weights(target, self.meant, found, kind_of, exact=True, added=added)
        checks = [own]
        tokenizer = self.meant.tokenizer
        if tokenizer is not None:
            other = load_tokenizer(found.folder)
            checks += [text.compare_tokens(target, tokenizer, other), text.compare_templates(target, tokenizer, other)]
        if own.state == "wrong":
            return checks, error
        if self.no_room is not None:
            return [*checks, Check(target, "logits", "skipped", self.no_room)], error
        meant = self.predicted  # before the other model is made: one of them in memory
        model = logits.model_in(found.folder) if isinstance(found, PlainFolder) else logits.model_of(found)
        predicted = logits.predictions(model, self.ids)
        return [*checks, logits.compare_logits(target, meant, predicted, logits.bound(error), "as merged")], error


def adds_bos(file: Path) -> bool | None:
    """Whether a GGUF file says that a begin token is put in front of every text; None: it says nothing."""
    found = open_gguf(file).fields.get("tokenizer.ggml.add_bos_token")
    return None if found is None else bool(found)

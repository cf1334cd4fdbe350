"""What vLLM asks of a folder before it serves it, looked up before it is started; and the command that starts it.

    adapter   plain LoRA on linear layers: no whole modules, no DoRA, no biases, no new rows; rank up to 512
    model     16 bits or 8-bit floats of compressed-tensors, safetensors and a tokenizer, no adapter beside them

Stated by vLLM 0.32's own checks of adapters and its list of ranks.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from hasten.errors import CapabilityError, HastenError, ModelError
from hasten.export.hf.adapter_file import CONFIG, AdapterFile
from hasten.export.hf.dequantized import DequantizedFolder
from hasten.export.hf.ends import ends_of, vocabulary_tensors
from hasten.export.weights import PlainFolder, Weights
from hasten.loading.beginning import FILE
from hasten.loading.ollama_store import PREFIX
from hasten.loading.source import DEMO, read_json

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What ``--max-lora-rank`` may be."""
DEFAULT_RANK = 16
_MERGE = "Export it merged."
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


def adapter_problems(folder: Path, base: Weights | None = None) -> list[HastenError]:
    """Why vLLM would not serve an adapter, or would serve it wrongly; empty: it does.

    Args:
        folder: the adapter's.
        base: the model that it is served on; with it, the size of the vocabulary is compared.

    Raises:
        ModelError: the folder is no adapter, or is damaged.
    """
    file = AdapterFile(folder)
    found: list[HastenError] = []

    def add(tensor: str, value: str, rule: str) -> None:
        found.append(CapabilityError(f"'{tensor}'", value, rule, _MERGE))

    trained = [name for weight, name in file.tables.items() if not file.frozen(weight)]
    if trained:
        add(trained[0], "a whole module that was trained", "vLLM serves changes of low rank alone (modules_to_save).")
    magnitudes = [pair.magnitude for pair in file.factors if pair.magnitude]
    if magnitudes:
        add(magnitudes[0], "the magnitudes of DoRA", "vLLM serves plain LoRA (use_dora).")
    biases = [pair.bias for pair in file.factors if pair.bias]
    if biases or file.config.get("lora_bias") or str(file.config.get("bias", "none")) != "none":
        add(biases[0] if biases else CONFIG, "trained biases", "vLLM serves adapters without (bias, lora_bias).")
    if file.rows:
        add(next(iter(file.rows.values())), "single rows of an embedding", "vLLM has no use for them.")
    if (folder / FILE).is_file() or str(file.config.get("init_lora_weights")).lower() == "loftq":
        value, rule = (
            "an adapter that began as what 4 bits lost",
            "vLLM serves it on 16-bit weights, which it does not fit.",
        )
        found.append(CapabilityError(str(folder), value, rule, "Export the adapter, which makes a plain one of it."))
    largest = max((file.shapes[pair.a][0] for pair in file.factors if ".experts" not in pair.module), default=0)
    if largest > RANKS[-1]:
        add(CONFIG, f"rank {largest}", f"vLLM serves ranks up to {RANKS[-1]}.")
    found += _of_vocabulary(file, base)
    return found


def model_problems(folder: Path) -> list[HastenError]:
    """Why vLLM would not serve a model folder; empty: nothing is known against it.

    Args:
        folder: as `hasten.export.hf.write` leaves it.
    """
    found: list[HastenError] = []
    if (folder / CONFIG).is_file():
        rule = "A model's folder holds whole weights alone."
        found.append(ModelError(str(folder), f"it holds {CONFIG}", rule, "Serve the adapter on its base, or merge it."))
    try:
        config = read_json(folder / "config.json")
        weights = DequantizedFolder(folder) if config.get("quantization_config") else PlainFolder(folder)
        shapes = weights.shapes
    except HastenError as cause:
        return [*found, cause]
    embedding = ends_of(shapes)[0]
    said = weights.config.get("vocab_size")
    if embedding is not None and isinstance(said, int) and shapes[embedding][0] != said:
        rule = "vLLM makes the embedding by the configuration."
        value = f"{shapes[embedding][0]} rows, and vocab_size is {said}"
        found.append(ModelError(f"'{embedding}'", value, rule, "Export the model again."))
    if not any((folder / name).is_file() for name in _TOKENIZER):
        rule = "vLLM reads the tokenizer beside the weights."
        found.append(ModelError(str(folder), "it has no tokenizer", rule, "Copy the base's tokenizer files there."))
    if not weights.config.get("architectures"):
        rule = "vLLM chooses its model by that."
        found.append(
            ModelError(
                str(folder), "config.json names no architectures", rule, "Copy them from the base's config.json."
            )
        )
    return found


def serve_model(folder: Path) -> str:
    """The command that serves a model folder."""
    return f"vllm serve {shlex.quote(str(folder))}"


def base_problems(base: str) -> list[HastenError]:
    """Why vLLM could not serve an adapter on a base, by what the base is; empty: nothing is known against it.

    Args:
        base: as `hasten.export.hf.base.Opened.base_name` has it.
    """
    if base == DEMO:
        value = "the embedded model, whose weights are in no folder and no repository"
    elif base.startswith(PREFIX) or base.lower().endswith(".gguf") or Path(base).expanduser().is_file():
        value = "a GGUF file"
    else:
        return []
    rule = "vLLM serves an adapter on a folder of safetensors or a repository."
    return [CapabilityError(f"base '{base}'", value, rule, "Export vllm instead, the merged model.")]


def serve_adapter(folder: Path, base: str, name: str | None = None, *, place: Path | None = None) -> str:
    """The command that serves an adapter on its base.

    Args:
        folder: the adapter's.
        base: the base's folder or hub id.
        name: how clients ask for it; the folder's name by default.
        place: where the adapter will be when the command is typed; by default it stays.

    Raises:
        CapabilityError: the base is none that vLLM serves adapters on, or the rank is larger than it serves.
    """
    require_servable(base_problems(base))
    file = AdapterFile(folder)
    config = file.config
    largest = max([int(config.get("r", 8)), *(config.get("rank_pattern") or {}).values()])
    rank = next((each for each in RANKS if each >= max(largest, DEFAULT_RANK)), None)
    if rank is None:
        raise CapabilityError(str(folder), f"rank {largest}", f"vLLM serves ranks up to {RANKS[-1]}.", _MERGE)
    place = place or folder
    words = ["vllm", "serve", base, "--enable-lora"]
    words += ["--max-lora-rank", str(rank)] if rank != DEFAULT_RANK else []
    return shlex.join([*words, "--lora-modules", f"{name or place.resolve().name}={place}"])


def require_servable(problems: list[HastenError]) -> None:
    """Raise the first problem, where there is one."""
    if problems:
        raise problems[0]


def _of_vocabulary(file: AdapterFile, base: Weights | None) -> list[HastenError]:
    embedding = ends_of(base.shapes)[0] if base is not None else None
    if base is None or embedding is None:
        return []
    rows = base.shapes[embedding][0]
    other = next(((name, size) for name, size in vocabulary_tensors(file).items() if size != rows), None)
    if other is None:
        return []
    rule = "vLLM serves adapters for the base's own vocabulary."
    return [CapabilityError(f"'{other[0]}'", f"{other[1]} tokens, and the base has {rows}", rule, _MERGE)]

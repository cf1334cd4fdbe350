"""Loading: every kind of source becomes a plain model; what is not whole is refused; nothing local asks a network."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import errors as hub_errors
from safetensors.torch import load_file, save_file

from hasten.errors import MissingPackageError, ModelError
from hasten.loading import model as module
from hasten.loading.beginning import FILE, factors_of, keep_beginning
from hasten.loading.model import LoadOptions, config_of, load, local_folder
from hasten.loading.source import Source
from support import tiny
from support.gguf_files import write_llama

IDS = torch.arange(3, 15).unsqueeze(0)
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def adapter_folder(tiny_model_folder, tmp_path):
    """An adapter on q and v of the tiny model, with values of its own."""
    return save_adapter(tmp_path / "adapter", tiny_model_folder)


def save_adapter(folder, base, safe=True, **changes):
    from peft import LoraConfig, get_peft_model

    config = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    torch.manual_seed(1)
    model = get_peft_model(load(str(base), LoadOptions()).model, LoraConfig(**{**config, **changes}))
    model.save_pretrained(folder, save_embedding_layers=False, safe_serialization=safe)
    return folder


def refusal(name, **options):
    with pytest.raises(ModelError) as caught:
        load(str(name), LoadOptions(**options))
    return caught.value


def test_a_folder(tiny_model_folder):
    from transformers import LlamaForCausalLM

    loaded = load(str(tiny_model_folder), LoadOptions())
    assert type(loaded.model) is LlamaForCausalLM
    assert torch.equal(loaded.model.eval()(IDS).logits, tiny.llama()(IDS).logits)
    assert loaded.source == loaded.base == Source("folder", str(tiny_model_folder))
    assert loaded.tokenizer.eos_token_id == 2 and loaded.notes == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_dtype_is_the_plans(tiny_model_folder, dtype):
    loaded = load(str(tiny_model_folder), LoadOptions(dtype=dtype))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {getattr(torch, dtype)}


def test_options_of_transformers_are_handed_on(tiny_model_folder):
    loaded = load(str(tiny_model_folder), LoadOptions(hf={"attn_implementation": "eager"}))
    assert loaded.model.config._attn_implementation == "eager"


def test_a_missing_padding_token_is_given_and_said(tiny_model_folder):
    path = tiny_model_folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["pad_token"]
    path.write_text(json.dumps(config))
    loaded = load(str(tiny_model_folder), LoadOptions())
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id
    assert "no padding token" in loaded.notes[0] and "<|im_end|>" in loaded.notes[0]
    del config["eos_token"]
    path.write_text(json.dumps(config))
    assert "Set eos_token" in refusal(tiny_model_folder).remedy


def test_an_adapter(adapter_folder, tiny_model_folder):
    from peft import PeftModel

    loaded = load(str(adapter_folder), LoadOptions())
    assert isinstance(loaded.model, PeftModel)
    assert loaded.source.kind == "adapter" and loaded.base == Source("folder", str(tiny_model_folder))
    stored = load_file(adapter_folder / WEIGHTS)
    live = {name: value for name, value in loaded.model.state_dict().items() if "lora_" in name}
    assert len(stored) == len(live) == 8
    for name, value in live.items():
        assert torch.equal(value, stored[name.replace(".default", "")]), name
    assert [name for name, value in loaded.model.named_parameters() if value.requires_grad] == list(live)
    assert loaded.model.peft_config["default"].base_model_name_or_path == str(tiny_model_folder)
    assert config_of(str(adapter_folder), LoadOptions()).model_type == "llama"


@pytest.mark.parametrize("changes", [{"modules_to_save": ["lm_head"]}, {"bias": "all"}, {"use_dora": True}])
def test_an_adapter_with_more_than_lora(tmp_path, changes):
    base = tiny.save_model(tmp_path / "base", tiny.llama(tied=False, attention_bias=True))
    folder = save_adapter(tmp_path / "adapter", base, **changes)
    loaded = load(str(folder), LoadOptions())
    assert loaded.source.kind == "adapter"


def test_an_adapter_on_the_embedding(tmp_path):
    base = tiny.save_model(tmp_path / "base", tiny.llama(tied=False))
    folder = save_adapter(tmp_path / "adapter", base, target_modules=["q_proj", "embed_tokens"])
    assert load(str(folder), LoadOptions()).source.kind == "adapter"


# 8.6 of the pains.
def test_an_adapter_with_a_renamed_tensor_is_refused(adapter_folder):
    tensors = load_file(adapter_folder / WEIGHTS)
    name = next(iter(sorted(tensors)))
    tensors[name.replace("layers.0", "layers.9")] = tensors.pop(name)
    save_file(tensors, adapter_folder / WEIGHTS)
    error = refusal(adapter_folder)
    assert "1 tensors of the file have no place" in error.value and "layers.9" in error.value
    assert "1 places have no tensor" in error.value and name in error.value
    assert "completely or not at all" in error.rule and "another base model" in error.remedy


# 19.1 of the pains.
def test_an_adapter_that_misses_a_tensor_is_refused(adapter_folder):
    tensors = load_file(adapter_folder / WEIGHTS)
    name = sorted(tensors)[-1]
    del tensors[name]
    save_file(tensors, adapter_folder / WEIGHTS)
    assert refusal(adapter_folder).value == f"1 places have no tensor (first: {name})"


def test_an_adapter_of_another_size_is_refused(adapter_folder, tmp_path):
    other = tiny.save_model(tmp_path / "other", tiny.llama(hidden_size=32))
    config = json.loads((adapter_folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(other)
    (adapter_folder / "adapter_config.json").write_text(json.dumps(config))
    error = refusal(adapter_folder)
    assert "size mismatch" in error.value and "fit its base model" in error.rule


@pytest.mark.parametrize("content", [b"", b"half", b"\x08\0\0\0\0\0\0\0{}      "])
def test_damaged_adapter_weights(adapter_folder, content):
    (adapter_folder / WEIGHTS).write_bytes(content)
    assert refusal(adapter_folder).subject == str(adapter_folder)


def base_name(adapter_folder, name):
    config = json.loads((adapter_folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = name
    (adapter_folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("read", [load, config_of])
def test_an_adapter_whose_base_is_gone(adapter_folder, tiny_model_folder, read):
    shutil.rmtree(tiny_model_folder)
    with pytest.raises(ModelError) as caught:
        read(str(adapter_folder), LoadOptions())
    assert caught.value.subject == str(adapter_folder)
    assert f"its base model '{tiny_model_folder}' is not there" in caught.value.value
    assert "base_model_name_or_path" in caught.value.remedy


@pytest.mark.parametrize("name", [None, ""])
def test_an_adapter_that_names_no_base(adapter_folder, name):
    base_name(adapter_folder, name)
    error = refusal(adapter_folder)
    assert error.value == "adapter_config.json names no base model" and "base_model_name_or_path" in error.remedy


def test_an_adapter_on_an_adapter(adapter_folder, tmp_path):
    shutil.copytree(adapter_folder, tmp_path / "second")
    base_name(adapter_folder, str(tmp_path / "second"))
    error = refusal(adapter_folder)
    assert "is an adapter too" in error.value and error.remedy == "Merge that adapter first."


def test_pickle_weights(tiny_model_folder):
    tensors = load_file(tiny_model_folder / "model.safetensors")
    (tiny_model_folder / "model.safetensors").unlink()
    torch.save(tensors, tiny_model_folder / "pytorch_model.bin")
    error = refusal(tiny_model_folder)
    assert error.value == "only pickle weights (pytorch_model.bin)" and "use_safetensors=False" in error.remedy
    loaded = load(str(tiny_model_folder), LoadOptions(use_safetensors=False))
    assert torch.equal(loaded.model.eval()(IDS).logits, tiny.llama()(IDS).logits)


class Evil:
    """What a pickle can do when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_even_a_pickle_that_was_asked_for_runs_nothing(tiny_model_folder, tmp_path):
    (tiny_model_folder / "model.safetensors").unlink()
    torch.save({"x": Evil(tmp_path / "ran")}, tiny_model_folder / "pytorch_model.bin")
    with pytest.raises(Exception):  # noqa: B017  # whose it is does not matter here
        load(str(tiny_model_folder), LoadOptions(use_safetensors=False))
    assert not (tmp_path / "ran").exists()


def test_a_pickled_adapter(adapter_folder):
    expected = load(str(adapter_folder), LoadOptions()).model.eval()(IDS).logits
    torch.save(load_file(adapter_folder / WEIGHTS), adapter_folder / "adapter_model.bin")
    (adapter_folder / WEIGHTS).unlink()
    assert refusal(adapter_folder).value == "only pickle weights (adapter_model.bin)"
    loaded = load(str(adapter_folder), LoadOptions(use_safetensors=False))
    assert torch.equal(loaded.model.eval()(IDS).logits, expected)


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("read", [load, config_of])
def test_remote_code(tiny_model_folder, tmp_path, read):
    (tiny_model_folder / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    auto_map = {"AutoConfig": "modeling_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    change_config(tiny_model_folder, model_type="own", auto_map=auto_map)
    with pytest.raises(ModelError, match="needs Python code from its own repository.*trust_remote_code=True"):
        read(str(tiny_model_folder), LoadOptions())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("read", [load, config_of])
def test_an_unknown_architecture(tiny_model_folder, read):
    change_config(tiny_model_folder, model_type="llamma")
    with pytest.raises(ModelError, match="model_type 'llamma'.*Did you mean 'llama'"):
        read(str(tiny_model_folder), LoadOptions())


def test_an_architecture_that_writes_no_text(tiny_model_folder):
    change_config(tiny_model_folder, model_type="vit")
    error = refusal(tiny_model_folder)
    assert error.subject == str(tiny_model_folder) and "could not be loaded" in error.value


@pytest.mark.parametrize("content", [b"", b"half", b"\xff" * 100])
def test_damaged_weights(tiny_model_folder, content):
    (tiny_model_folder / "model.safetensors").write_bytes(content)
    error = refusal(tiny_model_folder)
    assert error.subject == str(tiny_model_folder)
    assert error.value.startswith("it could not be loaded (") and error.remedy.startswith("Check its files")


def test_a_folder_without_a_tokenizer(tiny_model_folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tiny_model_folder / name).unlink()
    error = refusal(tiny_model_folder)
    assert "could not be loaded" in error.value and "a tokenizer" in error.rule


def test_4bit_without_bitsandbytes(tiny_model_folder, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "bitsandbytes" else find(name, *more)
    )
    with pytest.raises(MissingPackageError, match=r"bitsandbytes is not installed.*hasten\[bnb\].*load_in_4bit=False"):
        load(str(tiny_model_folder), LoadOptions(storage="nf4"))


def test_4bit_is_nf4_with_double_quantization():
    config = module._stored_as("nf4", torch.bfloat16)
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16


@pytest.mark.parametrize("read", [load, config_of])
@pytest.mark.parametrize("name", ["no-such-org/no-such-model", "no-such-model"])
def test_a_hub_id_without_a_connection(name, read):
    with pytest.raises(ModelError) as caught:
        read(name, LoadOptions())
    assert caught.value.subject == name
    assert caught.value.value == "no such local folder, and the hub cannot be reached"
    assert "Check the spelling and the connection" in caught.value.remedy


class Response:
    """What a hub error carries."""

    headers: dict[str, str] = {}
    request = None
    status_code = 404
    text = ""


def hub_raises(monkeypatch, error):
    import huggingface_hub

    def download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)


@pytest.mark.parametrize(
    ("kind", "value", "remedy"),
    [
        (hub_errors.GatedRepoError, "the repository is gated", "token=..."),
        (
            hub_errors.RepositoryNotFoundError,
            "unknown model",
            "Check the spelling, or pass token=... if it is private.",
        ),
        (hub_errors.RevisionNotFoundError, "no revision 'v9'", "Check the spelling."),
        (hub_errors.HfHubHTTPError, "the hub did not answer (why)", "Try again later."),
    ],
)
def test_what_the_hub_says_in_our_words(monkeypatch, kind, value, remedy):
    hub_raises(monkeypatch, kind("why", response=Response()))
    error = refusal("org/name", revision="v9")
    assert (error.subject, error.value) == ("org/name", value)
    assert remedy in error.remedy


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that has the repositories put into it; loaders get their local copies and say what they were asked."""
    import huggingface_hub
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    repositories, asked = {}, []

    def download(name, file, *, revision=None, token=None):
        asked.append((name, file, revision, token))
        path = repositories[name] / file
        if not path.is_file():
            raise hub_errors.EntryNotFoundError(file)
        return str(path)

    def local(loader):
        original = loader.from_pretrained

        def from_pretrained(*arguments, **options):
            position = 1 if loader is PeftModel else 0
            name = arguments[position]
            told = {key: options.pop(key) for key in ("revision", "token") if key in options}
            asked.append((loader.__name__, name, told, options.get("use_safetensors")))
            replaced = list(arguments)
            replaced[position] = str(repositories.get(name, name))
            return original(*replaced, **options)

        monkeypatch.setattr(loader, "from_pretrained", from_pretrained)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    for loader in (AutoConfig, AutoModelForCausalLM, AutoTokenizer, PeftModel):
        local(loader)
    return repositories, asked


def test_a_hub_model_is_asked_for_with_revision_and_token(hub, tiny_model_folder):
    repositories, asked = hub
    repositories["org/model"] = tiny_model_folder
    options = LoadOptions(revision="v2", token="secret")
    loaded = load("org/model", options)
    assert loaded.source == loaded.base == Source("hub", "org/model")
    told = {"revision": "v2", "token": "secret"}
    assert ("AutoModelForCausalLM", "org/model", told, True) in asked
    assert ("AutoTokenizer", "org/model", told, None) in asked
    assert ("org/model", "config.json", "v2", "secret") in asked
    assert config_of("org/model", options).model_type == "llama"
    assert ("AutoConfig", "org/model", told, None) in asked


def test_pickles_of_a_hub_model_only_when_asked_for(hub, tiny_model_folder):
    repositories, asked = hub
    repositories["org/model"] = tiny_model_folder
    load("org/model", LoadOptions(use_safetensors=False))
    assert [entry[3] for entry in asked if entry[0] == "AutoModelForCausalLM"] == [None]


def test_a_hub_adapter_has_the_revision_and_its_base_has_not(hub, adapter_folder, tiny_model_folder):
    repositories, asked = hub
    base_name(adapter_folder, "org/base")
    repositories |= {"org/adapter": adapter_folder, "org/base": tiny_model_folder}
    loaded = load("org/adapter", LoadOptions(revision="v2", token="secret"))
    assert loaded.source == Source("hub", "org/adapter") and loaded.base == Source("hub", "org/base")
    assert ("PeftModel", "org/adapter", {"revision": "v2", "token": "secret"}, None) in asked
    assert ("AutoModelForCausalLM", "org/base", {"revision": "main", "token": "secret"}, True) in asked
    assert {revision for name, _, revision, _ in asked if name == "org/base"} == {None}


def test_what_a_hub_adapter_began_with(hub, tmp_path, tiny_model_folder, monkeypatch):
    import huggingface_hub

    repositories, _ = hub
    model = load(str(save_adapter(tmp_path / "adapter", tiny_model_folder)), LoadOptions()).model
    keep_beginning(model, factors_of(model))
    model.save_pretrained(str(tmp_path / "begun"))
    base_name(tmp_path / "begun", "org/base")
    repositories |= {"org/adapter": tmp_path / "begun", "org/base": tiny_model_folder}
    loaded = load("org/adapter", LoadOptions())
    assert loaded.model.peft_config["default"].r == 8 and any("without that beginning" in note for note in loaded.notes)

    download = huggingface_hub.hf_hub_download

    def no_beginning(error):
        def without(name, file, **where):
            if file == FILE:
                raise error
            return download(name, file, **where)

        return without

    kept = hub_errors.LocalEntryNotFoundError("offline")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_beginning(kept))
    assert load("org/adapter", LoadOptions()).model.peft_config["default"].r == 4
    busy = hub_errors.HfHubHTTPError("busy", response=Response())
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_beginning(busy))
    with pytest.raises(ModelError, match="did not answer"):  # it may have one
        load("org/adapter", LoadOptions())


def test_a_hub_adapter_with_pickles_is_refused_before_anything_is_loaded(hub, adapter_folder, tiny_model_folder):
    repositories, asked = hub
    (adapter_folder / WEIGHTS).rename(adapter_folder / "adapter_model.bin")
    repositories["org/adapter"] = adapter_folder
    asked.clear()
    assert refusal("org/adapter").value == f"the repository has no {WEIGHTS}"
    assert not any(entry[0] in ("PeftModel", "AutoModelForCausalLM") for entry in asked)


def test_remote_code_on_the_hub_is_refused_before_anything_is_loaded(hub, tiny_model_folder):
    repositories, asked = hub
    change_config(tiny_model_folder, model_type="own", auto_map={"AutoConfig": "x.Y"})
    repositories["org/model"] = tiny_model_folder
    assert "trust_remote_code=True" in refusal("org/model").remedy
    assert not any(entry[0].startswith("Auto") for entry in asked)


def test_a_cached_adapter_needs_no_connection(monkeypatch, adapter_folder):
    import huggingface_hub

    hub_raises(monkeypatch, AssertionError("asked the hub"))
    cached = {"adapter_config.json": str(adapter_folder / "adapter_config.json")}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file, revision=None: cached.get(file))
    assert module._is_adapter(Source("hub", "org/adapter"), LoadOptions())
    cached.clear()
    cached["config.json"] = "x"
    assert not module._is_adapter(Source("hub", "org/adapter"), LoadOptions())


def test_where_the_files_of_a_source_are(tiny_model_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(module.demo, "demo_folder", lambda cache: cache / "demo")
    options = LoadOptions(cache=tmp_path)
    assert local_folder(Source("demo", "demo"), options) == str(tmp_path / "models" / "demo")
    assert local_folder(Source("folder", "/x"), options) == "/x"
    assert local_folder(Source("hub", "org/name"), options) == "org/name"


# 21.1 of the pains, in a process of its own: without the offline switch of the test suite.
@pytest.mark.slow
def test_nothing_local_asks_a_network(adapter_folder, tiny_model_folder, tmp_path):
    file = write_llama(tmp_path / "tiny.gguf", tiny.llama(tied=False), tiny.tokenizer())
    script = Path(tiny.__file__).with_name("offline_script.py")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    command = [sys.executable, str(script), str(tmp_path / "cache")]
    done = subprocess.run(
        [*command, str(tiny_model_folder), str(adapter_folder), str(file)],
        env={**environment, "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"kinds": ["folder", "adapter", "gguf"], "tried": []}

"""One export: written, read back, compared, named; and what is never given a name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from export.hf.conftest import adapt
from hasten import files
from hasten.errors import CapabilityError, ConfigError, HastenError, ModelError, StorageError
from hasten.export import job as module
from hasten.export import prove
from hasten.export.gguf.encoders import has_ggml
from hasten.export.hf.base import open_model
from hasten.export.job import RECORD, Request, export
from hasten.export.targets import parse
from hasten.export.verify import llama_cpp
from hasten.export.verify.checks import Check, lines
from hasten.loading.model import LoadOptions, load
from support import tiny
from support.gguf_judges import family_folder

IDS = torch.randint(3, 120, (1, 12), generator=torch.Generator().manual_seed(0))

BY_LLAMA_CPP = "skipped" if llama_cpp.version() is None else "within"


@pytest.fixture
def adapted(tmp_path):
    return adapt(tmp_path / "base", tiny.llama(), tmp_path, target_modules=["q_proj", "v_proj", "down_proj"])


def request(tmp_path, *to, **changes):
    return Request(wanted=parse(to), output=tmp_path / "out", **changes)


def states(done):
    return {(check.target, check.what): check.state for check in done.checks}


def test_an_adapter_to_everything(adapted, tmp_path):
    told = []
    to = ("hf", "fp8", "lora", "gguf:f16,q8_0", "gguf-lora", "ollama", "vllm")
    done = export(open_model(adapted.adapter), request(tmp_path, *to, name="me"), tell=told.append)
    found = states(done)
    assert found.pop(("ollama", "Modelfile")) == "equal"
    assert found.pop(("merge", "logits (adapter on its base)")) == "within"
    for target in ("hf", "gguf f16", "gguf q8_0"):
        weights = "within" if target.endswith("q8_0") else "equal"
        assert found.pop((target, "weights")) == weights, lines(done.checks)
        assert found.pop((target, "tokens")) == found.pop((target, "template")) == "equal"
        assert found.pop((target, "logits (as merged)")) == "within"
    assert {found.pop((f"gguf {kind}", llama_cpp.NAME)) for kind in ("f16", "q8_0")} == {BY_LLAMA_CPP}
    assert found.pop(("fp8", "weights")) == found.pop(("fp8", "logits (as merged)")) == "within"
    assert all(found.pop(("lora", what)) == "equal" for what in ("weights", "tokens", "template"))
    assert found.pop(("gguf-lora", "weights")) == "equal"
    assert found.pop(("fp8", "tokens")) == found.pop(("fp8", "template")) == "equal" and not found
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [RECORD, "fp8", "gguf", "gguf-lora", "hf", "lora"]
    assert sorted(path.name for path in (out / "gguf").iterdir()) == ["Modelfile", "me-F16.gguf", "me-Q8_0.gguf"]
    record = json.loads((out / RECORD).read_text("utf-8"))
    assert record["targets"].keys() == done.targets.keys() == {"hf", "fp8", "lora", "gguf", "gguf-lora"}
    assert record["checks"] == [check.as_dict() for check in done.checks]
    assert f"vllm serve {out / 'hf'}" in done.commands and any("ollama create me -f" in one for one in done.commands)
    with torch.no_grad():
        wanted = adapted.live(input_ids=IDS).logits
        for place, bound in ((out / "hf", 0.05), (out / "gguf" / "me-F16.gguf", 0.05), (out / "lora", 1e-4)):
            model = load(str(place), LoadOptions(dtype="float32")).model
            assert (model(input_ids=IDS).logits - wanted).norm() <= bound * wanted.norm(), place


def test_again_into_the_same_folder(adapted, tmp_path):
    opened = open_model(adapted.adapter)
    export(opened, request(tmp_path, "hf", verify=False))
    done = export(opened, request(tmp_path, "hf:float32", "gguf:f32", verify=False))
    assert done.checks == [] and done.targets["hf"]["dtype"] == "float32"
    record = json.loads((tmp_path / "out" / RECORD).read_text("utf-8"))
    assert record["targets"].keys() == {"hf", "gguf"}
    export(opened, request(tmp_path, "lora", verify=False))
    record = json.loads((tmp_path / "out" / RECORD).read_text("utf-8"))
    assert record["targets"].keys() == {"hf", "gguf", "lora"}, "what other exports wrote stays known"


def test_a_folder_of_somebody_else_s_stays(adapted, tmp_path):
    foreign = tmp_path / "out" / "hf" / "thesis.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine", "utf-8")
    with pytest.raises(ConfigError, match="--output.*no export made it.*Choose another folder"):
        export(open_model(adapted.adapter), request(tmp_path, "hf"))
    assert foreign.read_text("utf-8") == "mine"


def test_files_of_other_types_stay(adapted, tmp_path):
    opened = open_model(adapted.adapter)
    export(opened, request(tmp_path, "gguf:f16", "ollama", verify=False, name="x"))
    done = export(opened, request(tmp_path, "gguf:q8_0", verify=False, name="x"))
    folder = tmp_path / "out" / "gguf"
    assert sorted(path.name for path in folder.iterdir()) == ["Modelfile", "x-F16.gguf", "x-Q8_0.gguf"]
    assert done.targets["gguf"]["files"].keys() == {"f16", "q8_0"}
    (folder / "mine.txt").write_text("mine", "utf-8")
    with pytest.raises(ConfigError, match="holds 'mine.txt'"):
        export(opened, request(tmp_path, "gguf:q8_0", verify=False, name="x"))
    assert (folder / "mine.txt").is_file()


def test_another_model_s_export_and_the_base_itself_stay(adapted, tmp_path):
    base, place = open_model(str(adapted.base)), tmp_path / "out" / "hf"
    export(base, request(tmp_path, "hf", verify=False))
    with pytest.raises(ConfigError, match="is an export of "):
        export(open_model(adapted.adapter), request(tmp_path, "hf", verify=False))
    with pytest.raises(ConfigError, match="are one place.*What is exported is read from there"):
        export(open_model(str(place)), request(tmp_path, "hf", verify=False))
    assert (place / "config.json").is_file()


def test_what_stands_is_known_when_a_later_target_fails(adapted, tmp_path, monkeypatch):
    def refused(*given, **named):
        raise ModelError("server", "said no", "It makes models.", "Ask it again.")

    monkeypatch.setattr(module, "create", refused)
    opened = open_model(adapted.adapter)
    for _ in range(2):
        with pytest.raises(ModelError, match="said no"):
            export(opened, request(tmp_path, "hf", "ollama:me", "gguf:f16", verify=False))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [RECORD, "gguf", "hf"]


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a\nb"])
def test_names_that_are_none(adapted, tmp_path, name):
    with pytest.raises(ConfigError, match="--name"):
        export(open_model(adapted.adapter), request(tmp_path, "gguf:f16", name=name))


def test_what_is_wrong_gets_no_name(adapted, tmp_path, monkeypatch):
    """A file whose values are not those that were meant: here the reader sees others."""
    real = prove.compare_weights

    def compare(target, meant, found, kind_of, **more):
        shapes, config, read = found.shapes, found.config, found.read
        other = type("Other", (), {"shapes": shapes, "config": config, "read": lambda self, name: read(name).flip(0)})
        return real(target, meant, other(), kind_of, **more)

    monkeypatch.setattr(prove, "compare_weights", compare)
    with pytest.raises(ModelError, match="export to hf: weights: .* is off by .*refused-hf"):
        export(open_model(adapted.adapter), request(tmp_path, "hf", "gguf:f16"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["refused-hf"]
    monkeypatch.undo()
    export(open_model(adapted.adapter), request(tmp_path, "hf"))


def test_a_merge_that_is_not_the_adapter_writes_nothing(adapted, tmp_path, monkeypatch):
    def other(self):
        return [Check("merge", "logits (adapter on its base)", "wrong", "2.1 nats per token (bound 0.002)")]

    monkeypatch.setattr(prove.Proof, "adapter", other)
    with pytest.raises(ModelError, match="export to merge: .*2.1 nats per token.*no file: nothing was written"):
        export(open_model(adapted.adapter), request(tmp_path, "hf"))
    assert not (tmp_path / "out").exists()


def test_a_whole_model(tiny_model_folder, tmp_path):
    done = export(open_model(str(tiny_model_folder)), request(tmp_path, "gguf:f32,bf16"))
    assert not any(check.state == "wrong" or check.target == "merge" for check in done.checks)
    with pytest.raises(ConfigError, match="'lora' of a whole model.*Use hf or gguf"):
        export(open_model(str(tiny_model_folder)), request(tmp_path, "lora"))


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_experts_are_read_back_and_run_by_llama_cpp(model_type, tmp_path):
    folder = family_folder(tmp_path / "model", model_type)
    done = export(open_model(str(folder)), request(tmp_path, "gguf:bf16,q8_0"))
    found = {(check.target, check.what): check.state for check in done.checks}
    assert found["gguf bf16", "weights"] == "equal" and found["gguf bf16", "logits (as merged)"] == "within"
    assert "wrong" not in found.values()
    by = next(check for check in done.checks if check.what == llama_cpp.NAME)
    assert by.state == BY_LLAMA_CPP and ("the median of" in by.said or by.state == "skipped")


def test_an_unknown_family_says_what_works(tmp_path):
    from transformers import GPTNeoXConfig

    small = GPTNeoXConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    tiny.of_config(small).save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    with pytest.raises(CapabilityError, match="GGUF of model_type 'gpt_neox'.*Hugging Face or vLLM"):
        export(open_model(str(tmp_path / "base")), request(tmp_path, "gguf"))
    assert not (tmp_path / "out").exists()
    done = export(open_model(str(tmp_path / "base")), request(tmp_path, "hf"))
    assert {check.state for check in done.checks} <= {"equal", "within"}
    AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "hf")


def test_without_a_tokenizer(tmp_path):
    tiny.llama().save_pretrained(tmp_path / "base")
    done = export(open_model(str(tmp_path / "base")), request(tmp_path, "hf"))
    assert states(done) == {("hf", "weights"): "equal", ("hf", "logits"): "skipped"}


@pytest.mark.skipif(not has_ggml(), reason="libggml-python is not installed")
def test_dynamic_and_an_importance_matrix(tmp_path):
    tiny.llama(hidden_size=256, intermediate_size=512, max_position_embeddings=256).save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    rows = tmp_path / "rows.jsonl"
    sentence = "the red dog and the green cat, one two three, say blue"
    rows.write_text("".join(json.dumps({"text": f"{number} {sentence}"}) + "\n" for number in range(80)), "utf-8")
    asked = request(tmp_path, "gguf:dynamic,q4_k_m", sources=(str(rows),), tokens=512)
    done = export(open_model(str(tmp_path / "base")), asked)
    files = done.targets["gguf"]["files"]
    assert files["dynamic"]["bytes"] <= files["q4_k_m"]["bytes"] * 1.01
    assert all(check.state in ("equal", "within") for check in done.checks if check.what != llama_cpp.NAME)
    assert {check.state for check in done.checks if check.what == llama_cpp.NAME} == {BY_LLAMA_CPP}
    measured = export(
        open_model(str(tmp_path / "base")), replace(asked, wanted=parse(["gguf:q4_k_m"]), importance=True)
    )
    assert measured.targets["gguf"]["files"]["q4_k_m"]["bytes"] > 0


def test_names_of_files(adapted, tmp_path):
    assert module._name_of(open_model(str(adapted.base))) == "base"
    assert module._name_of(open_model(adapted.adapter)) == tmp_path.name  # of an adapter in a folder of that name


def test_trouble_with_a_draft_is_said_of_the_folder_that_was_asked_for(adapted, tmp_path, monkeypatch):
    """Drafts have names that nobody gave, and are gone by then."""
    usage = files.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    for to in ("hf", "lora", "gguf:f16"):
        with pytest.raises(StorageError, match="MB are free.*Free some space") as caught:
            export(open_model(adapted.adapter), request(tmp_path, to, verify=False))
        assert caught.value.subject == str(tmp_path / "out") and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("to", "importance", "said"),
    [
        (("hf",), Path("none.dat"), "without a GGUF type"),
        (("hf",), True, "without a GGUF type"),
        (("gguf:dynamic",), True, "with gguf:dynamic alone"),
        (("hf", "gguf:q4_0"), Path("none.dat"), "none.dat"),
    ],
)
def test_an_importance_matrix_that_is_of_no_use_or_not_there_is_known_before(
    adapted, tmp_path, monkeypatch, to, importance, said
):
    monkeypatch.setattr(module, "write_model", lambda *given, **named: pytest.fail("hours of work"))
    with pytest.raises(HastenError, match=said):
        export(open_model(adapted.adapter), request(tmp_path, *to, importance=importance))
    assert not (tmp_path / "out").exists()


def test_a_damaged_record_replaces_nothing(tiny_model_folder, tmp_path):
    (tmp_path / "out" / "hf").mkdir(parents=True)
    (tmp_path / "out" / "hf" / "mine").write_text("x")
    (tmp_path / "out" / RECORD).write_text('{"targets": {"hf": []}}')
    with pytest.raises(StorageError, match="what it says of 'hf' is no target's"):
        export(open_model(str(tiny_model_folder)), request(tmp_path, "hf"))
    assert (tmp_path / "out" / "hf" / "mine").read_text() == "x"

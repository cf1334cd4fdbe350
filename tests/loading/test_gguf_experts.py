"""Files with experts: weights bit by bit, logits, and back again; how experts are chosen is never guessed."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from hasten.errors import ModelError
from hasten.export.gguf.source import Source
from hasten.export.gguf.write import write_gguf
from hasten.export.weights import PlainFolder
from hasten.loading import gguf, gguf_tensors
from hasten.loading.gguf_config import configuration
from hasten.loading.gguf_experts import place_of
from hasten.loading.gguf_file import open_gguf
from hasten.loading.gguf_names import form_of
from hasten.loading.model import LoadOptions, load
from support import gguf_experts, judges, tiny
from support.gguf_judges import convert, family_folder, greedy, greedy_here, serving
from support.gguf_models import BASE

FAMILIES = list(gguf_experts.FAMILIES)
IDS = torch.arange(3, 33).unsqueeze(0)
UNSAID = {"architectures", "dtype", "transformers_version", "_name_or_path"}


def converted(path):
    return gguf.model_folder(path, path.parent / "cache")


def live(folder):
    from transformers import AutoModelForCausalLM

    found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, said = found
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"]
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def same(one, other):
    found, expected = one.state_dict(), other.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert torch.equal(logits(one), logits(other))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_configuration_is_the_models(family, tmp_path):
    model = gguf_experts.model(family)
    gguf_experts.write_model(tmp_path / "x.gguf", model)
    file = open_gguf(tmp_path / "x.gguf")
    found, expected = configuration(file, form_of(file)).to_dict(), model.config.to_dict()
    differing = {name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)}
    assert differing <= UNSAID, {name: (found.get(name), expected.get(name)) for name in differing - UNSAID}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", [False, True], ids=["merged", "split"])
def test_weights_and_logits(family, split, tmp_path):
    model = gguf_experts.model(family)
    gguf_experts.write_model(tmp_path / "x.gguf", model, kind="F16", split=split)
    folder = converted(tmp_path / "x.gguf")
    same(live(folder), model)
    assert gguf.notes(folder) == []
    with safe_open(folder / "model.safetensors", "pt") as opened:
        kept = {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    assert kept == {"F16"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_logits_are_those_of_the_decoded_values(family, kind, tmp_path):
    if kind == "Q4_K":
        pytest.importorskip("libggml", reason="ggml's encoders (libggml-python) are not installed")
    model = gguf_experts.model(family)
    written = gguf_experts.write_model(tmp_path / "x.gguf", model, kind=kind)
    folder = converted(tmp_path / "x.gguf")
    source = Source(PlainFolder(folder))
    assert {entry.tensor.name for entry in source.entries} == written.keys()
    for entry in source.entries:
        assert np.array_equal(source.read(entry), written[entry.tensor.name]), entry.tensor.name
    # The reference: the live model with what the gguf package decodes, put there without the conversion.
    with torch.no_grad():
        for layer, block in enumerate(model.model.layers):
            own = {
                name: torch.from_numpy(written[f"blk.{layer}.ffn_{name}_exps.weight"])
                for name in ("gate", "up", "down")
            }
            block.mlp.experts.gate_up_proj.copy_(torch.cat([own["gate"], own["up"]], 1))
            block.mlp.experts.down_proj.copy_(own["down"])
        taken = live(folder)
        for name, parameter in model.named_parameters():
            if ".experts." not in name:
                parameter.copy_(taken.state_dict()[name])
    same(taken, model)


def test_types_that_differ_within_a_layer(tmp_path):
    model = gguf_experts.model("mixtral")
    kinds = {"ffn_up_exps": "Q8_0", "ffn_down_exps": "F32"}
    written = gguf_experts.write_model(tmp_path / "x.gguf", model, kind="F16", kinds=kinds)
    found = live(converted(tmp_path / "x.gguf")).model.layers[1].mlp.experts.gate_up_proj
    both = [written[f"blk.1.ffn_{name}_exps.weight"] for name in ("gate", "up")]
    assert np.array_equal(found.detach().numpy(), np.concatenate(both, 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_f16_comes_back_byte_by_byte(family, tmp_path):
    model = gguf_experts.model(family)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn_like(parameter) * 0.1
            parameter.copy_(values if name.endswith("gate.weight") else values.half())  # routers have 32 bits
    gguf_experts.write_model(tmp_path / "x.gguf", model, tiny.tokenizer(), kind="F16")
    folder = converted(tmp_path / "x.gguf")
    again = write_gguf(PlainFolder(folder), {"f16": tmp_path / "again.gguf"})["f16"].path
    one, other = open_gguf(tmp_path / "x.gguf"), open_gguf(again)
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        found = other.tensors[name]
        assert (list(found.shape), found.tensor_type) == (list(tensor.shape), tensor.tensor_type), name
        assert found.data.tobytes() == tensor.data.tobytes(), name
    ours = f"{one.arch}."
    assert {key: other.fields.get(key) for key in one.fields if key.startswith(ours)} == {
        key: value for key, value in one.fields.items() if key.startswith(ours)
    }


def test_an_experts_width_that_is_not_said(tmp_path):
    model = gguf_experts.model("qwen3_moe")  # 512 for two of them
    gguf_experts.write_model(tmp_path / "x.gguf", model, fields={"qwen3moe.expert_feed_forward_length": None})
    same(live(converted(tmp_path / "x.gguf")), model)


def test_large_models_are_cut_by_expert(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_tensors, "_SHARD", 600_000)
    monkeypatch.setattr(gguf_tensors, "_VALUES", 1000)
    model = gguf_experts.model("mixtral")
    gguf_experts.write_model(tmp_path / "x.gguf", model, kind="F16")
    file = open_gguf(tmp_path / "x.gguf")
    form = form_of(file)
    stored = gguf_tensors.plan(file, form, configuration(file, form))
    assert max(block.size for each in stored for block in gguf_tensors.values(each)) <= 1000
    folder = converted(tmp_path / "x.gguf")
    places = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    one_layer = {file for name, file in places.items() if name.startswith("model.layers.0.block_sparse_moe.experts.")}
    assert len(one_layer) > 3
    same(live(folder), model)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_converted_base_is_trained_on(family, tmp_path):
    from peft import LoraConfig, get_peft_model

    gguf_experts.write_model(tmp_path / "x.gguf", gguf_experts.model(family), tiny.tokenizer(), kind="Q8_0")
    loaded = load(str(tmp_path / "x.gguf"), LoadOptions(cache=tmp_path / "cache"))
    assert loaded.source.kind == "gguf"
    model = get_peft_model(loaded.model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_files_of_llama_cpps_converter(family, tmp_path):
    """The base has the weights that were converted, and predicts what llama.cpp does."""
    judges.package("xllamacpp")
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})  # Qwen's class would add it
    sizes = {**BASE, **gguf_experts.FAMILIES[family], "vocab_size": 131}
    folder = family_folder(tmp_path / "model", family, tokenizer=tokenizer, **sizes)
    convert({folder: tmp_path / "x.gguf"}, cut="gpt-2")
    base, ids = live(converted(tmp_path / "x.gguf")), [5, 20, 33, 47, 60]
    found = base.state_dict()
    for name, tensor in live(folder).state_dict().items():
        exact = tensor.ndim == 1 or name.endswith("gate.weight")  # what is in 32 bits; the smallest of the rest are cut
        assert torch.equal(found[name], tensor if exact else tensor.half().float()), name
    with serving(tmp_path / "x.gguf") as post:
        assert greedy(post, ids) == greedy_here(base, ids, [tiny.EOS])
        answer = post("/completion", prompt=ids, n_predict=1, temperature=0.0, n_probs=131, post_sampling_probs=False)
    said = {each["id"]: each["logprob"] for each in answer["completion_probabilities"][0]["top_logprobs"]}
    assert said.keys() == set(range(131))

    def distance(model):
        with torch.no_grad():
            found = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        return (found - torch.tensor([said[number] for number in range(131)])).abs().max().item()

    base.config.num_experts_per_tok = 1
    fewer = type(base)(base.config).eval()
    fewer.load_state_dict(base.state_dict())
    assert distance(base) < distance(fewer) / 10


def refused(path, match):
    with pytest.raises(ModelError, match=match) as caught:
        converted(path)
    assert list((path.parent / "cache").iterdir()) == []
    return caught.value


@pytest.fixture(scope="module")
def mixtral():
    return gguf_experts.model("mixtral")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_gating_func", 2),
        ("expert_weights_norm", False),
        ("expert_weights_scale", 2.5),
        ("expert_shared_count", 1),
        ("expert_shared_feed_forward_length", 512),
        ("expert_group_count", 4),
        ("interleave_moe_layer_step", 2),
        ("expert_of_a_kind_that_comes_later", 7),
    ],
)
def test_experts_of_another_kind_are_refused(mixtral, tmp_path, key, value):
    gguf_experts.write_model(tmp_path / "x.gguf", mixtral, fields={f"llama.{key}": value})
    error = refused(tmp_path / "x.gguf", "as llama.cpp has them: by softmax, norm of weights, no groups")
    assert error.value == f"llama.{key} = {value}" and error.remedy == "Use the model's Hugging Face folder."


def test_fields_that_say_what_is_so_anyway(mixtral, tmp_path):
    fields = {
        "expert_gating_func": 1,
        "expert_weights_norm": True,
        "expert_weights_scale": 1.0,
        "expert_group_count": 1,
    }
    gguf_experts.write_model(tmp_path / "x.gguf", mixtral, fields={f"llama.{key}": fields[key] for key in fields})
    same(live(converted(tmp_path / "x.gguf")), mixtral)


@pytest.mark.parametrize("used", [0, 4])
def test_more_experts_used_than_there_are(mixtral, tmp_path, used):
    gguf_experts.write_model(tmp_path / "x.gguf", mixtral, fields={"llama.expert_used_count": used})
    refused(tmp_path / "x.gguf", f"llama.expert_used_count = {used}. Of 3 experts, 1 to 3 are used.*Download it again")


def test_another_number_of_experts_than_is_said(mixtral, tmp_path):
    gguf_experts.write_model(tmp_path / "x.gguf", mixtral, fields={"llama.expert_count": 4})
    refused(tmp_path / "x.gguf", r"8 tensors differ.*block_sparse_moe.gate.weight' is \(3, 256\), not \(4, 256\)")


def test_an_expert_that_is_missing(mixtral, tmp_path):
    gguf_experts.write_model(tmp_path / "x.gguf", mixtral, split=True, without=("blk.1.ffn_up.2.weight",))
    refused(tmp_path / "x.gguf", r"1 tensors differ.*layers.1.block_sparse_moe.experts.2.w3.weight' is missing")
    gguf_experts.write_model(tmp_path / "y.gguf", mixtral, without=("blk.0.ffn_down_exps.weight",))
    refused(tmp_path / "y.gguf", r"3 tensors differ.*layers.0.block_sparse_moe.experts.0.w2.weight' is missing")


def test_experts_that_come_twice_or_flat(mixtral, tmp_path, monkeypatch):
    original = gguf_experts._tensors

    def both(*args):
        found = original(*args)
        return [*found, ("blk.0.ffn_up.1.weight", dict(found)["blk.0.ffn_up_exps.weight"][1])]

    def flat(*args):
        return [(name, values[0] if name == "blk.1.ffn_up_exps.weight" else values) for name, values in original(*args)]

    monkeypatch.setattr(gguf_experts, "_tensors", both)
    gguf_experts.write_model(tmp_path / "x.gguf", mixtral)
    refused(tmp_path / "x.gguf", r"'blk.0.ffn_up_exps.weight' and 'blk.0.ffn_up.1.weight'.*a model has one of it")
    monkeypatch.setattr(gguf_experts, "_tensors", flat)
    gguf_experts.write_model(tmp_path / "y.gguf", mixtral)
    refused(tmp_path / "y.gguf", r"'blk.1.ffn_up_exps.weight' of shape \(512, 256\).*one tensor of three dimensions")


def test_places():
    assert place_of("blk.12.ffn_down_exps.weight").number is None
    assert place_of("blk.12.ffn_gate.7.weight").number == 7
    for other in ("blk.0.ffn_gate.weight", "blk.0.ffn_gate_inp.weight", "blk.0.ffn_up_shexp.weight", "output.weight"):
        assert place_of(other) is None

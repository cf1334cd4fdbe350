"""GGUF files: what is written is the model, whole or not at all, and as llama.cpp's own programs have it."""

import errno
import shutil

import numpy as np
import pytest
import torch
from gguf import GGUFReader, TokenType, quants

from hasten.errors import ConfigError, MissingPackageError, ModelError, StorageError
from hasten.export.gguf import encoders, write
from hasten.export.gguf.encoders import Type
from hasten.export.gguf.metadata import DIFFERENCES
from hasten.export.gguf.mixes import BASE, Chosen
from hasten.export.gguf.source import Source
from hasten.export.gguf.write import Fallback, plan_gguf, write_gguf
from hasten.export.verify import llama_cpp, logits
from hasten.export.verify.weights import BOUNDS
from hasten.export.weights import PlainFolder
from hasten.families.base import all_families
from support import judges, tiny
from support.gguf_judges import WIDE, convert, differences, family_folder, greedy, greedy_here, serving

MODEL_TYPES = [one for family in all_families() if family.gguf for one in family.model_types]
NEEDS_GGML = "ggml's encoders are a package of their own"


def files(folder, *names):
    return {name: folder / f"model-{name}.gguf" for name in names}


def values(file):
    """Tensors as float32, by name."""
    return {each.name: quants.dequantize(each.data, each.tensor_type) for each in GGUFReader(file).tensors}


def fact(file, key):
    field = GGUFReader(file).fields.get(key)
    return None if field is None else field.contents()


def padded_folder(folder):
    """`TL-160` with a tokenizer of 130 tokens."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<one>", "<two>"])
    tiny.llama(vocab=160).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_several_types_from_one_pass(tiny_model_folder, tmp_path):
    weights, seen, reads = PlainFolder(tiny_model_folder), [], []
    read = weights.read
    weights.read = lambda name: reads.append(name) or read(name)
    written = write_gguf(
        weights, files(tmp_path, "f32", "f16", "bf16", "q8_0"), progress=lambda done, total: seen.append((done, total))
    )
    assert sorted(reads) == sorted(weights.shapes), "each weight is read once"
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert (
        seen[-1][0] == seen[-1][1] == sum(each.bytes for each in plan_gguf(weights, files(tmp_path, *written)).values())
    )
    exact, source = values(written["f32"].path), Source(PlainFolder(tiny_model_folder))
    for entry in source.entries:
        assert np.array_equal(exact[entry.tensor.name], source.read(entry))
    for name, most in (("f16", 5e-4), ("bf16", 4e-3), ("q8_0", 1e-2)):
        for tensor, found in values(written[name].path).items():
            assert np.linalg.norm(found - exact[tensor]) <= most * np.linalg.norm(exact[tensor])
    assert written["q8_0"].tensors == {Type.Q8_0: 15, Type.F32: 5}
    assert written["f16"].bytes == written["f16"].path.stat().st_size
    assert [fact(written[name].path, "general.file_type") for name in written] == [0, 1, 32, 7]
    assert list(tmp_path.glob(".*")) == []


def test_rows_are_taken_some_at_a_time(tiny_model_folder, tmp_path, monkeypatch):
    whole = write_gguf(PlainFolder(tiny_model_folder), files(tmp_path / "whole", "q8_0"))["q8_0"].path.read_bytes()
    monkeypatch.setattr("hasten.export.gguf.source.BLOCK", 200)  # three rows of 64
    largest = []
    encode = write.encode
    monkeypatch.setattr(write, "encode", lambda rows, *more: largest.append(rows.size) or encode(rows, *more))
    parts = write_gguf(PlainFolder(tiny_model_folder), files(tmp_path / "parts", "q8_0"))["q8_0"].path.read_bytes()
    assert parts == whole and max(largest) <= 256  # 256: what tries the encoders


def test_a20_gguf_export(tiny_model_folder, tmp_path):
    pytest.importorskip("libggml", reason=NEEDS_GGML)
    written = write_gguf(PlainFolder(tiny_model_folder), files(tmp_path, "f16", "q8_0", "q4_k_m"))
    model, found = tiny.llama(), values(written["f16"].path)
    state = model.state_dict()
    for layer in range(2):
        for name, heads in (("q", 4), ("k", 2)):
            rows = torch.from_numpy(found[f"blk.{layer}.attn_{name}.weight"])
            back = rows.view(heads, 8, 2, 64).transpose(1, 2).reshape(-1, 64)  # pairs to halves
            assert torch.equal(back, state[f"model.layers.{layer}.self_attn.{name}_proj.weight"].half().float())
    assert torch.equal(
        torch.from_numpy(found["blk.1.ffn_down.weight"]), state["model.layers.1.mlp.down_proj.weight"].half().float()
    )
    assert "output.weight" not in found, "tied"
    for each in written.values():
        assert len(fact(each.path, "tokenizer.ggml.tokens")) == 128 == found["token_embd.weight"].shape[0]
        assert fact(each.path, "tokenizer.ggml.pre") == "gpt-2"
        assert len(fact(each.path, "tokenizer.ggml.merges")) > 0
        assert fact(each.path, "tokenizer.ggml.eos_token_id") == tiny.EOS
        assert fact(each.path, "tokenizer.chat_template") == tiny.CHATML
    narrow = written["q4_k_m"]
    assert Fallback("blk.0.ffn_up.weight", Type.Q4_K, Type.Q5_0) in narrow.fallbacks
    assert len(narrow.fallbacks) == 14 and narrow.bits_per_weight < 16
    assert plan_gguf(PlainFolder(tiny_model_folder), files(tmp_path, "q4_k_m"))["q4_k_m"].fallbacks == narrow.fallbacks


def test_a20_tokens_are_as_many_as_rows(tmp_path):
    written = write_gguf(PlainFolder(padded_folder(tmp_path / "model")), files(tmp_path, "f16"))["f16"]
    tokens, kinds = (fact(written.path, f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    assert len(tokens) == len(kinds) == 160 == fact(written.path, "llama.vocab_size")
    assert tokens[128:131] == ["<one>", "<two>", "[PAD130]"]
    assert kinds[128:131] == [TokenType.USER_DEFINED, TokenType.USER_DEFINED, TokenType.UNUSED]


def test_a20_a_width_that_fits_no_block_stays_in_16_bits(tmp_path):
    pytest.importorskip("libggml", reason=NEEDS_GGML)
    folder = tiny.save_model(tmp_path / "model", tiny.llama(hidden_size=80, intermediate_size=160))
    written = write_gguf(PlainFolder(folder), files(tmp_path, "q8_0", "q4_k_m"))
    for each in written.values():
        kinds = {tensor.name: tensor.tensor_type for tensor in GGUFReader(each.path).tensors}
        assert kinds["blk.0.attn_q.weight"] == Type.F16
        assert "blk.0.attn_q.weight" in {fallback.tensor for fallback in each.fallbacks}
    assert {tensor.name: tensor.tensor_type for tensor in GGUFReader(written["q8_0"].path).tensors}[
        "blk.0.ffn_down.weight"
    ] == Type.Q8_0


@pytest.mark.slow
def test_a20_of_the_embedded_model(demo_model_folder, tmp_path):
    pytest.importorskip("libggml", reason=NEEDS_GGML)
    written = write_gguf(PlainFolder(demo_model_folder), files(tmp_path, "f16", "q4_k_m"))
    assert len(fact(written["f16"].path, "tokenizer.ggml.merges")) == 48_900
    assert fact(written["f16"].path, "tokenizer.ggml.eos_token_id") == 2
    assert fact(written["f16"].path, "tokenizer.ggml.add_eos_token") is None
    kinds = {tensor.name: tensor for tensor in GGUFReader(written["q4_k_m"].path).tensors}
    fallen = {fallback.tensor for fallback in written["q4_k_m"].fallbacks}
    for name, tensor in kinds.items():
        if tensor.shape[0] == 576 and len(tensor.shape) == 2 and name != "token_embd.weight":
            assert name in fallen
        if tensor.shape[0] == 1536:
            assert tensor.tensor_type in (Type.Q4_K, Type.Q6_K)


def test_without_ggmls_library_f16_and_q8_0_are_written(tiny_model_folder, tmp_path, monkeypatch):
    with_it = write_gguf(PlainFolder(tiny_model_folder), files(tmp_path / "with", "q8_0"))["q8_0"]
    monkeypatch.setattr(encoders, "_library", lambda: None)
    encoders._encoder.cache_clear()
    try:
        written = write_gguf(PlainFolder(tiny_model_folder), files(tmp_path, "f16", "q8_0"))
        wide = tiny.save_model(tmp_path / "wide", tiny.llama(hidden_size=256))
        with pytest.raises(MissingPackageError, match=r"libggml-python is not installed.*hasten\[gguf\]"):
            write_gguf(PlainFolder(wide), files(tmp_path, "q4_k_m"))
    finally:
        encoders._encoder.cache_clear()
    assert written["q8_0"].tensors == with_it.tensors
    assert not (tmp_path / "model-q4_k_m.gguf").exists()


def test_choices_in_place_of_a_names_own(tiny_model_folder, tmp_path):
    weights = PlainFolder(tiny_model_folder)
    own = {entry.tensor.name: Chosen(Type.F32) for entry in Source(weights).entries}
    own["blk.0.ffn_up.weight"] = Chosen(Type.Q8_0)
    written = write_gguf(weights, files(tmp_path, "mine"), choices={"mine": own})["mine"]
    assert written.tensors == {Type.F32: 19, Type.Q8_0: 1}
    assert fact(written.path, "general.file_type") == 0
    with pytest.raises(ConfigError, match=r"choices\['mine'\].*first: 'blk.0.ffn_up.weight'.*this model's own"):
        write_gguf(
            weights,
            files(tmp_path, "mine"),
            choices={"mine": {n: k for n, k in own.items() if "up" not in n or "1" in n}},
        )


def test_importance_reaches_the_encoder(tiny_model_folder, tmp_path):
    pytest.importorskip("libggml", reason=NEEDS_GGML)
    weights, name = PlainFolder(tiny_model_folder), "blk.0.ffn_up.weight"
    importance = {name: np.where(np.arange(64) % 4 == 0, 100.0, 1.0).astype(np.float32)}
    plain = values(write_gguf(weights, files(tmp_path / "plain", "q4_0"))["q4_0"].path)
    minded = values(write_gguf(weights, files(tmp_path / "minded", "q4_0"), importance=importance)["q4_0"].path)
    assert [each for each in plain if not np.array_equal(plain[each], minded[each])] == [name]


@pytest.mark.parametrize("name", ["q4_k", "Q4_K_M"])
def test_names_as_people_write_them(tiny_model_folder, tmp_path, name):
    pytest.importorskip("libggml", reason=NEEDS_GGML)
    written = write_gguf(PlainFolder(tiny_model_folder), {name: tmp_path / "x.gguf"})[name]
    assert fact(written.path, "general.file_type") == 15


def test_a_full_disk_is_known_before(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1_000_000))
    with pytest.raises(StorageError, match=r"1\.0 MB are free.*take about 33\.\d MB.*Free some space"):
        write_gguf(PlainFolder(tiny_model_folder), files(tmp_path / "out", "f16"))
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_leaves_nothing(tiny_model_folder, tmp_path, monkeypatch):
    (tmp_path / "model-f16.gguf").write_text("the one before")

    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    original = write._write_tensor

    def at_the_end(source, entry, outputs, importance):
        if entry.tensor.name == "output_norm.weight":
            outputs[-1].file = Full()
        return original(source, entry, outputs, importance)

    monkeypatch.setattr(write, "_write_tensor", at_the_end)
    with pytest.raises(StorageError, match=r"model-q8_0.gguf: no space left"):
        write_gguf(PlainFolder(tiny_model_folder), files(tmp_path, "f16", "q8_0"))
    assert [path.name for path in tmp_path.iterdir()] == ["model-f16.gguf"]
    assert (tmp_path / "model-f16.gguf").read_text() == "the one before"


def broken(folder, value):
    model = tiny.llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = value
    return tiny.save_model(folder, model)


def test_values_that_no_file_should_hold(tmp_path):
    weights = PlainFolder(broken(tmp_path / "nan", torch.nan))
    with pytest.raises(ModelError, match=r"up_proj.weight': it holds NaN or infinity.*Train again"):
        write_gguf(weights, files(tmp_path, "f32"))
    weights = PlainFolder(broken(tmp_path / "large", 70_000.0))
    with pytest.raises(ModelError, match=r"it holds 70000. 16-bit floats end at 65504. Use 'bf16'"):
        write_gguf(weights, files(tmp_path, "f16"))
    write_gguf(weights, files(tmp_path, "bf16"))


def test_names_in_the_way(tiny_model_folder, tmp_path):
    (tmp_path / "model-f16.gguf").mkdir()
    with pytest.raises(StorageError, match=r"a folder is in the way.*Choose another name"):
        write_gguf(PlainFolder(tiny_model_folder), files(tmp_path, "f16"))
    same = {"f16": tmp_path / "a.gguf", "q8_0": tmp_path / "a.gguf"}
    with pytest.raises(ConfigError, match=r"outputs: two of them are one file.*another name"):
        write_gguf(PlainFolder(tiny_model_folder), same)
    with pytest.raises(ConfigError, match=r"'q4_k_x'"):
        write_gguf(PlainFolder(tiny_model_folder), files(tmp_path, "q4_k_x"))


KINDS_OF_POSITIONS = {
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32, "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24, "rope_theta": 1e6},
}  # fmt: skip


@pytest.mark.slow
def test_as_llama_cpps_converter_has_it(tmp_path):
    """Every family's tiny model: the same tensors, bytes and facts, but for what `DIFFERENCES` explains."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})  # Qwen's class would add it
    folders = {one: family_folder(tmp_path / one, one, tokenizer=tokenizer) for one in MODEL_TYPES}
    for kind, rope in KINDS_OF_POSITIONS.items():
        folders[kind] = family_folder(tmp_path / kind, "llama", rope_parameters=rope, tie_word_embeddings=True)
    folders["biased"] = family_folder(tmp_path / "biased", "llama", attention_bias=True, mlp_bias=True)
    factors = {"long_factor": [1.5, 2.0, 3.0, 4.0], "short_factor": [1.0, 1.1, 1.2, 1.3]}
    long = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 48, **factors}
    folders["long"] = family_folder(tmp_path / "long", "phi3", rope_parameters=long)
    convert({folder: tmp_path / f"{name}.theirs.gguf" for name, folder in folders.items()}, cut="gpt-2")
    for name, folder in folders.items():
        written = write_gguf(PlainFolder(folder), {"f16": tmp_path / f"{name}.gguf"})["f16"]
        theirs = tmp_path / f"{name}.theirs.gguf"
        facts, tensors = differences(theirs, written.path)
        # The vector that it writes as a matrix of one row: to ggml they are one, and llama-quantize writes a vector.
        rows = [each for each in tensors if name == "qwen2_moe" and "ffn_gate_inp_shexp" in each]
        both = [{tensor.name: tensor for tensor in GGUFReader(file).tensors} for file in (theirs, written.path)]
        for each in rows:
            one, other = (tensors_of[each] for tensors_of in both)
            assert (one.tensor_type, one.data.tobytes()) == (other.tensor_type, other.data.tobytes())
            assert [int(size) for size in one.shape] == [*map(int, other.shape), 1]
        assert sorted(tensors) == sorted(rows), name
        explained = {"tokenizer.ggml.add_bos_token", "general.name"}
        explained |= {"llama.context_length"} if name == "mistral" else set()
        assert set(facts) <= explained <= set(DIFFERENCES), (name, facts)
        assert facts.get("tokenizer.ggml.add_bos_token", (None, False)) == (None, False)


@pytest.mark.slow
def test_the_embedded_model_as_llama_cpps_converter_has_it(demo_model_folder, tmp_path):
    convert({demo_model_folder: tmp_path / "theirs.gguf"})
    written = write_gguf(PlainFolder(demo_model_folder), files(tmp_path, "f16"))["f16"]
    facts, tensors = differences(tmp_path / "theirs.gguf", written.path)
    assert tensors == []
    # By its tokens' hash the converter says `smollm` also of a tokenizer.json that has lost the rule for digits.
    assert set(facts) <= {"tokenizer.ggml.pre"}


def require_predictions(written, model, ids, experts=False):
    """Every file is loaded by llama.cpp, and predicts what the model does within what its types can lose."""
    meant = logits.predictions(model, ids)
    for name, each in written.items():
        kinds = {kind.name for kind in each.tensors}
        most = llama_cpp.bound(max(BOUNDS[kind] for kind in kinds), kinds)
        check = llama_cpp.compare(name, each.path, ids, meant, most, experts=experts)
        assert check.state == "within", f"{name}: {check.said}"


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_llama_cpp_answers_as_transformers(model_type, tmp_path):
    judges.package("xllamacpp")
    pytest.importorskip("libggml", reason=NEEDS_GGML)
    from transformers import AutoModelForCausalLM

    own = {"head_dim": 64, "query_pre_attn_scalar": 64} if model_type == "gemma3_text" else {}
    own |= {"head_dim": 64} if model_type in ("mistral", "qwen3", "qwen3_moe") else {}
    own |= {"sliding_window": None} if model_type == "mistral" else {}
    own |= {"moe_intermediate_size": 256} if model_type in ("qwen2_moe", "qwen3_moe") else {}
    own |= {"shared_expert_intermediate_size": 512} if model_type == "qwen2_moe" else {}
    folder = family_folder(tmp_path / "model", model_type, **{**WIDE, **own})
    written = write_gguf(PlainFolder(folder), files(tmp_path, *BASE))
    model, ids = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), [5, 20, 33, 47, 60]
    with serving(written["f16"].path) as post:
        assert greedy(post, ids) == greedy_here(model, ids, [tiny.EOS])
    assert all(each.fallbacks == () for each in written.values())
    require_predictions(
        written, model, torch.arange(3, 51).tolist(), experts="moe" in model_type or model_type == "mixtral"
    )


@pytest.mark.slow
def test_llama_cpp_reads_a_published_model_as_transformers(real_model, tmp_path):
    judges.package("xllamacpp")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_model)
    text = "Name three colours of the rainbow."
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"]
    one_of_each = {kind: name for name, kind in BASE.items()}.values()  # mixes are compared above
    written = write_gguf(PlainFolder(real_model), files(tmp_path, *one_of_each))
    model = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32).eval()
    with serving(written["f16"].path) as post:
        special = not tokenizer.chat_template
        assert post("/tokenize", content=text, parse_special=True, add_special=special)["tokens"] == ids
        assert greedy(post, ids) == greedy_here(model, ids, [0, tokenizer.eos_token_id])
    require_predictions(written, model, tokenizer(logits.TEXT)["input_ids"])

"""Exported folders: what transformers loads is what was trained, and all else is the base's."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from export.hf.conftest import logits, model_of
from hasten.errors import ConfigError, ModelError, StorageError
from hasten.export.hf import shards, write
from hasten.export.hf.base import open_model
from hasten.export.hf.settings import generation_settings
from hasten.export.hf.write import write_model
from hasten.export.weights import PlainFolder
from hasten.files import write_json
from hasten.runs.folder import RunFolder
from support import tiny


@pytest.fixture
def case(adapted):
    return adapted(tiny.llama(), target_modules=["q_proj", "down_proj"])


def export(case, folder, **arguments):
    return write_model(open_model(case.adapter, base=str(case.base)), folder, **arguments)


def state_of(folder):
    return {name: value for file in PlainFolder(folder).files for name, value in load_file(file).items()}


def test_exact_in_float32(case, tmp_path):
    written = export(case, tmp_path / "out", dtype="float32")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(again), logits(case.live), rtol=0, atol=4e-5)
    assert again.dtype is torch.float32 and written.dtype == "float32" and written.files == ("model.safetensors",)
    assert written.nbytes == sum(value.nbytes for value in state_of(tmp_path / "out").values())
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == tiny.tokenizer().get_vocab()


@pytest.mark.parametrize(("base", "dtype"), [("float32", "bfloat16"), ("float16", "float16"), ("bfloat16", "bfloat16")])
def test_sixteen_bits(adapted, tmp_path, base, dtype):
    case = adapted(tiny.llama().to(getattr(torch, base)), target_modules=["q_proj"])
    export(case, tmp_path / "out")
    opened = open_model(case.adapter)
    for name, value in state_of(tmp_path / "out").items():
        assert value.dtype is getattr(torch, dtype)
        assert torch.equal(value, opened.weights.read(name).to(value.dtype))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize("size", [60_000, "60KB"])
def test_shards_as_transformers_cuts_them(case, tmp_path, size):
    told = []
    written = export(
        case, tmp_path / "out", dtype="float32", max_shard_size=size, progress=lambda *each: told.append(each)
    )
    model_of(open_model(case.adapter).weights).save_pretrained(tmp_path / "theirs", max_shard_size=size)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(written.files)
    assert all((tmp_path / "out" / file).stat().st_size < 60_000 + 4096 for file in written.files)
    assert index["metadata"]["total_size"] == written.nbytes
    theirs = state_of(tmp_path / "theirs")
    assert {name: value.tolist() for name, value in state_of(tmp_path / "out").items()} == {
        name: value.tolist() for name, value in theirs.items()
    }
    assert told[-1] == (written.nbytes, written.nbytes) and [done for done, _ in told] == sorted(
        done for done, _ in told
    )
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_a_plain_model_is_copied(tiny_model_folder, tmp_path):
    write_model(open_model(tiny_model_folder), tmp_path / "out", dtype="float32")
    assert (tmp_path / "out" / "config.json").read_bytes() == (tiny_model_folder / "config.json").read_bytes()
    before = state_of(tiny_model_folder)
    assert all(torch.equal(value, before[name]) for name, value in state_of(tmp_path / "out").items())


def test_the_configuration_says_only_what_changed(adapted, tmp_path):
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 123.0}
    case = adapted(tiny.llama(rope_parameters=rope, max_position_embeddings=77), target_modules=["lm_head"])
    file = case.base / "config.json"
    write_json(file, {**json.loads(file.read_text()), "of_somebody": {"else": [1]}})
    export(case, tmp_path / "out")
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (case.base, tmp_path / "out"))
    changed = {key for key in {*before, *after} if before.get(key) != after.get(key)}
    assert changed == {"dtype", "tie_word_embeddings"} and after["tie_word_embeddings"] is False
    assert list(before) == list(after)


def test_a15_untied_ends_load_as_they_were_live(adapted, tmp_path):
    case = adapted(tiny.llama(), target_modules=["lm_head", "q_proj"], r=4, lora_alpha=16)
    export(case, tmp_path / "out", dtype="float32")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(again), logits(case.live), rtol=0, atol=1e-4)
    assert again.config.tie_word_embeddings is False


def test_merging_twice_changes_nothing_more(adapted, tmp_path):
    case = adapted(tiny.llama(), target_modules=["q_proj"])
    export(case, tmp_path / "one", dtype="float32")
    write_model(open_model(tmp_path / "one"), tmp_path / "two", dtype="float32")
    one, two = state_of(tmp_path / "one"), state_of(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)


# --- tokens that end an answer ----------------------------------------------------------------------------------------


def test_a21_every_token_that_ends_an_answer(case, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(case.base)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(0)
    tokenizer.save_pretrained(case.base)
    settings = json.loads((case.base / "generation_config.json").read_text())
    write_json(case.base / "generation_config.json", {**settings, "eos_token_id": 0})
    written = export(case, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert found == [0, 2]
    assert "generation_config: an answer ends at each of [0, 2]" in written.notes


def test_invalid_sampling_is_repaired_in_the_copy(case, tmp_path):
    file = case.base / "generation_config.json"
    write_json(file, {**json.loads(file.read_text()), "do_sample": False, "temperature": 0.9})
    written = export(case, tmp_path / "out")
    made = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert made["do_sample"] is True and made["temperature"] == 0.9
    assert any("do_sample" in note for note in written.notes)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"pad_token_id": -1}, "`pad_token_id` should be positive"),
        ({"output_scores": True}, "`return_dict_in_generate` is NOT set"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be greater than 0"),
        ({"max_new_tokens": "many"}, "not supported between"),
        ({"length_penalty": 2.0}, "`num_beams` is set to None"),
        ({"temperature": 0.9, "pad_token_id": -1}, "`pad_token_id` should be positive"),
    ],
    ids=str,
)
def test_other_faults_of_generation_settings_stay_and_are_told(case, fault, said):
    tokenizer = AutoTokenizer.from_pretrained(case.base)
    file = case.base / "generation_config.json"
    own = {**json.loads(file.read_text()), **fault}
    write_json(file, own)
    made, notes = generation_settings(case.base, {}, tokenizer)
    assert made == own and len(notes) == 1
    assert "has a fault that is the base's, and stays: " in notes[0] and said in notes[0]


def test_generation_settings_stay_where_nothing_is_wrong(case, tmp_path):
    file = case.base / "generation_config.json"
    export(case, tmp_path / "out")
    assert (tmp_path / "out" / "generation_config.json").read_bytes() == file.read_bytes()
    file.unlink()
    export(case, tmp_path / "out")
    made = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (made["eos_token_id"], made["bos_token_id"]) == (2, 1)


# --- the card ---------------------------------------------------------------------------------------------------------


def test_the_card_has_the_facts_of_the_run(case, tmp_path):
    run = RunFolder.create_at(tmp_path / "run-7")
    config = {"data": {"source": "/home/somebody/rows.jsonl"}, "lora": {"r": 4, "alpha": 6.0}}
    run.write_record({"header": [], "base_model": str(case.base), "config": config, "data": {"kept": 56}})
    run.write_result({"steps": 3, "losses": [1.5, 1.25], "heldout_loss_before": 2.0, "heldout_loss_after": 1.75})
    shutil.copytree(case.adapter, run.adapter)
    write_model(open_model(run.path), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for text in ("# run-7", "| Base | base |", "| Rows | rows.jsonl, 56 rows |", "| LoRA | rank 4, alpha 6 |"):
        assert text in card
    for text in ("| Steps | 3 |", "1.5000 at first, 1.2500 at last", "2.0000 at first, 1.7500 at last"):
        assert text in card
    assert "/home/" not in card and str(tmp_path) not in card


def test_the_card_names_a_base_that_others_find(tmp_path, monkeypatch, tiny_model_folder):
    monkeypatch.setattr("hasten.loading.demo.demo_folder", lambda cache: tiny_model_folder)
    write_model(open_model("demo"), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'base_model: "HuggingFaceTB/SmolLM2-135M-Instruct"' in card and "# SmolLM2-135M-Instruct" in card


# --- folders and disks ------------------------------------------------------------------------------------------------


def test_an_older_result_is_replaced_and_nothing_else(case, tmp_path):
    folder = tmp_path / "out"
    export(case, folder, max_shard_size=60_000)
    export(case, folder)
    assert sorted(path.name for path in folder.glob("*.safetensors*")) == ["model.safetensors"]
    (folder / "thesis.docx").write_text("years")
    with pytest.raises(ConfigError, match=r"it holds 'thesis.docx'.*Choose another folder"):
        export(case, folder)
    with pytest.raises(ConfigError, match="it holds the base model"):
        export(case, case.base)
    with pytest.raises(ConfigError, match="it holds the adapter"):
        export(case, case.adapter)
    with pytest.raises(ConfigError, match=r"it holds 'adapter_config.json'.*never share one"):
        export(case, shutil.copytree(case.adapter, tmp_path / "other"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a file"):
        export(case, tmp_path / "file")


def test_no_space_is_said_before_anything_is_written(case, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(write.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(StorageError, match=r"1\.0 MB are free. The exported model takes \d\.\d MB"):
        export(case, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_a_disk_that_fills_up_leaves_nothing(case, tmp_path, monkeypatch):
    def full(path, *rest):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "write_file", full)
    with pytest.raises(StorageError, match="no space left on the disk.*Nothing was left half-written"):
        export(case, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_what_is_read_back_is_compared(case, tmp_path, monkeypatch):
    before = shards.write_file

    def damaged(path, *rest):
        sums = before(path, *rest)
        with path.open("r+b") as file:
            file.seek(-3, os.SEEK_END)
            file.write(b"x")
        return sums

    monkeypatch.setattr(shards, "write_file", damaged)
    with pytest.raises(StorageError, match="'model.norm.weight' is not what was written.*Check the disk"):
        export(case, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_values_that_are_not_finite(case, tmp_path):
    file = case.adapter / "adapter_model.safetensors"
    parts = load_file(file)
    next(iter(parts.values()))[0, 0] = float("nan")
    from safetensors.torch import save_file

    save_file(parts, file)
    with pytest.raises(ModelError, match=r"proj.weight': it holds NaN or infinity in bfloat16.*never written"):
        export(case, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"), [({"dtype": "float8"}, "dtype: 'float8'"), ({"max_shard_size": "5 apples"}, "'5 apples'")]
)
def test_wrong_arguments(case, tmp_path, arguments, said):
    with pytest.raises(ConfigError, match=said):
        export(case, tmp_path / "out", **arguments)


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5 KiB", 1536), (7, 7), ("200mb", 2 * 10**8)])
def test_sizes(text, size):
    assert shards.size_of(text) == size


def test_a_tokenizer_of_another_model(case, tmp_path):
    content = json.loads((case.base / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 128, "content": "<new>"})
    (case.base / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="a tokenizer of 129 tokens for an embedding of 128 rows"):
        export(case, tmp_path / "out")


# --- memory -----------------------------------------------------------------------------------------------------------

_PEAK = """
import resource, sys
from pathlib import Path
import torch, transformers
from transformers import AutoTokenizer
from hasten.export.hf.base import open_model
from hasten.export.hf.settings import generation_settings
from hasten.export.hf.write import write_model
AutoTokenizer.from_pretrained(sys.argv[2])
opened = open_model(sys.argv[1], base=sys.argv[2])
torch.ones(512, 512) @ torch.ones(512, 512)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_model(opened, Path(sys.argv[3]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are counted in kB on Linux")
@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], ["q_proj", "embed_tokens", "lm_head"]], ids=len)
def test_memory_for_the_largest_weight_alone(demo_model_folder, tmp_path, targets):
    from export.hf.conftest import adapt

    folder = shutil.copytree(demo_model_folder, tmp_path / "copy")
    model = AutoModelForCausalLM.from_pretrained(demo_model_folder, dtype=torch.float32)
    case = adapt(folder, model, tmp_path, r=16, target_modules=targets)
    largest = 4 * max(value.numel() for value in model.parameters())
    command = [sys.executable, "-c", _PEAK, str(case.adapter), str(folder), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 1024 * int(done.stdout.split()[-1]) <= 2 * largest + 150 * 10**6
    assert PlainFolder(tmp_path / "out").shapes

"""Mean squares of what weights meet, as the model's own forward has them; llama.cpp's files, read and written."""

import struct

import numpy as np
import pytest
import torch

from hasten.errors import CapabilityError, ModelError, StorageError
from hasten.export.gguf.importance import Importance, Names, measure, read_importance, write_importance
from hasten.export.gguf.mixes import Tensor
from support import tiny

QUERY, EXPERTS = Tensor("blk.0.attn_q.weight", (8, 4)), Tensor("blk.0.ffn_down_exps.weight", (3, 8, 4))


def made():
    sums = {QUERY.name: np.arange(4, dtype=np.float32), EXPERTS.name: np.full((3, 4), 6, dtype=np.float32)}
    counts = {QUERY.name: np.array([10], dtype=np.float32), EXPERTS.name: np.array([2, 0, 3], dtype=np.float32)}
    return Importance(sums, counts, ("rows.jsonl",), 5)


def windows(count=3, length=20):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 128, (length,), generator=generator) for _ in range(count)]


@pytest.mark.parametrize("device", [None, torch.device("cpu")], ids=["whole", "a layer at a time"])
def test_mean_squares_of_what_the_models_own_forward_multiplies(device):
    model, texts, told = tiny.llama(), windows(), []
    seen: dict[str, list[torch.Tensor]] = {}
    wanted = {"self_attn.q_proj": "attn_q", "self_attn.o_proj": "attn_output", "mlp.down_proj": "ffn_down"}
    handles = [
        model.get_submodule(f"model.layers.{layer}.{own}").register_forward_pre_hook(
            lambda _, given, name=f"blk.{layer}.{name}.weight": seen.setdefault(name, []).append(given[0][0])
        )
        for layer in range(2)
        for own, name in wanted.items()
    ]
    with torch.no_grad():
        for text in texts:
            model(input_ids=text[None])
    for handle in handles:
        handle.remove()
    importance = measure(model, texts, device=device, progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 2), (2, 2)] and importance.without == ()
    assert len(importance.sums) == 14 and importance.windows == 3 and importance.length == 20
    for name, inputs in seen.items():
        expected = torch.cat(inputs).double().square().mean(0).numpy()
        found = importance.of(Tensor(name, (1, len(expected))))
        assert found is not None and found.dtype == np.float32
        assert np.allclose(found, expected, rtol=1e-5, atol=0)


def test_positions_that_count_differently():
    model, texts = tiny.llama(), windows(2)
    name, own = "model.layers.1.mlp.down_proj", "blk.1.ffn_down.weight"
    weights = torch.zeros(40)
    weights[:20] = 2
    both = measure(model, texts, weights={name: weights})
    first = measure(model, texts[:1])
    assert np.allclose(both.of(Tensor(own, (64, 128))), first.of(Tensor(own, (64, 128))), rtol=1e-5)
    assert np.allclose(both.sums["blk.1.ffn_up.weight"], measure(model, texts).sums["blk.1.ffn_up.weight"])


def test_a_family_without_a_form():
    with pytest.raises(CapabilityError, match="no GGUF form here"):
        Names(type("Config", (), {"model_type": "gpt_bigcode", "num_hidden_layers": 2}))


def test_inputs_that_are_not_finite():
    model = tiny.llama()
    model.model.layers[1].input_layernorm.weight.data[3] = torch.inf
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.\w_proj: what it reads is not finite.*Check"):
        measure(model, windows())


def test_what_encoders_get():
    importance = made()
    assert importance.of(QUERY).tolist() == pytest.approx([0, 0.1, 0.2, 0.3])
    assert importance.of(EXPERTS).tolist() == [[3] * 4, [1] * 4, [2] * 4]  # nothing met the second
    assert importance.of(Tensor("output.weight", (2, 4))) is None
    with pytest.raises(ModelError, match=r"blk\.0\.attn_q\.weight'?: 4 values.*It has 6.*measured on this model"):
        importance.of(Tensor(QUERY.name, (8, 6)))
    with pytest.raises(ModelError, match="12 values"):
        importance.of(Tensor(EXPERTS.name, (4, 8, 4)))


def test_written_and_read(tmp_path):
    write_importance(tmp_path / "a.gguf", made())
    back = read_importance(tmp_path / "a.gguf")
    assert (back.texts, back.length, back.windows) == (("rows.jsonl",), 5, 2)
    for tensor in (QUERY, EXPERTS):
        assert np.array_equal(back.of(tensor), made().of(tensor))
        assert np.array_equal(back.sums[tensor.name], made().sums[tensor.name])
    assert [file.name for file in tmp_path.iterdir()] == ["a.gguf"]


def old_form(entries):
    data = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        data += np.array(values, dtype="<f4").tobytes()
    return data


def test_the_older_form(tmp_path):
    file = tmp_path / "imatrix.dat"
    entries = [(QUERY.name, 4, [0, 4, 8, 12]), (EXPERTS.name, 2, list(range(12)))]
    file.write_bytes(old_form(entries) + struct.pack("<ii", 4, 1) + b"x")
    back = read_importance(file)
    assert back.of(QUERY).tolist() == [0, 1, 2, 3]
    assert back.of(EXPERTS).tolist() == [[0, 0.5, 1, 1.5], [2, 2.5, 3, 3.5], [4, 4.5, 5, 5.5]]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "it is damaged, or something else"),
        (b"GGUF", "it is damaged, or something else"),
        (b"GGUF" + bytes(40), "it is damaged, or something else"),
        (b"\xff" * 64, "it is damaged, or something else"),
        (struct.pack("<i", 1 << 30) + bytes(8), "it is damaged, or something else"),
        (old_form([(QUERY.name, 1, [1, 2, 3, 4])])[:-2], "it is damaged, or something else"),
        (old_form([(QUERY.name, 1, [1, np.nan])]), "has values that are not finite"),
        (struct.pack("<i", 0), "no weight is in it"),
    ],
)
def test_files_that_are_none(content, part, tmp_path):
    file = tmp_path / "none"
    file.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_importance(file)
    assert part in str(caught.value) and str(file) in str(caught.value) and "leave it out" in str(caught.value)


def test_sums_without_counts(tmp_path):
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "a.gguf", "imatrix")
    writer.add_tensor("blk.0.attn_q.weight.in_sum2", np.ones((1, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="damaged"):
        read_importance(tmp_path / "a.gguf")


def test_no_file_and_no_folder(tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        read_importance(tmp_path / "absent.gguf")
    with pytest.raises(StorageError):
        write_importance(tmp_path / "absent" / "a.gguf", made())

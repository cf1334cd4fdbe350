"""Types chosen for a number of bytes."""

import pytest
import torch

from hasten.errors import ConfigError
from hasten.export.gguf.dynamic import NARROW, WIDE, error, file_bytes, kinds_for, stored, survey, tensor_bytes
from hasten.export.gguf.encoders import Type
from hasten.export.gguf.mixes import Chosen, Model, Tensor, choose
from support import tiny


@pytest.fixture(autouse=True)
def _ggml():
    pytest.importorskip("libggml", reason="ggml's encoders are a package of their own")


def model(**changes):
    fields = {"hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.1, "max_position_embeddings": 64}
    return tiny.llama(**(fields | changes))


def tensors_of(model):
    from hasten.export.gguf.importance import Names

    names, found = Names(model.config), []
    for name, value in model.state_dict().items():
        if not (name == "lm_head.weight" and model.config.tie_word_embeddings):
            found.append(Tensor(names.of(name), tuple(value.shape)))
    return found


def shape_of(model):
    return Model(model.config.num_hidden_layers, model.config.num_attention_heads, model.config.num_key_value_heads)


@pytest.fixture(scope="module")
def windows():
    generator = torch.Generator().manual_seed(1)
    return list(torch.randint(0, 128, (6, 48), generator=generator))


def of(made, windows):
    return survey(made, windows, tensors_of(made), shape_of(made))


@pytest.fixture(scope="module")
def surveyed(windows):
    pytest.importorskip("libggml", reason="ggml's encoders are a package of their own")
    made = model(tied=False)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    found = of(made, windows)
    assert all(torch.equal(made.state_dict()[name], value) for name, value in before.items()), "left as it is"
    return found


@pytest.mark.parametrize("size", ["q4_k_m", "q5_k_m", 4.0, 6.5])
def test_the_budget_is_kept(size, surveyed):
    found = surveyed.choose(size)
    assert found.choices.keys() == {tensor.name for tensor in surveyed.tensors}
    assert 0.9 * found.budget < found.bytes <= found.budget
    assert found.bytes == file_bytes(surveyed.tensors, found.choices)
    if isinstance(size, str):
        own = choose(surveyed.tensors, size, surveyed.shape, importance=True)
        assert found.budget == file_bytes(surveyed.tensors, own)
    assert found.choices["output_norm.weight"] == Chosen(Type.F32)


def test_what_is_priced(surveyed):
    matrices = {tensor.name for tensor in surveyed.tensors if len(tensor.shape) > 1}
    assert {each.tensor.name for each in surveyed.priced} == matrices
    assert {each.tensor.name for each in surveyed.priced if each.measured} == {"token_embd.weight", "output.weight"}
    assert all(tuple(each.nats) == WIDE for each in surveyed.priced)
    assert surveyed.importance.sums.keys() == {name for name in matrices if name.startswith("blk.")}
    assert surveyed.importance.counts["blk.0.attn_q.weight"].tolist() == [6 * 48]


def test_more_bytes_cost_less(surveyed):
    nats = [surveyed.choose(size).nats for size in (3.6, 4.5, 6.0, 8.5)]
    assert nats == sorted(nats, reverse=True) and nats[0] > 10 * nats[-1]


def test_the_estimate_is_near_what_happens(surveyed, windows):
    made, found = model(tied=False), surveyed.choose("q4_k_m")
    named = {found_tensor.name: value for found_tensor, value in zip(tensors_of(made), made.parameters(), strict=True)}
    with torch.no_grad():
        before = [made(input_ids=text[None]).logits[0].log_softmax(-1) for text in windows]
        for tensor in surveyed.tensors:
            kind = found.choices[tensor.name].kind
            if kind != Type.F32:
                weights = found.importance.of(tensor)
                named[tensor.name].copy_(stored(named[tensor.name], kind, weights))
        after = [made(input_ids=text[None]).logits[0].log_softmax(-1) for text in windows]
    now = torch.stack([(one.exp() * (one - two)).sum(-1).mean() for one, two in zip(before, after, strict=True)]).mean()
    assert 0.5 < found.nats / float(now) < 2


def test_an_outlier_is_found(windows):
    """The model stays the same, but a few inputs of one weight dwarf the others."""
    made = model()
    made.model.layers[0].mlp.up_proj.weight.data[::64] /= 40
    made.model.layers[0].mlp.down_proj.weight.data[:, ::64] *= 40
    choices = of(made, windows).choose(4.6).choices
    sizes = {name: tensor_bytes(Tensor(name, (1, 512)), chosen.kind) for name, chosen in choices.items()}
    others = [size for name, size in sizes.items() if name.endswith(("gate.weight", "up.weight", "1.ffn_down.weight"))]
    assert sizes["blk.0.ffn_down.weight"] > max(others)


def test_rows_that_k_types_do_not_fit(windows):
    found = of(model(hidden_size=64, intermediate_size=128), windows).choose("q4_k_m")
    assert {chosen.kind for chosen in found.choices.values()} <= {Type.F32, *NARROW}
    assert {each.tensor.name for each in found.priced if each.measured} == {"token_embd.weight"}  # the head, too
    assert found.bytes <= found.budget


def test_a_size_that_cannot_be(surveyed):
    with pytest.raises(ConfigError, match=r"size: [\d,]+ bytes.*The least types take.*bits per weight"):
        surveyed.choose(2.0)
    with pytest.raises(ConfigError, match="gguf type"):
        surveyed.choose("q4_k_x")


def test_what_a_type_leaves():
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    assert torch.equal(weight + error(weight, Type.Q8_0), stored(weight, Type.Q8_0)) or torch.allclose(
        weight + error(weight, Type.Q8_0), stored(weight, Type.Q8_0), atol=1e-6
    )
    sizes = [error(weight, kind).norm() / weight.norm() for kind in (Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K)]
    assert sizes == sorted(sizes, reverse=True)
    assert [kinds_for(Tensor("a", (1, width))) for width in (256, 96, 80)] == [WIDE, NARROW, ()]
    for kinds, width in ((WIDE, 256), (NARROW, 32)):
        sizes = [tensor_bytes(Tensor("a", (3, width)), kind) for kind in kinds]
        assert sizes == sorted(set(sizes)), "each is larger than the one before it"

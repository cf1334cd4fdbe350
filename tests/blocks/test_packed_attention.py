"""Packed rows are isolated (A11): each document's numbers are those of the document alone."""

import copy

import pytest
import torch
from transformers import CONFIG_MAPPING, DynamicCache, MistralConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hasten.blocks.packed_attention import NAME, ordered_backward, packed_attention, packed_attention_forward
from hasten.data.packing import PackedCollator
from hasten.errors import CapabilityError
from hasten.families.base import family_of
from hasten.objectives.sft import token_loss_sum
from support import tiny

LENGTHS = (7, 5, 1, 12)
WINDOW = 4
# Both sides are float32 sums of the same terms in another order: a row of a product has at most 128 terms (the widest
# layer) of size below 1, in 2 layers with 7 products each and a head: 15 * 128 * 2^-24 = 1.1e-4 at worst, and the
# square root of that many for random signs: 15 * sqrt(128) * 2^-24 = 1e-5, which is A11's own bound.
ROUNDING = 1e-5


def mistral():
    return MistralConfig(**family_of("llama").tiny, sliding_window=WINDOW, head_dim=8)


def model_of(name):
    config = mistral() if name == "mistral" else CONFIG_MAPPING[name](**family_of(name).tiny)
    return tiny.of_config(config)


def documents(vocab=128, lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        ids = torch.randint(3, vocab, (length,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": list(ids)})
    return made


def packed(rows, *, all_logits=True):
    inputs = PackedCollator()(rows)
    del inputs["counts"]
    if all_logits:
        del inputs["logits_to_keep"]
    labels = inputs.pop("labels")
    return inputs, labels


def logits_apart(model, rows):
    return torch.cat([model(torch.tensor([row["input_ids"]])).logits for row in rows], dim=1)


def loss_apart(model, rows):
    total = sum(
        token_loss_sum(model(torch.tensor([row["input_ids"]])).logits, torch.tensor([row["labels"]])) for row in rows
    )
    return total / sum(len(row["labels"]) - 1 for row in rows)


def loss_packed(model, rows):
    inputs, labels = packed(rows, all_logits=False)
    return token_loss_sum(model(**inputs).logits, labels) / len(inputs["logits_to_keep"])


def gradients(model):
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("name", ["llama", "phi3", "mistral"])
def test_packed_equals_separate(name):
    model, rows = model_of(name), documents()
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    inputs, _ = packed(rows)
    with torch.no_grad(), packed_attention(model):
        together = model(**inputs).logits
    torch.testing.assert_close(together, logits_apart(model, rows), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", ["llama", "phi3", "mistral"])
def test_every_gradient_equals_separate(name):
    model, rows = model_of(name), documents()
    loss_apart(model, rows).backward()
    expected = gradients(model)
    model.zero_grad()
    with packed_attention(model):
        loss_packed(model, rows).backward()
    found = gradients(model)
    assert found.keys() == expected.keys() and len(found) > 10
    for parameter in expected:
        torch.testing.assert_close(found[parameter], expected[parameter], rtol=0, atol=ROUNDING, msg=parameter)


def test_the_window_is_felt():
    """Without this the sliding-window cases above could pass with a window that does nothing."""
    rows = documents()
    windowed = model_of("mistral")
    open_config = mistral()
    open_config.sliding_window = None
    inputs, _ = packed(rows)
    with torch.no_grad(), packed_attention(windowed):
        narrow = windowed(**inputs).logits
    wide_model = tiny.of_config(open_config)
    with torch.no_grad(), packed_attention(wide_model):
        wide = wide_model(**inputs).logits
    start = sum(LENGTHS[:3])
    assert torch.equal(narrow[0, start : start + WINDOW], wide[0, start : start + WINDOW])
    assert (narrow[0, start + WINDOW :] - wide[0, start + WINDOW :]).abs().max() > 1e-3


# 13.3 and A11 of the pains: apart 4.87966; with the label of the seam 4.89177; documents that see each other: 0.54.
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("cache", [None, True, False])
def test_the_numbers_that_were_measured(attention, cache):
    model = tiny.llama()
    model.set_attn_implementation(attention)
    torch.manual_seed(1)
    ids = [torch.randint(3, 128, (length,)).tolist() for length in (7, 5)]
    rows = [{"input_ids": row, "labels": list(row)} for row in ids]
    inputs, labels = packed(rows)
    use_cache = {} if cache is None else {"use_cache": cache}
    with torch.no_grad():
        assert float(loss_apart(model, rows)) == pytest.approx(4.87966, abs=5e-6)
        with packed_attention(model):
            logits = model(**inputs, **use_cache).logits
        assert float(token_loss_sum(logits, labels) / 10) == pytest.approx(4.87966, abs=5e-6)
        naive = labels.clone()
        naive[0, 7] = ids[1][0]
        assert float(token_loss_sum(logits, naive) / 11) == pytest.approx(4.89177, abs=5e-6)
        alone = model(torch.tensor([ids[1]])).logits
    torch.testing.assert_close(logits[:, 7:], alone, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("mask", ["ones", "holes"])
def test_a_mask_changes_nothing(mask):
    model, rows = model_of("llama"), documents()
    inputs, _ = packed(rows)
    given = torch.ones_like(inputs["input_ids"])
    if mask == "holes":
        given[0, ::3] = 0
    with torch.no_grad(), packed_attention(model):
        assert torch.equal(model(**inputs, attention_mask=given).logits, model(**inputs).logits)


def test_the_order_of_documents_does_not_matter():
    model, rows = model_of("llama"), documents()
    with torch.no_grad(), packed_attention(model):
        forward = float(loss_packed(model, rows))
        backward = float(loss_packed(model, rows[::-1]))
    assert forward == pytest.approx(backward, abs=1e-6)  # a float32 mean of 21 losses of size 5 in another order


def test_a_change_in_one_document_is_not_seen_by_the_others():
    model, rows = model_of("llama"), documents()
    changed = copy.deepcopy(rows)
    changed[0]["input_ids"][3] = 100
    with torch.no_grad(), packed_attention(model):
        first, second = (model(**packed(these)[0]).logits[:, LENGTHS[0] :] for these in (rows, changed))
    assert torch.equal(first, second)


def test_under_autocast_it_is_as_near_the_truth_as_separate_rows():
    """In bfloat16 both ways round, differently; the packed one may not be worse (1.2 times, as for any operator)."""
    model, rows = model_of("llama"), documents()
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        truth = logits_apart(exact, rows)
        with torch.autocast("cpu", torch.bfloat16):
            apart = logits_apart(model, rows)
            with packed_attention(model):
                together = model(**packed(rows)[0]).logits
    error, allowed = (float((logits.double() - truth).norm()) for logits in (together, apart))
    assert 0 < error <= 1.2 * allowed


def test_gradients_flow_under_autocast():
    model, rows = model_of("llama"), documents()
    exact = copy.deepcopy(model).double()
    loss_apart(exact, rows).backward()
    truth = gradients(exact)
    errors = {}
    for way in (loss_apart, loss_packed):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            if way is loss_packed:
                with packed_attention(model):
                    loss = way(model, rows)
            else:
                loss = way(model, rows)
        loss.backward()
        errors[way] = sum(float((value.double() - truth[name]).norm() ** 2) for name, value in gradients(model).items())
    assert 0 < errors[loss_packed] <= 1.2**2 * errors[loss_apart]


@pytest.mark.parametrize("reentrant", [False, True])
def test_with_gradient_checkpointing(reentrant):
    model, rows = model_of("llama"), documents()
    model.train()
    with packed_attention(model):
        loss_packed(model, rows).backward()
    expected = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls = []
    layer = model.model.layers[0].self_attn
    layer.register_forward_hook(lambda *_: calls.append(1))
    with packed_attention(model):
        loss_packed(model, rows).backward()
    assert len(calls) == 2, "the forward was recomputed"
    for name, value in gradients(model).items():
        assert torch.equal(value, expected[name]), name


def test_on_a_peft_model():
    from peft import LoraConfig, get_peft_model

    rows = documents()
    adapted = get_peft_model(model_of("llama"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    with torch.no_grad():
        expected = logits_apart(adapted, rows)
        with packed_attention(adapted):
            together = adapted(**packed(rows)[0]).logits
    torch.testing.assert_close(together, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_outside_the_block_the_model_is_untouched(attention):
    model = model_of("llama")
    model.set_attn_implementation(attention)
    config, ids = model.config.to_dict(), torch.arange(3, 15).unsqueeze(0)
    before = model(ids).logits
    functions = dict(ALL_ATTENTION_FUNCTIONS)
    with packed_attention(model):
        assert model.config._attn_implementation == NAME
    with pytest.raises(ZeroDivisionError), packed_attention(model):
        1 / 0  # noqa: B018
    assert model.config._attn_implementation == attention
    assert model.config.to_dict() == config
    assert torch.equal(model(ids).logits, before)
    after = dict(ALL_ATTENTION_FUNCTIONS)
    assert {name: after[name] for name in functions} == functions
    assert set(after) - set(functions) <= {NAME}


def test_another_model_is_never_touched():
    inside, outside = model_of("llama"), model_of("llama")
    with packed_attention(inside):
        assert outside.config._attn_implementation == "sdpa"
        outside(torch.tensor([[5, 6, 7]]))


def test_an_ordinary_batch_is_refused_inside_the_block():
    model = model_of("llama")
    with packed_attention(model), pytest.raises(CapabilityError, match="boundaries missing.*Leave the block"):
        model(torch.tensor([[5, 6, 7]]))
    with packed_attention(model), pytest.raises(CapabilityError, match="boundaries missing.*Leave the block"):
        model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2)


def test_a_batch_of_packed_rows_is_refused():
    model = model_of("llama")
    inputs, _ = packed(documents())
    inputs["input_ids"] = inputs["input_ids"].repeat(2, 1)
    with packed_attention(model), pytest.raises(CapabilityError, match="batch 2, boundaries given"):
        model(**inputs)


def test_a_cache_with_earlier_tokens_is_refused():
    model = model_of("llama")
    cache = DynamicCache(config=model.config)
    model(torch.tensor([[5, 6, 7]]), past_key_values=cache)
    inputs, _ = packed(documents())
    with packed_attention(model), pytest.raises(CapabilityError, match="3 cached tokens"):
        model(**inputs, past_key_values=cache)


@pytest.mark.parametrize(
    ("given", "said"), [({"softcap": 30.0}, "softcap 30.0"), ({"attention_mask": "m"}, "mask given")]
)
def test_what_it_does_not_compute_is_refused(given, said):
    parts = [torch.randn(1, heads, 5, 8) for heads in (4, 2, 2)]
    arguments = {"attention_mask": None, "cu_seq_lens_q": torch.tensor([0, 2, 5]), **given}
    with pytest.raises(CapabilityError, match=said):
        packed_attention_forward(torch.nn.Module(), *parts, **arguments)


def attend(query, key, value, **more):
    starts = torch.tensor([0, 3, 9, 10], dtype=torch.int32)
    return packed_attention_forward(torch.nn.Module(), query, key, value, None, cu_seq_lens_q=starts, **more)[0]


def by_hand(query, key, value, scale, window):
    """The definition, in float64: softmax(q k^T scale) v over what a query may see."""
    lengths, groups = [3, 6, 1], query.shape[1] // key.shape[1]
    document = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    position = torch.arange(10)
    back = position[:, None] - position[None, :]
    seen = (document[:, None] == document[None, :]) & (back >= 0) & (back < (window or 99))
    query, key, value = query.double(), *(part.double().repeat_interleave(groups, 1) for part in (key, value))
    scores = (query @ key.transpose(2, 3) * scale).masked_fill(~seen, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("window", [None, 1, 2, 6, 7])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("longest", [None, 6])
def test_the_definition(heads, window, scale, longest):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, n, 10, 8, generator=generator) for n in (heads[0], heads[1], heads[1]))
    found = attend(query, key, value, scaling=scale, sliding_window=window, max_length_q=longest)
    expected = by_hand(query, key, value, scale or 8**-0.5, window)
    assert found.shape == (1, 10, heads[0], 8)
    # Float32: 8 products of size 3 in a score, 6 terms in a softmax and a weighted sum: 20 roundings of 2^-24 * 3.
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=20 * 3 * 2**-24)


def test_dropout_drops():
    query, key, value = (torch.randn(1, 2, 10, 8) for _ in range(3))
    torch.manual_seed(0)
    dropped = attend(query, key, value, dropout=0.5)
    assert not torch.allclose(dropped, attend(query, key, value))


@pytest.mark.parametrize("warn_only", [True, False])
def test_an_ordered_backward_is_strict_and_leaves_the_switch_as_it_was(warn_only):
    with ordered_backward():
        assert not torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        with pytest.raises(KeyError), ordered_backward():
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            raise KeyError
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warn_only
    finally:
        torch.use_deterministic_algorithms(False)

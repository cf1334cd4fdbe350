import pytest

from hasten.compat.offsets import one_by_one, text_and_offsets


@pytest.mark.parametrize(
    "text", ["Hello there", "  two blanks", "\n\nyo", "naïve café", "漢字 and 😀 emoji", "a<|im_end|>b"]
)
def test_one_by_one_is_the_tokenizers_own(demo_tokenizer, text):
    made = demo_tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spelled, spans = one_by_one(demo_tokenizer, made.input_ids)
    assert spelled == text
    for (start, stop), (begin, end) in zip(spans, made.offset_mapping, strict=True):
        assert start <= begin and end <= stop  # equal but for tokens that share a character
    assert text_and_offsets(demo_tokenizer, made.input_ids) == (text, made.offset_mapping)


def test_ids_that_no_text_gives(demo_tokenizer):
    ids = [token for letter in "hello" for token in demo_tokenizer(letter, add_special_tokens=False).input_ids]
    text, spans = text_and_offsets(demo_tokenizer, ids)
    assert text == "hello"
    assert spans == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]


def test_cut_inside_a_character(demo_tokenizer):
    ids = demo_tokenizer("ab 😀", add_special_tokens=False).input_ids[:-1]
    text, spans = text_and_offsets(demo_tokenizer, ids)
    assert text.startswith("ab")
    assert len(spans) == len(ids)


def test_nothing(demo_tokenizer):
    assert text_and_offsets(demo_tokenizer, []) == ("", [])

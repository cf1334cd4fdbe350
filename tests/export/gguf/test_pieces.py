"""SentencePiece's kind: scores that merge as the order of pairs does."""

import pytest
from gguf import TokenType

from hasten.errors import CapabilityError
from hasten.export.gguf.pieces import blank_first, kind_of, pairs_of, scores_of

IDS = {"<unk>": 0, "<0x0A>": 1, "▁a": 2, "ab": 3, "▁ab": 4, "▁": 5, "a": 6, "b": 7}
MERGES = [["▁", "a"], ["a", "b"], ["▁", "ab"], ["▁a", "b"]]


def test_scores_are_sentencepieces_where_ids_are_in_the_order_of_merging():
    scores = scores_of(IDS, MERGES, {"<unk>"}, "x")
    assert scores == {0: -1000.0, 1: 0.0, 2: 0.0, 3: -1.0, 4: -2.0, 5: -3.0, 6: -4.0, 7: -5.0}
    assert scores_of(IDS, [" ".join(pair) for pair in MERGES], {"<unk>"}, "x") == scores


def test_scores_are_places_where_ids_are_not():
    swapped = {**IDS, "▁a": 3, "ab": 2}
    scores = scores_of(swapped, MERGES, {"<unk>"}, "x")
    assert (scores[3], scores[2], scores[4]) == (0.0, -1.0, -2.0)
    assert max(scores[swapped[text]] for text in ("▁", "a", "b")) < -2.0


def test_an_order_that_scores_cannot_say():
    apart = [["▁", "ab"], ["▁", "a"], ["a", "b"], ["▁a", "b"]]
    with pytest.raises(CapabilityError, match=r"pairs that make '▁ab' stand apart.*Export it to Hugging Face"):
        scores_of(IDS, apart, {"<unk>"}, "x")
    with pytest.raises(CapabilityError, match=r"'▁a' and 'b' are not merged, although '▁ab' is"):
        scores_of(IDS, MERGES[:3], {"<unk>"}, "x")


def test_tokens_that_are_searched_for_first_have_no_place():
    scores = scores_of({**IDS, "bb": 8}, [["b", "b"], *MERGES], {"<unk>", "bb"}, "x")
    assert scores[2] == 0.0 and scores[8] == -1000.0


def test_kinds():
    assert kind_of("<0x0A>", "<unk>") == TokenType.BYTE
    assert kind_of("<unk>", "<unk>") == TokenType.UNKNOWN
    assert kind_of("<0xAB", None) == TokenType.NORMAL
    assert pairs_of(["a b c"]) == [("a", "b c")]


PREPEND = {"type": "Prepend", "prepend": "▁"}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def test_whether_a_blank_comes_first():
    llama_2 = {"normalizer": {"type": "Sequence", "normalizers": [PREPEND, REPLACE]}, "pre_tokenizer": None}
    gemma = {"normalizer": REPLACE, "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}}}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    assert blank_first(llama_2, "x") and not blank_first(gemma, "x")
    assert blank_first({"pre_tokenizer": metaspace}, "x")
    assert not blank_first({"pre_tokenizer": {**metaspace, "prepend_scheme": "never"}}, "x")
    for odd in ({"normalizer": {"type": "Lowercase"}}, {"pre_tokenizer": {**metaspace, "split": True}}, {}):
        with pytest.raises(CapabilityError, match=r"changes text by .*Export it to Hugging Face"):
            blank_first(odd, "x")

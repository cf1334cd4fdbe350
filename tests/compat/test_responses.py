from types import SimpleNamespace

import pytest
from datasets import Dataset, IterableDataset

from hasten.compat.chat_templates import get_chat_template, train_on_responses_only
from hasten.compat.markers import Markers, find_markers
from hasten.compat.named_templates import CHAT_TEMPLATES
from hasten.compat.responses import answer_spans
from hasten.errors import ConfigError, DataError
from support import tiny

TURNS = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U1"},
    {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "U2"},
    {"role": "assistant", "content": "A2"},
]
CHATML = {"instruction_part": "<|im_start|>user\n", "response_part": "<|im_start|>assistant\n"}


def trainer(tokenizer, texts, evaluation=None, **columns):
    def rows(given):
        ids = [tokenizer(text, add_special_tokens=False).input_ids for text in given]
        return Dataset.from_dict({"input_ids": ids, "labels": ids, **columns})

    return SimpleNamespace(
        processing_class=tokenizer,
        train_dataset=rows(texts),
        eval_dataset=None if evaluation is None else rows(evaluation),
        data_collator=None,
    )


def learnt(tokenizer, row):
    """The learnt text, a space between runs."""
    runs = [[]]
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        if label == -100:
            runs.append([])
        else:
            assert label == token
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs if run]


def test_every_turn_with_its_end(demo_tokenizer):
    text = demo_tokenizer.apply_chat_template(TURNS, tokenize=False)
    made = train_on_responses_only(trainer(demo_tokenizer, [text]), **CHATML)
    assert learnt(demo_tokenizer, made.train_dataset[0]) == ["A1<|im_end|>", "A2<|im_end|>"]


def test_markers_of_the_template(demo_tokenizer):
    text = demo_tokenizer.apply_chat_template(TURNS, tokenize=False)
    given = trainer(demo_tokenizer, [text])
    made = train_on_responses_only(given)
    assert made is given
    assert learnt(demo_tokenizer, made.train_dataset[0]) == ["A1<|im_end|>", "A2<|im_end|>"]


def test_last_only(demo_tokenizer):
    text = demo_tokenizer.apply_chat_template(TURNS, tokenize=False)
    made = train_on_responses_only(trainer(demo_tokenizer, [text]), **CHATML, last_response_only=True)
    assert learnt(demo_tokenizer, made.train_dataset[0]) == ["A2<|im_end|>"]


@pytest.mark.parametrize("answer", ["  yo", "\n\nyo", "\nyo", "yo", "```\ncode\n```"])
def test_header_that_melts_into_the_answer(demo_tokenizer, answer):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": answer}]
    text = demo_tokenizer.apply_chat_template(turns, tokenize=False)
    made = train_on_responses_only(trainer(demo_tokenizer, [text]), **CHATML)
    (found,) = learnt(demo_tokenizer, made.train_dataset[0])
    assert found.endswith(f"{answer}<|im_end|>")
    assert found.removesuffix(f"{answer}<|im_end|>").strip() == ""  # at most white space of a token across the border


@pytest.mark.parametrize("marker", [" ### Response:", "### Response:", "### Response:\n", "\n\n### Response:\n"])
def test_blanks_around_a_marker(demo_tokenizer, marker):
    text = "Below is a task.\n\n### Instruction:\nAdd.\n\n### Response:\nDone.<|im_end|>"
    given = trainer(demo_tokenizer, [text])
    made = train_on_responses_only(given, instruction_part="### Instruction:", response_part=marker)
    (found,) = learnt(demo_tokenizer, made.train_dataset[0])
    assert found.strip() == "Done.<|im_end|>"


def test_evaluation_rows_and_empty_ones(demo_tokenizer, capsys):
    text = demo_tokenizer.apply_chat_template(TURNS, tokenize=False)
    given = trainer(demo_tokenizer, [text, "no markers here", text[:60]], evaluation=[text, "none"])
    made = train_on_responses_only(given, **CHATML)
    assert (made.train_dataset.num_rows, made.eval_dataset.num_rows) == (1, 1)
    said = capsys.readouterr().err
    assert "2 of 3 train rows" in said and "1 of 2 eval rows" in said


def test_several_evaluation_sets(demo_tokenizer):
    text = demo_tokenizer.apply_chat_template(TURNS, tokenize=False)
    given = trainer(demo_tokenizer, [text])
    given.eval_dataset = {"a": given.train_dataset, "b": given.train_dataset}
    made = train_on_responses_only(given)
    assert learnt(demo_tokenizer, made.eval_dataset["b"][0]) == ["A1<|im_end|>", "A2<|im_end|>"]


def test_no_row_has_an_answer(demo_tokenizer):
    text = demo_tokenizer.apply_chat_template(TURNS, tokenize=False)
    given = trainer(demo_tokenizer, [text, text])
    parts = {"instruction_part": "<start_of_turn>user\n", "response_part": "<start_of_turn>model\n"}
    with pytest.raises(DataError, match="none of 2 rows.*start_of_turn.*row 0 is.*im_start.*A1.*leave both parts out"):
        train_on_responses_only(given, **parts)


def test_packed_rows(demo_tokenizer):
    """What one document lacks is not made up from the next one in the same row."""
    one = demo_tokenizer.apply_chat_template(TURNS, tokenize=False)
    cut = one[: one.index("A1") + 2]
    ids = [demo_tokenizer(text, add_special_tokens=False).input_ids for text in (cut, one)]
    given = trainer(demo_tokenizer, [cut + one], seq_lengths=[[len(part) for part in ids]])
    made = train_on_responses_only(given, **CHATML)
    assert learnt(demo_tokenizer, made.train_dataset[0]) == ["A1", "A1<|im_end|>", "A2<|im_end|>"]


def test_function(demo_tokenizer):
    text = demo_tokenizer.apply_chat_template(TURNS, tokenize=False)
    function = train_on_responses_only(None, **CHATML, tokenizer=demo_tokenizer, return_function=True)
    ids = demo_tokenizer(text, add_special_tokens=False).input_ids
    made = Dataset.from_dict({"input_ids": [ids]}).map(function, batched=True)
    assert learnt(demo_tokenizer, made[0]) == ["A1<|im_end|>", "A2<|im_end|>"]


def test_streaming(demo_tokenizer):
    text = demo_tokenizer.apply_chat_template(TURNS, tokenize=False)
    ids = demo_tokenizer(text, add_special_tokens=False).input_ids
    given = trainer(demo_tokenizer, [text])
    given.train_dataset = IterableDataset.from_generator(lambda: iter([{"input_ids": ids}, {"input_ids": [5]}]))
    rows = list(train_on_responses_only(given, **CHATML).train_dataset)
    assert len(rows) == 1 and learnt(demo_tokenizer, rows[0]) == ["A1<|im_end|>", "A2<|im_end|>"]


def test_a_collator_that_makes_labels_is_replaced(demo_tokenizer, capsys):
    from transformers import DataCollatorForLanguageModeling

    text = demo_tokenizer.apply_chat_template(TURNS, tokenize=False)
    given = trainer(demo_tokenizer, [text])
    given.data_collator = DataCollatorForLanguageModeling(demo_tokenizer, mlm=False)
    batch = train_on_responses_only(given).data_collator([given.train_dataset[0]])
    assert batch["labels"].tolist()[0] == given.train_dataset[0]["labels"]
    assert "DataCollatorForSeq2Seq" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*CHAT_TEMPLATES])
def test_markers_of_named_templates(name):
    tokenizer = get_chat_template(tiny.tokenizer(), name)
    text = tokenizer.apply_chat_template(TURNS[1:], tokenize=False)
    markers = find_markers(tokenizer, None, None)
    thought = "<think>\n\n</think>\n\n"  # Qwen 3 begins its last answer with it
    found = [text[start:stop].strip().removeprefix(thought) for start, stop in answer_spans(text, markers)]
    assert found == ["A1<|im_end|>", "A2<|im_end|>"]


def test_thinking_template():
    """A template whose last answer begins with an empty thinking part: that part is the answer's."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
        "{% if loop.last and m['role'] == 'assistant' %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
        "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    )
    markers = find_markers(tokenizer, None, None)
    assert (markers.instruction, markers.response) == ("<|im_start|>user\n", "<|im_start|>assistant\n")


def test_markers_that_are_missing(demo_tokenizer):
    with pytest.raises(ConfigError, match="response_part: None.*given together.*Pass response_part"):
        train_on_responses_only(trainer(demo_tokenizer, ["a"]), instruction_part="a")
    with pytest.raises(ConfigError, match="response_part: ' '.*Pass instruction_part and response_part"):
        train_on_responses_only(trainer(demo_tokenizer, ["a"]), instruction_part="a", response_part=" ")
    bare = tiny.tokenizer()
    bare.chat_template = None
    with pytest.raises(ConfigError, match="no chat template.*Pass instruction_part"):
        train_on_responses_only(trainer(bare, ["a"]))
    bare.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(ConfigError, match="changes or drops earlier turns.*Pass instruction_part"):
        train_on_responses_only(trainer(bare, ["a"]))


def test_rows_that_are_not_tokenized(demo_tokenizer):
    given = trainer(demo_tokenizer, ["a"])
    given.train_dataset = Dataset.from_list([{"text": "a"}])
    with pytest.raises(ConfigError, match="columns text.*input_ids.*skip_prepare_dataset"):
        train_on_responses_only(given, **CHATML)
    with pytest.raises(ConfigError, match="tokenizer: None.*Pass tokenizer"):
        train_on_responses_only(SimpleNamespace(processing_class=None), **CHATML)


def test_spans():
    markers = Markers("Q:", "A:", ("<e>",))
    assert answer_spans("Q: a A: b<e> Q: c A: d", markers) == [(7, 12), (20, 22)]
    assert answer_spans("Q: a", markers) == []
    assert answer_spans("A:", markers) == []

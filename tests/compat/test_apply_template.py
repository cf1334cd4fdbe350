import inspect

import pytest
from datasets import Dataset, DatasetDict

from hasten.compat.chat_templates import (
    apply_chat_template,
    construct_chat_template,
    standardize_sharegpt,
    to_sharegpt,
    train_on_responses_only,
)
from hasten.data.templates import ChatEncoder
from hasten.errors import ConfigError, DataError
from support import tiny
from support.template_texts import CALL, SYSTEM, TURNS

END = "<|im_end|>"
DEFAULT = (
    "Below are some instructions that describe some tasks. Write responses that appropriately complete each request."
)
EXAMPLE = "{SYSTEM}\nUSER: {INPUT}\nASSISTANT: {OUTPUT}"
ROWS = Dataset.from_list([{"conversations": TURNS, "id": 1}, {"conversations": TURNS[:2], "id": 2}])


@pytest.fixture
def tokenizer():
    return tiny.tokenizer()


def test_the_signatures_are_the_documented_ones():
    applied = list(inspect.signature(apply_chat_template).parameters)
    assert applied == ["dataset", "tokenizer", "chat_template", "default_system_message", "extra_eos_tokens"]
    assert list(inspect.signature(construct_chat_template).parameters) == applied[1:]
    for each in (apply_chat_template, construct_chat_template):
        parameters = inspect.signature(each).parameters
        assert parameters["chat_template"].default.count("{INPUT}") == 2
        assert parameters["default_system_message"].default == DEFAULT
        assert parameters["extra_eos_tokens"].default is None
        assert parameters["tokenizer"].default is None


def test_the_template_of_the_default(tokenizer):
    made = apply_chat_template(ROWS, tokenizer)
    assert made[0] == {
        "conversations": TURNS,
        "id": 1,
        "text": f"{DEFAULT}\n\n### Instruction:\nU1\n\n### Response:\nA1{END}"
        f"\n\n### Instruction:\nU2\n\n### Response:\nA2{END}",
    }
    assert made[1]["text"] == f"{DEFAULT}\n\n### Instruction:\nU1\n\n### Response:\nA1{END}"


def test_what_the_tokenizer_gets(tokenizer):
    apply_chat_template(ROWS, tokenizer, EXAMPLE, default_system_message="Be brief.")
    assert tokenizer._ollama_modelfile.startswith("FROM ") and f'stop "{END}"' in tokenizer._ollama_modelfile
    assert (tokenizer._instruction_part, tokenizer._response_part) == ("\nUSER: ", "\nASSISTANT:")
    asked = tokenizer.apply_chat_template(TURNS[:1], tokenize=False, add_generation_prompt=True)
    assert asked == "Be brief.\nUSER: U1\nASSISTANT:"


def test_the_conversations_own_system_text(tokenizer):
    made = apply_chat_template(Dataset.from_list([{"messages": [SYSTEM, *TURNS[:2]]}]), tokenizer, EXAMPLE)
    assert made[0]["text"] == f"S\nUSER: U1\nASSISTANT: A1{END}"


def test_answers_are_marked_and_found(tokenizer):
    apply_chat_template(ROWS, tokenizer, EXAMPLE)
    text, spans = ChatEncoder(tokenizer).assistant_spans(TURNS)
    assert [text[start:stop] for start, stop in spans] == [f" A1{END}", f" A2{END}"]


def test_only_answers_are_learnt_afterwards(tokenizer):
    from types import SimpleNamespace

    made = apply_chat_template(ROWS, tokenizer, EXAMPLE)
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in made["text"]]
    given = SimpleNamespace(
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"input_ids": ids}),
        eval_dataset=None,
        data_collator=None,
    )
    row = train_on_responses_only(given).train_dataset[0]
    learnt = [label for label in row["labels"] if label != -100]
    assert tokenizer.decode(learnt).replace(" ", "") == f"A1{END}A2{END}"  # a blank of its own is the header's


def test_from_a_table_to_text(tokenizer):
    table = Dataset.from_list(
        [{"city": "Oslo", "mood": "", "answer": "cold"}, {"city": "Rom", "mood": "good", "answer": "warm"}]
    )
    made = to_sharegpt(
        table, "How is {city}?[[ I feel {mood}.]]", output_column_name="answer", conversation_extension=2
    )
    made = apply_chat_template(standardize_sharegpt(made), tokenizer, "Q: {INPUT}\nA: {OUTPUT}\n")
    assert made[0]["text"] == f"Q: How is Oslo?\nA: cold{END}\nQ: How is Rom? I feel good.\nA: warm{END}\n"


def test_a_begin_token_is_written_once_and_not_into_the_text(tokenizer):
    tokenizer = tiny.with_bos(tokenizer)
    for example in (EXAMPLE, "<|im_start|>" + EXAMPLE):
        made = apply_chat_template(ROWS, tokenizer, example, default_system_message="Be brief.")
        assert made[1]["text"] == f"Be brief.\nUSER: U1\nASSISTANT: A1{END}"
        text = tokenizer.apply_chat_template(TURNS[:2], tokenize=False)
        assert text == f"<|im_start|>Be brief.\nUSER: U1\nASSISTANT: A1{END}"
        assert "<|im_start|>" not in tokenizer._ollama_modelfile


def test_text_with_every_quote_and_brace(tokenizer):
    example = 'It\'s "{x}" \\ {{y}} ünlike\n{SYSTEM}\n[INST] {INPUT} [/INST] {OUTPUT}'
    made = apply_chat_template(ROWS, tokenizer, example, default_system_message="a'b\\n")
    assert made[1]["text"] == f"It's \"{{x}}\" \\ {{{{y}}}} ünlike\na'b\\n\n[INST] U1 [/INST] A1{END}"


def test_constructing_changes_nothing(tokenizer):
    before = tokenizer.chat_template
    modelfile, jinja, instruction, response = construct_chat_template(tokenizer, EXAMPLE, "Be brief.", None)
    assert tokenizer.chat_template == before and not hasattr(tokenizer, "_ollama_modelfile")
    assert "{%- generation -%}" in jinja and "Be brief." in jinja and "Be brief." in modelfile
    assert (instruction, response) == ("\nUSER: ", "\nASSISTANT:")


def test_other_tokens_that_end(tokenizer):
    modelfile, jinja, _, _ = construct_chat_template(
        tokenizer, "Q: {INPUT} A: {OUTPUT}<|pad|>", extra_eos_tokens=["<|pad|>"]
    )
    assert "+ '<|pad|>'" in jinja
    assert 'PARAMETER stop "<|pad|>"\nPARAMETER stop "<|im_end|>"\n' in modelfile
    with pytest.raises(ConfigError, match=r"extra_eos_tokens: '<\|im_ent\|>'.*Did you mean '<\|im_end\|>'"):
        construct_chat_template(tokenizer, EXAMPLE, extra_eos_tokens=["<|im_ent|>"])


def test_a_system_message_without_a_place_is_said(tokenizer, capsys):
    apply_chat_template(ROWS, tokenizer, "Q: {INPUT} A: {OUTPUT}", default_system_message="Be brief.")
    assert "no {SYSTEM}" in capsys.readouterr().err


def test_every_split(tokenizer):
    made = apply_chat_template(DatasetDict(train=ROWS, test=ROWS), tokenizer)
    assert made["test"][1]["text"] == made["train"][1]["text"]


@pytest.mark.parametrize(
    ("turns", "example", "match"),
    [
        ([TURNS[0], TURNS[2]], EXAMPLE, "row 2: turns 'user user'.*in turn.*write the template"),
        ([TURNS[1]], EXAMPLE, "row 2: turns 'assistant'.*in turn"),
        ([SYSTEM, *TURNS[:2]], "Q: {INPUT} A: {OUTPUT}", "row 2: turns 'system user assistant'.*no place for a system"),
        ([TURNS[0], {"role": "assistant", "content": "x", "tool_calls": [CALL]}], EXAMPLE, "row 2: .*no tool calls"),
        ([{"role": "user", "content": None}], EXAMPLE, "row 2: a turn without text.*dataset.filter"),
        ([], EXAMPLE, "row 2: no turns"),
    ],
)
def test_rows_without_a_place_are_named_and_nothing_is_changed(tokenizer, turns, example, match):
    before = tokenizer.chat_template
    with pytest.raises(DataError, match=match):
        apply_chat_template(Dataset.from_list([{"messages": TURNS}, {"messages": turns}]), tokenizer, example)
    assert tokenizer.chat_template == before


def test_wrong_arguments_are_refused(tokenizer):
    with pytest.raises(ConfigError, match="tokenizer: None.*Pass tokenizer="):
        apply_chat_template(ROWS)
    with pytest.raises(ConfigError, match="tokenizer: None.*Pass tokenizer="):
        construct_chat_template()
    with pytest.raises(ConfigError, match="chat_template: '{INPT}'.*Did you mean 'INPUT'"):
        apply_chat_template(ROWS, tokenizer, "{INPT} A {OUTPUT}")
    with pytest.raises(ConfigError, match="turns of from, value.*standardize_sharegpt"):
        apply_chat_template(to_sharegpt(Dataset.from_list([{"instruction": "a", "output": "b"}])), tokenizer)
    with pytest.raises(ConfigError, match="columns text.*rename_column"):
        apply_chat_template(Dataset.from_list([{"text": "a"}]), tokenizer)
    with pytest.raises(ConfigError, match="dataset: a list.*from_list"):
        apply_chat_template([], tokenizer)

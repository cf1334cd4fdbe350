import pytest
from datasets import Dataset, DatasetDict

from hasten.compat.chat_templates import standardize_data_formats, standardize_sharegpt
from hasten.errors import ConfigError, DataError
from support.template_texts import CALL, TOOL_TURNS, WEATHER

SHAREGPT = [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
STANDARD = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
]


def filled(turns):
    """Turns without the keys that hold nothing, as the data path reads them."""
    return [{key: value for key, value in turn.items() if value is not None} for turn in turns]


@pytest.mark.parametrize("column", ["conversations", "messages", "conversation"])
def test_sharegpt_turns_become_role_and_content(column):
    made = standardize_sharegpt(Dataset.from_list([{column: SHAREGPT, "id": 7}]))
    assert made[0] == {"conversations": STANDARD, "id": 7}


def test_standard_rows_stay():
    assert standardize_data_formats(Dataset.from_list([{"conversations": STANDARD}]))[0]["conversations"] == STANDARD


def test_dataset_dict():
    made = standardize_sharegpt(DatasetDict(train=Dataset.from_list([{"conversations": SHAREGPT}])))
    assert isinstance(made, DatasetDict)
    assert made["train"][0]["conversations"] == STANDARD


def test_aliases():
    rows = Dataset.from_list([{"conversations": [{"from": "me", "value": "a"}, {"from": "it", "value": "b"}]}])
    made = standardize_data_formats(rows, aliases_for_user=["me"], aliases_for_assistant=["it"])
    assert [turn["role"] for turn in made[0]["conversations"]] == ["user", "assistant"]
    with pytest.raises(ConfigError, match="aliases_for_assistant: 'me'.*one role.*aliases_for_user"):
        standardize_data_formats(rows, aliases_for_user=["me"], aliases_for_assistant=["me"])


def test_calls_results_and_tools_survive():
    named = [{"role": "user", "content": "U1", "name": "Ann"}, *TOOL_TURNS[1:]]
    made = standardize_data_formats(Dataset.from_list([{"messages": named, "tools": [WEATHER], "note": 1}]))
    assert filled(made[0]["conversations"]) == filled(named)
    assert made[0]["conversations"][1]["content"] is None
    assert made[0]["tools"] == [WEATHER] and made[0]["note"] == 1


def test_thinking_survives():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "c"}]
    made = standardize_data_formats(Dataset.from_list([{"messages": turns}]))
    assert filled(made[0]["conversations"]) == turns


def test_a_call_after_many_rows_without_one():
    rows = [{"messages": STANDARD}] * 3 + [{"messages": [*STANDARD, {"role": "assistant", "tool_calls": [CALL]}]}]
    made = standardize_data_formats(Dataset.from_list(rows), batch_size=2)
    assert filled(made[0]["conversations"]) == STANDARD
    assert made[3]["conversations"][-1]["tool_calls"] == [CALL]


def test_several_processes():
    made = standardize_sharegpt(Dataset.from_list([{"messages": SHAREGPT}] * 6), batch_size=2, num_proc=2)
    assert [row["conversations"] for row in made] == [STANDARD] * 6


def test_rendered_by_a_named_template():
    from hasten.compat.chat_templates import get_chat_template
    from support import tiny

    made = standardize_data_formats(Dataset.from_list([{"messages": TOOL_TURNS}]))
    text = get_chat_template(tiny.tokenizer(), "chatml").apply_chat_template(made[0]["conversations"], tokenize=False)
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>' in text
    assert "<tool_response>\ncold\n</tool_response>" in text
    assert "None" not in text and "null" not in text


def test_an_unknown_role_is_named_with_its_row():
    rows = Dataset.from_list([{"conversations": SHAREGPT}, {"conversations": [{"from": "narrator", "value": "x"}]}])
    with pytest.raises(DataError, match="row 2: role 'narrator'.*assistant, gpt.*tool.*aliases_for_user"):
        standardize_sharegpt(rows)


def test_no_role():
    with pytest.raises(DataError, match="row 1: role None.*Known roles"):
        standardize_sharegpt(Dataset.from_list([{"conversations": [{"value": "x"}]}]))


def test_no_content():
    rows = Dataset.from_list([{"conversations": [{"from": "gpt", "value": None}]}])
    with pytest.raises(DataError, match="row 1: a turn of assistant without content"):
        standardize_sharegpt(rows)


def test_a_conversation_that_is_missing_has_no_turns():
    made = standardize_sharegpt(Dataset.from_list([{"conversations": SHAREGPT}, {"conversations": None}]))
    assert made[1]["conversations"] == []


def test_other_keys_are_said(capsys):
    standardize_sharegpt(Dataset.from_list([{"conversations": [{"from": "gpt", "value": "b", "weight": 1}]}]))
    assert "left out: weight" in capsys.readouterr().err


def test_no_such_column():
    with pytest.raises(ConfigError, match="columns text.*conversations, messages.*rename_column"):
        standardize_sharegpt(Dataset.from_list([{"text": "a"}]))


def test_a_column_that_holds_no_conversations():
    with pytest.raises(ConfigError, match="column 'messages'.*string.*list of turns.*dataset.map"):
        standardize_sharegpt(Dataset.from_list([{"messages": "a"}]))

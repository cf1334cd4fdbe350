import pytest
from datasets import Dataset, DatasetDict

from hasten.compat.chat_templates import standardize_data_formats, standardize_sharegpt
from hasten.errors import ConfigError, DataError

SHAREGPT = [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
STANDARD = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
]


@pytest.mark.parametrize("column", ["conversations", "messages", "conversation"])
def test_sharegpt(column):
    made = standardize_sharegpt(Dataset.from_list([{column: SHAREGPT, "id": 7}]))
    assert made[0] == {"conversations": STANDARD, "id": 7}


def test_standard_rows_stay():
    assert standardize_data_formats(Dataset.from_list([{"conversations": STANDARD}]))[0]["conversations"] == STANDARD


def test_dataset_dict():
    made = standardize_sharegpt(DatasetDict(train=Dataset.from_list([{"conversations": SHAREGPT}])))
    assert made["train"][0]["conversations"] == STANDARD


def test_aliases():
    rows = Dataset.from_list([{"conversations": [{"from": "me", "value": "a"}, {"from": "it", "value": "b"}]}])
    made = standardize_data_formats(rows, aliases_for_user=["me"], aliases_for_assistant=["it"])
    assert [turn["role"] for turn in made[0]["conversations"]] == ["user", "assistant"]
    with pytest.raises(ConfigError, match="aliases_for_assistant: 'me'.*one role.*aliases_for_user"):
        standardize_data_formats(rows, aliases_for_user=["me"], aliases_for_assistant=["me"])


def test_unknown_role():
    rows = Dataset.from_list([{"conversations": SHAREGPT}, {"conversations": [{"from": "narrator", "value": "x"}]}])
    with pytest.raises(DataError, match="row 2: role 'narrator'.*assistant, gpt.*aliases_for_user"):
        standardize_sharegpt(rows)


def test_no_content():
    rows = Dataset.from_list([{"conversations": [{"from": "gpt", "value": None}]}])
    with pytest.raises(DataError, match="row 1: a turn of assistant without content"):
        standardize_sharegpt(rows)


def test_other_keys_are_said(capsys):
    standardize_sharegpt(Dataset.from_list([{"conversations": [{"from": "gpt", "value": "b", "weight": 1}]}]))
    assert "weight" in capsys.readouterr().err


def test_no_such_column():
    with pytest.raises(ConfigError, match="columns text.*conversations, messages.*rename_column"):
        standardize_sharegpt(Dataset.from_list([{"text": "a"}]))

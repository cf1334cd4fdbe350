import pytest

from hasten.compat.merged_prompt import is_empty, is_missing, parse_prompt
from hasten.errors import ConfigError, DataError

COLUMNS = ["name", "age", "home town"]


def filled(prompt, **row):
    row = {"name": "Ann", "age": 3, "home town": "Oslo", **row}
    return "".join(part.fill(row, 7) for part in parse_prompt(prompt, COLUMNS))


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("{name} is {age}.", "Ann is 3."),
        ("{home town}", "Oslo"),
        ("{name}[[ from {home town}]]!", "Ann from Oslo!"),
        ("[[{name}]][[, {age}]]", "Ann, 3"),
        ("{{name}} {{{name}}}", "{name} {Ann}"),
        ("[{name}] a[0]", "[Ann] a[0]"),
        ("no column", "no column"),
    ],
)
def test_columns_are_filled_in(prompt, text):
    assert filled(prompt) == text


@pytest.mark.parametrize("empty", [None, "", "  \n", float("nan")])
def test_an_optional_part_goes_with_its_column(empty):
    assert filled("{name}[[ from {home town}]].", **{"home town": empty}) == "Ann."
    assert filled("{name}[[ from {home town}, {age}]].", **{"home town": empty}) == "Ann."


@pytest.mark.parametrize("value", [0, False, 0.0])
def test_zero_is_a_value(value):
    assert filled("[[{age}]]", age=value) == str(value)
    assert not is_empty(value) and not is_missing(value)


def test_empty_text_is_no_missing_value():
    assert filled("<{name}>", name="") == "<>"


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_needed_column_without_value_names_its_row(missing):
    with pytest.raises(DataError, match=r"row 7: nothing in column 'age'.*\{age\} between \[\[ and \]\].*filter"):
        filled("{name} is {age}", age=missing)


@pytest.mark.parametrize(
    ("prompt", "value", "remedy"),
    [
        ("[[{name}", r"'\[\[\{name\}'", r"with '\]\]'"),
        ("{name}]] x", r"'\]\]'", r"with '\[\['"),
        ("[[{name}[[{age}]]]]", r"'\[\[' inside", "do not nest"),
        ("[[{name}]] ]]", r"'\]\]'", r"with '\[\['"),
        ("[[only text]]", "has no column", "Write a {column}"),
        ("{name", "'{' in '{name'", "{{ and }}"),
        ("name}", "'}' in 'name}'", "{{ and }}"),
        ("{name{age}}", "'{' in", "{{ and }}"),
        ("{nme}", "'{nme}'.*name, age, home town", "Did you mean 'name'"),
        ("[[{hometown}]]", "'{hometown}'", "Did you mean 'home town'"),
        ("{}", "'{}'", "Name one of them"),
        ("{age:.0f}", "'{age:.0f}'", "Did you mean 'age'"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(prompt, value, remedy):
    with pytest.raises(ConfigError, match=f"merged_prompt: .*{value}.*{remedy}"):
        parse_prompt(prompt, COLUMNS)

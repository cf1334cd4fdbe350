"""What rows become: flags are one for each message or none, and a preference gives its better answer."""

import pytest

from hasten.data.conversation import Conversation, Preference, with_flags

USER = {"role": "user", "content": "q"}
GOOD = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def test_flags_are_one_for_each_message():
    assert Conversation([USER, GOOD]).flags == (None, None)
    assert Conversation([USER, GOOD], None, (False, None)).flags == (False, None)
    assert Conversation([]).flags == ()


def test_flags_that_say_nothing_are_left_out():
    assert with_flags([USER, GOOD], [None, None]) == Conversation([USER, GOOD])
    assert with_flags([USER, GOOD], [None, False], TOOLS) == Conversation([USER, GOOD], TOOLS, (None, False))
    with pytest.raises(AssertionError):
        with_flags([USER], [None, None])


@pytest.mark.parametrize(
    ("learn", "expected"),
    [((), ()), ((False, None), (False, False, None)), ((True, None), (None, True, None))],
)
def test_a_new_system_turn_is_not_learnt_where_the_first_turn_is_not(learn, expected):
    made = Conversation([USER, GOOD], TOOLS, learn).after_system("s")
    assert made == Conversation([{"role": "system", "content": "s"}, USER, GOOD], TOOLS, expected)


def test_a_preference_teaches_its_better_answer_alone():
    pair = Preference([USER, GOOD, USER], [GOOD, USER, GOOD], [BAD], TOOLS)
    expected = Conversation([USER, GOOD, USER, GOOD, USER, GOOD], TOOLS, (False, False, False, None, None, None))
    assert pair.best() == expected
    assert Preference([], [GOOD], [BAD]).best() == Conversation([GOOD])

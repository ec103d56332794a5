"""What browsers say of themselves is not believed."""

from types import SimpleNamespace

import pytest

from genlab.studio.visitors import greet, who

PROGRAM = SimpleNamespace(username=None, session_hash="abc")


def test_a_visitor_keeps_the_name_that_was_given():
    name = greet("")
    assert greet(name) == name != greet(None)
    assert who(PROGRAM, name) == f"visitor {name}"
    assert who(SimpleNamespace(username="me", session_hash="abc"), name) == "user me"


@pytest.mark.parametrize(
    "said", [None, "", "user me", "x" * 10**6, {"a": 1}, ["x"], 7, float("nan"), "../" * 8, "A" * 24]
)
def test_other_words_are_no_name(said):
    assert who(PROGRAM, said) == "session abc"
    assert len(greet(said)) == 24

"""Randomly broken configs fail in a line or two, with exit code 2, before anything is built."""

import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from genlab import config as configs
from genlab.cli import main

ROOT = Path(__file__).parents[3]
TREE = configs.read(ROOT / "configs/digits/dit_flow.yaml")


def leaves(tree, path=()):
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))


PATHS = sorted(leaves(TREE))
JUNK = st.one_of(
    st.just({"a": 1}),
    st.just([["x"]]),
    st.text("xyzäß%:{}", min_size=1, max_size=5).map(lambda text: "?" + text),
    st.integers(-(10**30), -1),
    st.just(float("nan")),
    st.just(float("inf")),
)
REQUIRED = [("data",), ("network",), ("process",), ("training",), ("training", "images")]


@st.composite
def breakages(draw):
    tree = copy.deepcopy(TREE)
    how = draw(st.sampled_from(["junk", "misspell", "remove", "section"]))
    *parents, last = draw(st.sampled_from(REQUIRED if how == "remove" else PATHS))
    owner = tree
    for parent in parents:
        owner = owner[parent]
    if how == "remove":
        del owner[last]
    elif how == "misspell":
        position = draw(st.integers(0, len(last)))
        owner[last[:position] + "_q" + last[position:]] = owner.pop(last)
    elif how == "section":
        owner[last] = draw(st.sampled_from([None, True, "text?", [1, 2, 3, 4]]))
    else:
        owner[last] = draw(JUNK)
    assume(tree != TREE)
    return tree


@pytest.mark.parametrize("never_built", [True])
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=breakages())
def test_broken_configs_are_refused(tree, never_built, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("genlab.data.digits.Digits.build", lambda *_: pytest.fail("something was built"))
    file = tmp_path / "broken.yaml"
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(SystemExit) as left:
        main(["train", str(file), "--runs", str(tmp_path / "runs")])
    message = capsys.readouterr().err
    assert left.value.code == 2
    assert message.startswith("genlab: ") and "Traceback" not in message
    assert 1 <= len(message.strip().splitlines()) <= 2
    assert not (tmp_path / "runs").exists()

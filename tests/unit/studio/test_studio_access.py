"""Nobody is let in by accident."""

import runpy
import sys
from pathlib import Path

import pytest

from genlab.core.errors import GenlabError
from genlab.studio.access import credentials

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_computer_needs_no_password(host):
    assert credentials(host, False, None) is None


@pytest.mark.parametrize(
    "host, share", [("0.0.0.0", False), ("::", False), ("192.168.0.3", False), ("gpu-box", False), ("127.0.0.1", True)]
)
def test_others_need_one(host, share):
    with pytest.raises(GenlabError, match="--auth USER:PASSWORD"):
        credentials(host, share, None)
    assert credentials(host, share, "me:se:cret") == ("me", "se:cret")


@pytest.mark.parametrize("auth", ["", "me", "me:", ":secret"])
def test_half_a_password_is_none(auth):
    with pytest.raises(GenlabError, match="USER:PASSWORD"):
        credentials("127.0.0.1", False, auth)


def test_the_command_refuses_with_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["app.py", "--host", "0.0.0.0"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
    said = capsys.readouterr().err
    assert left.value.code == 2 and said.startswith("genlab: --host 0.0.0.0") and said.count("\n") == 1

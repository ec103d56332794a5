"""The commands that README and docs show are ones that exist."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from genlab.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = typer.main.get_command(app).commands


def shown(page):
    """The shell lines of a page, continuation lines joined, comments dropped."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.split("   #")[0].split("  #")[0].strip()


def arguments(line):
    """(command, its arguments) of a genlab line, however it is launched; None for other lines."""
    words = shlex.split(line, comments=True)
    if words[:1] == ["genlab"]:
        return words[1], words[2:]
    entries = [i for i, word in enumerate(words) if re.fullmatch(r"genlab/\w+\.py", word)]
    if entries:
        assert (ROOT / words[entries[0]]).exists(), line
        return Path(words[entries[0]]).stem, words[entries[0] + 1 :]
    return None


CASES = [(page, line) for page in PAGES for line in shown(page) if arguments(line)]


@pytest.mark.parametrize(("page", "line"), CASES, ids=lambda value: getattr(value, "name", value))
def test_shown_commands_parse(page, line):
    name, words = arguments(line)
    assert name in COMMANDS, line
    COMMANDS[name].make_context(name, [word for word in words if word != "..."])
    for word in words:
        if word.startswith("configs/"):
            assert (ROOT / word).exists(), line


def test_readme_shows_commands_and_make_targets_exist():
    assert sum(page.name == "README.md" for page, _ in CASES) >= 5
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z]+)\b", "\n".join(shown(ROOT / "README.md"))):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_links_between_pages_resolve():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"

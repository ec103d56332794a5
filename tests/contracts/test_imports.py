"""The house: imports point down, names shadow nothing, entries start in a fresh interpreter."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Layer of each package or module; a file may import layers below its own, and its own package.
LAYERS = [
    {"samplers", "genlab.core.errors", "genlab.core.files", "genlab.core.settings"},
    {"genlab.core"},
    {"genlab.nn"},
    {"genlab.networks", "genlab.tokenization", "genlab.processes"},
    {
        "genlab.training",
        "genlab.finetuning",
        "genlab.distillation",
        "genlab.evaluation",
        "genlab.convert",
        "genlab.data",
    },
    {"genlab.config_errors", "genlab.config"},
    {"genlab.model_card", "genlab.pretrained", "genlab.sampling", "genlab.editing"},
    {"genlab.commands"},
    {"genlab.studio"},
    {"genlab.cli"},
    {"genlab.train", "genlab.sample", "genlab.evaluate", "genlab.cache", "app"},
]
NEVER = [  # pairs that their layers alone would allow
    ("genlab.processes", "genlab.networks"),
    ("genlab.processes", "genlab.tokenization"),
    ("genlab.networks", "genlab.processes"),
    ("samplers", "genlab"),
    ("genlab.nn", "genlab"),
]


def modules():
    for file in [*ROOT.glob("genlab/**/*.py"), *ROOT.glob("samplers/**/*.py"), ROOT / "app.py"]:
        parts = file.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(module):
    """The layer of the longest listed prefix of `module`, or None."""
    return max(
        ((name, level) for level, names in enumerate(LAYERS) for name in names if f"{module}.".startswith(f"{name}.")),
        key=lambda pair: len(pair[0]),
        default=None,
    )


def inside(module, package):
    return f"{module}.".startswith(f"{package}.")


def test_imports_point_down():
    wrong = []
    for module, file in modules():
        own = layer(module)
        if module == "genlab":
            continue
        assert own is not None, f"{module} has no layer: add it to LAYERS"
        for target in imports(file):
            other = layer(target)
            upward = other is not None and other[1] > own[1]
            forbidden = any(inside(module, a) and inside(target, b) and not inside(target, a) for a, b in NEVER)
            if upward or forbidden:
                wrong.append(f"{module} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_no_name_shadows_a_module_that_others_import():
    taken = set(sys.stdlib_module_names) | {"tokenizers", "datasets", "accelerate", "tqdm", "safetensors", "diffusers"}
    children = {path.stem for path in (ROOT / "genlab").iterdir() if path.stem != "__init__"}
    assert not children & taken


ENTRIES = sorted(file.name for file in (ROOT / "genlab").glob("*.py") if re.match(r'"""Entry:', file.read_text()))


@pytest.mark.parametrize("entry", ENTRIES)
def test_entries_start_in_a_fresh_interpreter_without_shadowing(entry):
    check = (
        "import runpy, sys\n"
        f"sys.argv = ['genlab/{entry}', '--help']\n"
        "sys.path[0] = 'genlab'\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as left: assert not left.code, left.code\n"
        "import tokenizers, datasets\n"
        f"assert not tokenizers.__file__.startswith({str(ROOT / 'genlab')!r})\n"
        f"assert not datasets.__file__.startswith({str(ROOT / 'genlab')!r})\n"
        "twice = [n for n in sys.modules if 'genlab.' + n in sys.modules]\n"
        "assert not twice, twice\n"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_help_imports_nothing_heavy():
    check = (
        "import sys\nfrom genlab.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'accelerate', 'numpy', 'gradio', 'pydantic'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_setuptools_packages_are_all_packages():
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for top in ("genlab", "samplers")
        for file in (ROOT / top).glob("**/__init__.py")
    }
    assert listed == found

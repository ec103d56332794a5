"""One small trained run, shared by the tests of a worker; nothing of it, nor of caches, outlives them."""

import pytest
from runs_support import ACCELERATE, RECIPE, command


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def recipe(tmp_path_factory):
    file = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    file.write_text(RECIPE)
    return file


@pytest.fixture(scope="session")
def trained(tmp_path_factory, recipe):
    """A finished run, started as the README does. Tests leave it as it is."""
    runs = tmp_path_factory.mktemp("runs")
    command([*ACCELERATE, "genlab/train.py", recipe, "name=tiny", "--runs", runs])
    return runs / "tiny"

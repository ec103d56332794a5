"""One small trained run, shared by the tests of a worker; nothing of it, nor of caches, outlives them."""

import pytest
from runs_support import ACCELERATE, RECIPE, command
from studio_page import CHROMIUM, FLAGS, PATIENCE, visit
from studio_server import studio


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


@pytest.fixture(scope="module")
def address(trained):
    """The studio over the folder of `trained`."""
    with studio(trained.parent) as found:
        yield found


@pytest.fixture(scope="session")
def browser():
    """Chromium."""
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=2 * PATIENCE)
        yield opened
        opened.close()


@pytest.fixture
def complaints():
    """Errors in the browser's console."""
    return []


@pytest.fixture
def page(browser, address, complaints):
    """The page, filled; at the end its console must be free of errors."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    context.set_default_timeout(PATIENCE)
    context.set_default_navigation_timeout(2 * PATIENCE)
    opened = context.new_page()
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    visit(opened, address)
    yield opened
    context.close()
    assert not complaints

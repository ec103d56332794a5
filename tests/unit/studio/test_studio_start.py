"""What the studio says before it starts."""

from importlib.metadata import PackageNotFoundError

import pytest

from genlab.core.errors import GenlabError
from genlab.studio import app


@pytest.mark.parametrize("version", [None, "2.3.0"])
def test_mcp_without_its_package_is_refused_in_words(version, monkeypatch, tmp_path):
    def found(package):
        if version is None:
            raise PackageNotFoundError(package)
        return version

    monkeypatch.setattr(app, "version", found)
    with pytest.raises(GenlabError, match=f"{version or 'not installed'}: pip install"):
        app.launch([tmp_path], mcp=True)
    assert not list(tmp_path.iterdir())

"""NVIDIA's pickles: networks come out, code never runs."""

import os
import pickle
import sys
import types

import pytest
import torch

from genlab.convert import edm, nvidia_pickle
from genlab.core.errors import CheckpointError
from genlab.networks.edm_unet import EdmUNet


def _reconstruct_persistent_obj(meta):
    raise AssertionError("the code of the file was executed")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


class Persistent:
    """Pickles as NVIDIA's objects do: source code, class name, state."""

    def __init__(self, class_name, state):
        self.meta = {"type": "class", "version": 6, "module_src": "raise SystemExit('executed')"}
        self.meta |= {"class_name": class_name, "state": state}

    def __reduce__(self):
        return _reconstruct_persistent_obj, (self.meta,)


def persistent(state: dict[str, torch.Tensor]) -> Persistent:
    """A tree of modules that holds `state`."""
    own = {key: torch.nn.Parameter(value) for key, value in state.items() if "." not in key}
    below: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        if "." in key:
            head, _, rest = key.partition(".")
            below.setdefault(head, {})[rest] = value
    buffers = {"resample_filter": torch.ones(1, 1, 2, 2)} if "weight" in own else {}
    modules = {key: persistent(value) for key, value in below.items()}
    return Persistent(
        "Layer", {"training": False, "_parameters": own | {"none": None}, "_buffers": buffers, "_modules": modules}
    )


@pytest.fixture
def write(tmp_path, monkeypatch):
    module = types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)

    def to_file(content):
        path = tmp_path / "network.pkl"
        path.write_bytes(pickle.dumps(content))
        return path

    return to_file


def test_a_network_is_read_without_running_its_code(write):
    torch.manual_seed(0)
    network = EdmUNet((8, 8), 3, 5, width=8, multipliers=(1, 2), blocks=1, attention=(4,), channels_per_head=8).eval()
    state = edm.official(network, {key: torch.randn_like(value) for key, value in network.state_dict().items()})
    path = write({"ema": persistent(state), "loss_fn": Persistent("EDMLoss", {"P_mean": -1.2}), "augment_pipe": None})
    loaded = edm.load(path, channels_per_head=8)
    assert (loaded.weights, loaded.preset) == ("ema", None)
    edm.put(network, state)
    x, t, label = torch.randn(2, 3, 8, 8), torch.zeros(2), torch.tensor([1, 5])
    torch.testing.assert_close(loaded.network(x, t, label), network(x, t, label), rtol=0, atol=0)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("where", ["outside", "inside a storage"])
def test_foreign_names_are_refused_and_not_called(write, tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    content = Evil() if where == "outside" else _Stored(Evil())
    with pytest.raises(CheckpointError):
        nvidia_pickle.read(write({"ema": content}))
    assert not (tmp_path / "executed").exists()


class _Stored:
    """A storage whose bytes hold something else."""

    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        import io

        file = io.BytesIO()
        torch.save(self.content, file)
        return torch.storage._load_from_bytes, (file.getvalue(),)


def test_half_a_file_and_no_file_are_named(write, tmp_path):
    path = write({"ema": persistent({"weight": torch.zeros(3)})})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="half a file"):
        nvidia_pickle.read(path)
    with pytest.raises(CheckpointError, match="no such file"):
        edm.load(tmp_path / "nothing.pkl")
    with pytest.raises(CheckpointError, match="no averaged network"):
        edm.load(write({"G": None}))

"""References: round trips, foreign files, and mismatches that are refused with both sides named."""

import numpy as np
import pytest
import torch
from test_session import Images, Small

from genlab.core.errors import DataError
from genlab.evaluation.building import build_references
from genlab.evaluation.references import load_reference, save_reference


class FakeInception(Small):
    """Inception by name: what tells foreign statistics apart is the family and the width."""

    family = "inception"


@pytest.fixture
def made(tmp_path):
    extractor = Small()
    return extractor, build_references(Images(count=300), [extractor], cache=tmp_path / "cache")[extractor.name]


def statistics(width=12):
    rows = torch.randn(100, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return {"mu": rows.mean(0).numpy(), "sigma": rows.T.cov().numpy()}


def test_a_reference_comes_back_as_it_was(tmp_path, made):
    extractor, reference = made
    save_reference(tmp_path / "s.npz", reference, extractor)
    again = load_reference(tmp_path / "s.npz", extractor, 8)
    ours, theirs = reference.collected.layers["pool"], again.collected.layers["pool"]
    assert torch.equal(ours.rows, theirs.rows) and torch.equal(again.collected.labels, reference.collected.labels)
    assert torch.equal(ours.gaussian.mean, theirs.gaussian.mean)
    assert again.account["data"] == {"kind": "test"} and again.account["extractor"]["backbone"] == "small"
    with np.load(tmp_path / "s.npz") as file:  # other tools read ADM's names
        assert file["mu"].shape == (12,) and np.allclose(file["sigma"], np.cov(ours.rows.numpy().T), atol=1e-5)


def test_the_second_time_it_is_read_from_the_cache(tmp_path, made):
    source = Images(count=300)
    found = build_references(source, [Small()], cache=tmp_path / "cache")["small"]
    assert source.given == 0 and found.account["cached"]
    assert torch.equal(found.collected.layers["pool"].rows, made[1].collected.layers["pool"].rows)


def test_an_interrupted_reference_goes_on(tmp_path):
    with pytest.raises(DataError):
        build_references(Images(count=300, fail_at=200), [Small()], cache=tmp_path)
    source = Images(count=300)
    build_references(source, [Small()], cache=tmp_path)
    assert source.given < 300
    assert [file.suffix for file in tmp_path.iterdir()] == [".npz"]


def test_mismatches_name_both_sides(tmp_path, made):
    extractor, reference = made
    file = tmp_path / "s.npz"
    save_reference(file, reference, extractor)

    def refused(other, size=8):
        with pytest.raises(DataError) as raised:
            load_reference(file, other, size)
        return str(raised.value)

    assert "images 8 pixels wide, the scored ones have 16" in refused(extractor, 16)
    assert "extractor is 'small', this evaluation's 'inception'" in refused(FakeInception())

    class OtherResize(Small):
        resize = "bicubic"

    assert "transform is 'none', this evaluation's 'bicubic'" in refused(OtherResize())
    moved = Small()
    torch.nn.init.normal_(moved.network[0].weight)
    assert "other features for the same image" in refused(moved)


def test_adm_and_edm_statistics_serve_inception_alone(tmp_path):
    np.savez(tmp_path / "edm.npz", **statistics())
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "adm.npz", **statistics(), mu_s=np.zeros(5), sigma_s=np.eye(5), arr_0=pixels)
    for name, kind in (("edm", "statistics"), ("adm", "ADM reference batch")):
        found = load_reference(tmp_path / f"{name}.npz", FakeInception(), 8)
        assert np.allclose(found.collected.layers["pool"].gaussian.mean, statistics()["mu"])
        assert found.account["kind"].startswith(kind) and len(found.account["sha256"]) == 64
        with pytest.raises(DataError, match=r"made with Inception; this evaluation uses small \(12 features\)"):
            load_reference(tmp_path / f"{name}.npz", Small(), 8)
    with pytest.raises(DataError, match="its images are 8 pixels wide, the scored ones 16"):
        load_reference(tmp_path / "adm.npz", FakeInception(), 16)
    np.savez(tmp_path / "other.npz", **statistics(13))
    with pytest.raises(DataError, match="of 13 features"):
        load_reference(tmp_path / "other.npz", FakeInception(), 8)


def test_torch_fidelity_caches(tmp_path):
    torch.save(statistics(), tmp_path / "x-stat-fid-2048.pt")
    found = load_reference(tmp_path / "x-stat-fid-2048.pt", FakeInception(), 8)
    assert np.allclose(found.collected.layers["pool"].gaussian.mean, statistics()["mu"])
    torch.save({"weights": torch.zeros(2)}, tmp_path / "y.pt")
    with pytest.raises(DataError, match="no torch-fidelity statistics"):
        load_reference(tmp_path / "y.pt", FakeInception(), 8)


def test_bad_files(tmp_path):
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="holds no statistics"):
        load_reference(tmp_path / "images.npz", FakeInception(), 8)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "images.npz").read_bytes()[:100])
    with pytest.raises(DataError, match=r"cut\.npz: no complete"):
        load_reference(tmp_path / "cut.npz", FakeInception(), 8)
    np.savez(tmp_path / "nan.npz", mu=np.full(12, np.nan), sigma=np.eye(12))
    with pytest.raises(DataError, match="NaN"):
        load_reference(tmp_path / "nan.npz", FakeInception(), 8)

"""Tokenizers in the studio: found, asked in order, and shown as they are."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from studio_runs import write_run
from studio_tokenizers import write_tokenizer

from genlab.core.contracts import to_float, to_uint8
from genlab.core.errors import GenlabError
from genlab.data.digits import Digits
from genlab.evaluation.reconstruction import mse, psnr
from genlab.studio.catalog import Catalog
from genlab.studio.code_pictures import BARS, bars, code_map, palette
from genlab.studio.store import Store
from genlab.studio.tokenizer_orders import UPLOAD, place
from genlab.studio.uploads import decode_upload, fit
from genlab.studio.work.workshop import Workshop
from genlab.studio.worker import perform


def found(folder):
    return {entry.name: entry for entry in Catalog([folder]).refresh().tokenizers.values()}


def test_tokenizers_are_found_apart_from_generators(tmp_path):
    write_run(tmp_path / "pixels")
    write_tokenizer(tmp_path / "alone", "rvq")
    generator = write_run(tmp_path / "coded", tokenizer={"name": "pixels"}).joinpath("export")
    write_tokenizer(generator / "tokenizer", "kl")
    description = json.loads((generator / "config.json").read_text())
    description["tokenizer"] = {"name": "trained", "path": "tokenizer"}
    (generator / "config.json").write_text(json.dumps({**description, "image_size": 32}))
    write_tokenizer(tmp_path / "broken", "rvq")
    (tmp_path / "broken" / "config.json").write_text('{"kind": "tokenizer", "format": 1}')
    catalog = Catalog([tmp_path])
    scan = catalog.refresh()
    assert {entry.name for entry in scan.entries.values()} == {"pixels", "coded"}
    assert {entry.name: entry.spec.image_size for entry in scan.tokenizers.values()} == {
        "alone": 16,
        "coded: tokenizer": 32,
    }
    assert len(scan.notes) == 1 and "broken" in scan.notes[0]
    for entry in scan.tokenizers.values():
        assert catalog.get_tokenizer(entry.id) is entry
        with pytest.raises(GenlabError, match="no such run"):
            catalog.get(entry.id)
    shutil.copytree(generator / "tokenizer", tmp_path / "the-same")
    config = json.loads((tmp_path / "the-same" / "config.json").read_text())
    (tmp_path / "the-same" / "config.json").write_text(json.dumps({**config, "name": "same", "image_size": 32}))
    assert set(found(tmp_path)) == {"alone", "same"}


def test_the_data_that_fits_is_offered_its_own_first(tmp_path):
    write_tokenizer(tmp_path / "a", "rvq", 24)
    write_tokenizer(tmp_path / "b", "rvq", 20)
    write_tokenizer(tmp_path / "c", "rvq", 512)
    samples = {name: list(entry.samples) for name, entry in found(tmp_path).items()}
    assert samples == {"a": ["digits", "photos", "fractals"], "b": ["photos", "fractals"], "c": ["digits", "fractals"]}


@pytest.mark.parametrize(
    "data, number, counted, words",
    [
        ("celebs", 0, 0, "not offered"),
        ("../../etc", 0, 0, "not offered"),
        (None, 0, 0, "not offered"),
        ("digits", -1, 0, "image number"),
        ("digits", float("nan"), 0, "image number"),
        ("digits", 0, 10**9, "images to count"),
    ],
)
def test_orders_are_checked(tmp_path, data, number, counted, words):
    write_tokenizer(tmp_path / "a", "rvq")
    (entry,) = found(tmp_path).values()
    with pytest.raises(GenlabError, match=words):
        place(entry, data, number, counted)


def do(tmp_path, entry, data="digits", counted=40, **files):
    store = Store(tmp_path / "studio")
    order = place(entry, data, 5, counted)
    job = store.submit("reconstruct", "me", entry.name, order.wants(), files)
    perform(store, store.claim("cpu"), Workshop("cpu"))
    assert not job.given(UPLOAD).exists()
    return job, store.state(job)


def pixels(job, file):
    return torch.from_numpy(np.array(Image.open(job.results / file))).permute(2, 0, 1).unsqueeze(0)


@torch.no_grad()
def test_a_residual_tokenizer_is_shown_depth_by_depth(tmp_path):
    tokenizer = write_tokenizer(tmp_path / "runs" / "rvq", "rvq")
    job, state = do(tmp_path, found(tmp_path / "runs")["rvq"])
    result = state.result
    digits = Digits(size=16).build()
    image = digits.fetch([5])[0]
    codes = tokenizer.encode(to_float(image))
    original, made, _ = (pixels(job, file) for file, _ in result["images"])
    assert torch.equal(original, image) and torch.equal(made, to_uint8(tokenizer.decode(codes)))
    assert result["measures"]["psnr"] == pytest.approx(psnr(mse(made, image)).item())
    assert "ssim" in result["measures"] and any("LPIPS" in words for words in result["missing"])
    assert [caption for _, caption in result["steps"]] == ["Depth 1", "Depths 1 to 2", "Depths 1 to 3"]
    for number, (file, _) in enumerate(result["steps"], 1):
        assert torch.equal(pixels(job, file), to_uint8(tokenizer.decode(codes[..., :number])))
    for number, (file, caption) in enumerate(result["codes"]):
        assert caption == f"Depth {number + 1}: 8 × 8"
        assert torch.equal(pixels(job, file)[0], code_map(codes[0, ..., number], 16))
    many = tokenizer.encode(to_float(digits.fetch(range(40))[0]))
    for number, group in enumerate(result["usage"]["groups"]):
        assert group["used"] == len(codes[..., number].unique()) and group["codes"] == 64
        assert group["data_share"] == len(many[..., number].unique()) / 16


@torch.no_grad()
def test_scales_are_shown_one_after_another_and_pooled(tmp_path):
    tokenizer = write_tokenizer(tmp_path / "runs" / "var", "var")
    entry = found(tmp_path / "runs")["var"]
    sent = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)).save(sent, "PNG")
    job, state = do(tmp_path, entry, data="", counted=0, **{UPLOAD: sent.getvalue()})
    result = state.result
    image = fit(decode_upload(sent.getvalue()), 16).unsqueeze(0)
    assert torch.equal(pixels(job, result["images"][0][0]), image)
    codes = tokenizer.encode(to_float(image))
    assert torch.equal(pixels(job, result["steps"][1][0]), to_uint8(tokenizer.decode(codes[:, :5])))
    assert torch.equal(pixels(job, result["steps"][-1][0]), pixels(job, result["images"][1][0]))
    *scales, pooled = result["usage"]["groups"]
    assert [group["codes"] for group in scales] == [1, 4, 16, 64] and pooled["codes"] == 85
    assert pooled["used"] == len(codes.unique()) and "bars" not in pooled


def test_continuous_latents_are_shown_by_channel(tmp_path):
    write_tokenizer(tmp_path / "runs" / "kl", "kl")
    _, state = do(tmp_path, found(tmp_path / "runs")["kl"])
    assert len(state.result["codes"]) == 8 and state.result["steps"] == [] and "usage" not in state.result


def test_a_damaged_upload_fails_in_words(tmp_path):
    write_tokenizer(tmp_path / "runs" / "rvq", "rvq")
    _, state = do(tmp_path, found(tmp_path / "runs")["rvq"], data="", **{UPLOAD: b"\x89PNG no"})
    assert state.status == "failed" and "PNG, JPEG or WebP" in state.words


def test_colours_stay_and_differ():
    assert torch.equal(palette(4096)[:64], palette(64))
    assert len({tuple(colour) for colour in palette(1024).tolist()}) > 1000
    counts = torch.tensor([0, 3, 12, 6, 0])
    assert bars(counts) == [1.0, 0.5, 0.25] and bars(torch.zeros(9, dtype=torch.int64)) == []
    assert len(bars(torch.arange(1, 5000))) == BARS

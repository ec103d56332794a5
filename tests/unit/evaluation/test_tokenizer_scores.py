"""Scores of tokenizers: right on what is known exactly, the same however the pass is cut, and reported."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from genlab.commands.evaluate import Options
from genlab.commands.evaluate_tokenizer import evaluate_tokenizer
from genlab.core.contracts import LatentSpec, Tokenizer, to_float
from genlab.core.errors import DataError, GenlabError
from genlab.data.digits import Digits
from genlab.evaluation.asks import Ask
from genlab.evaluation.building import build_references
from genlab.evaluation.metrics import Need
from genlab.evaluation.pixels import PixelFeatures
from genlab.evaluation.progress import Progress
from genlab.evaluation.reconstruction import mse, psnr
from genlab.evaluation.session import Session
from genlab.evaluation.sources import DataImages
from genlab.evaluation.tokenizer_scores import ORIGINALS, Reconstructions, by_group, positions, score_tokenizer
from genlab.tokenization.pixels import Pixels

SIDE = 16


class Grey(Tokenizer):
    """A lossy toy: the mean of each quarter of the image, in `vocab` grey levels, as codes of the given kind."""

    def __init__(self, kind="codes", vocab=8):
        super().__init__()
        depth, scales = (2 if kind == "residual" else None), ((1, 2) if kind == "multiscale" else None)
        self.spec = LatentSpec(kind, 1, (2, 2), SIDE, vocab=vocab, depth=depth, scales=scales, fingerprint=kind)
        self.gain = nn.Parameter(torch.ones(()))

    def encode(self, images):
        grey = nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 2)[:, 0]
        codes = ((grey + 1) / 2 * (self.spec.vocab - 1)).round().long()  # [B,2,2]
        if self.spec.kind == "residual":
            return torch.stack([codes, torch.zeros_like(codes)], dim=-1)
        if self.spec.kind == "multiscale":
            return torch.cat([torch.full((len(codes), 1), 7), codes.flatten(1)], dim=1)
        return codes

    def prepare(self, raw, rng):
        return raw

    def decode(self, tokens):
        codes = by_group(tokens, self.spec)[-1 if self.spec.kind == "multiscale" else 0].reshape(-1, 1, 2, 2)
        levels = codes.float() / (self.spec.vocab - 1) * 2 - 1
        return levels.repeat_interleave(SIDE // 2, -1).repeat_interleave(SIDE // 2, -2).expand(-1, 3, -1, -1)


def digits(count=150):
    source = DataImages(Digits(size=SIDE).build(), "digits")
    source._count = count
    return source


def score(tokenizer, tmp_path, source=None, progress=None, **more):
    source = source or digits()
    extractor = PixelFeatures()
    references = {ORIGINALS: build_references(source, [extractor], cache=tmp_path / "cache")["pixels"]}
    images = Reconstructions(tokenizer, source, **more)
    found = score_tokenizer(images, extractor, references, progress=progress, save_every=64)
    return images, found, {score.name: score for score in found.scores}


def test_a_tokenizer_that_loses_nothing(tmp_path):
    _, found, scores = score(Pixels().build(SIDE), tmp_path)
    assert scores["rfd_pixels"].value == pytest.approx(0, abs=1e-9) and scores["ssim"].value == pytest.approx(1)
    assert scores["psnr"].value == math.inf and scores["psnr"].detail["exact_images"] == 150
    assert not found.problems and not scores.keys() & {"perplexity", "lpips_alex"}  # no codes; no weights asked for
    assert found.cost["encoded_images_per_second"] > 0


def test_a_lossy_tokenizer_against_sums_by_hand(tmp_path):
    tokenizer, source = Grey(), digits()
    originals = torch.cat([part.images for part in source.parts(range(150))])
    images, _, scores = score(tokenizer, tmp_path, source)
    codes = tokenizer.encode(to_float(originals))
    error = mse(tokenizer.decode(codes).mul(127.5).add(128).clamp(0, 255).byte(), originals)
    assert torch.equal(images.sums["mse"], error)
    assert scores["psnr"].value == pytest.approx(psnr(error).mean().item(), rel=1e-12)
    low, high = scores["psnr"].interval
    assert low < scores["psnr"].value < high
    share = torch.bincount(codes.flatten(), minlength=8).double() / codes.numel()
    entropy = -(share[share > 0] * share[share > 0].log()).sum()
    assert scores["perplexity"].value == pytest.approx(entropy.exp().item(), rel=1e-12)
    assert scores["codebook_usage"].value == (share > 0).double().mean()
    bits = scores["bits_per_image"]
    assert bits.value == 4 * 3 and bits.detail["bits_per_pixel"] == 12 / SIDE**2
    assert bits.detail["entropy_bits"] == pytest.approx(4 * entropy.item() / math.log(2))


def test_codes_by_depth_and_by_scale(tmp_path):
    assert positions(Grey("residual").spec) == [4, 4] and positions(Grey("multiscale").spec) == [1, 4]
    _, _, scores = score(Grey("residual"), tmp_path)
    assert scores["codebook_usage"].detail["by_depth"][1] == 1 / 8 and scores["perplexity"].detail["by_depth"][1] == 1
    _, _, scores = score(Grey("multiscale"), tmp_path)
    assert scores["codebook_usage"].detail["by_scale"][0] == 1 / 8 and scores["bits_per_image"].detail["codes"] == 5


def test_interrupted_and_shared_out(tmp_path):
    """The sums beside the statistics survive a kill and join over processes."""
    straight, _, expected = score(Grey(), tmp_path)

    class Stops(DataImages):
        def parts(self, index):
            for part in super().parts(index):
                if part.index[-1] >= 100:
                    raise DataError("stopped here")
                yield part

    broken = Stops(digits().source, "digits")
    broken._count = 150
    with pytest.raises(DataError, match="stopped here"):
        Session(
            (images := Reconstructions(Grey(), broken)),
            [Ask(PixelFeatures(), frozenset({Need.MOMENTS}))],
            progress=Progress(tmp_path / "p", {}),
            save_every=1,
            tally=images,
        ).run()
    resumed, found, scores = score(Grey(), tmp_path, progress=Progress(tmp_path / "p", {}))
    assert found.result.resumed == 64
    assert torch.equal(resumed.sums["mse"], straight.sums["mse"])
    assert torch.equal(resumed.sums["codes"], straight.sums["codes"])
    for name, score_ in expected.items():
        assert scores[name].value == pytest.approx(score_.value, rel=1e-12)


def test_small_images_leave_ssim_out_and_other_sides_are_refused(tmp_path):
    source = DataImages(Digits(size=8).build(), "digits")
    source._count = 70
    _, found, scores = score(Pixels().build(8), tmp_path, source)
    assert "ssim" not in scores and any("smaller than its 11x11 window" in problem for problem in found.problems)
    with pytest.raises(DataError, match=r"16 pixels wide, these have 8; give --size 16"):
        Reconstructions(Grey(), source)


def test_the_command_writes_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("genlab.core.public_weights._download", _offline)
    state = SimpleNamespace(
        is_main_process=True,
        process_index=0,
        num_processes=1,
        device=torch.device("cpu"),
        wait_for_everyone=lambda: None,
    )
    options = Options(against="digits", samples=70, extractor="efflite0", out=tmp_path / "out")
    assert evaluate_tokenizer("runs/t", Grey(), options, state) == 0
    tree = json.loads((tmp_path / "out" / "report.json").read_text())
    names = [score["name"] for score in tree["scores"]]
    assert names == ["rfd_efflite0", "psnr", "ssim", "codebook_usage", "perplexity", "bits_per_image"]
    assert tree["scores"][0]["reference"] == "originals" and tree["subject"]["fingerprint"] == "codes"
    assert any("lpips: not computed: AlexNet" in warning for warning in tree["warnings"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "Differences" in page
    assert not Path(tmp_path / "out" / ".progress").exists() and "psnr" in capsys.readouterr().out
    with pytest.raises(GenlabError, match="say what to reconstruct"):
        evaluate_tokenizer("runs/t", Grey(), replace(options, against=None), state)


def _offline(weights, place):
    raise weights.missing("offline")

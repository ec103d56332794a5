"""The small tokenizer recipes, trained and scored on held-out images; and training from a cache against encoding live.

    python benchmarks/tokenizer_recipes.py [--only vq,rvq,...] [--images N]

Prints for each recipe the training's seconds, PSNR in dB, share of the codes in use and, for digits, how many
reconstructions an SVM trained on real digits still recognises; for the residual one the error after each depth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from genlab import config as configs
from genlab.core.contracts import to_float, to_uint8
from genlab.data.digits import Digits
from genlab.evaluation.classifier import DigitsClassifier
from genlab.evaluation.reconstruction import mse, psnr
from genlab.tokenization.storage import load_tokenizer
from samplers.noise import spawn

ROOT = Path(__file__).parents[1]
RECIPES = {
    "vq": "digits/vq",
    "rvq": "digits/rvq",
    "multiscale": "digits/multiscale",
    "kl": "digits/kl",
    "photos": "photos/kl_32",
}


def train(recipe: str, runs: Path, changes: list[str]) -> float:
    """Seconds of `genlab train` on two threads, its start included."""
    begun = time.perf_counter()
    words = [sys.executable, "genlab/train.py", f"configs/{recipe}.yaml", *changes, "--runs", str(runs)]
    subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begun


@torch.no_grad()
def score(run: Path) -> dict[str, object]:
    """What is left of the images that the run has not seen."""
    config = configs.load_run(run / "config.yaml")
    held_out = config.data.build("test")
    images, labels = held_out.fetch(range(min(len(held_out), 1000)))
    tokenizer = load_tokenizer(run)
    raw = tokenizer.encode(to_float(images))
    made = to_uint8(tokenizer.decode(tokenizer.prepare(raw, spawn(0, range(len(images))))))
    found: dict[str, object] = {"psnr": round(float(psnr(mse(made, images)).mean()), 2)}
    if (vocab := tokenizer.spec.vocab) is not None:
        groups = raw.flatten(0, -2).T if tokenizer.spec.kind == "residual" else raw.flatten()[None]
        found["usage"] = [round(len(group.unique()) / vocab, 3) for group in groups]
    if isinstance(config.data, Digits):
        real = config.data.build()
        judge = DigitsClassifier().fit(*real.fetch(range(len(real))))
        found["svm"] = round(judge.class_accuracy(made, labels)[0], 4)
        found["svm_of_originals"] = round(judge.class_accuracy(images, labels)[0], 4)
    if tokenizer.spec.kind == "residual":
        partial = [tokenizer.decode(raw[..., : depth + 1]) for depth in range(raw.shape[-1])]
        found["error_by_depth"] = [round(float((x - to_float(images)).square().mean()), 5) for x in partial]
    return found


def cached_against_live(runs: Path) -> dict[str, float]:
    """Images per second of one small generator on photographs, encoding them live and reading a cache."""
    shared = {"tokenizer": {"name": "trained", "path": str(runs / "photos-kl_32")}, "sampling": {"steps": 2}}
    shared |= {"network": {"name": "dit", "depth": 1, "width": 64, "heads": 2, "patch": 2}, "process": {"name": "flow"}}
    shared |= {"training": {"images": 6400, "batch": 64, "log_every": 640, "preview_count": 1, "preview_every": 6400}}
    live, cached = runs / "live.json", runs / "cached.json"
    images = {"name": "photos", "size": 32, "count": 2000, "flip": True}
    live.write_text(json.dumps({"data": images, **shared}))
    words = [sys.executable, "genlab/cache.py", str(live), "-o", str(runs / "cache")]
    subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cached.write_text(json.dumps({"data": {"name": "latents", "path": str(runs / "cache")}, **shared}))
    speeds = {}
    for file in (live, cached):
        words = [sys.executable, "genlab/train.py", str(file), f"name={file.stem}", "--runs", str(runs)]
        subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (runs / file.stem / "log.jsonl").read_text().splitlines()]
        rates = sorted(line["images_per_second"] for line in lines if "images_per_second" in line)
        speeds[file.stem] = rates[len(rates) // 2]
    return {**speeds, "ratio": round(speeds["cached"] / speeds["live"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(RECIPES))
    parser.add_argument("--images", type=int, help="train on so many images instead of the recipes' own number")
    options = parser.parse_args()
    changes = [f"training.images={options.images}"] if options.images else []
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        for name in options.only.split(","):
            seconds = train(RECIPES[name], runs, changes)
            print(name, {"seconds": round(seconds), **score(runs / RECIPES[name].replace("/", "-"))}, flush=True)
        if "photos" in options.only:
            print("cached against live", cached_against_live(runs), flush=True)


if __name__ == "__main__":
    main()

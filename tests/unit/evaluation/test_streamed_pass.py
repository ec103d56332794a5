"""The whole pass, commands included: the same numbers for one process and for two, and for any batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from genlab.commands.targets import SubjectOptions, _generated
from genlab.core.evaluations import Evaluations
from genlab.core.generator import Generator
from genlab.data.digits import Digits
from genlab.evaluation.published import find_protocol
from genlab.networks.dit import DiTConfig
from genlab.processes.flow import FlowConfig
from genlab.processes.flow_sampling import FlowSampling
from genlab.tokenization.pixels import Pixels

ROOT = Path(__file__).parents[3]
METRICS = "fid@pixels,kid@pixels,precision@pixels,recall@pixels,coverage@pixels,intra_class_fid@pixels,fid,is"


def start(folder, processes, samples):
    """`genlab evaluate` on stored images, in fresh processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*torchrun, str(ROOT / "genlab" / "evaluate.py"), str(samples), "--against", str(folder / "real.npz")]
    options = ["--metrics", METRICS, "--extractor", "efflite0", "--out", str(folder / f"by-{processes}")]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / f"cache-{processes}")}
    return subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def test_two_processes_give_the_numbers_of_one(tmp_path):
    images, labels = Digits(size=16).build().fetch(range(90))
    pixels = images.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "real.npz", arr_0=pixels[:20], label=labels[:20].numpy())
    np.savez(tmp_path / "made.npz", arr_0=pixels[20:], label=labels[20:].numpy())
    running = [start(tmp_path, processes, tmp_path / "made.npz") for processes in (1, 2)]
    for process in running:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    one, two = (json.loads((tmp_path / f"by-{n}" / "report.json").read_text()) for n in (1, 2))
    assert (one["environment"]["processes"], two["environment"]["processes"]) == (1, 2)
    assert len(one["scores"]) == len(METRICS.split(","))
    for a, b in zip(one["scores"], two["scores"], strict=True):
        assert b["value"] == pytest.approx(a["value"], rel=1e-9, abs=1e-12), a["name"]
        assert (b["interval_95"] or 0) == pytest.approx(a["interval_95"] or 0, rel=1e-9)
    assert one["labels"] == two["labels"]


@pytest.mark.parametrize("batch", [1, 7, 200])
def test_a_live_generators_images_do_not_depend_on_the_batch(batch):
    """On the CPU, to the last bit: the network is always called on as many images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = DiTConfig(depth=2, width=64, heads=4, patch=4).build(Pixels().latent_spec(16), 10)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    generator = Generator(Pixels().build(16), network, FlowConfig().build(), FlowSampling(steps=3), ())
    protocol = find_protocol("offline")

    def made(size):
        options = SubjectOptions(150, size, (), None, False)
        source = _generated("toy", generator, protocol, options, 3, Evaluations()).source
        return torch.cat([part.images for part in source.parts(range(150))])

    images = made(64)
    assert torch.equal(made(batch), images) and images.float().std() > 10

"""Tiny runs with random weights, as training would leave them."""

import json

import torch

from genlab import config as configs
from genlab import pretrained
from genlab.training import checkpoint

DIGITS = {
    "name": "tiny",
    "data": {"name": "digits"},
    "tokenizer": {"name": "pixels", "channels": 1},
    "network": {"name": "dit", "depth": 1, "width": 32, "heads": 2, "patch": 2},
    "process": {"name": "flow"},
    "training": {"images": 1280, "ema": [0.9]},
    "sampling": {"sampler": "heun", "steps": 4, "guidance": 1.5},
}


def write_run(folder, images=1280, classes=10, class_names=None, export=True, **changes):
    """A run folder with one checkpoint of a network whose output layer is not zero."""
    config = configs.validate({**DIGITS, "name": folder.name, **changes}, "test")
    tokenizer = config.tokenizer.build(8)
    names = tuple(map(str, range(classes))) if class_names is None else tuple(class_names)
    network = config.network.build(tokenizer.spec, classes)
    torch.manual_seed(1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    description = pretrained.describe(config, tokenizer, classes, names)
    folder.mkdir(parents=True)
    (folder / pretrained.DESCRIPTION).write_text(json.dumps(description))
    state = network.state_dict()
    checkpoint.save(folder / "checkpoints", images, {"network": state, "network.ema-0.9": state}, {"identity": {}})
    if export:
        pretrained.export(folder)
    return folder

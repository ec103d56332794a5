"""The plain objective: one network, one process, over a frozen tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genlab.core.contracts import Batch, to_float, to_uint8
from genlab.core.generator import Generator
from genlab.training.objective import Networks, Objective, Role, Turn
from samplers.noise import SampleRng, spawn

_TOKENS, _LABELS, _PROCESS = range(3)  # streams of a sample's random numbers


class GenerationObjective(Objective):
    """Minimise the process's loss; labels are dropped to the null label with probability `label_dropout`.

    Args:
        generator: tokenizer (frozen), network (trained) and process.
        role: how the network is updated; its `network` is the generator's.
        label_dropout: per-sample probability of training without the class, in [0, 1].
        preview_count, preview_seed: pictures in the grids made while training, and their seed.
    """

    def __init__(
        self, generator: Generator, role: Role, label_dropout: float, preview_count: int = 64, preview_seed: int = 0
    ):
        self.generator, self.role, self.label_dropout = generator, role, label_dropout
        self.preview_count, self.preview_seed = preview_count, preview_seed

    def roles(self) -> dict[str, Role]:
        return {"network": self.role, "tokenizer": Role(self.generator.tokenizer)}

    def turns(self, step: int) -> Sequence[Turn]:
        return [Turn("network", self._loss)]

    def _loss(self, networks: Networks, batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
        tokenizer = self.generator.tokenizer
        with torch.no_grad():
            raw = batch.raw if batch.images is None else tokenizer.encode(to_float(batch.images))
            assert raw is not None, "a batch holds images or raw latents"
            tokens = tokenizer.prepare(raw, rng.fork(_TOKENS))  # [B, ...]
            dropped = rng.fork(_LABELS).uniform() < self.label_dropout  # [B]
            label = torch.where(dropped, self.generator.network.null_label, batch.label)
        return self.generator.process.loss(networks["network"], tokens, label, rng.fork(_PROCESS))

    def preview(self, share: tuple[int, int]) -> Tensor:
        part, parts = share
        count = -(-self.preview_count // parts)  # equal shares: sharded networks must run equally often everywhere
        index = torch.arange(part * count, (part + 1) * count)
        classes = max(self.generator.network.num_classes, 1)
        device = next(self.generator.network.parameters()).device
        label = (index % classes).to(device)
        rng = spawn(self.preview_seed, index.tolist(), device)
        return to_uint8(self.generator.sample(label, rng, self.generator.sampling))

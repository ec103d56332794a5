"""The plain objective: one network, one process, over a frozen tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from genlab.core.contracts import Batch, Process, to_float, to_uint8
from genlab.core.generator import Generator
from genlab.training.objective import Networks, Objective, Role, Turn
from genlab.training.representation import Aligned
from samplers.noise import SampleRng, spawn

_TOKENS, _LABELS, _PROCESS = range(3)  # streams of a sample's random numbers


class GenerationObjective(Objective):
    """Minimise the process's loss; labels are dropped to the null label with probability `label_dropout`.

    Args:
        generator: tokenizer (frozen), network (trained) and process.
        role: how the network is updated; its `network` is the generator's, or with `aligned` that one's.
        label_dropout: per-sample probability of training without the class, in [0, 1].
        preview_count, preview_seed: pictures in the grids made while training, and their seed.
        aligned: the generator's network with what draws its tokens towards a vision encoder's features.
    """

    def __init__(
        self,
        generator: Generator,
        role: Role,
        label_dropout: float,
        preview_count: int = 64,
        preview_seed: int = 0,
        aligned: Aligned | None = None,
    ):
        self.generator, self.role, self.label_dropout = generator, role, label_dropout
        self.preview_count, self.preview_seed = preview_count, preview_seed
        self.aligned = aligned

    def roles(self) -> dict[str, Role]:
        process = self.generator.process
        role = replace(self.role, average=process.takes_average, average_decay=process.average_decay)
        roles = {"network": role, "tokenizer": Role(self.generator.tokenizer)}
        return roles if self.aligned is None else {**roles, "encoder": Role(self.aligned.encoder)}

    def turns(self, step: int) -> Sequence[Turn]:
        self.generator.network.normalise_weights()
        return [Turn("network", partial(self._loss, self.generator.process.at(step)))]

    def _loss(self, process: Process, networks: Networks, batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
        tokenizer = self.generator.tokenizer
        with torch.no_grad():
            raw = batch.raw if batch.images is None else tokenizer.encode(to_float(batch.images))
            assert raw is not None, "a batch holds images or raw latents"
            tokens = tokenizer.prepare(raw, rng.fork(_TOKENS))  # [B, ...]
            dropped = rng.fork(_LABELS).uniform() < self.label_dropout  # [B]
            label = torch.where(dropped, self.generator.network.null_label, batch.label)
        loss: Callable[..., dict[str, Tensor]] = process.loss
        if process.takes_average:
            loss = partial(loss, average=networks["network.average"])
        if self.aligned is not None:
            return self._aligned_loss(self.aligned, loss, networks, batch, tokens, label, rng.fork(_PROCESS))
        return loss(networks["network"], tokens, label, rng.fork(_PROCESS))

    def _aligned_loss(
        self,
        aligned: Aligned,
        loss: Callable[..., dict[str, Tensor]],
        networks: Networks,
        batch: Batch,
        tokens: Tensor,
        label: Tensor,
        rng: SampleRng,
    ) -> dict[str, Tensor]:
        """The process's losses and the alignment's, [B], of the batch sorted by label."""
        assert batch.images is not None, "an encoder sees images"
        order = label.argsort(stable=True)  # a process that arranges the batch by label (ARFlow) then leaves it so
        features = networks["encoder"](to_float(batch.images[order]))
        sorted_loss = partial(loss, tokens=tokens[order], label=label[order], rng=rng.rows(order))
        return aligned.losses(networks["network"], features, sorted_loss)

    def preview(self, share: tuple[int, int]) -> Tensor:
        part, parts = share
        count = -(-self.preview_count // parts)  # equal shares: sharded networks must run equally often everywhere
        index = torch.arange(part * count, (part + 1) * count)
        classes = max(self.generator.network.num_classes, 1)
        device = next(self.generator.network.parameters()).device
        label = (index % classes).to(device)
        rng = spawn(self.preview_seed, index.tolist(), device)
        return to_uint8(self.generator.sample(label, rng, self.generator.sampling))

"""Tables of code vectors, and how they learn: by gradients, by averages of the vectors they stand for, or linearly."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.core.settings import Settings
from genlab.tokenization.quantizers.codebook import nearest
from genlab.tokenization.quantizers.kmeans import assigned, kmeans
from samplers.noise import SampleRng

_CHOICE = 0xC0DEB00C  # the stream that chooses replacements of dead codes and the start of k-means
_JITTER = 0.01  # length of the noise on vectors that are used twice, as in RQ-VAE


class Book(nn.Module, ABC):
    """V code vectors of C channels."""

    unit: bool = False
    """Code vectors are of length 1, and so are the vectors that are looked up."""

    @abstractmethod
    def table(self) -> Tensor:
        """The code vectors [V,C], float32."""

    def look_up(self, vectors: Tensor) -> Tensor:
        """Codes int64 [...] of vectors [...,C]."""
        return nearest(vectors.flatten(0, -2), self.table()).view(vectors.shape[:-1])

    def start(self, vectors: Tensor) -> None:
        """Before the codes of a training batch [N,C] are looked up."""

    def update(self, vectors: Tensor, codes: Tensor) -> None:
        """After vectors [N,C] of a training batch were given codes [N]."""


class LearnedBook(Book):
    """Learns by gradients."""

    def __init__(self, vocab: int, channels: int, unit: bool = False):
        super().__init__()
        self.unit = unit
        self.weight = nn.Parameter(torch.empty(vocab, channels).uniform_(-1.0 / vocab, 1.0 / vocab))

    def table(self) -> Tensor:
        return F.normalize(self.weight.float(), dim=1) if self.unit else self.weight.float()


class LinearBook(Book):
    """A learnt linear map of fixed Gaussian vectors, which moves all codes at once (SimVQ, Zhu et al. 2024)."""

    frozen: Tensor
    """[V,C]."""

    def __init__(self, vocab: int, channels: int):
        super().__init__()
        self.register_buffer("frozen", torch.randn(vocab, channels) * channels**-0.5)
        self.transform = nn.Linear(channels, channels, bias=False)

    def table(self) -> Tensor:
        return self.transform(self.frozen)


class AveragedBook(Book):
    """Each code is the running mean of the vectors that chose it (VQ-VAE, van den Oord et al. 2017, appendix A).

    All randomness is a function of the number of updates, which is part of the state: a resumed run goes on alike.
    With several processes all see the counts and sums of all; new vectors are those of the first.
    """

    weight: Tensor
    """[V,C]."""
    counts: Tensor
    """[V]: N, running number of vectors of each code in a batch."""
    sums: Tensor
    """[V,C]: S, running sum of those vectors."""
    updates: Tensor
    """int64 []."""
    revives_first: bool = False
    """Revive before the table is made of counts and sums, as RQ-VAE does, instead of after it."""

    def __init__(self, vocab: int, channels: int, config: Averaging, unit: bool = False):
        super().__init__()
        self.config = config
        self.unit = unit
        weight = torch.randn(vocab, channels) * channels**-0.5
        weight = F.normalize(weight, dim=1) if unit else weight
        self.register_buffer("weight", weight)
        self.register_buffer("counts", torch.ones(vocab))
        self.register_buffer("sums", weight.clone())
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._started = config.kmeans == 0

    def table(self) -> Tensor:
        return self.weight

    @torch.no_grad()
    def start(self, vectors: Tensor) -> None:
        """k-means on the first batch, if the config wants it."""
        if self._started:
            return
        if self.updates == 0:
            means = self.choose(vectors, torch.ones_like(self.counts, dtype=torch.bool))
            means, bins = kmeans(vectors, means, self.config.kmeans, self.unit)
            counts = bins.to(means.dtype)
            if dist.is_initialized():
                dist.broadcast(means, 0)
                dist.broadcast(counts, 0)
            self.weight.copy_(means)
            self.counts.copy_(counts)
            self.sums.copy_(means * counts.unsqueeze(1))
        self._started = True

    @torch.no_grad()
    def update(self, vectors: Tensor, codes: Tensor) -> None:
        sums, bins = assigned(vectors, codes, len(self.weight))
        counts = bins.to(sums.dtype)
        if dist.is_initialized():
            dist.all_reduce(sums)
            dist.all_reduce(counts)
        self.counts.lerp_(counts, 1.0 - self.config.decay)
        self.sums.lerp_(sums, 1.0 - self.config.decay)
        if self.revives_first:
            self._revive(vectors)
            self._average()
        else:
            self._average()
            self._revive(vectors)
        self.updates += 1

    def choose(self, vectors: Tensor, wanted: Tensor) -> Tensor:
        """A vector of the batch [N,C] for each wanted code (bool [V]): different ones at random while they last, then
        the same with a little noise. [V,C]; rows not wanted have no meaning."""
        rng = SampleRng(_CHOICE, self.updates.view(1))
        order = rng.uniform(len(vectors))[0].argsort(stable=True)
        turn = (wanted.cumsum(0) - 1).clamp_min(0)  # [V], from 0 for the first wanted code
        again = (turn >= len(vectors)).unsqueeze(1)
        noise = rng.uniform(len(wanted), vectors.shape[1])[0] * (_JITTER * vectors.shape[1] ** -0.5)
        chosen = vectors[order[turn % len(vectors)]] + again * noise
        return F.normalize(chosen, dim=1) if self.unit else chosen

    def _average(self) -> None:
        """The table of counts and sums; counts are smoothed (Laplace), so that none is 0."""
        total, eps = self.counts.sum(), self.config.eps
        smooth = (self.counts + eps) * (total / (total + len(self.counts) * eps))
        table = self.sums / smooth.unsqueeze(1)
        self.weight.copy_(F.normalize(table, dim=1) if self.unit else table)

    def _revive(self, vectors: Tensor) -> None:
        """Replace codes of fewer vectors than `revive_below` by vectors of the batch; the new ones just pass it."""
        least = self.config.revive_below
        if not least:
            return
        dead = self.counts < least  # the same on all processes
        fresh = self.choose(vectors, dead)
        if dist.is_initialized():
            dist.broadcast(fresh, 0)
        rows = dead.unsqueeze(1)
        self.weight.copy_(torch.where(rows, fresh, self.weight))
        self.sums.copy_(torch.where(rows, fresh * least, self.sums))
        self.counts.masked_fill_(dead, least)


class Averaging(Settings):
    """How codes follow the vectors that choose them."""

    decay: float = Field(0.99, ge=0.0, lt=1.0)
    """Share of the running averages that a step keeps."""
    eps: PositiveFloat = 1e-5
    """Added to counts before codes are divided by them."""
    revive_below: NonNegativeFloat = 1.0
    """Codes of fewer vectors a batch, on running average, are replaced by vectors of the batch; 0: never."""
    kmeans: NonNegativeInt = 0
    """Iterations of k-means on the first batch, which make the first codes; 0: Gaussian ones."""

    def build(self, vocab: int, channels: int, unit: bool = False) -> AveragedBook:
        """A table with fresh vectors."""
        return AveragedBook(vocab, channels, self, unit)

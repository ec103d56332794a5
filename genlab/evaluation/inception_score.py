"""Inception score (Salimans et al. 2016) under the split rules of the tools that print it.

exp( mean_i sum_c p_ic (log p_ic - log mean_S p_c) ) per split S, then mean and spread over splits.

Only (n, sum p, sum p log p) per split is kept, in float64, so no logits need storing: the split of image i is known in
advance from the rule. One batch or many give the same score.

Letters: N images, S splits, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from genlab.core.errors import DataError
from genlab.evaluation.checks import check_features


@dataclass(frozen=True)
class SplitRule:
    """How a tool deals images out to splits and computes probabilities."""

    splits: int | None = 10
    """Number of splits; None: as many chunks of `chunk` images as there are."""
    chunk: int | None = None
    """Images per split where `splits` is None; the last chunk may be short and weighs the same."""
    tail: Literal["share", "drop"] = "share"
    """With `splits`: boundaries at i N / splits ("share"), or chunks of N // splits with the rest unused ("drop")."""
    shuffle_seed: int | None = 2020
    """Seed of numpy's RandomState(seed).permutation(N); None: file order. Class-sorted files then give wrong scores."""
    dtype: torch.dtype = torch.float64
    """Of the softmax."""
    epsilon: float = 0.0
    """Added inside both logarithms."""
    unbiased_std: bool = False

    def assign(self, count: int) -> Tensor:
        """The split of each of `count` images, int64 [count]; -1 for images that are left out.

        Raises:
            DataError: fewer images than splits.
        """
        if count < (self.splits or 1):
            raise DataError(
                f"{count} images do not fill {self.splits or 1} splits; score more images or use fewer splits"
            )
        place = np.arange(count)
        if self.splits is None:
            split = place // (self.chunk or count)
        elif self.tail == "drop":
            split = place // (count // self.splits)
            split[split >= self.splits] = -1
        else:
            bounds = np.arange(1, self.splits) * count // self.splits
            split = np.searchsorted(bounds, place, side="right")
        if self.shuffle_seed is None:
            return torch.from_numpy(split)
        order = np.random.RandomState(self.shuffle_seed).permutation(count)  # the tools' generator
        result = np.empty_like(split)
        result[order] = split
        return torch.from_numpy(result)


ADM = SplitRule(splits=None, chunk=5000, shuffle_seed=None, dtype=torch.float32)
"""guided-diffusion's evaluator: consecutive chunks of 5000, float32 softmax."""
TORCH_FIDELITY = SplitRule()
"""torch-fidelity 0.4.0: shuffled, 10 splits."""
DGM_EVAL = SplitRule(tail="drop")
STUDIOGAN = SplitRule(splits=1, shuffle_seed=None, unbiased_std=True)
TITOK = SplitRule(splits=1, shuffle_seed=None, epsilon=1e-16)


@dataclass(frozen=True)
class InceptionScore:
    """The score: mean and std over splits, and the splits' own scores [S] float64."""

    mean: float
    std: float | None
    """None where it is undefined: the unbiased one of a single split."""
    splits: Tensor


class InceptionScoreStream:
    """Inception score of `count` images that arrive in any order and batches."""

    def __init__(self, count: int, classes: int, rule: SplitRule = TORCH_FIDELITY, device: str = "cpu") -> None:
        self.rule = rule
        self.split = rule.assign(count).to(device)  # [N]
        splits = int(self.split.max()) + 1
        self.count = torch.zeros(splits, dtype=torch.float64, device=device)  # [S]
        self.probability = torch.zeros(splits, classes, dtype=torch.float64, device=device)  # [S,C] sum of p
        self.negentropy = torch.zeros(splits, dtype=torch.float64, device=device)  # [S] sum of p log p

    def update(self, logits: Tensor, index: Tensor) -> None:
        """Take in logits [B,C] (bias-free ones for published numbers) of the images at `index` int64 [B]."""
        check_features(logits, "logits")
        split = self.split[index.to(self.split.device)]
        used = split >= 0
        split, log_p = split[used], logits.to(self.split.device)[used].to(self.rule.dtype).log_softmax(1)
        p = log_p.exp()
        if self.rule.epsilon:
            log_p = (p + self.rule.epsilon).log()
        self.count.index_add_(0, split, torch.ones_like(split, dtype=torch.float64))
        self.probability.index_add_(0, split, p.double())
        self.negentropy.index_add_(0, split, (p.double() * log_p.double()).sum(1))

    def tensors(self) -> dict[str, Tensor]:
        """The sums, by name: store them to resume; add them up over processes."""
        return {"count": self.count, "probability": self.probability, "negentropy": self.negentropy}

    def score(self) -> InceptionScore:
        """The score of all images.

        Raises:
            DataError: images are missing, or came twice.
        """
        expected = torch.bincount(self.split[self.split >= 0], minlength=len(self.count))
        if not torch.equal(expected.double(), self.count):
            raise DataError(
                f"inception score: {int(self.count.sum())} images came in, {int(expected.sum())} were announced,"
                " or some came twice; give each index 0..N-1 once"
            )
        mean = self.probability / self.count[:, None]
        cross = torch.special.xlogy(mean, mean + self.rule.epsilon).sum(1)  # sum_c p_c log p_c of the split's mean
        scores = (self.negentropy / self.count - cross).exp()
        if self.rule.unbiased_std and len(scores) == 1:
            return InceptionScore(scores.mean().item(), None, scores)
        return InceptionScore(scores.mean().item(), scores.std(correction=int(self.rule.unbiased_std)).item(), scores)


def inception_score(logits: Tensor, rule: SplitRule = TORCH_FIDELITY, splits: int | None = None) -> InceptionScore:
    """The score of logits [N,C] under a rule; `splits` replaces the rule's number of splits.

    Raises:
        DataError: fewer images than splits, NaN or Inf.
    """
    rule = rule if splits is None else replace(rule, splits=splits)
    stream = InceptionScoreStream(len(logits), logits.shape[-1], rule, str(logits.device))
    stream.update(logits, torch.arange(len(logits)))
    return stream.score()

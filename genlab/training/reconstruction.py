"""The objective of a tokenizer: reconstruct images, and convince a discriminator if asked (Esser et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.core.contracts import Batch, LatentSpec, Reconstruction, TrainableTokenizer, to_float, to_uint8
from genlab.core.errors import ConfigError
from genlab.tokenization.losses.adversarial import (
    AdversarialSettings,
    LeCam,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)
from genlab.tokenization.losses.augment import diff_augment
from genlab.tokenization.losses.configs import ReconstructionLosses
from genlab.tokenization.quantizers.codes import Usage
from genlab.training.latent_alignment import LatentAlignment
from genlab.training.objective import Networks, Objective, Role, Turn
from genlab.training.optimizers import AdamW
from genlab.training.settings import TrainingSettings
from samplers.noise import SampleRng, spawn

_TOKENIZER, _REAL, _FAKE = range(3)  # streams of a sample's random numbers


class ReconstructionSettings(ReconstructionLosses):
    """What a tokenizer's reconstructions are held to."""

    adversarial: AdversarialSettings | None = None
    """A discriminator beside the tokenizer."""
    alignment: LatentAlignment | None = None
    """Draw the latents of a continuous tokenizer towards a vision encoder's features."""
    sizes: tuple[PositiveInt, ...] = ()
    """Train on images resized to one of these sides, another each step; default: the data's side alone."""

    def check(self, spec: LatentSpec) -> None:
        """Raises ConfigError for sizes above that of the data, and for an alignment of codes."""
        if self.sizes and max(self.sizes) > spec.image_size:
            raise ConfigError(f"reconstruction.sizes: {max(self.sizes)} is above the data's {spec.image_size}")
        if self.alignment is not None and spec.kind != "continuous":
            raise ConfigError(f"reconstruction.alignment: aligns continuous latents, not {spec.kind} ones; remove it")


class Adversary(nn.Module):
    """A discriminator with the running means of its logits."""

    def __init__(self, settings: AdversarialSettings, image_size: int):
        super().__init__()
        self.network = settings.discriminator.build(image_size)
        self.lecam = LeCam(settings.lecam_decay) if settings.lecam else None

    def forward(self, images: Tensor) -> Tensor:
        """Images [B,3,R,R] in [-1,1] -> logits, high for real ones."""
        return self.network(images)


class ReconstructionObjective(Objective):
    """Two roles: the tokenizer, and the discriminator from its `start` on.

    Args:
        settings: the losses.
        training: how the tokenizer is updated; also the batch, by which images seen are counted.
        examples: uint8 [n,3,R,R], shown beside their reconstructions and scored while training.
    """

    def __init__(
        self,
        tokenizer: TrainableTokenizer,
        settings: ReconstructionSettings,
        training: TrainingSettings,
        examples: Tensor,
    ):
        size = tokenizer.spec.image_size
        self.tokenizer, self.settings, self.training, self.examples = tokenizer, settings, training, examples
        self.losses = {side: settings.build(side) for side in {size, *settings.sizes}}
        self.sizes = settings.sizes or (size,)
        self.adversary = Adversary(settings.adversarial, size) if settings.adversarial else None
        self.usage = _UsagePerPart(tokenizer.spec) if tokenizer.spec.vocab else None
        self.aligned = self.encoder = None
        if settings.alignment is not None:
            self.encoder = settings.alignment.encoder.build(tokenizer.spec.grid[0])
            self.aligned = settings.alignment.wrap(tokenizer, self.encoder.channels)
        self.step = 0
        self.fakes: list[tuple[Tensor, Tensor]] = []  # this step's images and reconstructions, for the discriminator

    def roles(self) -> dict[str, Role]:
        t = self.training
        trained = self.aligned or self.tokenizer
        roles = {"tokenizer": t.role(trained)}
        if self.encoder is not None:
            roles["encoder"] = Role(self.encoder)
        roles |= {f"losses-{side}": Role(losses) for side, losses in self.losses.items()}
        if self.usage is not None:
            roles["usage"] = Role(self.usage)  # counts on the device
        if self.adversary is not None and (gan := self.settings.adversarial) is not None:
            roles["discriminator"] = Role(self.adversary, AdamW(betas=gan.betas), gan.lr, t.clip_norm)
        return roles

    def turns(self, step: int) -> Sequence[Turn]:
        self.step = step
        self.fakes.clear()
        return [Turn("tokenizer", self._reconstruct)] + [Turn("discriminator", self._judge)] * self._judges()

    def _judges(self) -> bool:
        gan = self.settings.adversarial
        return gan is not None and gan.discriminator_trains(self.step * self.training.batch)

    def _reconstruct(self, networks: Networks, batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
        assert batch.images is not None, "a tokenizer trains on images"
        side = self.sizes[self.step % len(self.sizes)]
        images = _resized(to_float(batch.images), side)
        made, aligned = self._pass(networks, images, rng.fork(_TOKENIZER))
        terms = networks[f"losses-{side}"](images, made.images)
        total = terms.pop("total")
        if self.usage is not None and made.codes is not None:
            self.usage.count(made.codes)
        if aligned is not None:
            terms |= self._align(total, aligned)
        if self._judges():
            self.fakes.append((images, made.images.detach()))
            terms |= self._convince(networks["discriminator"], made.images, total, rng)
        loss = total + made.loss + terms.pop("adversarial_part", 0.0) + terms.pop("alignment_part", 0.0)
        return {"loss": loss, **terms, **made.terms}

    def _pass(self, networks: Networks, images: Tensor, rng: SampleRng) -> tuple[Reconstruction, Tensor | None]:
        """The tokenizer's training pass, and the alignment of its latents [B] where that is asked for."""
        if self.encoder is None:
            return networks["tokenizer"](images, rng), None
        return cast(tuple[Reconstruction, Tensor], networks["tokenizer"](images, rng, networks["encoder"](images)))

    def _align(self, total: Tensor, aligned: Tensor) -> dict[str, Tensor]:
        """The alignment loss, its weight, and their product (alignment_part)."""
        assert self.settings.alignment is not None
        weight = self.settings.alignment.weigh(total, aligned, self.tokenizer)
        return {
            "alignment": aligned,
            "alignment_weight": weight.expand(len(aligned)),
            "alignment_part": weight * aligned,
        }

    def _convince(self, judge: Callable[..., Tensor], fake: Tensor, total: Tensor, rng: SampleRng) -> dict[str, Tensor]:
        """The tokenizer's adversarial loss, its weight, and their product (adversarial_part)."""
        gan = self.settings.adversarial
        assert gan is not None
        factor = gan.factor(self.step * self.training.batch)
        if not factor:
            return {}
        loss = generator_loss(judge(diff_augment(fake, rng.fork(_FAKE), gan.augment)), gan.loss)
        weight = loss.new_tensor(gan.weight * factor)
        if gan.adaptive:
            weight = weight * adaptive_weight(total.mean(), loss.mean(), self.tokenizer.last_layer, *gan.adaptive_range)
        return {
            "adversarial": loss,
            "adversarial_weight": weight.expand(len(loss)),
            "adversarial_part": weight * loss,
        }

    def _judge(self, networks: Networks, batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
        """The discriminator's loss on this step's images and reconstructions, which are not made again."""
        gan, adversary = self.settings.adversarial, self.adversary
        assert gan is not None and adversary is not None
        images, fakes = self.fakes.pop(0)
        judge = networks["discriminator"]
        real = judge(diff_augment(images, rng.fork(_REAL), gan.augment))
        fake = judge(diff_augment(fakes, rng.fork(_FAKE), gan.augment))
        loss = discriminator_loss(real, fake, gan.loss)
        terms = {"real": _mean(real), "fake": _mean(fake)}
        if adversary.lecam is not None:
            terms["lecam"] = adversary.lecam(real, fake)
            loss = loss + gan.lecam * terms["lecam"]
            adversary.lecam.update(real.detach(), fake.detach())
        return {"loss": loss, **terms}

    def figures(self) -> dict[str, float]:
        return self.usage.read() if self.usage is not None else {}

    def preview(self, share: tuple[int, int]) -> Tensor | None:
        part, parts = share
        count = -(-len(self.examples) // parts)
        index = [i % len(self.examples) for i in range(part * count, (part + 1) * count)]
        images = self.examples[index]
        return torch.cat([images, to_uint8(self._round_trip(images)).cpu()], dim=-1)

    def scores(self) -> dict[str, float]:
        """PSNR in dB of the examples' 8-bit reconstructions, averaged over images."""
        error = (to_uint8(self._round_trip(self.examples)).cpu().float() - self.examples).square().mean((1, 2, 3))
        return {"psnr": float((10 * torch.log10(255.0**2 / error.clamp_min(1e-10))).mean())}

    @torch.no_grad()
    def _round_trip(self, images: Tensor) -> Tensor:
        """uint8 images [n,3,R,R] -> their reconstructions, as generators will see them."""
        device = next(self.tokenizer.parameters()).device
        parts = []
        for first in range(0, len(images), 64):
            chunk = images[first : first + 64].to(device)
            rng = spawn(0, range(first, first + len(chunk)), device)
            parts.append(self.tokenizer.decode(self.tokenizer.prepare(self.tokenizer.encode(to_float(chunk)), rng)))
        return torch.cat(parts)


class _UsagePerPart(nn.Module):
    """Counts of codes by depth (residual), by scale (multi-scale, on the spec's own scales) or all together."""

    def __init__(self, spec: LatentSpec):
        super().__init__()
        assert spec.vocab is not None
        self.lengths = [side * side for side in spec.scales or ()]
        depth = spec.depth or 1
        self.names = [f"scale {side}" for side in spec.scales or ()] or [f"depth {i}" for i in range(1, depth + 1)]
        self.parts = nn.ModuleList([Usage(spec.vocab, depth) for _ in self.lengths or [0]])
        self.whole = Usage(spec.vocab)  # over all scales, which share one codebook

    def count(self, codes: Tensor) -> None:
        whole = codes.shape[-1] != sum(self.lengths)  # a flexible tokenizer on scales of the moment
        for part, chunk in zip(self._usages(), [codes] if whole else codes.split(self.lengths, dim=-1)):
            part.count(chunk)
        if self.lengths:
            self.whole.count(codes)

    def _usages(self) -> list[Usage]:
        return cast(list[Usage], list(self.parts))

    def read(self) -> dict[str, float]:
        reports = [report for part in self._usages() for report in part.read()]
        own = sum(report.share for report in reports) / len(reports)
        figures = {"usage": self.whole.read()[0].share if self.lengths else own}
        for name, report in zip(self.names, reports):
            label = f" {name}" if len(reports) > 1 else ""
            figures |= {f"perplexity{label}": report.perplexity, f"dead{label}": float(report.dead)}
            if label:
                figures[f"usage{label}"] = report.share
        return figures


def _mean(logits: Tensor) -> Tensor:
    return logits.detach().float().flatten(1).mean(1)


def _resized(images: Tensor, side: int) -> Tensor:
    if side == images.shape[-1]:
        return images
    return F.interpolate(images, (side, side), mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)

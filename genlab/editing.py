"""Editing: parts of a given image are made anew for a class, and the rest stays.

For generators whose process can take a part of an image as given: next-scale prediction (in- and out-painting without
training for it, and everything finer than some scale), next-X prediction (the same, and all entities from one on),
masked codes (in- and out-painting, which is what they are trained for), diffusion and flow (variations from a noised
image, and approximate in- and out-painting; `genlab.processes.start`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.core.contracts import OnStep, Raw, SamplingSettings, Tokenizer
from genlab.core.errors import GenlabError
from genlab.core.generator import Generator
from genlab.nn.scales import Grid
from genlab.processes.masked import Masked
from genlab.processes.next_scale import NextScale
from genlab.processes.next_scale_sampling import NextScaleSampling, schedule_of
from genlab.processes.next_x import NextX
from genlab.processes.next_x_sampling import NextXSampling
from genlab.processes.residual_masked import ResidualMasked
from genlab.processes.start import Start
from samplers.noise import SampleRng

_LATENTS = 0xED17  # the stream of random numbers that draws a given image's latents from their posterior


@torch.no_grad()
def edit(
    generator: Generator,
    image: Tensor,
    mask: Tensor | None,
    label: Tensor,
    rng: SampleRng,
    settings: SamplingSettings | None = None,
    from_scale: int | None = None,
    on_step: OnStep | None = None,
    strength: float | None = None,
) -> Tensor:
    """Images [B,3,H,W] in [-1,1]: `image` with what `mask` chooses made anew for `label` [B].

    What stays keeps its codes or latents, so it looks as the tokenizer reconstructs it. A position of the latent grid
    is made anew as soon as the mask touches it. The null label leaves it to the surroundings what appears.

    Args:
        image: [3,H,W] or [1,3,H,W] in [-1,1], of the size that `canvas` gives.
        mask: bool [H,W], true where to make anew; None: everywhere, from `from_scale` on.
        rng: one stream per image, on the network's device.
        settings: the process's sampling settings; default: the generator's.
        from_scale: keep all coarser scales whole; for next-X prediction, which has entities in their place, keep those
            with smaller numbers, and there it takes no mask beside it.
        strength: of diffusion and flow, in (0,1]: how much noise the image gets before it is made anew, everywhere or
            within the mask. At 1, the default with a mask, nothing of it is left. See `genlab.processes.start.Start`.

    Raises:
        GenlabError: a class that does not exist; see `check`.
    """
    generator.check_label(label)
    check(generator, image, mask, settings, from_scale, strength)
    device, settings = generator.device, settings or generator.sampling
    images = image.view(1, *image.shape[-3:]).to(device)
    mask = None if mask is None else mask.to(device)
    if isinstance(settings, NextScaleSampling):
        return _next_scale(generator, images, mask, label, rng, settings, from_scale or 0, on_step)
    if isinstance(generator.process, Masked | ResidualMasked):
        assert mask is not None
        return _masked(generator, images, mask, label, rng, settings, on_step)
    if "strength" in generator.process.edits:
        return _noised(generator, images, mask, label, rng, settings, 1.0 if strength is None else strength, on_step)
    assert isinstance(settings, NextXSampling)
    return _next_x(generator, images, mask, label, rng, settings, from_scale, on_step)


def _next_scale(
    generator: Generator,
    images: Tensor,
    mask: Tensor | None,
    label: Tensor,
    rng: SampleRng,
    settings: NextScaleSampling,
    from_scale: int,
    on_step: OnStep | None,
) -> Tensor:
    process = generator.process
    assert isinstance(process, NextScale)
    keep = None
    if mask is not None:  # the process asks for more than half of a position, a user for all that is touched
        touched = F.adaptive_max_pool2d(mask[None].float(), schedule_of(settings, generator.tokenizer.spec.scales)[-1])
        keep = F.interpolate(touched[None], mask.shape)[0, 0] == 0
    return process.edit_images(generator.network, label, images, keep, rng, settings, from_scale, on_step).float()


def _next_x(
    generator: Generator,
    images: Tensor,
    mask: Tensor | None,
    label: Tensor,
    rng: SampleRng,
    settings: NextXSampling,
    from_entity: int | None,
    on_step: OnStep | None,
) -> Tensor:
    process, tokenizer, network = generator.process, generator.tokenizer, generator.network
    assert isinstance(process, NextX)
    tokens = _latents(tokenizer, images, rng)  # [B,C,H,W]
    if mask is not None:
        tokens = process.edit(network, label, tokens, mask, rng, settings, on_step)
    else:
        entities = range(from_entity or 0, _parts(generator, settings))
        tokens = process.regenerate(network, label, tokens, entities, rng, settings, on_step)
    return process.decode(tokenizer, tokens, settings).clamp(-1, 1).float()


def _noised(
    generator: Generator,
    images: Tensor,
    mask: Tensor | None,
    label: Tensor,
    rng: SampleRng,
    settings: SamplingSettings,
    strength: float,
    on_step: OnStep | None,
) -> Tensor:
    process, tokenizer = generator.process, generator.tokenizer
    keep = None if mask is None else _untouched(mask, tokenizer.spec.grid)
    options: dict[str, Any] = {"start": Start(_latents(tokenizer, images, rng), strength, keep)}
    if generator.weaker is not None:
        options["weaker"] = generator.weaker
    tokens = process.sample(generator.network, label, tokenizer.spec, rng, settings, on_step, **options)
    return process.decode(tokenizer, tokens, settings).clamp(-1, 1).float()


def _latents(tokenizer: Tokenizer, images: Tensor, rng: SampleRng) -> Tensor:
    """The image [1,3,H,W] as networks see it, drawn once for each stream: [B,C,H,W]."""
    raw: Raw = tokenizer.encode(images)
    assert isinstance(raw, Tensor)
    return tokenizer.prepare(raw.expand(len(rng), *raw.shape[1:]), rng.fork(_LATENTS))


def _untouched(mask: Tensor, grid: Grid) -> Tensor:
    """bool [h,w]: positions of the latent grid without a pixel that is to be made anew."""
    return F.adaptive_max_pool2d(mask[None].float(), grid)[0] == 0


def _masked(
    generator: Generator,
    images: Tensor,
    mask: Tensor,
    label: Tensor,
    rng: SampleRng,
    settings: Any,
    on_step: OnStep | None,
) -> Tensor:
    process, tokenizer = generator.process, generator.tokenizer
    assert isinstance(process, Masked | ResidualMasked)
    codes: Raw = tokenizer.encode(images)
    assert isinstance(codes, Tensor)
    codes = codes.expand(len(label), *codes.shape[1:])  # [B,H,W,...]
    keep = _untouched(mask, tokenizer.spec.grid)  # [H,W]
    codes = process.edit(generator.network, label, codes, keep, tokenizer.spec, rng, settings, on_step)
    return process.decode(tokenizer, codes, settings).clamp(-1, 1).float()


def canvas(generator: Generator, settings: SamplingSettings | None = None) -> Grid:
    """(H, W) in pixels of the images to edit: those that the generator makes under `settings`."""
    spec, settings = generator.tokenizer.spec, settings or generator.sampling
    if not isinstance(settings, NextScaleSampling):
        return spec.image_size, spec.image_size
    height, width = schedule_of(settings, spec.scales)[-1]
    stride = spec.image_size // spec.grid[0]
    return height * stride, width * stride


def check(
    generator: Generator,
    image: Tensor,
    mask: Tensor | None,
    settings: SamplingSettings | None = None,
    from_scale: int | None = None,
    strength: float | None = None,
) -> None:
    """Whether `edit` can do this.

    Raises:
        GenlabError: a process that cannot edit, an image or a mask of the wrong size, nothing to make anew, a scale
            that does not exist, a strength out of range.
    """
    process, settings = generator.process, settings or generator.sampling
    if not process.edits:
        raise GenlabError(
            f"this generator's process {type(process).__name__} cannot edit images; diffusion, flow, EDM, VAR, "
            "FlexVAR, M-VAR, xAR, ENAT, masked transformers and ResGen can"
        )
    size = canvas(generator, settings)
    if image.shape[-3:] != (3, *size):
        shown = " x ".join(map(str, image.shape[-2:]))
        raise GenlabError(f"the image to edit has {shown} pixels, this generator makes {size[0]} x {size[1]}")
    if from_scale is not None and "parts" not in process.edits:
        raise GenlabError("this generator has no scales: leave from_scale out and give a mask")
    if strength is not None and "strength" not in process.edits:
        raise GenlabError("this generator does not begin from a noised image: leave strength out and give a mask")
    if strength is not None and not 0 < strength <= 1:
        raise GenlabError(f"strength {strength:g}: allowed is what lies above 0 and up to 1")
    if mask is None and from_scale is None and strength is None:
        other = "a strength" if "strength" in process.edits else "the scale from which on"
        raise GenlabError(f"nothing says what to make anew: give a mask, or {other}")
    if mask is not None and mask.shape != size:
        shown = " x ".join(map(str, mask.shape))
        raise GenlabError(f"the mask has {shown} pixels, the image {size[0]} x {size[1]}; they must agree")
    if mask is not None and not mask.any():
        raise GenlabError("the mask is empty: it chooses nothing to make anew")
    if from_scale is not None:
        parts = _parts(generator, settings)
        what = "scales" if isinstance(process, NextScale) else "entities"
        if not 0 <= from_scale < parts:
            raise GenlabError(f"from_scale {from_scale}: this generator has {what} 0..{parts - 1}")
        if mask is not None and isinstance(process, NextX):
            raise GenlabError(
                "next-X prediction takes a mask or the number of an entity to begin with, not both; leave one out"
            )


def _parts(generator: Generator, settings: SamplingSettings) -> int:
    """How many scales or entities an image is made of."""
    if isinstance(settings, NextScaleSampling):
        return len(schedule_of(settings, generator.tokenizer.spec.scales))
    entities = getattr(generator.network, "entities", None)
    if entities is None:
        raise GenlabError(f"process next_x needs a network of entities: got {type(generator.network).__name__}")
    return len(entities)


@dataclass(frozen=True, kw_only=True)
class Editor(Generator):
    """A generator whose samples are edits of one image: `Editor(**vars(generator), image=..., mask=...)`."""

    image: Tensor
    """[3,H,W] in [-1,1]."""
    mask: Tensor | None = None
    """bool [H,W], true where to make anew."""
    from_scale: int | None = None
    strength: float | None = None

    def sample(
        self, label: Tensor, rng: SampleRng, settings: SamplingSettings | None = None, on_step: OnStep | None = None
    ) -> Tensor:
        """As `edit`."""
        return edit(self, self.image, self.mask, label, rng, settings, self.from_scale, on_step, self.strength)

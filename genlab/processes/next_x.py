"""Next-X prediction: entities of an image one after another, each by flow matching, in a context that is noisy too.

"Beyond Next-Token: Next-X Prediction for Autoregressive Visual Generation", Ren et al., ICCV 2025 (arXiv 2502.20388).
In training every entity has a time of its own and sees those before it as noisy as they are (noisy-context learning);
in sampling they are finished. Which entities there are is the network's to say.

Letters: B batch, C channels, H W grid, G entities, L tokens of F features in all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from genlab.core.contracts import EditKind, LatentSpec, Network, OnStep, Process
from genlab.core.errors import ConfigError, GenlabError
from genlab.core.settings import Settings
from genlab.processes.next_x_sampling import Edit, Entities, EntityNetwork, Generation, NextXSampling, ticks
from samplers.noise import SampleRng


@dataclass(frozen=True)
class NextX(Process):
    """Logit-normal times along the straight path; see NextXConfig for each field."""

    edits: ClassVar[frozenset[EditKind]] = frozenset({"mask", "parts"})

    time_mean: float = 0.0
    time_std: float = 1.0

    def loss(self, network: Callable[..., Tensor], tokens: Tensor, label: Tensor, rng: SampleRng) -> dict[str, Tensor]:
        """The mean squared error of velocities over all entities of tokens [B,C,H,W], in one pass."""
        entities = _entities(network)
        t = torch.sigmoid(self.time_mean + self.time_std * rng.normal(len(entities)))  # [B,G]
        x = entities.arrange(tokens)  # [B,L,F]
        noise = rng.normal(*x.shape[1:]).to(x.dtype)  # [B,L,F]
        return {"loss": self.loss_at(network, x, noise, t, label)}

    def loss_at(self, network: Callable[..., Tensor], x: Tensor, noise: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """The loss [B] for data and noise [B,L,F], in the order of the entities, at shares of noise t [B,G]."""
        each = t[:, _entities(network).owner, None]  # [B,L,1]
        noisy = torch.lerp(x, noise, each.to(x.dtype))  # [B,L,F]
        error = network(noisy, ticks(t), label) - (noise - x)  # [B,L,F]
        return error.float().square().flatten(1).mean(1)

    @torch.no_grad()
    def sample(
        self,
        network: Network,
        label: Tensor,
        spec: LatentSpec,
        rng: SampleRng,
        settings: NextXSampling,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Tokens [B,C,H,W] in float32 for `label` [B]; entity g draws from the g-th fork of the samples' own streams.

        Raises:
            NonFinite: a state became NaN or infinite, naming step and samples.
        """
        return Generation(_able(network), label, spec.channels, settings).run(rng.fork, on_step)

    @torch.no_grad()
    def edit(
        self,
        network: Network,
        label: Tensor,
        tokens: Tensor,
        mask: Tensor,
        rng: SampleRng,
        settings: NextXSampling,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """`tokens` [B,C,H,W] with what `mask` chooses made anew for `label` [B]; the rest stays exactly as it is.

        What is made anew sees the entities before its own, and what is kept of its own; later entities it cannot know.
        A mask of everything gives what `sample` gives.

        Args:
            mask: bool [B,h,w] or [h,w], true where to make anew; h x w is the latent grid or a multiple of it, of which
                every position that holds something true is chosen.

        Raises:
            GenlabError: a mask of another size.
        """
        chosen = _entities(network).choose(_on_grid(mask, tokens), tokens.shape[1])  # [B|1,L,F]
        return self._edit(network, label, tokens, chosen, rng, settings, on_step)

    @torch.no_grad()
    def regenerate(
        self,
        network: Network,
        label: Tensor,
        tokens: Tensor,
        entities: Collection[int],
        rng: SampleRng,
        settings: NextXSampling,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """As `edit`, for whole entities by their numbers 0..G-1 (cells, subsamples, scales).

        Of a scale, everything finer is best made anew too.

        Raises:
            GenlabError: an entity that does not exist.
        """
        sizes = _entities(network).sizes
        wrong = sorted(entity for entity in entities if not 0 <= entity < len(sizes))
        if wrong:
            raise GenlabError(f"entity {wrong[0]}: this network has entities 0..{len(sizes) - 1}")
        parts = [torch.full((1, size, 1), entity in entities) for entity, size in enumerate(sizes)]
        chosen = torch.cat(parts, dim=1).to(tokens.device)  # [1,L,1]
        return self._edit(network, label, tokens, chosen, rng, settings, on_step)

    def _edit(
        self,
        network: Network,
        label: Tensor,
        tokens: Tensor,
        chosen: Tensor,
        rng: SampleRng,
        settings: NextXSampling,
        on_step: OnStep | None,
    ) -> Tensor:
        edit = Edit(_entities(network).arrange(tokens), chosen)
        return Generation(_able(network), label, tokens.shape[1], settings, edit).run(rng.fork, on_step)


def _entities(network: Any) -> Entities:
    """The entities of a network, which a wrapper may hold (DDP). Raises ConfigError if there are none."""
    while not hasattr(network, "entities"):
        if not hasattr(network, "module"):
            raise ConfigError(f"process next_x needs a network of entities: got {type(network).__name__}; choose xar")
        network = network.module
    return network.entities


def _able(network: Any) -> EntityNetwork:
    """The network, if it has entities. Raises ConfigError."""
    _entities(network)
    return network


def _on_grid(mask: Tensor, tokens: Tensor) -> Tensor:
    """A mask of images, true or not, as bool [B or 1,H,W] of the latent grid. Raises GenlabError."""
    grid = (tokens.shape[2], tokens.shape[3])
    mask = mask if mask.dim() == 3 else mask[None]
    sides = mask.shape[1:] if mask.dim() == 3 else ()
    if len(sides) != 2 or any(own % side or own == 0 for own, side in zip(sides, grid)):
        raise GenlabError(
            f"a mask has the size of the latent grid, {grid[0]} x {grid[1]}, or a multiple (the image's): got "
            f"{' x '.join(map(str, mask.shape[-2:]))}; resize it"
        )
    if len(mask) not in (1, len(tokens)):
        raise GenlabError(f"as many masks as images are needed, or one: got {len(mask)} for {len(tokens)}")
    return F.adaptive_max_pool2d(mask[:, None].float(), grid)[:, 0].to(tokens.device) > 0


class NextXConfig(Settings):
    """Next-X prediction (xAR), for a network of entities."""

    name: Literal["next_x"] = "next_x"
    time_mean: float = 0.0
    """Training times are sigmoid(time_mean + time_std N(0, 1)); above 0: more noise."""
    time_std: PositiveFloat = 1.0

    Sampling: ClassVar[type[NextXSampling]] = NextXSampling
    latents: ClassVar[frozenset[str]] = frozenset({"continuous"})
    """The kinds of LatentSpec that it works on."""

    def check(self, network: object) -> None:
        """Raises ValueError for a network without entities."""
        if not hasattr(network, "entities"):
            raise ValueError(f"process next_x needs network xar, got {type(network).__name__}; or take process flow")

    def build(self) -> NextX:
        """The process."""
        return NextX(**self.model_dump(exclude={"name"}))

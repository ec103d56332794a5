"""DMD2: a generator of few steps whose distribution is matched to a trained denoiser's.

"Improved Distribution Matching Distillation for Fast Image Synthesis", Yin et al., NeurIPS 2024 (arXiv 2405.14867).
Three networks: the frozen teacher knows the scores of noised data, the critic learns those of the student's noised
samples, and the student follows their difference; a head on the critic brings in real images. All levels, conversions
and native losses are those of `genlab.processes.levels`, so any of the four continuous processes can teach any other.

Letters: B batch, C latent channels, H W latent grid, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from genlab.core.contracts import Batch, Network, to_float
from genlab.core.errors import ConfigError, GenlabError
from genlab.core.generator import Generator
from genlab.distillation.discriminator import Critic, Discriminator, Noised, features, head_for
from genlab.distillation.losses import balance, convince, matching_gradient, pull, tell_apart
from genlab.distillation.settings import DistillationSettings, Parts
from genlab.distillation.spread import Spread
from genlab.processes.few_step import FewStep
from genlab.processes.levels import Levels, levels_of, translate
from genlab.training.generation import GenerationObjective
from genlab.training.objective import Networks, Role, Turn
from genlab.training.settings import TrainingSettings
from samplers.noise import SampleRng, spawn

_TOKENS, _LABELS, _GENERATE, _MATCH, _JUDGE, _DENOISE, _JUDGE_FAKE, _JUDGE_REAL = range(8)  # streams of a sample


class Dmd2Settings(DistillationSettings):
    """The `distillation:` section of DMD2; defaults are those of its ImageNet 64 run, with GAN from scratch."""

    name: Literal["dmd2"] = "dmd2"
    critic: str | None = None
    """A generator whose network the critic starts from, of any architecture and process; by default the teacher."""
    critic_updates: PositiveInt = 5
    """Updates of the critic for each of the student. More if samples' brightness oscillates."""
    critic_lr: PositiveFloat | None = None
    """Peak learning rate of the critic; by default the student's."""
    matching_weight: NonNegativeFloat = 1.0
    """Of the distribution matching gradient."""
    matching_range: tuple[float, float] = (0.02, 0.98)
    """Share of the way from data (0) to noise (1) at which the two scores are compared."""
    gan_weight: NonNegativeFloat = 3e-3
    """Of the adversarial loss in the student's; 0 leaves the discriminator out."""
    gan_balance: bool = False
    """Multiply gan_weight by the ratio of the two gradients' norms at the samples, so that 1 is equal force."""
    gan_range: tuple[float, float] = (0.0, 1.0)
    """Share of the way from data to noise at which the discriminator judges; little noise shows it more."""
    critic_gan_weight: PositiveFloat = 1e-2
    """Of the discriminator's loss in the critic's."""
    gan_features: Literal["critic", "teacher", "own"] = "critic"
    """Whose features the discriminator sees: the critic's, which learn with it, the frozen teacher's, or those of a
    small network of its own."""
    backward_simulation: bool = True
    """Train later steps on the student's own samples, noised again; otherwise on noised data."""
    teacher_precision: Literal["fp32", "bf16"] = "fp32"
    """Of the frozen teacher; bf16 halves its memory."""
    stop_below: float | None = Field(None, ge=0, lt=1)
    """Stop the run when `spread`, the variance within classes as a share of the data's, falls below this after a tenth
    of the training; by default it goes on."""

    def check(self, student: Parts, teacher: Parts | None) -> None:
        super().check(student, teacher)
        if not isinstance(student.process, FewStep):
            raise ConfigError(
                f"distillation: dmd2 trains generators of process few_step, got {type(student.process).__name__}; write"
                " process: {name: few_step, base: {...}, levels: 1}"
            )
        for name, (low, high) in {"matching_range": self.matching_range, "gan_range": self.gan_range}.items():
            if not 0 <= low < high <= 1:
                raise ConfigError(f"distillation.{name}: shares from 0 to 1, low first: got {low:g}, {high:g}")

    def others(self) -> dict[str, str]:
        return {} if self.critic is None else {"critic": self.critic}

    def objective(
        self,
        student: Generator,
        teacher: Generator,
        role: Role,
        training: TrainingSettings,
        seed: int,
        classes: tuple[int, ...] | None = None,
        critic: Generator | None = None,
    ) -> Dmd2Objective:
        self.check(Parts.of(student), Parts.of(teacher))
        return Dmd2Objective(self, student, teacher, critic or teacher, role, training, seed, classes)


class Draw(NamedTuple):
    """How samples are noised: standard normal noise [B,C,H,W] and levels t [B]."""

    noise: Tensor
    t: Tensor


class Labelled(NamedTuple):
    """Clean samples [B,C,H,W] and their labels [B]."""

    data: Tensor
    label: Tensor


@dataclass(frozen=True)
class Dmd2:
    """What student and critic minimise, all random numbers given.

    Args:
        teacher, critic: the levels of the two networks.
    """

    settings: Dmd2Settings
    teacher: Levels
    critic: Levels

    @property
    def judge(self) -> Levels:
        """The levels of the network whose features the discriminator sees."""
        return self.critic if self.settings.gan_features == "critic" else self.teacher

    @torch.no_grad()
    def estimates(self, networks: Networks, samples: Labelled, draw: Draw) -> tuple[Tensor, Tensor]:
        """The clean samples [B,C,H,W] that teacher and critic see in the noised ones."""
        x = self.teacher.noised(samples.data, *draw)
        with self._precision(x):
            real = self.teacher.denoise(
                networks["teacher"], x, draw.t, samples.label, self.settings.teacher_guidance
            ).float()
        x, t = translate(x, draw.t, self.teacher, self.critic)
        out, _ = networks["critic"](Noised(*self.critic.inputs(x, t), samples.label))
        return real, self.critic.data(out, x, t)

    def judged(self, networks: Networks, samples: Labelled, draw: Draw) -> Noised | Tensor:
        """What the critic's head is to be given for the noised samples: the critic's inputs, the teacher's features of
        them, or states of variance 1 and levels from 0 (data) to 1 (noise)."""
        x = self.judge.noised(samples.data, *draw)
        if self.settings.gan_features == "own":
            c = self.judge.coefficients(draw.t, x)
            level = torch.atan2(c.sigma, c.alpha).float().flatten() * (2 / torch.pi)
            return Noised((x / torch.hypot(c.alpha, c.sigma)).float(), level, samples.label)
        noised = Noised(*self.judge.inputs(x, draw.t), samples.label)
        if self.settings.gan_features == "critic":
            return noised
        with self._precision(x):
            return features(networks["teacher"], noised)

    def student_terms(
        self, networks: Networks, samples: Labelled, matching: Draw, judging: Draw | None
    ) -> dict[str, Tensor]:
        """The student's losses [B] for its samples, which carry its gradient.

        The gradient of everything is first found at the samples, so that no graph but the student's is alive in its
        backward pass.

        Args:
            judging: None leaves the discriminator out.
        """
        leaf = samples._replace(data=samples.data.detach().float())
        real, fake = self.estimates(networks, leaf, matching)
        total = self.settings.matching_weight * matching_gradient(leaf.data, real, fake)
        terms = {"matching": pull(leaf.data, total), "gradient": total.flatten(1).square().mean(1).sqrt()}
        if judging is not None:
            leaf.data.requires_grad_()
            _, logits = networks["critic"](None, self.judged(networks, leaf, judging))
            loss = convince(logits)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf.data)
            gradient = self.settings.gan_weight * leaf.data[0].numel() * gradient  # `pull` divides by it
            factor = balance(total, gradient) * self.settings.gan_weight if self.settings.gan_balance else 1.0
            total = total + factor * gradient
            terms |= {"adversarial": loss.detach(), "logit": logits.detach().flatten()}
            terms["adversarial_gradient"] = (factor * gradient).flatten(1).square().mean(1).sqrt()
        return {"loss": pull(samples.data, total), **terms}

    def critic_terms(
        self,
        networks: Networks,
        fake: Labelled,
        denoising: Draw,
        judging: tuple[Draw, Labelled, Draw] | None,
    ) -> dict[str, Tensor]:
        """The critic's losses [B], from one forward pass.

        Args:
            fake: the student's samples, without gradient.
            judging: how they are noised for the discriminator, real samples, and how those are; None: no discriminator.
        """
        judged = None
        if judging is not None:
            ours, real, theirs = judging
            both = Labelled(*(torch.cat(pair) for pair in zip(fake, real)))
            judged = self.judged(networks, both, Draw(*(torch.cat(pair) for pair in zip(ours, theirs))))
        logits: list[Tensor] = []

        def network(x: Tensor, t: Tensor, label: Tensor, **options: Any) -> Any:
            out, seen = networks["critic"](Noised(x, t, label), judged, **options)
            logits.append(seen)
            return out

        loss = self.critic.loss(network, fake.data, *denoising, fake.label)
        if judging is None:
            return {"loss": loss, "denoising": loss}
        on_fake, on_real = logits[0].flatten().chunk(2)
        told = tell_apart(on_real, on_fake)
        return {
            "loss": loss + self.settings.critic_gan_weight * told,
            "denoising": loss,
            "discriminator": told,
            "logit_fake": on_fake,
            "logit_real": on_real,
        }

    def _precision(self, x: Tensor) -> AbstractContextManager[Any]:
        if self.settings.teacher_precision == "fp32":
            return nullcontext()
        return torch.autocast(x.device.type, torch.bfloat16)


class Dmd2Objective(GenerationObjective):
    """Roles network (the student), critic, teacher; the critic's turn each step, the student's every few.

    The arguments are those of `DistillationSettings.objective`; `critic` is what the critic is copied from.
    """

    def __init__(
        self,
        settings: Dmd2Settings,
        student: Generator,
        teacher: Generator,
        critic: Generator,
        role: Role,
        training: TrainingSettings,
        seed: int,
        classes: tuple[int, ...] | None = None,
    ):
        super().__init__(student, role, 0.0, training.preview_count, seed)
        assert isinstance(student.process, FewStep)
        self.process, self.settings, self.training, self.seed = student.process, settings, training, seed
        self.classes = torch.tensor(classes or range(max(student.network.num_classes, 1)))
        self.losses = Dmd2(settings, levels_of(teacher.process), levels_of(critic.process))
        self.critic = self._make_critic(critic.network, teacher.network)
        self.teacher = teacher.network
        if settings.teacher_precision == "bf16":
            self.teacher.to(torch.bfloat16)
        self.spread = Spread(student.network.num_classes)
        self.step = 0
        self.made: list[Labelled] = []  # this step's samples, for the critic

    def _make_critic(self, network: Network, teacher: Network) -> Critic:
        own = copy.deepcopy(network).requires_grad_()
        own.activation_checkpointing = self.training.activation_checkpointing
        return Critic(own, self._make_head(network, teacher))

    def _make_head(self, network: Network, teacher: Network) -> torch.nn.Module:
        spec = self.generator.tokenizer.spec
        if not self.settings.gan_weight:
            return torch.nn.Identity()
        if self.settings.gan_features == "own":
            return Discriminator(spec.channels, spec.grid, network.num_classes)
        return head_for(network if self.settings.gan_features == "critic" else teacher, spec)

    def roles(self) -> dict[str, Role]:
        t, lr = self.training, self.settings.critic_lr or self.training.lr
        return {
            "network": self.role,
            "critic": Role(self.critic, t.optimizer, lr, t.clip_norm),
            "teacher": Role(self.teacher),
            "tokenizer": Role(self.generator.tokenizer),
        }

    def turns(self, step: int) -> Sequence[Turn]:
        self.step = step
        self.made.clear()
        self.generator.network.normalise_weights()
        self.critic.normalise_weights()
        students = [Turn("network", self._student)] if step % self.settings.critic_updates == 0 else []
        return [*students, Turn("critic", self._critic)]

    def _student(self, networks: Networks, batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
        samples = self._generate(networks, batch, rng)
        self.made.append(Labelled(samples.data.detach().float(), samples.label))
        matching = self._draw(rng.fork(_MATCH), self.losses.teacher, samples, *self.settings.matching_range)
        judging = self._judging(rng.fork(_JUDGE), samples) if self.settings.gan_weight else None
        return self.losses.student_terms(networks, samples, matching, judging)

    def _critic(self, networks: Networks, batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
        with torch.no_grad():
            fake = self.made.pop(0) if self.made else self._generate(networks, batch, rng)
            real = Labelled(self._real(networks, batch, rng), batch.label)
            self.spread.count(*fake, *real)
        judging = None
        if self.settings.gan_weight:
            ours, theirs = self._judging(rng.fork(_JUDGE_FAKE), fake), self._judging(rng.fork(_JUDGE_REAL), real)
            judging = ours, real, theirs
        denoising = self._draw(rng.fork(_DENOISE), self.losses.critic, fake)
        return self.losses.critic_terms(networks, fake, denoising, judging)

    def _generate(self, networks: Networks, batch: Batch, rng: SampleRng) -> Labelled:
        """The student's samples at the level of this step, from its own earlier steps (DMD2, section 4.5)."""
        classes = self.classes.to(batch.label.device)
        label = classes[rng.fork(_LABELS).integers(len(classes))]
        student, draws = networks["network"], rng.fork(_GENERATE)

        def noise() -> Tensor:
            return draws.normal(*self.generator.tokenizer.spec.shape)

        times = self.process.times
        level = int(spawn(self.seed, [self.step]).integers(len(times)))  # one for all samples and processes
        with torch.no_grad():
            if level == 0 or self.settings.backward_simulation:
                data = self.process.run(student, label, noise, times[:level])
            else:
                data, label = self._real(networks, batch, rng), batch.label
        x = self.process.state(data, noise(), times[level])
        return Labelled(self.process.generate(student, x, times[level], label), label)

    def _real(self, networks: Networks, batch: Batch, rng: SampleRng) -> Tensor:
        """The data as tokens [B,C,H,W]."""
        tokenizer = self.generator.tokenizer
        with torch.no_grad():
            raw = batch.raw if batch.images is None else tokenizer.encode(to_float(batch.images))
            assert raw is not None, "a batch holds images or raw latents"
            return tokenizer.prepare(raw, rng.fork(_TOKENS))

    def _judging(self, rng: SampleRng, samples: Labelled) -> Draw:
        return self._draw(rng, self.losses.judge, samples, *self.settings.gan_range)

    @staticmethod
    def _draw(rng: SampleRng, levels: Levels, samples: Labelled, low: float = 0.0, high: float = 1.0) -> Draw:
        t = levels.draw(rng, low, high)
        return Draw(rng.normal(*samples.data.shape[1:]), t)

    def figures(self) -> dict[str, float]:
        """The variance within classes as a share of the data's. Raises GenlabError for a collapsed run, if asked to."""
        figures = self.spread.read()
        limit, seen = self.settings.stop_below, self.step * self.training.batch
        if limit is not None and seen > self.training.total / 10 and figures.get("spread", 1.0) < limit:
            raise GenlabError(
                f"distillation: collapsed after {seen} images: spread {figures['spread']:.3f} (lowest class "
                f"{figures['spread_lowest']:.3f}) of the data's variance, below stop_below={limit:g}. Raise "
                "critic_updates, lower lr or change gan_weight, and start anew"
            )
        return figures

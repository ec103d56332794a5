"""The flow process on Gaussian data, whose optimal predictions are known in closed form."""

import math

import pytest
import torch
from pydantic import ValidationError

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import NonFinite
from genlab.processes.flow import Flow, FlowConfig
from genlab.processes.flow_sampling import FlowSampling
from genlab.processes.paths import coefficients
from samplers.noise import spawn

SPEC = LatentSpec(kind="continuous", channels=2, grid=(4, 4), image_size=4)
STD = 0.5


class Optimal(Network):
    """The best prediction for data N(m, STD^2), m = label / 2; the null label means m = 0."""

    num_classes = 4

    def __init__(self, path="linear", prediction="velocity"):
        super().__init__()
        self.path, self.prediction, self.calls = path, prediction, []

    def forward(self, x, t, label):
        self.calls.append((len(x), t[0].item()))
        mean = (torch.where(label == self.null_label, 0, label) / 2).view(-1, 1, 1, 1).to(x.dtype)
        c = coefficients(self.path, t, x)
        variance = c.alpha**2 * STD**2 + c.sigma**2
        whitened = (x - c.alpha * mean) / variance
        data, noise = mean + c.alpha * STD**2 * whitened, c.sigma * whitened
        if self.prediction == "velocity":
            return c.d_alpha * data + c.d_sigma * noise
        return noise if self.prediction == "noise" else -whitened


class Wide(Optimal):
    """With channels that flows do not read."""

    def forward(self, x, t, label):
        out = super().forward(x, t, label)
        return torch.cat([out, torch.full_like(out, math.nan)], dim=1)


def sample(flow, network, label, seed=0, indices=None, on_step=None, **settings):
    rng = spawn(seed, indices if indices is not None else range(len(label)))
    return flow.sample(network, torch.tensor(label), SPEC, rng, FlowSampling(**settings), on_step)


ALL = [(path, prediction) for path in ("linear", "gvp", "vp") for prediction in ("velocity", "noise", "score")]
SAMPLERS = ["euler", "heun", "midpoint", "rk4", "dopri5", "euler_maruyama", "sde_heun"]


@pytest.mark.parametrize(("path", "prediction"), ALL)
def test_samples_have_the_moments_of_the_data(path, prediction):
    flow, network = Flow(path=path, prediction=prediction), Optimal(path, prediction)
    for sampler in ("heun", "euler_maruyama"):
        x = sample(flow, network, [2] * 200, sampler=sampler, steps=60)
        assert x.mean().item() == pytest.approx(1.0, abs=0.03)
        assert x.std().item() == pytest.approx(STD, abs=0.03)


@pytest.mark.parametrize("form", ["constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing"])
@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
def test_every_diffusion_form_gives_the_same_distribution(path, form):
    settings = {
        "sampler": "euler_maruyama",
        "steps": 120,
        "diffusion": form,
        "diffusion_norm": 0.5,
        "last_step": "euler",
    }
    x = sample(Flow(path=path), Optimal(path), [2] * 200, **settings)
    assert x.mean().item() == pytest.approx(1.0, abs=0.04)
    assert x.std().item() == pytest.approx(STD, abs=0.04)


@pytest.mark.parametrize("rule", ["mean", "euler", "tweedie", "none"])
def test_every_last_step_ends_in_the_data(rule):
    x = sample(Flow(), Optimal(), [2] * 200, sampler="euler_maruyama", steps=60, last_step=rule)
    assert x.mean().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(sampler):
    options = {"sampler": sampler, "steps": 6, "guidance": 2.0}
    together = sample(Flow(), Optimal(), [0, 1, 2, 3], **options)
    alone = [sample(Flow(), Optimal(), [i], indices=[i], **options) for i in range(4)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_on_step_sees_every_step_and_ends_with_the_samples(sampler):
    events = []
    x = sample(Flow(), Optimal(), [0, 1, 2], sampler=sampler, steps=5, on_step=events.append)
    count = 3 if sampler == "dopri5" else 5
    assert [(event.step, event.steps) for event in events] == [(k, count) for k in range(1, count + 1)]
    assert torch.equal(events[-1].tokens, x)
    assert all(event.tokens.shape == x.shape for event in events)


def test_on_step_shows_the_predicted_clean_sample():
    events = []
    sample(Flow(), Optimal(), [2], sampler="euler", steps=4, on_step=events.append)
    torch.testing.assert_close(events[0].tokens, torch.full((1, 2, 4, 4), 1.0))  # from pure noise: the mean


@pytest.mark.parametrize(("sampler", "calls"), [("euler", 6), ("heun", 12), ("euler_maruyama", 6), ("sde_heun", 11)])
def test_network_calls(sampler, calls):
    network = Optimal()
    sample(Flow(), network, [1], sampler=sampler, steps=6)
    assert len(network.calls) == calls


def test_guidance_interval_saves_the_unconditional_half():
    network = Optimal()
    sample(Flow(), network, [1, 2], sampler="euler", steps=4, guidance=2.0, guidance_interval=(0.25, 0.6))
    assert network.calls == [(2, 0.0), (4, 0.25), (4, 0.5), (2, 0.75)]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("path", "prediction"), [("vp", "noise"), ("linear", "noise")])
def test_no_evaluation_leaves_the_interval(path, prediction, sampler):
    network = Optimal(path, prediction)
    sample(Flow(path=path, prediction=prediction), network, [1], sampler=sampler, steps=5)
    times = [t for _, t in network.calls]
    assert min(times) >= (0 if path == "vp" else 1e-3 - 1e-9)
    assert max(times) <= 1 - 1e-3 + 1e-7


def test_channels_beyond_the_state_are_not_read():
    torch.testing.assert_close(sample(Flow(), Wide(), [1, 2]), sample(Flow(), Optimal(), [1, 2]))


def test_a_non_finite_state_names_step_and_samples():
    class Broken(Optimal):
        def forward(self, x, t, label):
            out = super().forward(x, t, label)
            return torch.where((t > 0.3).view(-1, 1, 1, 1) & (label == 3).view(-1, 1, 1, 1), math.nan, out)

    with pytest.raises(NonFinite, match=r"step 3 of 5, in samples \[1, 3\]"):
        sample(Flow(), Broken(), [0, 3, 1, 3], sampler="euler", steps=5)
    with pytest.raises(NonFinite, match="sample 1 of"):
        sample(Flow(), Broken(), [0, 3], sampler="dopri5")


@pytest.mark.parametrize(("path", "prediction"), ALL)
def test_the_optimal_prediction_has_a_lower_loss_than_a_wrong_one(path, prediction):
    flow, best = Flow(path=path, prediction=prediction), Optimal(path, prediction)
    label, rng = torch.full((500,), 2), spawn(0, range(500))
    tokens = 1.0 + STD * rng.fork(1).normal(2, 4, 4)
    losses = [
        flow.loss(network, tokens, label, spawn(0, range(500)))["loss"].mean()
        for network in (best, lambda x, t, y: 0.9 * best(x, t, y))
    ]
    assert losses[0] < losses[1]


def test_the_loss_of_the_optimal_velocity_is_the_conditional_variance():
    """Linear path, data N(1, s^2), noise N(0, 1): Var[x1 - x0 | x_t] = s^2 / (t^2 s^2 + (1 - t)^2)."""
    t = torch.full((4000,), 0.4)
    rng = spawn(3, range(4000))
    x1, x0 = 1.0 + STD * rng.normal(2, 4, 4), rng.normal(2, 4, 4)
    loss = Flow().loss_at(Optimal(), x1, x0, t, torch.full((4000,), 2))
    assert loss.mean().item() == pytest.approx(STD**2 / (0.16 * STD**2 + 0.36), rel=0.02)


@pytest.mark.parametrize("weight", ["velocity", "likelihood"])
def test_weighted_noise_and_score_losses_agree(weight):
    """The same error, seen as noise or as score, weighs the same."""
    x1, x0, t = torch.randn(5, 2, 4, 4), torch.randn(5, 2, 4, 4), torch.linspace(0.1, 0.9, 5)
    label = torch.zeros(5, dtype=torch.long)
    noise, score = (
        Flow(prediction=kind, loss_weight=weight).loss_at(Optimal(prediction=kind), x1, x0, t, label)
        for kind in ("noise", "score")
    )
    torch.testing.assert_close(noise, score, rtol=1e-4, atol=1e-6)
    if weight == "velocity":
        torch.testing.assert_close(noise, Flow().loss_at(Optimal(), x1, x0, t, label), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("time", ["uniform", "logit_normal"])
def test_training_noise_belongs_to_the_sample(time):
    flow, tokens = Flow(time=time), torch.randn(6, 2, 4, 4)
    label = torch.zeros(6, dtype=torch.long)
    together = flow.loss(Optimal(), tokens, label, spawn(0, range(6)))["loss"]
    apart = flow.loss(Optimal(), tokens[4:], label[4:], spawn(0, [4, 5]))["loss"]
    torch.testing.assert_close(together[4:], apart)


def test_logit_normal_times_follow_mean_and_spread():
    seen = []
    flow = Flow(time="logit_normal", time_mean=-1.0, time_std=0.5)
    tokens = torch.zeros(4000, 1, 1, 1)
    flow.loss(lambda x, t, y: seen.append(t) or x, tokens, torch.zeros(4000, dtype=torch.long), spawn(0, range(4000)))
    logits = seen[0].logit()
    assert logits.mean().item() == pytest.approx(-1, abs=0.05)
    assert logits.std().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("path", ["linear", "gvp"])
def test_log_likelihood_of_gaussian_data(path):
    tokens = 1.0 + STD * spawn(1, range(6)).normal(2, 4, 4)
    got = Flow(path=path).log_likelihood(Optimal(path), tokens, torch.full((6,), 2), spawn(0, range(6)), steps=200)
    expected = torch.distributions.Normal(1.0, STD).log_prob(tokens).flatten(1).sum(1)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=0.05)


def test_denoiser_takes_a_time_for_each_sample():
    x = torch.randn(3, 2, 4, 4)
    velocity = Flow(prediction="noise").denoiser(Optimal(prediction="noise"), torch.tensor([0, 1, 2]), FlowSampling())
    apart = torch.cat([velocity(x, t)[i : i + 1] for i, t in enumerate((0.2, 0.5, 0.8))])
    torch.testing.assert_close(velocity(x, torch.tensor([0.2, 0.5, 0.8])), apart)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_interval": (0.9, 0.1)}, "must go up"),
        ({"steps": 0}, "greater than 0"),
        ({"guidance": -1.0}, "greater than or equal to 0"),
        ({"sampler": "euler_maruyama", "steps": 1}, "at least 2 steps"),
        ({"sampler": "sde_heun", "last_step": "none"}, "set it to mean"),
        ({"sampler": "heun2"}, "heun"),
        ({"speps": 3}, "not permitted"),
    ],
)
def test_sampling_settings_that_make_no_sense(options, message):
    with pytest.raises(ValidationError, match=message):
        FlowSampling(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_weight": "velocity"}, "set it to none"),
        ({"prediction": "score", "sample_eps": 0.0}, "undefined at an end"),
        ({"path": "vp", "train_eps": 0.0}, "undefined at an end"),
        ({"train_eps": 0.7}, "less than 0.5"),
    ],
)
def test_flow_configs_that_make_no_sense(options, message):
    with pytest.raises(ValidationError, match=message):
        FlowConfig(**options)


def test_config_builds_its_process():
    assert FlowConfig(path="gvp", prediction="score", sample_eps=0.01).build().sample_interval() == (0.01, 0.99)
    assert FlowConfig(path="vp").build().train_interval() == (0.0, 1 - 1e-5)
    assert FlowConfig().build().train_interval() == (0.0, 1.0)


def test_the_direction_loss_sees_directions_alone():
    flow, x1, x0 = Flow(direction_weight=0.5), torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    t, label = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 1, 2])
    for factor, expected in ((3.0, 0.0), (-1.0, 2.0)):
        losses = flow.losses_at(lambda x, t, label: factor * (x1 - x0), x1, x0, t, label)  # noqa: B023
        torch.testing.assert_close(losses["direction"], torch.full((3,), expected), atol=1e-5, rtol=0)
        torch.testing.assert_close(losses["loss"], losses["mse"] + 0.5 * losses["direction"])
    with pytest.raises(ValidationError, match="direction_weight is for velocity"):
        FlowConfig(prediction="noise", direction_weight=1.0)

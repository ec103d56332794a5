"""Golden files of other configurations than those at hand are recomputed too, whatever a config says.

There are no official numbers for these, so the tests look at what is recomputed, not at its values.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from genlab.convert import arflow, enat, mean_flow, sit
from genlab.convert.golden_arflow import CASES as ARFLOW
from genlab.convert.golden_dit import CASES as DIT
from genlab.convert.golden_dmd2 import _latent_process
from genlab.convert.golden_enat import CASES as MASKED
from genlab.convert.golden_fit import CASES as FIT
from genlab.convert.golden_onestep import CASES as ONE_STEP
from genlab.convert.golden_schedules import Betas, OtherDiffusion, OtherVpDiffusion
from genlab.convert.golden_sit import CASES as SIT
from genlab.convert.goldens import Check, Golden, run
from genlab.core.errors import CheckpointError
from genlab.networks.arflow import ARFlow
from genlab.networks.dit import DiT
from genlab.networks.enat import ENAT
from genlab.networks.fit import FiT
from genlab.networks.interval_dit import IntervalDiT


def _golden(case: str, config: dict, network: torch.nn.Module | None = None, params=None, **tensors) -> Golden:
    params = params if params is not None else network.state_dict()
    stored = {f"param.{key}": torch.randn_like(value) * 0.1 for key, value in params.items()}
    return Golden(Path("golden.safetensors"), "any", case, config, stored | tensors)


def _recomputed(cases, golden: Golden) -> dict[str, torch.Tensor]:
    return {check.name: check.value for check in cases[golden.case](golden)}


def test_what_a_file_does_not_hold_is_not_compared():
    golden = Golden(Path("g"), "any", "case", {}, {"out.kept": torch.ones(2)})
    results = run(golden, lambda _: iter([Check("mid.absent", torch.ones(1), 0), Check("out.kept", torch.ones(2), 0)]))
    assert [(result.name, result.ok) for result in results] == [("out.kept", True)]


SMALL = {"input_size": 4, "patch_size": 2, "in_channels": 2, "hidden_size": 16, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_a_dit_says_whether_its_diffusion_learns_variances(learn_sigma):
    model = {**SMALL, "num_classes": 3, "learn_sigma": learn_sigma}
    config = {"model": model, "diffusions": {"plain": {}, "bound": {"use_kl": True}}}
    draws = {f"in.{name}": torch.randn(2, 2, 4, 4) for name in ("x_start", "noise")}
    golden = _golden("training_losses", config, DiT(**sit.from_constructor(model)), **draws)
    golden.tensors.update({"in.t": torch.tensor([3, 900]), "in.y": torch.tensor([0, 2])})
    golden.tensors["out.plain.grad.blocks.0.attn.proj.bias"] = torch.zeros(16)  # and none of the run "bound"
    found = _recomputed(DIT, golden)
    assert ("out.plain.vb" in found) == learn_sigma
    assert found["out.plain.grad.blocks.0.attn.proj.bias"].shape == (16,)
    assert found["out.bound.loss"].isfinite().all()


@pytest.mark.parametrize(
    "options", [{}, {"diffusion_form": "inccreasing-decreasing"}, {"last_step": None}, {"diffusion_norm": 0.5}]
)
def test_samples_of_arflow_take_any_options_of_the_sde(options):
    config = {**SMALL, "num_classes": 3, "num_steps": 3, **options}
    network = ARFlow(**arflow.from_constructor(config))
    draws = {"in.z": torch.randn(2, 2, 4, 4), "in.noise": torch.randn(3, 2, 2, 4, 4)}
    golden = _golden("sample", config, params=arflow.save(network), **draws, **{"in.labels": torch.tensor([0, 3])})
    for value in golden.group("param").values():
        value.mul_(10)  # so that no option is lost in rounding
    usual = _recomputed(ARFLOW, replace(golden, config=config | {"diffusion_form": "sigma", "last_step": "Mean"}))
    found = _recomputed(ARFLOW, golden)
    assert found["out.latent"].isfinite().all()
    if options.keys() - {"diffusion_norm"}:
        assert not torch.equal(found["out.latent"], usual["out.latent"])


@torch.no_grad()
@pytest.mark.parametrize("rule", ["Mean", "Euler", None])
def test_one_step_of_arflow_is_the_last_one(rule):
    config = {**SMALL, "num_classes": 3, "num_steps": 1, "last_step": rule, "cfg_scale": 1.0, "last_step_size": 0.1}
    network = ARFlow(**arflow.from_constructor(config))
    draws = {"in.z": torch.randn(2, 2, 4, 4), "in.noise": torch.zeros(0), "in.labels": torch.tensor([0, 3])}
    golden = _golden("sample", config, params=arflow.save(network), **draws)
    z, params = golden["in.z"], golden.group("param")
    v = arflow.load(network, params).step(z, torch.full((2,), 0.9), golden["in.labels"], None)[0][:, :2]
    drift = {"Mean": v * 1.9 - z, "Euler": v, None: 0}[rule]  # v + (1 - t) score, or without the score
    torch.testing.assert_close(_recomputed(ARFLOW, golden)["out.latent"], z + 0.1 * drift)


def test_arflow_without_a_last_step_goes_from_the_first_to_the_last_point():
    config = {**SMALL, "num_classes": 3, "num_steps": 4, "last_step": None}
    network = ARFlow(**arflow.from_constructor(config))
    draws = {"in.z": torch.randn(2, 2, 4, 4), "in.noise": torch.randn(3, 2, 2, 4, 4)}
    golden = _golden("sample", config, params=arflow.save(network), **draws, **{"in.labels": torch.tensor([0, 3])})
    states = _recomputed(ARFLOW, golden)["mid.steps"]
    assert len(states) == 4 and torch.equal(states[2], states[3]) and not torch.equal(states[1], states[2])


def test_arflow_without_a_null_label_and_without_intermediates():
    config = {**SMALL, "num_classes": 3, "class_dropout_prob": 0.0}
    network = ARFlow(**arflow.from_constructor(config))
    draws = {"in.x0": torch.randn(2, 3, 2, 4, 4), "in.x1": torch.randn(2, 3, 2, 4, 4), "in.u": torch.rand(2, 3)}
    labels = {"in.labels": torch.tensor([0, 2]), "in.label_drop": torch.zeros(2, dtype=torch.bool)}
    found = _recomputed(ARFLOW, _golden("train_forward_loss", config, params=arflow.save(network), **draws, **labels))
    assert found["out.loss"].isfinite()


FIT_MODEL = {**SMALL, "context_size": 4, "num_classes": 3, "class_dropout_prob": 0.0, "learn_sigma": False}


def _fit(case: str, config: dict, **tensors) -> dict[str, torch.Tensor]:
    from genlab.convert import fit

    return _recomputed(FIT, _golden(case, config, FiT(**fit.from_constructor(config)), **tensors))


def test_fit_without_a_null_label_is_trained_and_sampled():
    grid = torch.tensor([[[0, 1, 0, 1], [0, 0, 1, 1]]]).expand(2, 2, 4)
    places = {"in.grid": grid, "in.mask": torch.ones(2, 4), "in.size": torch.full((2, 1, 2), 2)}
    draws = {"in.x0": torch.randn(2, 4, 8), "in.x1": torch.randn(2, 4, 8), "in.u": torch.randn(2)}
    labels = {"in.y": torch.tensor([0, 2]), "in.drop_u": torch.rand(2)}
    assert _fit("loss_v2", FIT_MODEL, **places, **draws, **labels)["out.loss"].isfinite().all()
    runs = {
        "ode": {"kind": "ode", "method": "dopri5", "num_steps": 3, "cfg_scale": 1.0},
        "sde": {"kind": "sde", "method": "Heun", "num_steps": 3, "cfg_scale": 1.0, "last_step": "Euler"},
    }
    start = {"in.z": torch.randn(2, 4, 8), "in.sde.noise": torch.randn(3, 2, 4, 8), "in.y": torch.tensor([0, 2])}
    config = {**FIT_MODEL, "online_rope": True, "custom_freqs": "ntk-aware", "h": 2, "w": 2, "runs": runs}
    found = _fit("sample_v2", config, **start, **{"in.grid": grid})
    assert found["out.ode.latent"].shape == found["out.sde.latent"].shape == (2, 2, 4, 4)


def test_mean_flows_have_a_null_row_without_dropout():
    config = {**SMALL, "num_classes": 3, "class_dropout_prob": 0.0, "label_dropout_prob": 0.0}
    arguments = sit.from_constructor({**config, "class_dropout_prob": 0.1, "learn_sigma": False})
    names = {mean_flow.our_name(name): name for name in ("t_embedder.mlp", "r_embedder.mlp")}
    params = {}
    for key, value in IntervalDiT(**arguments).state_dict().items():
        ours = next((name for name in names if key.startswith(name)), None)
        params[key if ours is None else names[ours] + key.removeprefix(ours)] = value
    case = {"weighting": "adaptive", "ratio_r_not_equal_t": 0.5, "cfg_omega": 2.0, "cfg_kappa": 0.0, "cfg_max_t": 1.0}
    draws = {"in.x": torch.randn(2, 2, 4, 4), "in.e": torch.randn(2, 2, 4, 4), "in.normal": torch.randn(2, 2)}
    labels = {"in.y": torch.tensor([0, 2]), "in.drop_uniform": torch.rand(2), "in.equal_uniform": torch.rand(2)}
    golden = _golden("meanflow_port", {**config, "cases": {"only": case}}, params=params, **draws, **labels)
    assert _recomputed(ONE_STEP, golden)["out.only.loss"].isfinite().all()


@pytest.mark.parametrize("scale", [{}, {"cfg_scale": None}, {"cfg_scale": 1.0}])
def test_a_run_without_a_guidance_scale_is_not_guided(scale):
    run_options = {"name": "only", "path": "Linear", "method": "euler", "num_steps": 3, **scale}
    model = {**SMALL, "num_classes": 3, "class_dropout_prob": 0.0}
    config = {"model": model, "prediction": "velocity", "runs": [run_options]}
    inputs = {"in.z": torch.randn(1, 2, 4, 4), "in.y": torch.tensor([2])}
    golden = _golden("sample_ode", config, DiT(**sit.from_constructor(model)), **inputs)
    assert _recomputed(SIT, golden)["out.only"].isfinite().all()


@pytest.mark.parametrize(("steps", "listed"), [(3, [999, 666, 333]), (6, [999, 833, 667, 501, 335, 169, 3])])
def test_the_steps_of_a_simulated_student_are_those_of_the_reference(steps, listed):
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_denoising_step": steps}
    assert list(_latent_process(config, "latent_backward_simulation").times) == listed


def test_enat_without_a_null_row():
    config = {"input_size": 2, "hidden_size": 8, "num_heads": 2, "enc_dec": [1, 1], "num_classes": 3}
    config |= {"codebook_size": 5, "class_dropout_prob": 0.0}
    network = ENAT(**enat.from_constructor(config))
    assert network.y_embedder.embedding_table.weight.shape == (3, 8)
    codes, masked = torch.randint(5, (2, 4)), torch.arange(4) > 1
    ids = {"in.x0": codes, "in.ids": codes.masked_fill(masked, 5), "in.ids_allmask": torch.full((2, 4), 5)}
    ids |= {"in.prev_ids": codes.masked_fill(torch.arange(4) > 0, 5), "in.context": torch.tensor([[0], [2]])}
    draws = {"in.sched_u": torch.rand(2, 4), "in.sched_beta_draw": torch.tensor(0.5)}
    golden = _golden("forward_loss", config, params=enat.save(network), **ids, **draws)
    golden.tensors["out.grad.y_embedder.embedding_table.weight"] = torch.zeros(3, 8)
    gradient = _recomputed(MASKED, golden)["out.grad.y_embedder.embedding_table.weight"]
    assert (gradient.abs().sum(1) > 0).tolist() == [True, False, True]


def test_any_betas_make_a_process_and_the_published_ones_genlabs_own():
    assert not isinstance(Betas().vp(), OtherVpDiffusion)
    assert not isinstance(Betas("linear", 1e-4, 0.02).diffusion(), OtherDiffusion)
    data, noise, step = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([1, 400, 1000])
    own, other = Betas().vp(), OtherVpDiffusion(betas=Betas())
    torch.testing.assert_close(other.noised(data, noise, step), own.noised(data, noise, step))
    torch.testing.assert_close(
        OtherDiffusion(betas=Betas()).chain("25").columns, Betas().diffusion().chain("25").columns
    )
    wide = Betas.parse("sd_linear_sqrt 0.001..0.02, 500")
    assert (wide.start, wide.end, wide.steps, wide.table()[-1].item()) == (0.001, 0.02, 500, pytest.approx(0.02))
    alpha_bar = torch.cumprod(1 - wide.table(), 0)
    assert wide.diffusion().chain().columns.alpha[-1].square() == pytest.approx(alpha_bar[-1].item())
    assert wide.vp().continuous().log_alpha(torch.ones(1).double()).exp() == pytest.approx(alpha_bar[-1].sqrt().item())
    for text in ("cosine 0..1, 10", "nothing"):
        with pytest.raises(CheckpointError, match="unknown schedule"):
            Betas.parse(text)


def test_a_student_may_be_of_other_betas():
    config = {"beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "linear", "conditioning_timestep": 999}
    process = _latent_process(config, "latent_eps_cfg")
    table = torch.cumprod(1 - torch.linspace(0.001, 0.02, 1000, dtype=torch.float64), 0)
    assert process.levels.coefficients(999.0, torch.zeros(1)).alpha.square() == pytest.approx(table[-1].item())

"""Golden files of other configurations than those at hand are recomputed too, whatever a config says.

There are no official numbers for these, so the tests look at what is recomputed, not at its values.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from genlab.convert import arflow, mean_flow, sit
from genlab.convert.golden_arflow import CASES as ARFLOW
from genlab.convert.golden_dit import CASES as DIT
from genlab.convert.golden_dmd2 import _latent_process
from genlab.convert.golden_fit import CASES as FIT
from genlab.convert.golden_onestep import CASES as ONE_STEP
from genlab.convert.golden_sit import CASES as SIT
from genlab.convert.goldens import Check, Golden, run
from genlab.networks.arflow import ARFlow
from genlab.networks.dit import DiT
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

"""Golden files of the metrics (`specs/evaluation.md`, section 10): every number recomputed by genlab.evaluation.

Tolerances are the spec's. Float64 entries of other implementations are held to the same bound as the exact ones unless
their own rounding is larger; what is another implementation's fault is skipped with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from genlab.convert import golden_images, golden_neighbours
from genlab.convert.goldens import Case, Check, Golden
from genlab.evaluation.frechet import (
    Gaussian,
    frechet_distance,
    frechet_from_features,
    frechet_infinity,
    intra_class_frechet,
    sfid_features,
    trace_sqrt,
)
from genlab.evaluation.inception_score import ADM, DGM_EVAL, STUDIOGAN, SplitRule, inception_score
from genlab.evaluation.kernel import GaussianKernel, Kernel, Polynomial, cmmd, kid, kid_subsets, mmd2
from genlab.evaluation.moments import Moments
from genlab.evaluation.neighbours import authenticity
from genlab.evaluation.slices import mind, mind_draws, sliced_wasserstein
from genlab.evaluation.vendi import vendi_per_class, vendi_score


def _scalar(value: float | None) -> Tensor:
    return torch.tensor(float("nan") if value is None else value, dtype=torch.float64)


def _frechet_basic(golden: Golden) -> Iterator[Check]:
    x, y = golden["in.x"], golden["in.y"]
    fits = {"x": Gaussian.from_features(x), "y": Gaussian.from_features(y)}
    for side, fit in fits.items():
        moments = Moments.of(golden[f"in.{side}"])
        yield Check(f"out.mu_{side}", moments.mean, 1e-12)
        yield Check(f"out.sigma_{side}", moments.covariance(), 1e-12)
        yield Check(f"out.trace_{side}", fit.trace, 1e-12)
    yield Check("out.mean_term", (fits["x"].mean - fits["y"].mean).square().sum(), 1e-12)
    yield Check("out.trace_sqrt", trace_sqrt(fits["x"], fits["y"]), 1e-12)
    rounded = Moments.of(x.float())
    yield Check("out.mu_x_f32", rounded.mean, 1e-6)
    yield Check("out.sigma_x_f32features", rounded.covariance(), 1e-12)
    single = frechet_from_features(x.float(), y.float())
    double = frechet_from_features(x, y)
    for name in golden.group("out"):
        if name.startswith("fid."):
            float32 = name.endswith("f32features")
            value, tolerance = (single, 1e-6) if float32 else (double, 1e-10)
            yield Check(f"out.{name}", _scalar(value), tolerance, absolute=True)


def _frechet_degenerate(golden: Golden) -> Iterator[Check]:
    for case in golden.config["cases"]:
        x, y = golden[f"in.{case}.x"], golden[f"in.{case}.y"]
        fits = Gaussian.from_features(x), Gaussian.from_features(y)
        value = _scalar(frechet_distance(*fits))
        scale = (fits[0].mean - fits[1].mean).square().sum() + fits[0].trace + fits[1].trace
        for name in golden.group(f"out.{case}"):
            full, stored = f"out.{case}.{name}", golden[f"out.{case}.{name}"]
            if name == "scale":
                yield Check(full, scale, 1e-12)
            elif stored.isnan():
                yield Check(full, value, 0.0, skipped="this implementation raises or returns NaN here")
            else:
                # by features exact; the others work from rounded covariances, whose roots carry sqrt(eps) of the scale
                full_rank = min(len(x), len(y)) > x.shape[1]
                tolerance = 1e-12 if name == "exact" else 3e-8 if full_rank else 1e-6
                yield Check(full, value, tolerance * scale.item(), absolute=True)


def _frechet_known(golden: Golden) -> Iterator[Check]:
    fits = [Gaussian.from_statistics(golden[f"in.mu_{side}"], golden[f"in.sigma_{side}"]) for side in (1, 2)]
    value = _scalar(frechet_distance(*fits))
    for name in golden.group("out"):
        yield Check(f"out.{name}", value, 1e-11 if name == "exact" else 1e-9)


def _stats_merge(golden: Golden) -> Iterator[Check]:
    x = golden["in.x"]
    merged = Moments(x.shape[1])
    for index, shard in enumerate(x.split(golden["in.splits"].tolist())):
        part = Moments.of(shard)
        yield Check(f"mid.mean_{index}", part.mean, 1e-12)
        yield Check(f"mid.M2_{index}", part.m2, 1e-12)
        merged.merge(part)
    yield Check("out.count", torch.tensor(merged.count), 0.0)
    yield Check("out.mean", merged.mean, 1e-12)
    yield Check("out.sigma", merged.covariance(), 1e-12)
    yield Check("out.sigma_edm_form", merged.covariance(), 1e-9)
    yield Check("out.sigma_raw_moments_f32", merged.covariance(), 0.0, skipped="shows what raw float32 sums lose")


def _sfid_layout(golden: Golden) -> Iterator[Check]:
    maps = golden["in.map_x"], golden["in.map_y"]
    x, y = (sfid_features(part) for part in maps)
    yield Check("out.features_x", x, 0.0)
    yield Check("out.features_y", y, 0.0)
    nchw = maps[0][:, :7].flatten(1)
    yield Check("out.wrong_nchw_features_x", nchw, 0.0)
    fits = Gaussian.from_features(x), Gaussian.from_features(y)
    yield Check("out.mean_term", (fits[0].mean - fits[1].mean).square().sum(), 1e-9)
    yield Check("out.trace_x", fits[0].trace, 1e-9)
    yield Check("out.trace_y", fits[1].trace, 1e-9)
    yield Check("out.trace_sqrt", trace_sqrt(*fits), 1e-9)
    value = _scalar(frechet_distance(*fits))
    yield Check("out.sfid.exact", value, 1e-9)
    yield Check("out.sfid.eigvals_f64", value, 1e-5)  # eigenvalues of a rank-deficient product
    yield Check("out.sfid.mixed_layout", _scalar(frechet_from_features(nchw, y)), 1e-5)


def _inception_score(golden: Golden) -> Iterator[Check]:
    config = golden.config
    logits = golden["in.acts"].double() @ golden["in.fc_weight"].double().mT
    by_class = logits[golden["in.sort_order"]]
    adm = SplitRule(splits=None, chunk=config["adm_split_size"], shuffle_seed=None, dtype=ADM.dtype)
    adm64 = SplitRule(splits=None, chunk=config["adm_split_size"], shuffle_seed=None)
    yield Check("out.adm", _scalar(inception_score(logits, adm).mean), 1e-4)
    yield Check("out.adm_class_sorted", _scalar(inception_score(by_class, adm).mean), 1e-4)
    exact = inception_score(logits, adm64)
    yield Check("out.adm_rule_f64", _scalar(exact.mean), 1e-12)
    yield Check("out.adm_rule_f64.splits", exact.splits, 1e-12)
    yield Check("out.extreme.adm", torch.tensor(0.0), 0.0, skipped="ADM takes the logarithm of an underflowed 0")
    shuffled = SplitRule(shuffle_seed=config["tf_seed"])
    unshuffled = SplitRule(shuffle_seed=None)
    families = {
        "torch_fidelity.class_sorted_shuffled": (by_class, shuffled),
        "torch_fidelity.class_sorted_unshuffled": (by_class, unshuffled),
        "torch_fidelity.shuffled": (logits, shuffled),
        "torch_fidelity.unshuffled": (logits, unshuffled),
        "dgm_eval": (logits, SplitRule(shuffle_seed=config["tf_seed"], tail=DGM_EVAL.tail)),
        "studiogan": (logits, STUDIOGAN),
    }
    for name in golden.group("out"):
        family = next((key for key in families if name.startswith(key + ".")), None)
        if name == "extreme.torch_fidelity":
            extreme = golden["in.extreme_logits"]
            yield Check(f"out.{name}", _scalar(inception_score(extreme.double(), shuffled, 1).mean), 1e-9)
        elif family:
            source, rule = families[family]
            parts = name[len(family) + 1 :].split(".")
            splits = int(parts[0].removeprefix("splits")) if parts[0].startswith("splits") else 10
            score = inception_score(source, rule, splits)
            yield Check(f"out.{name}", _scalar(score.mean if parts[-1] == "mean" else score.std), 1e-11)


def _kid(golden: Golden) -> Iterator[Check]:
    x, y, config = golden["in.x"], golden["in.y"], golden.config
    draws = config["kid_subsets"], config["kid_subset_size"]
    first_x, first_y = kid_subsets(len(x), len(y), 1, config["kid_subset_size"], config["rng_seed"])[0]
    yield Check("mid.first_subset_x", first_x, 0.0)
    yield Check("mid.first_subset_y", first_y, 0.0)
    poly_g = config["poly_g"]
    kernels: dict[str, Kernel] = {
        "poly": Polynomial(),
        "poly_g": Polynomial(poly_g["degree"], poly_g["gamma"], poly_g["coef0"]),
        "rbf": GaussianKernel(config["rbf_sigma"]),
    }
    for name, kernel in kernels.items():
        for dtype, key, tolerance in ((torch.float64, "f64", 1e-12), (torch.float32, "f32", 1e-5)):
            result = kid(x.to(dtype), y.to(dtype), *draws, kernel=kernel, seed=config["rng_seed"])
            yield Check(f"out.torch_fidelity.{name}.{key}.mean", _scalar(result.mean), tolerance)
            yield Check(f"out.torch_fidelity.{name}.{key}.std", _scalar(result.std), tolerance * 10)
    least = min(len(x), len(y))
    for name in golden.group("out"):
        if name.startswith("mmd2_full."):
            value = mmd2(x[:least], y[:least], Polynomial(), name.removeprefix("mmd2_full."))  # type: ignore[arg-type]
            yield Check(f"out.{name}", _scalar(value), 1e-12)
    full = mmd2(x[:least], y[:least], Polynomial())
    yield Check("out.clean_fid_full", _scalar(full), 1e-12)
    yield Check("out.dgm_eval_full", _scalar(full), 1e-12)
    yield Check("out.mmd2_all_unbiased_f64", _scalar(mmd2(x, y, Polynomial())), 1e-12)
    yield Check("out.identical_full_unbiased", _scalar(mmd2(x[:least], x[:least], Polynomial())), 1e-11)


def _cmmd(golden: Golden) -> Iterator[Check]:
    x, y = golden["in.x"], golden["in.y"]
    settings = {"sigma": golden.config["sigma"], "scale": golden.config["scale"]}
    yield Check("out.cmmd", _scalar(cmmd(x, y, **settings)), 1e-9)
    # float32 exponentials near 1 cancel: the official number is good to a few eps of the scale
    few_eps = 4 * torch.finfo(torch.float32).eps * golden.config["scale"]
    yield Check("out.cmmd_f32", _scalar(cmmd(x, y, **settings)), few_eps, absolute=True)
    yield Check("out.identical", _scalar(cmmd(x, x, **settings)), 1e-9, absolute=True)


def _intra_class_fid(golden: Golden) -> Iterator[Check]:
    x, y = golden["in.x"], golden["in.y"]
    per_class = torch.tensor(
        list(intra_class_frechet(x, golden["in.label_x"], y, golden["in.label_y"]).values()), dtype=torch.float64
    )
    yield Check("out.per_class_exact", per_class, 1e-9)
    yield Check("out.per_class_studiogan", per_class, 1e-7)
    yield Check("out.ifid", per_class.mean(), 1e-9)
    yield Check("out.fid_pooled", _scalar(frechet_from_features(x, y)), 1e-9)


def _misc_scores(golden: Golden) -> Iterator[Check]:
    x, y, config = golden["in.x"], golden["in.y"], golden.config
    draws = len(y), len(x), x.shape[1], config["mind_projections"], config["mind_seed"]
    first, second, units = mind_draws(*draws)
    yield Check("mid.mind_directions", units, 1e-6)
    yield Check("mid.mind_subset", second if len(x) > len(y) else first, 0.0)
    yield Check("out.mind", _scalar(mind(y, x, config["mind_projections"], config["mind_seed"])), 1e-5)
    seed = int(config["fd_infinity_rng"].split("(")[1].rstrip(")"))
    limit, sizes, values = frechet_infinity(x, y, config["fd_infinity_points"], seed)
    yield Check("mid.fd_infinity_counts", sizes, 0.0)
    yield Check("mid.fd_infinity_values", values, 1e-6)  # the tool's eigenvalues, below full rank
    yield Check("out.fd_infinity", _scalar(limit), 1e-6)
    yield Check("out.sw_approx", _scalar(sliced_wasserstein(y, x)), 1e-9)
    yield Check("out.vendi_q1", _scalar(vendi_score(y)), 1e-9)
    yield Check("out.vendi_q2", _scalar(vendi_score(y, 2)), 1e-9)
    per_class = list(vendi_per_class(y, golden["in.label_y"]).values())
    yield Check("out.vendi_per_class", torch.tensor(per_class, dtype=torch.float64), 1e-9)
    yield Check("out.authpct", _scalar(authenticity(x, y)), 1e-7)  # the tool divides in float32


CASES: dict[str, Case] = {
    "frechet_basic": _frechet_basic,
    "frechet_degenerate": _frechet_degenerate,
    "frechet_known": _frechet_known,
    "stats_merge": _stats_merge,
    "sfid_layout": _sfid_layout,
    "inception_score": _inception_score,
    "kid": _kid,
    "cmmd": _cmmd,
    "intra_class_fid": _intra_class_fid,
    "misc_scores": _misc_scores,
    **golden_neighbours.CASES,
    **golden_images.CASES,
}

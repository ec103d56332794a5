"""Golden files of the k-nearest-neighbour scores: prdc, dgm-eval, torch-fidelity and the ADM evaluator."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from genlab.convert.goldens import Case, Check, Golden
from genlab.evaluation.half_precision import half_precision_recall, half_squared_radii
from genlab.evaluation.neighbours import ManifoldScores, manifold_scores, realism, squared_radii
from genlab.evaluation.pairs import clouds


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _prdc(golden: Golden) -> Iterator[Check]:
    plain, ties = (golden["in.x"], golden["in.y"]), (golden["in.ties_x"], golden["in.ties_y"])
    data = {"plain": plain, "ties": ties, "identical": (plain[0], plain[0])}
    known: dict[tuple[str, str, bool], ManifoldScores] = {}
    for name in (*golden.group("mid"), *golden.group("out")):
        which, tool, neighbours, entry = name.split(".")
        (x, y), k = data[which], int(neighbours.removeprefix("k"))
        strict = tool in ("prdc", "dgm_eval")
        if entry == "realism":
            yield Check(f"out.{name}", realism(x, y, k), 1e-9)
            continue
        if entry == "radii_ref":
            yield Check(f"mid.{name}", squared_radii(clouds(x, y)[0], k), 1e-7)  # ADM casts radii to float32
            continue
        key = which, neighbours, strict
        if key not in known:
            known[key] = manifold_scores(x, y, k, strict)
        tolerance = 1e-6 if tool.startswith("torch_fidelity") else 1e-12  # torch-fidelity divides in float32
        yield Check(f"out.{name}", _scalar(getattr(known[key], entry)), tolerance)


def _adm_precision_recall(golden: Golden) -> Iterator[Check]:
    k = golden.config["k"]
    for which in sorted({name.split(".")[0] for name in golden.group("in")}):
        x, y = golden[f"in.{which}.ref"], golden[f"in.{which}.sample"]
        cloud_x, cloud_y = clouds(x, y)
        exact = manifold_scores(x, y, k)
        for side, cloud in (("ref", cloud_x), ("sample", cloud_y)):
            radii = squared_radii(cloud, k)
            slack = 1e-5 * (cloud.features.double().square().sum(1).max() / radii.max()).item()  # float32 norms cancel
            yield Check(f"mid.{which}.f64.radii_{side}", radii, 1e-7)  # ADM casts them to float32
            yield Check(f"mid.{which}.f32.radii_{side}", radii, slack)
            half_step = 2.0 ** (cloud.features.double().square().sum(1).max().log2().floor().item() - 10)
            half_radii = half_squared_radii(cloud.features, k)
            yield Check(f"mid.{which}.f16.radii_{side}", half_radii, 4 * half_step, absolute=True)
        counts = {"precision": len(y), "recall": len(x)}
        precision, recall = half_precision_recall(x, y, k)
        half = {"precision": precision, "recall": recall}
        for name, count in counts.items():
            value = _scalar(getattr(exact, name))
            yield Check(f"out.{which}.f64.{name}", value, 1e-12)
            yield Check(f"out.{which}.f32.{name}", value, 2.01 / count, absolute=True)
            yield Check(f"out.{which}.f16.{name}", _scalar(half[name]), 0.03, absolute=True)


CASES: dict[str, Case] = {"prdc": _prdc, "adm_precision_recall": _adm_precision_recall}

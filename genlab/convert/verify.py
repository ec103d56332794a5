"""`genlab verify FILE...`: recompute golden files with genlab's own code and compare."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Iterator
from pathlib import Path

from genlab.convert.goldens import Golden, Result, run
from genlab.core.errors import CheckpointError

SYSTEMS = {  # golden system -> the module whose CASES recompute it
    "dit": "genlab.convert.golden_dit",
    "sit": "genlab.convert.golden_sit",
    "lightningdit": "genlab.convert.golden_lightningdit",
    "repa": "genlab.convert.golden_repa",
    "dimr": "genlab.convert.golden_dimr",
    "fitv2": "genlab.convert.golden_fit",
    "arflow": "genlab.convert.golden_arflow",
    "xar": "genlab.convert.golden_xar",
    "enat": "genlab.convert.golden_enat",
    "edm": "genlab.convert.golden_edm",
    "dmd2": "genlab.convert.golden_dmd2",
    "difffit": "genlab.convert.golden_difffit",
    "acceleration": "genlab.convert.golden_acceleration",
    "lion": "genlab.convert.golden_lion",
    "metrics": "genlab.convert.golden_metrics",
    "cas": "genlab.convert.golden_cas",
    "var": "genlab.convert.golden_var_generator",
    "flexvar": "genlab.convert.golden_flexvar_generator",
    "mvar": "genlab.convert.golden_mvar",
    "perceptual_losses": "genlab.convert.golden_losses",
    "kl_vae": "genlab.convert.golden_kl_vae",
    "vqgan": "genlab.convert.golden_vqgan",
    "resgen": "genlab.convert.golden_resgen",
    "rvq": "genlab.convert.golden_quantizers",
    "onestep_baselines": "genlab.convert.golden_onestep",
    "llamagen_vq": "genlab.convert.golden_llamagen",
    "msd": "genlab.convert.golden_msd",
}


def verify(path: str | Path) -> list[Result]:
    """All outputs of one golden file, compared. A file that cannot be read, or of an unknown system or case, is one
    failing line, so that it hides nothing of others."""
    try:
        golden = Golden.load(path)
    except CheckpointError as error:
        return [_failed("golden file", str(error))]
    module = SYSTEMS.get(golden.system)
    cases = importlib.import_module(module).CASES if module else {}
    if golden.case not in cases:
        known = (
            f"known cases of {golden.system}: {', '.join(sorted(cases))}"
            if cases
            else f"known systems: {', '.join(SYSTEMS)}"
        )
        return [_failed(f"{golden.system}/{golden.case}", f"not supported; {known}")]
    try:
        return run(golden, cases[golden.case])
    except Exception as error:  # one broken file must not hide the outcome of the others
        where = traceback.extract_tb(error.__traceback__)[-1]
        note = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        return [_failed(f"{golden.system}/{golden.case}", note)]


def _failed(name: str, note: str) -> Result:
    return Result(name, float("inf"), 0.0, 0.0, False, note)


def expand(paths: list[Path]) -> Iterator[Path]:
    """Files as given, and all .safetensors files below folders, sorted."""
    for path in paths:
        yield from sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]

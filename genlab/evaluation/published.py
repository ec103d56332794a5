"""The protocols by name: one per row of the table in `docs/evaluation.md`, and genlab's own.

What a paper does not say, and what its code does otherwise than it says, stands in the notes.
"""

from __future__ import annotations

import difflib

from genlab.core.errors import ConfigError
from genlab.evaluation.protocols import Protocol, Sampling
from genlab.evaluation.quantise import Rounding

_BATCHES = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet"
_FILES = {256: "VIRTUAL_imagenet256_labeled.npz", 512: "VIRTUAL_imagenet512.npz"}


def _adm(name: str, title: str, size: int, **changes: object) -> Protocol:
    """A protocol judged by ADM's evaluator, or by another one that reads ADM's statistics."""
    tree = {
        "name": f"{name}-imagenet{size}",
        "title": title,
        "image_size": size,
        "reference": (_FILES[size],),
        "reference_url": f"{_BATCHES}/{size}/{_FILES[size]}",
        **changes,
    }
    return Protocol.model_validate(tree)


_RANDOM = {"labels": "random"}
_FORK = {"metrics": ("fid", "is"), "splits": "torch_fidelity", "rounding": Rounding.HALF_EVEN}
_SORTED = "the paper's files are class-sorted, which spoils ADM's inception score; genlab's plan is mixed"


# Published sampler settings, in genlab's words: guidance is the scale by which a prediction moves away from the
# unconditional one, 1 being none, so what VAR, FlexVAR, ENAT and DiMR call w is 1 + w here.
_DDPM: Sampling = {"sampler": "ddpm", "steps": 250, "guidance": 1.5, "guidance_channels": 3}
_SDE: Sampling = {
    "sampler": "euler_maruyama",
    "steps": 250,
    "diffusion": "sigma",
    "last_step": "mean",
    "last_step_size": 0.04,
    "guidance": 1.5,
    "guidance_channels": 3,
}
_DOPRI5: Sampling = {"sampler": "dopri5", "rtol": 1e-3, "atol": 1e-6, "guidance_channels": 3}
_DPM_SOLVER: Sampling = {"sampler": "dpm_singlestep", "steps": 250, "order": 3, "guidance": 1.4}
_VAR: Sampling = {"guidance": 2.5, "top_k": 900, "top_p": 0.96}
_FLEXVAR: Sampling = {"top_k": 900, "top_p": 0.95}


def _rows(size: int) -> list[Protocol]:
    """The papers that report at `size`."""
    small = size == 256
    rows = [
        _adm("adm", "ADM's evaluator (Dhariwal & Nichol 2021)", size),
        _adm("dit", "DiT", size, **_RANDOM, sampling=_DDPM),
        _adm(
            "sit",
            "SiT",
            size,
            **_RANDOM,
            sampling=_SDE,
            note="unguided 8.3 is the SDE; the ODE gives 9.3 to 9.5 in a public re-run (2.15 instead of 2.06 guided)",
        ),
        _adm(
            "fitv2",
            "FiTv2",
            size,
            **_RANDOM,
            sampling={**_DOPRI5, "guidance": 1.5 if small else 1.65},
            note="guidance is that of XL/2; non-square references are unverified",
        ),
        _adm(
            "dimr",
            "DiMR",
            size,
            rounding=Rounding.SAVE_IMAGE,
            sampling=_DPM_SOLVER,
            note=f"{_SORTED}; guidance is the code's default, presumably the paper's",
        ),
        _adm(
            "var",
            "VAR",
            size,
            sampling=_VAR,
            note="no sampling script is published: its demo truncates, a public reproduction rounds; more_smooth off",
        ),
        _adm(
            "flexvar",
            "FlexVAR",
            size,
            rounding=Rounding.SAVE_IMAGE,
            sampling={**_FLEXVAR, "guidance": 3.5 if small else 4.0},
            note="the paper's labels are balanced only approximately: every rank shuffles its own copy",
        ),
        _adm(
            "enat",
            "ENAT",
            size,
            metrics=("fid",),
            sampling={
                "steps": 8,
                "guidance": 3.5 if small else 4.5,
                "confidence_temperature": 1.5,
                "temperature": 6.0 if small else 4.0,
            },
            note="the paper scores unrounded images with PyTorch's resize; here 8 bits and TF1's: FID moves a little",
        ),
    ]
    if small:
        rows += [
            _adm("mvar", "M-VAR", size, sampling=_VAR, note="as VAR; the paper's judge is unverified"),
            _adm(
                "mar",
                "MAR",
                size,
                **_FORK,
                sampling={"rounds": 256, "steps": 100, "guidance": 3.2, "temperature": 1.0},
                note=f"guidance is that of MAR-H (B 2.9, L 3.0); {_SORTED}",
            ),
            _adm(
                "xar",
                "xAR",
                size,
                **_FORK,
                sampling={"sampler": "euler_maruyama", "steps": 50, "guidance": 2.2},
                note="guidance and steps are those of xAR-H (L 2.3; B 2.7 with 40 steps); the same code as MAR's",
            ),
            _adm(
                "resgen",
                "ResGen",
                size,
                sampling={"steps": 63},
                note="no code was published: number, labels, rounding unverified",
            ),
        ]
    return rows


_EDM = Protocol(
    name="edm-imagenet64",
    title="EDM",
    image_size=64,
    metrics=("fid",),
    rounding=Rounding.TRUNCATE,
    reference=("imagenet-64x64.npz",),
    reference_url="https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/imagenet-64x64.npz",
)
_GENERAL = [
    Protocol(
        name="standard",
        title="genlab's default: Inception, torch-fidelity's splits",
        metrics=("fid", "is", "kid", "precision", "recall"),
        splits="torch_fidelity",
    ),
    Protocol(
        name="torch-fidelity",
        title="torch-fidelity 0.4",
        metrics=("fid", "is", "kid"),
        splits="torch_fidelity",
        note="its precision and recall default to VGG16 features, which genlab does not mix in",
    ),
    Protocol(
        name="fd-dinov2",
        title="FD-DINOv2 as dgm-eval computes it (Stein et al. 2023)",
        extractor="dinov2",
        metrics=("fid", "kid", "precision", "recall", "density", "coverage"),
        k=5,
        strict_neighbourhoods=True,
        splits="dgm_eval",
    ),
    Protocol(
        name="offline",
        title="EfficientNet-Lite0, whose weights come with pip: no published number is comparable",
        samples=10_000,
        extractor="efflite0",
        metrics=("fid", "is", "kid", "precision", "recall"),
        splits="torch_fidelity",
    ),
    Protocol(
        name="tokenizer",
        title="reconstructions against their originals (LDM, VQGAN, LlamaGen: rFID, PSNR, SSIM, LPIPS)",
        metrics=("fid",),
    ),
    Protocol(
        name="digits",
        title="scikit-learn's digits: an independent classifier, pixels, and EfficientNet-Lite0",
        samples=1000,
        extractor="efflite0",
        metrics=(
            "class_accuracy@pixels",
            "precision@pixels",
            "recall@pixels",
            "density@pixels",
            "coverage@pixels",
            "copies@pixels",
            "intra_class_fid@pixels",
            "fid",
            "is",
            "kid",
        ),
        splits="torch_fidelity",
    ),
]

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in [
        *_GENERAL,
        *_rows(256),
        *_rows(512),
        _EDM,
        _EDM.model_copy(
            update={
                "name": "dmd2-imagenet64",
                "title": "DMD2",
                "sampling": {"steps": 1},
                "note": "the paper's code starts its covariance at ones: FID rises by about 0.02 (1 GPU) to 0.25 (8)",
            }
        ),
        _EDM.model_copy(
            update={
                "name": "msd-imagenet64",
                "title": "Multi-student distillation",
                "sampling": {"steps": 1},
                "note": "no code was published: taken to be DMD2's",
            }
        ),
    ]
}


def find_protocol(name: str) -> Protocol:
    """The protocol called `name`. Raises ConfigError with the nearest match."""
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, n=1)
        raise ConfigError(
            f"there is no protocol {name!r}{f'; did you mean {near[0]}?' if near else ''}"
            f" (known: {', '.join(PROTOCOLS)})"
        )
    return PROTOCOLS[name]

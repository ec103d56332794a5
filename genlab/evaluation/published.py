"""The protocols by name: one per row of the table in `docs/evaluation.md`, and genlab's own.

What a paper does not say, and what its code does otherwise than it says, stands in the notes.
"""

from __future__ import annotations

import difflib

from genlab.core.errors import ConfigError
from genlab.evaluation.protocols import Protocol
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


def _rows(size: int) -> list[Protocol]:
    """The papers that report at `size`."""
    rows = [
        _adm("adm", "ADM's evaluator (Dhariwal & Nichol 2021)", size),
        _adm("dit", "DiT", size, **_RANDOM, sampling={"steps": 250, "guidance": 1.5}),
        _adm(
            "sit",
            "SiT",
            size,
            **_RANDOM,
            sampling={"steps": 250, "guidance": 1.5},
            note="unguided 8.3 is the SDE; the ODE gives 9.3 to 9.5 in a public re-run",
        ),
        _adm("fitv2", "FiTv2", size, **_RANDOM, note="non-square references are unverified"),
        _adm("dimr", "DiMR", size, rounding=Rounding.SAVE_IMAGE, note=_SORTED),
        _adm(
            "var",
            "VAR",
            size,
            note="no sampling script is published: its demo truncates, a public reproduction rounds; more_smooth off",
        ),
        _adm(
            "flexvar",
            "FlexVAR",
            size,
            rounding=Rounding.SAVE_IMAGE,
            note="the paper's labels are balanced only approximately: every rank shuffles its own copy",
        ),
        _adm(
            "enat",
            "ENAT",
            size,
            metrics=("fid",),
            note="the paper scores unrounded images with PyTorch's resize; here 8 bits and TF1's: FID moves a little",
        ),
    ]
    if size == 256:
        rows += [
            _adm("mvar", "M-VAR", size, note="as VAR; the paper's judge is unverified"),
            _adm("mar", "MAR", size, **_FORK),
            _adm("xar", "xAR", size, **_FORK, note="the same code as MAR's"),
            _adm("resgen", "ResGen", size, note="no code was published: number, labels, rounding unverified"),
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
                "note": "the paper's code starts its covariance at ones: FID rises by about 0.02 (1 GPU) to 0.25 (8)",
            }
        ),
        _EDM.model_copy(
            update={
                "name": "msd-imagenet64",
                "title": "Multi-student distillation",
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

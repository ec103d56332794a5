"""What an evaluation's images are held against: which reference a command line means, and how it is had."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import PartialState

from genlab.commands.targets import Subject, find_data, training_data
from genlab.core.errors import DataError, GenlabError
from genlab.evaluation.archives import NpzImages, npz_keys
from genlab.evaluation.building import build_references
from genlab.evaluation.extractors import Extractor
from genlab.evaluation.protocols import Protocol
from genlab.evaluation.references import Reference, find_published, load_reference
from genlab.evaluation.sources import DataImages, ScoredImages


@dataclass(frozen=True)
class HeldAgainst:
    """References by the extractor's name."""

    references: dict[str, Reference]
    digits: bool = False
    """They are scikit-learn's digits."""


def hold_against(
    where: Path | ScoredImages,
    size: int,
    main: Extractor,
    others: Iterable[Extractor],
    pairs: bool,
    state: PartialState,
    tick: Callable[[int], None],
) -> HeldAgainst:
    """The reference on each extractor; a file of statistics serves the `main` one alone.

    Args:
        where: from `find_reference`.
        size: side of the scored images.
        pairs: metrics on `main` need features, not only statistics.

    Raises:
        DataError: a reference of another extractor, transform or resolution.
    """
    if isinstance(where, Path):
        reference = load_reference(where, main, size)
        if pairs and where.suffix == ".npz" and "arr_0" in npz_keys(where):
            reference = _with_features(reference, where, main, state, tick)
        return HeldAgainst({main.name: reference})
    if where.image_size != size:
        raise DataError(
            f"the reference's images are {where.image_size} pixels wide, the scored ones {size};"
            " make them alike with --size"
        )
    digits = isinstance(where, DataImages) and where.describe()["name"] == "digits"
    return HeldAgainst(build_references(where, [main, *others], state, tick=tick), digits)


def _with_features(
    reference: Reference, file: Path, main: Extractor, state: PartialState, tick: Callable[[int], None]
) -> Reference:
    """ADM's archive: mu and sigma are those of all training images, pairwise metrics use the 10,000 images inside."""
    images = build_references(NpzImages(file), [main], state, tick=tick)[main.name].collected
    layers = dict(reference.collected.layers)
    name = main.feature_layer
    layers[name] = replace(images.layers[name], fitted=layers[name].fitted)
    return replace(reference, collected=replace(images, layers=layers))


def find_reference(target: str, subject: Subject, protocol: Protocol, against: str | None) -> Path | ScoredImages:
    """A file of statistics, or images to make a reference of: as asked, the protocol's, or the run's training data.

    Raises:
        GenlabError: nothing to be found; the message says where to get it.
    """
    size = subject.source.image_size
    if against is not None:
        return _named(Path(against), against, size)
    if protocol.reference:
        found = find_published(protocol.reference)
        if found is None:
            raise DataError(
                f"protocol {protocol.name} needs {protocol.reference[0]} from {protocol.reference_url}:"
                f" put it into ./references, or name it with --against FILE"
            )
        return found
    data = training_data(str(subject.plan.get("run", target)), size)
    if data is None:
        raise GenlabError("say what to compare with: --against DATA (a data set's name, a folder, .yaml) or stats.npz")
    return data


def data_named(word: str, size: int) -> ScoredImages:
    """Images by a data set's name, a folder, a .yaml or an .npz. Raises GenlabError for anything else."""
    found = _named(Path(word), word, size)
    if isinstance(found, Path):
        raise DataError(f"{word}: holds statistics, no images; a tokenizer needs images to reconstruct")
    return found


def _named(path: Path, word: str, size: int) -> Path | ScoredImages:
    if path.suffix not in (".npz", ".pt", ".pth"):
        return find_data(word, size)
    if not path.is_file():
        raise DataError(f"{path}: no such file of statistics; make one with: genlab reference DATA -o {path}")
    if path.suffix == ".npz" and "mu" not in npz_keys(path):
        return NpzImages(path)
    return path

"""`genlab evaluate` of a tokenizer: what is lost between images and their reconstructions, with a report."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState

from genlab.commands.devices import process_state
from genlab.commands.evaluate import Options, evaluate, progress_bar
from genlab.commands.held_against import data_named
from genlab.commands.targets import held_out_data
from genlab.core.contracts import Tokenizer
from genlab.core.errors import GenlabError, WeightsUnavailable
from genlab.evaluation.building import build_references
from genlab.evaluation.extractors import Extractor, load_extractor
from genlab.evaluation.progress import Progress
from genlab.evaluation.protocols import Protocol
from genlab.evaluation.provenance import environment, label_histogram
from genlab.evaluation.published import find_protocol
from genlab.evaluation.reconstruction import Lpips, load_lpips
from genlab.evaluation.references import Reference, find_published, load_reference
from genlab.evaluation.report import PAGE, Pictures, Report, write_report
from genlab.evaluation.session import shown
from genlab.evaluation.sources import ScoredImages, Subset
from genlab.evaluation.tables import print_report
from genlab.evaluation.tokenizer_scores import (
    ORIGINALS,
    Reconstructions,
    TokenizerResult,
    differences,
    score_tokenizer,
)
from genlab.tokenization.storage import holds_tokenizer, load_tokenizer

DEFAULT_PROTOCOL = "tokenizer"


def evaluate_any(target: str, options: Options) -> int:
    """`genlab evaluate`: score a tokenizer where `target` is one, or else images, a generator's or others."""
    if not holds_tokenizer(target):
        return evaluate(target, options)
    state = process_state()
    tokenizer = load_tokenizer(target, options.size).to(state.device)
    return evaluate_tokenizer(target, tokenizer, options, state)


def evaluate_tokenizer(target: str, tokenizer: Tokenizer, options: Options, state: PartialState) -> int:
    """Score `tokenizer`, that of the run `target`, on the images `options.against`; print and write the report.

    Args:
        tokenizer: on `state.device`.
        options: `against` (default: what the run holds out), `samples`, `extractor`, `weights`, `protocol`, `seed`,
            `batch`, `size`, `out` and `save_every` count; the others are of generators.

    Raises:
        GenlabError: anything the user can mend. What was computed before is kept and continued by the same command.
    """
    protocol = find_protocol(options.protocol or DEFAULT_PROTOCOL)
    protocol = protocol.model_copy(update={"extractor": options.extractor or protocol.extractor, "metrics": ("rfid",)})
    size = options.size or tokenizer.spec.image_size
    own = held_out_data(target, size) if options.against is None else None
    if options.against is None and own is None:
        raise GenlabError("say what to reconstruct: --against DATA (a data set's name, a folder, .yaml or .npz)")
    source: ScoredImages = own or data_named(str(options.against), size)
    if options.samples is not None and options.samples != len(source):
        source = Subset(source, options.samples, options.seed)
    extractor = load_extractor(protocol.extractor, options.weights, state.device)
    lpips, missing = _lpips(state)
    images = Reconstructions(tokenizer, source, protocol.rounding, lpips, options.seed, options.batch)
    out = options.out or Path(target) / "evaluation" / protocol.name
    identity = {"images": images.describe(), "count": len(images), "extractor": extractor.describe()}
    progress = Progress(out / ".progress", identity, state.process_index, state.num_processes)
    begun = time.perf_counter()
    with progress_bar(state, "originals", len(source)) as tick:
        references = {ORIGINALS: build_references(source, [extractor], state, tick=tick)[extractor.name]}
    references |= _published(protocol, extractor, source.image_size)
    reference_seconds = time.perf_counter() - begun
    with progress_bar(state, "reconstructions", len(source)) as tick:
        found = score_tokenizer(images, extractor, references, state, progress, tick, options.save_every)
    if not state.is_main_process:
        return 0
    found = replace(found, problems=[*found.problems, *missing])
    report = _report(target, protocol, images, extractor, references, found, reference_seconds, state)
    write_report(out, report, _pictures(images, found))
    progress.clear()
    print_report(report)
    print(f"report in {out / PAGE}")
    return 0


def _lpips(state: PartialState) -> tuple[Lpips | None, list[str]]:
    try:
        return load_lpips(device=state.device), []
    except WeightsUnavailable as error:
        return None, [f"lpips: not computed: {error}"]


def _published(protocol: Protocol, extractor: Extractor, size: int) -> dict[str, Reference]:
    """The protocol's own statistics, where they are at hand: another reference gives another rFID."""
    file = find_published(protocol.reference) if protocol.reference else None
    return {file.stem: load_reference(file, extractor, size)} if file is not None else {}


def _report(
    target: str,
    protocol: Protocol,
    images: Reconstructions,
    extractor: Extractor,
    references: dict[str, Reference],
    found: TokenizerResult,
    reference_seconds: float,
    state: PartialState,
) -> Report:
    width = extractor.dimensions[extractor.feature_layer]
    few = f"{len(images)} images for {width} features of {extractor.name}: distances are biased upwards"
    problems = [*images.warnings, *found.problems, *([few] if len(images) <= width else [])]
    return Report(
        title=target,
        subject=images.describe(),
        protocol=protocol,
        samples=len(images),
        seed=images.seed,
        labels=label_histogram(found.result.collected[extractor.name].labels, images.class_names),
        scores=found.scores,
        references={name: reference.account for name, reference in references.items()},
        extractors=[extractor.describe()],
        environment=environment(state.device, state.num_processes),
        seconds={**vars(found.result.times), "reference": reference_seconds},
        banners=[extractor.banner] if extractor.banner else [],
        warnings=list(dict.fromkeys(problems)),
        cost=found.cost,
        class_names=images.class_names,
    )


def _pictures(images: Reconstructions, found: TokenizerResult) -> Pictures:
    """Originals, reconstructions and their differences, of the same few images."""
    collected = next(iter(found.result.collected.values()))
    made, labels = collected.pictures, collected.picture_labels
    if made is None:
        return {}
    originals = torch.cat([part.images for part in images.source.parts(shown(len(images)))])
    return {
        "Originals": (originals, labels),
        "Reconstructions": (made, labels),
        "Differences, four times as strong": (differences(made, originals), labels),
    }

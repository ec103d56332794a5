"""`genlab evaluate`: score a generator, a folder of images, an archive or a data set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from pydantic import ValidationError
from tqdm import tqdm

from genlab import config as configs
from genlab.commands.devices import process_state
from genlab.commands.held_against import HeldAgainst, find_reference, hold_against
from genlab.commands.reporting import Evaluated, Run, expected_scores
from genlab.commands.targets import Subject, SubjectOptions, find_subjects, is_generator
from genlab.config_errors import describe
from genlab.core.errors import ConfigError, DataError, GenlabError
from genlab.evaluation.archives import ArchiveWriter
from genlab.evaluation.asks import Ask, account_of
from genlab.evaluation.expected import Check, check
from genlab.evaluation.extractors import Extractor, load_extractor
from genlab.evaluation.metrics import METRICS, Need, Request, parse_requests
from genlab.evaluation.picture_folder import PictureWriter
from genlab.evaluation.pixels import NAME as PIXELS
from genlab.evaluation.pixels import PixelFeatures
from genlab.evaluation.progress import Progress
from genlab.evaluation.protocols import Protocol
from genlab.evaluation.published import find_protocol
from genlab.evaluation.repeats import over_seeds
from genlab.evaluation.report import PAGE, write_report
from genlab.evaluation.rigid_features import load_rigid
from genlab.evaluation.scores import Comparison, Rules, Score, compute
from genlab.evaluation.session import SAVE_EVERY, Pass, Session
from genlab.evaluation.sources import ScoredImages
from genlab.evaluation.tables import print_report


@dataclass(frozen=True)
class Options:
    """The command line; None: the protocol's."""

    protocol: str | None = None
    against: str | None = None
    samples: int | None = None
    extractor: str | None = None
    weights: Path | None = None
    metrics: str | None = None
    labels: str | None = None
    out: Path | None = None
    save_images: Path | None = None
    seed: int = 0
    repeats: int = 1
    """Seeds in all: `seed` and those after it."""
    batch: int = 64
    size: int | None = None
    overrides: tuple[str, ...] = ()
    check: bool = False
    trust: bool = False
    save_every: int = SAVE_EVERY


def evaluate(target: str, options: Options) -> int:
    """Score `target`, print and write the report; 1 if `check` found a score off, else 0.

    Raises:
        GenlabError: anything the user can mend. What was computed before is kept and continued by the same command.
    """
    seeds = range(options.seed, options.seed + options.repeats)
    if len(seeds) > 1 and options.save_images is not None:
        raise ConfigError("--save-images keeps the images of one seed; leave out --repeats")
    state = process_state()
    protocol = choose_protocol(target, options)
    requests = parse_requests(protocol.metrics, protocol.extractor)
    names = sorted({request.extractor for request in requests}, key=lambda name: (name != protocol.extractor, name))
    subjects = find_subjects(target, protocol, _subject_options(options), seeds, state.device)
    _check_size(subjects[0].source, protocol)
    where = find_reference(target, subjects[0], protocol, options.against)
    extractors = {name: _extractor(name, options, protocol, state.device) for name in names}
    out = options.out or default_folder(target, protocol)
    begun = time.perf_counter()
    with progress_bar(state, "reference") as tick:
        main, *others = extractors.values()
        pairs = Need.FEATURES in _needs(requests, names[0])
        against = hold_against(where, subjects[0].source.image_size, main, others, pairs, state, tick)
    reference_seconds = time.perf_counter() - begun
    asks = [Ask(each, _needs(requests, name), protocol.split_rule) for name, each in extractors.items()]
    runs, metrics_seconds, kept = [], 0.0, []
    for seed, subject in zip(seeds, subjects, strict=True):
        kept.append(_progress(out, subject, protocol, asks, seed if seed != options.seed else None, state))
        result = _pass(subject, asks, kept[-1], options, state)
        begun = time.perf_counter()
        if state.is_main_process:
            runs.append(Run(subject, result, *_scores(requests, extractors, result, against, protocol)))
        metrics_seconds += time.perf_counter() - begun
    if not state.is_main_process:
        return 0
    scores = over_seeds([run.scores for run in runs], seeds)
    checks = _checks(target, subjects[0], protocol, scores) if options.check else []
    evaluated = Evaluated(
        runs,
        scores,
        protocol,
        requests,
        [*extractors.values()],
        against.references,
        checks,
        reference_seconds,
        metrics_seconds,
    )
    report = evaluated.report(state)
    write_report(out, report, evaluated.pictures())
    for progress in kept:
        progress.clear()
    print_report(report)
    print(f"report in {out / PAGE}")
    return 1 if any(item.verdict in ("off", "missing") for item in checks) else 0


def choose_protocol(target: str, options: Options) -> Protocol:
    """The protocol asked for, or the one that suits the reference, with the command line's changes.

    Raises:
        ConfigError: an unknown protocol, or changes that it cannot take.
    """
    name = options.protocol
    if name is None:
        name = "digits" if "digits" in (options.against, options.against or _trained_on(target)) else "standard"
    changes = {
        "samples": options.samples,
        "labels": options.labels,
        "extractor": options.extractor,
        "metrics": tuple(options.metrics.split(",")) if options.metrics else None,
    }
    tree = find_protocol(name).model_dump() | {key: value for key, value in changes.items() if value is not None}
    try:
        return Protocol.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(describe(error, Protocol, f"protocol {name}")) from None


def default_folder(target: str, protocol: Protocol) -> Path:
    """Where a report goes: into the run that was scored, or beside the images."""
    path = Path(target)
    if is_generator(target):
        return (path if path.is_dir() else Path(target.replace("/", "--"))) / "evaluation" / protocol.name
    return path.with_name(f"{path.stem if path.suffix else path.name}-{protocol.name}-report")


def _trained_on(target: str) -> str | None:
    file = Path(target) / "config.yaml"
    return str(configs.read(file).get("data", {}).get("name")) if file.is_file() else None


def _subject_options(options: Options) -> SubjectOptions:
    return SubjectOptions(options.samples, options.batch, options.overrides, options.size, options.trust)


def _extractor(name: str, options: Options, protocol: Protocol, device: torch.device) -> Extractor:
    if name == PIXELS:
        return PixelFeatures()
    weights = options.weights if name in (protocol.extractor, f"rigid_{protocol.extractor}") else None
    return load_rigid(name, weights, device) if name.startswith("rigid_") else load_extractor(name, weights, device)


def _needs(requests: tuple[Request, ...], extractor: str) -> frozenset[Need]:
    return frozenset(METRICS[request.metric].need for request in requests if request.extractor == extractor)


def _check_size(source: ScoredImages, protocol: Protocol) -> None:
    if protocol.image_size not in (None, source.image_size):
        raise DataError(
            f"protocol {protocol.name} scores images {protocol.image_size} pixels wide, these have {source.image_size};"
            " choose another --protocol"
        )


def _progress(
    out: Path, subject: Subject, protocol: Protocol, asks: list[Ask], other_seed: int | None, state: PartialState
) -> Progress:
    identity = {
        "images": subject.source.describe(),
        "count": len(subject.source),
        "protocol": protocol.name,
        "extractors": account_of(asks),
    }
    folder = out / (".progress" if other_seed is None else f".progress-{other_seed}")
    return Progress(folder, identity, state.process_index, state.num_processes)


def _pass(subject: Subject, asks: list[Ask], progress: Progress, options: Options, state: PartialState) -> Pass:
    """The pass over the images; they are kept where that was asked for."""
    source = subject.source
    writer: PictureWriter | ArchiveWriter | None = None
    if options.save_images is not None and options.save_images.suffix == ".npz":
        writer = ArchiveWriter(options.save_images, len(source), source.image_size, 0, state.is_main_process)
        state.wait_for_everyone()
    elif options.save_images is not None:
        writer = PictureWriter(options.save_images, subject.plan)
    with progress_bar(state, "images", len(source)) as tick:
        result = Session(source, asks, state, progress, writer, tick, options.save_every).run()
    if writer is not None:
        state.wait_for_everyone()
        if state.is_main_process:
            writer.finish()
    return result


def _scores(
    requests: tuple[Request, ...],
    extractors: dict[str, Extractor],
    result: Pass,
    against: HeldAgainst,
    protocol: Protocol,
) -> tuple[list[Score], list[str]]:
    """All scores in the order asked for, and what could not be computed."""
    rules = Rules(protocol.k, protocol.strict_neighbourhoods, protocol.half_distances)
    found: dict[Request, Score] = {}
    problems: list[str] = []
    for name, extractor in extractors.items():
        metrics = [request.metric for request in requests if request.extractor == name]
        reference = against.references.get(extractor.name)
        if reference is None and metrics:
            problems.append(f"{', '.join(metrics)} on {name}: not computed: the reference has no statistics on it")
        elif reference is not None:
            ours = result.collected[extractor.name]
            scores, more = compute(Comparison(extractor, ours, reference.collected, rules, against.digits), metrics)
            found |= {Request(score.metric, name): score for score in scores}
            problems += more
    return [found[request] for request in requests if request in found], problems


def _checks(target: str, subject: Subject, protocol: Protocol, scores: list[Score]) -> list[Check]:
    checks = check(scores, expected_scores(target, subject), protocol.name)
    if not checks:
        raise GenlabError(
            f"{target}: its recipe expects no score under protocol {protocol.name} (`expected:` in its config)"
        )
    return checks


@contextmanager
def progress_bar(state: PartialState, what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A progress bar on the main process, whose share stands for all."""
    with tqdm(total=total, unit="img", desc=what, disable=not state.is_main_process, leave=False) as bar:

        def tick(images: int) -> None:
            bar.update(images)

        yield tick

"""`genlab train`: build everything a config names, train it, export it."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from genlab import config as configs
from genlab.commands.devices import make_accelerator, process_state
from genlab.commands.pictures import save_grid
from genlab.commands.plans import Plan, plan_generator, plan_tokenizer
from genlab.commands.students import train_students
from genlab.config import RunConfig, TokenizerRunConfig
from genlab.core.contracts import Batch
from genlab.core.errors import CheckpointError, ConfigError
from genlab.core.files import remove_unfinished, write_text
from genlab.data.loader import Source, batches
from genlab.data.subset import restrict
from genlab.distillation.students import MultiStudentSettings
from genlab.training import checkpoint
from genlab.training.log import peak_memory
from genlab.training.loop import Hooks, Loop


def train(
    path: Path,
    overrides: list[str],
    runs: Path,
    resume: Literal["auto", "never"] | str = "auto",
    dry_run: bool = False,
    student: int | None = None,
) -> Path:
    """Train the config at `path`; the run's folder.

    Args:
        overrides: `section.key=value`.
        runs: where run folders live.
        resume: "auto" continues the newest sound checkpoint, "never" demands a new folder, else a checkpoint's path.
        dry_run: print what would happen (config, size, speed, memory, time), write nothing.
        student: of a recipe of several students the one to train; by default one after another.

    Raises:
        GenlabError: anything the user can mend, before a device is touched wherever that can be known.
    """
    config = configs.load_run(path, overrides)
    folder = runs / config.name
    if isinstance(config, RunConfig) and isinstance(config.distillation, MultiStudentSettings):
        source = config.data.build()

        def train_one(own: RunConfig, place: Path, classes: tuple[int, ...]) -> bool:
            return _train_run(own, restrict(source, classes), place, resume, dry_run, classes)

        train_students(config, source, folder, train_one, student, dry_run)
    elif student is not None:
        raise ConfigError(f"--student: {path} has no distillation: {{name: multi_student, ...}}; leave it out")
    else:
        _train_run(config, config.data.build(), folder, resume, dry_run)
    process_state().destroy_process_group()
    return folder


def _train_run(
    config: RunConfig | TokenizerRunConfig,
    source: Source,
    folder: Path,
    resume: str,
    dry_run: bool,
    classes: tuple[int, ...] | None = None,
) -> bool:
    """Train one run in `folder`, of these classes or all; whether it has finished."""
    start = None if dry_run else _starting_point(folder, resume)
    if isinstance(config, TokenizerRunConfig):
        plan = plan_tokenizer(config, source)
    else:
        plan = plan_generator(config, source, classes)
    accelerator = _accelerator(config, folder)
    with tempfile.TemporaryDirectory() as scratch:
        loop = build_loop(config, source, plan, accelerator, Path(scratch) if dry_run else folder)
        if dry_run:
            _report_dry_run(config, loop, accelerator)
            return True
    if start is not None:
        loop.restore(start)  # before anything in the folder changes: a checkpoint of other settings is refused
        accelerator.print(f"continuing {start}")
    _prepare_folder(config, plan, folder, accelerator)
    outcome = loop.run()
    if accelerator.is_main_process:
        _report_unreadable(source, folder)
        exported = plan.export(folder)
        if outcome.finished:
            print(f"done: {outcome.images:,} images. Weights in {exported}; next: {plan.next.format(run=folder)}")
        else:
            print(
                f"stopped at {outcome.images:,} of {config.training.total:,} images, saved. The same command continues."
            )
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.free_memory()
    return outcome.finished


def build_loop(
    config: RunConfig | TokenizerRunConfig,
    source: Source,
    plan: Plan,
    accelerator: Accelerator,
    folder: Path,
) -> Loop:
    """The training loop of a config, ready to run in `folder`."""
    settings = config.training

    def read(start: int, micro: int) -> Iterator[Batch]:
        return batches(
            source,
            seed=config.seed,
            batch=settings.batch,
            micro_batch=micro,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            start=start,
            workers=settings.workers,
            device=accelerator.device,
        )

    def preview(images: int) -> None:
        share = plan.objective.preview((accelerator.process_index, accelerator.num_processes))
        if share is None:
            return
        pictures = accelerator.gather(share.to(accelerator.device))
        if accelerator.is_main_process:
            save_grid(pictures[: settings.preview_count], folder / "samples" / f"{images:09d}.png")

    hooks = Hooks(preview, plan.scores(accelerator), plan.scores_every)
    return Loop(plan.objective, read, settings, config.seed, folder, accelerator, config.identity(), hooks)


def _starting_point(folder: Path, resume: str) -> Path | None:
    """The checkpoint to continue, or None for a new run. Raises CheckpointError rather than overwrite anything."""
    root = folder / "checkpoints"
    if resume not in ("auto", "never"):
        checkpoint.read_state(Path(resume))
        return Path(resume)
    existing = checkpoint.list_checkpoints(root)
    if resume == "never" and existing:
        raise CheckpointError(f"{folder}: holds checkpoints already; choose another name=NAME, or --resume auto")
    newest, problems = checkpoint.latest(root)
    for problem in problems:
        print(f"genlab: skipped a damaged checkpoint: {problem}")
    if existing and newest is None:
        raise CheckpointError(f"{root}: no checkpoint there is sound; choose another name=NAME ({problems[0]})")
    return newest


def _accelerator(config: RunConfig | TokenizerRunConfig, folder: Path) -> Accelerator:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.training.tf32
    precision = {"fp32": "no"}.get(config.training.precision, config.training.precision)
    accelerator = make_accelerator(
        mixed_precision=precision,
        log_with=list(config.training.trackers),
        project_dir=folder,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )
    if accelerator.device.type == "cpu" and precision == "fp16":
        raise ConfigError("training.precision=fp16 needs a GPU; bf16 and fp32 work on the CPU")
    return accelerator


def _prepare_folder(config: RunConfig | TokenizerRunConfig, plan: Plan, folder: Path, accelerator: Accelerator) -> None:
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        for place in (folder, folder / "samples"):
            remove_unfinished(place)
        write_text(folder / "config.yaml", configs.dump(config))
        write_text(folder / plan.description_file, json.dumps(plan.description, indent=1))
    accelerator.wait_for_everyone()
    plain = {
        key: value if isinstance(value, int | float | str) else str(value) for key, value in config.identity().items()
    }
    accelerator.init_trackers("logs", plain)


def _report_unreadable(source: Source, folder: Path) -> None:
    damaged = source.unreadable()
    if damaged:
        file = folder / "unreadable.txt"
        write_text(file, "".join(f"{name}: {reason}\n" for name, reason in sorted(damaged.items())))
        print(f"genlab: {len(damaged)} images could not be read; others took their places. See {file}")


def _report_dry_run(
    config: RunConfig | TokenizerRunConfig, loop: Loop, accelerator: Accelerator, seconds: float = 2.0
) -> None:
    """Run a few real steps that leave nothing behind, and say what the whole run would take."""
    network = next(iter(loop.members.values())).bare
    parameters = sum(p.numel() for p in network.parameters())
    feed = loop.batches(0, loop.micro)
    loop.step(feed)  # warm-up: allocations, compilation
    loop.step(feed)
    begun, steps = time.perf_counter(), 0
    while steps < 3 or time.perf_counter() - begun < seconds:
        loop.step(feed)
        steps += 1
    speed = steps * config.training.batch / (time.perf_counter() - begun)
    precision = "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
    rows: dict[str, Any] = {
        "parameters": f"{parameters:,}",
        "device": f"{accelerator.num_processes} x {accelerator.device} ({precision})",
        "images per second": f"{speed:,.1f}",
        "memory per process": f"{peak_memory(accelerator.device):.2f} GiB (measured peak)",
        "time to finish": _duration(config.training.total / speed),
    }
    accelerator.print(configs.dump(config))
    accelerator.print("\n".join(f"{key + ':':<20} {value}" for key, value in rows.items()))


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"

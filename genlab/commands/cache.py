"""`genlab cache`: encode the images of a config once, with its tokenizer, for all later training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState

from genlab import config as configs
from genlab.commands.devices import process_state
from genlab.core.errors import ConfigError, DataError
from genlab.data.latent_check import compare
from genlab.data.latent_index import Index, Plan, check, damage, read_index
from genlab.data.latent_writer import (
    Encoder,
    begin,
    bytes_per_image,
    finish,
    open_folder,
    pending,
    wait_until_whole,
    write_shards,
)
from genlab.data.latents import Latents
from genlab.data.source import ImageSource

_SHARD_BYTES = 2**27
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class Options(NamedTuple):
    """How to cache; defaults as of the command line."""

    flips: bool | None = None
    """None: if the data mirror their images."""
    crops: int | None = None
    """Random crops of each image, for data.crop=random only."""
    dtype: str = "fp32"
    """Of continuous latents: fp32, fp16 or bf16."""
    batch: int = 64
    shard_size: int | None = None
    """None: as many images as make 128 MiB."""
    workers: int = 2


def cache(path: Path, overrides: list[str], folder: Path, options: Options) -> Index:
    """Write the cache of the config at `path` to `folder`, or what is missing of it.

    Raises:
        GenlabError: anything the user can mend; finished shards stay, and the same command continues.
    """
    state = process_state()
    plan, encoder = _prepare(path, overrides, options, state)
    plan, index = open_folder(folder, plan)
    if state.is_main_process:
        begin(folder, plan, index)
    state.wait_for_everyone()
    missing = pending(folder, plan, index)
    state.wait_for_everyone()  # all have looked before any writes
    state.print(f"{folder}: {len(plan.ranges) - len(missing)} of {len(plan.ranges)} shards are there")
    own = missing[state.process_index :: state.num_processes]
    begun, done = time.perf_counter(), 0
    for count in write_shards(folder, plan, own, encoder, batch=options.batch, workers=options.workers):
        done += count
        speed = done * state.num_processes / (time.perf_counter() - begun)
        state.print(f"  {done * state.num_processes:,} images, {speed:,.0f} images/s")
    if state.is_main_process:
        wait_until_whole(folder, plan, index)
        index = finish(folder, plan, index)
        size = sum(shard.bytes for shard in index.shards) / 2**20
        if index.unreadable:
            print(f"{len(index.unreadable)} images could not be read; others took their places (index.json names them)")
        print(f"{folder}: {index.images:,} images, {size:,.1f} MiB. Train with data={{name: latents, path: {folder}}}")
        return index
    return Index.model_construct(**dict(plan))


def verify(path: Path, overrides: list[str], folder: Path) -> int:
    """Encode a sample again and compare with the cache in `folder`; 0 if they agree, else 1."""
    state = process_state()
    index = read_index(folder)
    crops = index.crops if index.data.get("crop") == "random" else None
    plan, encoder = _prepare(path, overrides, Options(flips=index.flips, crops=crops), state)
    check(index, plan.spec)
    if plan.data_fingerprint != index.data_fingerprint:
        raise DataError(
            f"{folder}: was made of other images or with another transform: {index.data_fingerprint}, this config's"
            f" are {plan.data_fingerprint}"
        )
    for shard in index.shards:
        if wrong := damage(folder, shard):
            raise DataError(f"{wrong}; `genlab cache` with the same settings makes it again")
    found = compare(folder, index, encoder)
    what = "largest relative difference" if index.spec.kind == "continuous" else "share of codes that differ"
    print(f"{found.images} images encoded again: {what} {found.difference:.2e}, allowed {found.allowed:.0e}")
    for file in found.damaged:
        print(f"{folder / file}: its checksum is wrong; remove it, and `genlab cache` makes it again")
    print("ok" if found.ok else "FAILED")
    return 0 if found.ok else 1


def _prepare(path: Path, overrides: list[str], options: Options, state: PartialState) -> tuple[Plan, Encoder]:
    """What shall be cached, and what encodes it."""
    if options.dtype not in _DTYPES:
        raise ConfigError(f"--dtype {options.dtype}: choose {', '.join(_DTYPES)}")
    config = configs.load(path, overrides)
    data: Any = config.data
    if isinstance(data, Latents):
        raise ConfigError(f"{path}: data is a cache already ({data.path}); give a config whose data are images")
    random = getattr(data, "crop", None) == "random"
    if random and options.crops is None:
        raise ConfigError("data.crop=random: a cache holds a few crops of each image; say how many, such as --crops 4")
    if options.crops is not None and not random:
        raise ConfigError("--crops needs random crops; set data.crop=random, where the data has them")
    crops = options.crops or 1
    flips = bool(getattr(data, "flip", False)) if options.flips is None else options.flips
    plain = data.model_copy(update={"flip": False}) if hasattr(data, "flip") else data
    source = plain.build()
    if not isinstance(source, ImageSource):
        raise ConfigError(f"{path}: a stream has no exact order to be cached in; set data.streaming=false")
    tokenizer = config.tokenizer.build(source.image_size).to(state.device).eval()
    encoder = Encoder(source, tokenizer, state.device)
    tensors = encoder.layout(_DTYPES[options.dtype])
    each = bytes_per_image(tensors.values(), crops * (1 + flips))
    plan = Plan(
        tokenizer=config.tokenizer.model_dump(mode="json"),
        spec=tokenizer.spec,
        data=data.model_dump(mode="json"),
        data_fingerprint=source.fingerprint(),
        class_names=source.class_names,
        images=len(source),
        flips=flips,
        crops=crops,
        shard_size=options.shard_size or max(_SHARD_BYTES // each, 1),
        tensors=tensors,
    )
    return plan, encoder

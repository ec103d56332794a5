"""Latent caches: what is written is what the tokenizer gives, in the order of the images; damage is named."""

from __future__ import annotations

import errno
import json
import pickle
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from genlab.core.contracts import LatentSpec, Tokenizer, to_float
from genlab.core.errors import DataError, NonFinite
from genlab.data import latent_shards
from genlab.data.digits import Digits
from genlab.data.folder import Folder
from genlab.data.latent_check import compare
from genlab.data.latent_index import Plan, check, read_index
from genlab.data.latent_writer import Encoder, begin, finish, open_folder, pending, write_shards
from genlab.data.latents import Latents, LatentSource
from genlab.data.loader import batches
from samplers.noise import spawn


class Toy(Tokenizer):
    """Grey values of 2 x 2 blocks: moments [2,4,4] (not equivariant to flips), or codes [4,4] or [4,4,2]."""

    def __init__(self, kind="continuous", vocab=None, scale=1.0):
        super().__init__()
        self.scale = scale
        self.spec = LatentSpec(
            kind, 1, (4, 4), 8, vocab, 2 if kind == "residual" else None, fingerprint=f"{kind}{vocab}"
        )

    def encode(self, images):
        grey = (images.mean(1) * torch.linspace(0.5, 1.0, 8)).unflatten(1, (4, 2)).unflatten(3, (4, 2)).mean((2, 4))
        if self.spec.kind == "continuous":
            return torch.stack([grey, -grey], dim=1) * self.scale
        codes = ((grey + 1) / 2 * 100 * self.scale).long()
        return codes if self.spec.kind == "codes" else torch.stack([codes, codes // 2], dim=-1)

    def prepare(self, raw, rng):
        return raw

    def decode(self, tokens):
        raise NotImplementedError


def plan_for(data, tokenizer, flips=False, crops=1, shard_size=700, dtype="float32"):
    plain = data.model_copy(update={"flip": False}) if hasattr(data, "flip") else data
    source = plain.build()
    encoder = Encoder(source, tokenizer, torch.device("cpu"))
    plan = Plan(
        tokenizer={"name": "toy"},
        spec=tokenizer.spec,
        data=data.model_dump(mode="json"),
        data_fingerprint=source.fingerprint(),
        class_names=source.class_names,
        images=len(source),
        flips=flips,
        crops=crops,
        shard_size=shard_size,
        tensors=encoder.layout(dtype),
    )
    return plan, encoder


def make(folder, plan, encoder, numbers=None):
    plan, index = open_folder(folder, plan)
    begin(folder, plan, index)
    list(write_shards(folder, plan, numbers or pending(folder, plan, index), encoder, batch=64, workers=2))
    return finish(folder, plan, index) if numbers is None else None


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    """A cache of digits as codes, in three shards."""
    folder = tmp_path_factory.mktemp("codes") / "cache"
    make(folder, *plan_for(Digits(), Toy("codes", 101)))
    return folder


@pytest.mark.parametrize("tokenizer", [Toy(), Toy("codes", 101), Toy("residual", 101), Toy("codes", 2**17)])
def test_cached_and_live_latents_are_equal(tmp_path, tokenizer):
    plan, encoder = plan_for(Digits(), tokenizer)
    index = make(tmp_path / "c", plan, encoder)
    options = {"seed": 3, "batch": 96, "micro_batch": 48, "start": 1728}  # across the end of an epoch
    cached = batches(Latents(path=tmp_path / "c").build(), **options)
    live = batches(Digits().build(), **options)
    for one, other in islice(zip(cached, live), 4):
        expected = tokenizer.encode(to_float(other.images))
        assert one.images is None and one.raw.dtype == expected.dtype
        torch.testing.assert_close(one.raw, expected, rtol=0, atol=1e-6 if tokenizer.spec.vocab is None else 0)
        assert torch.equal(one.label, other.label) and torch.equal(one.position, other.position)
    kind = {None: "float32", 101: "uint16", 2**17: "int32"}[tokenizer.spec.vocab]
    assert index.tensors["raw"].dtype == kind
    assert compare(tmp_path / "c", index, encoder).ok


def test_flips_are_encoded_from_mirror_images_and_chosen_as_without_a_cache(tmp_path, class_folders):
    data, tokenizer = Folder(path=class_folders, size=8, flip=True, seed=5), Toy()
    make(tmp_path / "c", *plan_for(data, tokenizer, flips=True, shard_size=5))
    options = {"seed": 3, "batch": 18, "micro_batch": 18}
    for one, other in islice(
        zip(batches(Latents(path=tmp_path / "c").build(), **options), batches(data.build(), **options)), 3
    ):
        torch.testing.assert_close(one.raw, tokenizer.encode(to_float(other.images)), rtol=0, atol=1e-6)
    source = LatentSource(tmp_path / "c", read_index(tmp_path / "c"), flip=False)
    assert torch.equal(source.fetch([4, 9], [0, 1])[0], source.fetch([4, 9])[0])


def test_crops_differ_and_all_are_used(tmp_path, photo_bytes):
    for number in range(4):
        (tmp_path / f"images/{number}.jpg").parent.mkdir(exist_ok=True)
        (tmp_path / f"images/{number}.jpg").write_bytes(photo_bytes)
    data = Folder(path=tmp_path / "images", size=8, crop="random")
    make(tmp_path / "c", *plan_for(data, Toy(), flips=True, crops=3))
    source = Latents(path=tmp_path / "c").build()
    assert len({row.numpy().tobytes() for row in source.fetch([0] * 100, range(100))[0]}) == 6


def test_files_are_safetensors_and_statistics_are_those_of_the_means(tmp_path):
    index = make(tmp_path / "c", *plan_for(Digits(), Toy(), dtype="float16"))
    stored = torch.cat([load_file(tmp_path / "c" / shard.file)["raw"] for shard in index.shards])
    assert stored.shape == (1797, 1, 2, 4, 4) and stored.dtype == torch.float16
    means = stored[:, 0, 0].double()
    assert index.statistics["channel_mean"] == [pytest.approx(means.mean().item())]
    assert index.statistics["std"] == pytest.approx(means.std(correction=0).item())


def test_usage_counts_every_code(codes):
    index = read_index(codes)
    assert sum(index.statistics["usage"]) == 1797 * 16 and len(index.statistics["usage"]) == 101


def test_an_interrupted_cache_ends_up_byte_for_byte_the_same(tmp_path, codes):
    plan, encoder = plan_for(Digits(), Toy("codes", 101))
    make(tmp_path / "c", plan, encoder, numbers=[1])
    (tmp_path / "c/.unfinished-1-latents-00000.safetensors").write_bytes(b"half")
    with pytest.raises(DataError, match="no finished latent cache"):
        Latents(path=tmp_path / "c")
    make(tmp_path / "c", plan, encoder)
    assert content(tmp_path / "c") == content(codes)
    make(tmp_path / "c", plan, encoder)  # nothing left to do
    assert content(tmp_path / "c") == content(codes)


@pytest.mark.parametrize("kind", ["missing", "empty", "truncated"])
def test_damaged_shards_are_named_and_mended(tmp_path, codes, kind):
    folder = tmp_path / "c"
    folder.mkdir()
    for name, data in content(codes).items():
        (folder / name).write_bytes(data)
    bad = folder / "latents-00001.safetensors"
    whole = bad.read_bytes()
    bad.unlink()
    if kind != "missing":
        bad.write_bytes(whole[: 0 if kind == "empty" else 1000])
    with pytest.raises(DataError, match=r"latents-00001.safetensors: (missing|empty|has 1000 bytes)"):
        Latents(path=folder).build()
    make(folder, *plan_for(Digits(), Toy("codes", 101)))
    assert content(folder) == content(codes)


def test_a_shard_of_another_cache_and_a_changed_one_are_found(tmp_path, codes):
    plan, encoder = plan_for(Digits(), Toy("codes", 102))
    index = make(tmp_path / "c", plan, encoder)
    swapped = tmp_path / "c/latents-00000.safetensors"
    own = swapped.read_bytes()
    swapped.write_bytes((codes / swapped.name).read_bytes())
    with pytest.raises(DataError, match="codes101, not codes102"):
        Latents(path=tmp_path / "c").build().fetch([0])
    swapped.write_bytes(own[:-1] + bytes([own[-1] ^ 1]))
    found = compare(tmp_path / "c", index, encoder)
    assert not found.ok and found.damaged == [swapped.name]


def test_another_tokenizer_transform_or_resolution_is_refused_with_both_fingerprints(codes):
    index = read_index(codes)
    check(index, Toy("codes", 101).spec)
    with pytest.raises(DataError, match=r"(?s)codes101.*codes9"):
        check(index, Toy("codes", 9).spec)
    with pytest.raises(DataError, match="images of 16"):
        check(index, replace(index.spec, image_size=16))
    with pytest.raises(DataError, match=r"codes101.*codes9"):
        open_folder(codes, plan_for(Digits(), Toy("codes", 9))[0])
    other = plan_for(Digits(held_out=0.5), Toy("codes", 101))[0]
    with pytest.raises(DataError, match=f"{index.data_fingerprint}.*{other.data_fingerprint}"):
        open_folder(codes, other)
    with pytest.raises(DataError, match=f"{index.fingerprint()}.*0123"):
        Latents(path=codes, fingerprint="0123").build()
    with pytest.raises(DataError, match=r"8 pixels, data.size is 16"):
        Latents(path=codes, size=16).build()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 9}', '{"format": 1}'])
def test_broken_and_foreign_folders(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(DataError, match=r"index\.json"):
        Latents(path=tmp_path)
    (tmp_path / "index.json").rename(tmp_path / "photo.txt")
    with pytest.raises(DataError, match="holds other things"):
        open_folder(tmp_path, plan_for(Digits(), Toy())[0])


def test_what_cannot_be_stored_is_an_error(tmp_path):
    with pytest.raises(NonFinite, match="--dtype bf16 or fp32"):
        make(tmp_path / "a", *plan_for(Digits(), Toy(scale=1e6), dtype="float16"))
    with pytest.raises(DataError, match=r"codes \d+\.\.\d+, the tokenizer has 0\.\.100"):
        make(tmp_path / "b", *plan_for(Digits(), Toy("codes", 101, scale=9.0)))


def test_a_full_disk_leaves_finished_shards_and_says_what_is_needed(tmp_path, codes, monkeypatch):
    plan, encoder = plan_for(Digits(), Toy("codes", 101))
    checksum = latent_shards.zlib.crc32
    calls = []

    def fill_up(part, value=0):
        calls.append(part)
        if len(calls) > 4:  # header, labels and codes of one shard, and a header
            raise OSError(errno.ENOSPC, "No space left on device")
        return checksum(part, value)

    with monkeypatch.context() as patch:
        patch.setattr(latent_shards.zlib, "crc32", fill_up)
        with pytest.raises(DataError, match=r"disk is full.*needs 0\.0 MiB"):
            make(tmp_path / "c", plan, encoder)
    assert {file.name for file in (tmp_path / "c").iterdir()} == {
        "plan.json",
        "latents-00000.json",
        "latents-00000.safetensors",
    }
    make(tmp_path / "c", plan, encoder)
    assert content(tmp_path / "c") == content(codes)


def test_too_small_a_disk_is_refused_at_once(tmp_path):
    plan, _ = plan_for(Digits(), Toy())
    with pytest.raises(DataError, match="MiB more, the disk has"):
        begin(tmp_path, plan.model_copy(update={"images": 10**15, "shard_size": 10**15}), None)


def test_unreadable_images_are_recorded(tmp_path, class_folders):
    (class_folders / "c/9.png").write_bytes(b"")
    data = Folder(path=class_folders, size=8, max_unreadable=0.1)
    index = make(tmp_path / "c", *plan_for(data, Toy(), shard_size=4))
    assert [(Path(name).name, why) for name, why in index.unreadable.items()] == [("9.png", "empty file")]
    assert Latents(path=tmp_path / "c").build().unreadable() == index.unreadable


def test_config_and_source_describe_themselves(codes):
    config = Latents(path=codes)
    source = config.build()
    assert (config.size, source.image_size, source.num_classes, len(source)) == (8, 8, 10, 1797)
    assert torch.equal(source.build_images().fetch([7])[1], source.fetch([7])[1])
    assert json.loads(config.model_dump_json())["fingerprint"] == source.fingerprint()
    source.fetch(range(1797), range(1797))
    assert len(pickle.dumps(source)) < 20_000  # what a data worker gets


def test_workers_change_nothing(codes):
    options = {"seed": 1, "batch": 32, "micro_batch": 32}
    alone, helped = (batches(Latents(path=codes).build(), workers=n, **options) for n in (0, 2))
    for one, other in islice(zip(alone, helped), 4):
        assert torch.equal(one.raw, other.raw)


def test_flips_follow_the_sources_streams():
    assert torch.equal(spawn(5, range(9)).uniform(4)[:, 0], spawn(5, range(9)).uniform())

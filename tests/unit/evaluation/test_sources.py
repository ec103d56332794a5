"""What is scored: folders, archives and data sets read rightly, and bad ones refused by name."""

import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from genlab.core.errors import DataError
from genlab.data.digits import Digits
from genlab.evaluation.archives import ArchiveWriter, NpzImages, SafetensorsImages, map_member
from genlab.evaluation.picture_folder import PLAN, PictureFolder, PictureWriter
from genlab.evaluation.sources import DataImages, GeneratedImages, Part, Subset, label_plan


def pictures(count, side=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def write(folder, images, name="{:03d}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / name.format(i))


def read(source, index=None):
    parts = list(source.parts(range(len(source)) if index is None else index))
    labels = torch.cat([part.labels for part in parts]) if parts[0].labels is not None else None
    return [i for part in parts for i in part.index], torch.cat([part.images for part in parts]), labels


def test_a_flat_folder_in_order_and_by_index(tmp_path):
    images = pictures(150)
    write(tmp_path, images)
    source = PictureFolder(tmp_path)
    assert (len(source), source.image_size, source.class_names) == (150, 8, ())
    index, found, labels = read(source)
    assert index == list(range(150)) and labels is None and torch.equal(found, images)
    index, found, _ = read(source, [149, 3, 70])
    assert index == [149, 3, 70] and torch.equal(found, images[[149, 3, 70]])


@pytest.mark.parametrize("suffix", ["png", "webp", "jpeg"])
def test_class_folders_and_formats(tmp_path, suffix):
    for name in ("cat", "dog"):
        write(tmp_path / name, pictures(3), "{}." + suffix)
    source = PictureFolder(tmp_path)
    assert source.class_names == ("cat", "dog")
    assert read(source)[2].tolist() == [0, 0, 0, 1, 1, 1]
    assert source.class_sorted()
    assert any("JPEG" in warning for warning in source.warnings) == (suffix == "jpeg")


def test_samples_of_genlab_carry_their_classes(tmp_path):
    plan = {"run": "runs/x", "seed": 1, "labels": [1, 0, 1], "sampling": {}}
    writer = PictureWriter(tmp_path, plan)
    images = pictures(3)
    writer.write(Part([0, 1, 2], images, torch.tensor([1, 0, 1])))
    write(tmp_path, pictures(1, side=64), "grid.png")
    source = PictureFolder(tmp_path)
    _, found, labels = read(source)
    assert torch.equal(found, images) and labels.tolist() == [1, 0, 1] and source.plan() == plan
    with pytest.raises(DataError, match="another plan"):
        PictureWriter(tmp_path, {**plan, "seed": 2})


def test_an_empty_folder_says_so(tmp_path):
    with pytest.raises(DataError, match="holds no pictures"):
        PictureFolder(tmp_path)


def test_mixed_sizes_name_two_files_unless_told_how(tmp_path):
    write(tmp_path, pictures(2), "a{}.png")
    write(tmp_path, pictures(1, side=12), "b{}.png")
    with pytest.raises(DataError, match=r"a0\.png is 8x8, .*b0\.png is 12x12.*--size"):
        PictureFolder(tmp_path)
    assert read(PictureFolder(tmp_path, size=8))[1].shape == (3, 3, 8, 8)


def test_a_truncated_picture_is_named(tmp_path):
    write(tmp_path, pictures(3, side=64))
    whole = (tmp_path / "001.png").read_bytes()
    (tmp_path / "001.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"001\.png: cannot be read"):
        read(PictureFolder(tmp_path))
    (tmp_path / "001.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"001\.png: is no readable picture"):
        PictureFolder(tmp_path)


def test_npz_is_mapped_not_loaded(tmp_path):
    pixels = pictures(20).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "a.npz", arr_0=pixels, label=np.arange(20) % 3)
    assert isinstance(map_member(tmp_path / "a.npz", "arr_0"), np.memmap)
    source = NpzImages(tmp_path / "a.npz")
    _, images, labels = read(source)
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), pixels) and labels.tolist() == [i % 3 for i in range(20)]
    assert not source.class_sorted()


def test_compressed_and_class_sorted_npz(tmp_path):
    pixels = pictures(6).permute(0, 2, 3, 1).numpy()
    np.savez_compressed(tmp_path / "a.npz", arr_0=pixels, arr_1=np.array([0, 0, 1, 1, 2, 2]))
    source = NpzImages(tmp_path / "a.npz")
    assert np.array_equal(read(source)[1].permute(0, 2, 3, 1).numpy(), pixels)
    assert source.class_sorted()


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), "round to 8 bits"),
        (np.zeros((4, 3, 8, 8), np.uint8), "channels come first"),
        (np.zeros((4, 8, 9, 3), np.uint8), "expected uint8"),
        (np.zeros((0, 8, 8, 3), np.uint8), "expected uint8"),
        (np.array([None, 1]), "Python objects"),
    ],
)
def test_npz_of_another_layout(tmp_path, pixels, message):
    np.savez(tmp_path / "a.npz", arr_0=pixels)
    with pytest.raises(DataError, match=message):
        NpzImages(tmp_path / "a.npz")


def test_truncated_npz_and_missing_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((4, 8, 8, 3), np.uint8))
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "b.npz").write_bytes(data[:300])
    with pytest.raises(DataError, match=r"b\.npz: .*truncated|b\.npz: no complete"):
        NpzImages(tmp_path / "b.npz")
    with pytest.raises(DataError, match="has no array 'mu'"):
        map_member(tmp_path / "a.npz", "mu")
    np.savez(tmp_path / "c.npz", arr_0=np.zeros((4, 8, 8, 3), np.uint8), label=np.zeros(3, int))
    with pytest.raises(DataError, match="labels are"):
        NpzImages(tmp_path / "c.npz")


def test_safetensors(tmp_path):
    images, labels = pictures(5), torch.tensor([0, 1, 0, 1, 1])
    save_file({"images": images, "label": labels}, tmp_path / "a.safetensors")
    _, found, got = read(SafetensorsImages(tmp_path / "a.safetensors"))
    assert torch.equal(found, images) and torch.equal(got, labels)
    save_file({"images": images.float()}, tmp_path / "b.safetensors")
    with pytest.raises(DataError, match="expected uint8"):
        SafetensorsImages(tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(DataError, match="no complete"):
        SafetensorsImages(tmp_path / "c.safetensors")


def test_the_archive_writer_shuffles_and_records_the_order(tmp_path):
    images, labels = pictures(100), torch.arange(100) // 10
    for rank in range(2):  # two processes, and a restart that keeps what is there
        writer = ArchiveWriter(tmp_path / "a.npz", 100, 8, seed=3, create=True)
        mine = list(range(rank, 100, 2))
        writer.write(Part(mine, images[mine], labels[mine]))
    writer.finish()
    with np.load(tmp_path / "a.npz") as archive:
        order = archive["order"]
        assert np.array_equal(archive["arr_0"], images.permute(0, 2, 3, 1).numpy()[order])
        assert np.array_equal(archive["label"], labels.numpy()[order])
    assert sorted(order) == list(range(100)) and not NpzImages(tmp_path / "a.npz").class_sorted()
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]
    assert {info.compress_type for info in zipfile.ZipFile(tmp_path / "a.npz").infolist()} == {zipfile.ZIP_STORED}


def test_a_subset_is_seeded_and_says_so(tmp_path):
    images = pictures(50)
    write(tmp_path, images)
    source = Subset(PictureFolder(tmp_path), 20, seed=1)
    index, found, _ = read(source)
    assert index == list(range(20))
    again = read(Subset(PictureFolder(tmp_path), 20, seed=1), [5, 2])
    assert again[0] == [5, 2] and torch.equal(again[1], found[[5, 2]])
    assert not torch.equal(found, images[:20]) and "20 of 50" in source.warnings[-1]
    with pytest.raises(DataError, match="there are 50"):
        Subset(PictureFolder(tmp_path), 51, seed=1)


def test_data_sets_and_generators():
    digits = DataImages(Digits().build(), "digits")
    _, images, labels = read(digits, [0, 1, 2])
    assert images.shape == (3, 3, 8, 8) and labels.tolist() == [0, 1, 2] and len(digits) == 1797

    def draw(index):
        yield list(index), pictures(len(index))

    source = GeneratedImages(draw, [1, 0, 1], ["a", "b"], 8, {"seed": 0})
    assert read(source, [2, 1])[2].tolist() == [1, 0]
    assert source.name(2) == "sample 2 (class 1)"
    assert json.dumps(source.describe()) != json.dumps(GeneratedImages(draw, [1, 1, 1], [], 8, {"seed": 0}).describe())


def test_label_plans():
    balanced = label_plan(10, 1005, "balanced", 0)
    assert {balanced.count(label) for label in range(10)} <= {100, 101}
    assert set(balanced[:10]) == set(range(10)), "every stretch is mixed"
    random = label_plan(10, 1000, "random", 0)
    assert random == label_plan(10, 1000, "random", 0) != label_plan(10, 1000, "random", 1)
    assert len({random.count(label) for label in range(10)}) > 2
    assert label_plan(0, 3, "random", 0) == [0, 0, 0]
    assert PLAN == "plan.json"

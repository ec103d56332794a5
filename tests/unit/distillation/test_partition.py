import json
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genlab.core.errors import CheckpointError, ConfigError, DataError
from genlab.data.digits import Digits
from genlab.data.subset import restrict
from genlab.distillation.class_facts import MeasuredFacts, class_table
from genlab.distillation.partition import (
    Clustered,
    FromFile,
    Ordered,
    Partition,
    along,
    at_random,
    balanced,
    clustered,
    consecutive,
)
from genlab.networks.dit import DiT
from genlab.networks.edm_unet import EdmUNet

SIZES = st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


class Known:
    """Facts about twelve classes in three groups, far from their order."""

    def counts(self):
        return torch.ones(12)

    def vectors(self, features):
        assert features == "teacher"
        centres = torch.eye(3)[torch.arange(12) % 3]
        return centres + 0.01 * torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


def sizes(owners, students):
    count = Counter(owners)
    assert set(count) == set(range(students))
    return count.values()


@given(SIZES)
def test_consecutive_parts_are_whole_sorted_and_of_equal_size(size):
    owners = consecutive(*size)
    assert owners == sorted(owners)
    assert max(sizes(owners, size[1])) - min(sizes(owners, size[1])) <= 1


@given(SIZES, st.integers(0, 2**32))
def test_random_parts_are_of_equal_size_and_repeatable(size, seed):
    owners = at_random(*size, seed)
    assert max(sizes(owners, size[1])) - min(sizes(owners, size[1])) <= 1
    assert owners == at_random(*size, seed)


@given(st.data())
def test_balanced_parts_leave_nobody_out_whatever_the_frequencies(data):
    counts = data.draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=40))
    students = data.draw(st.integers(1, len(counts)))
    owners = balanced(torch.tensor(counts), students)
    assert owners == sorted(owners)
    sizes(owners, students)


def test_balanced_parts_have_equal_numbers_of_images():
    assert balanced(torch.tensor([1, 0]), 1) == [0, 0]
    assert balanced(torch.tensor([90, 10, 20, 30, 40, 50, 60]), 3) == [0, 0, 1, 1, 1, 2, 2]


def test_clusters_gather_similar_classes_with_room_for_equal_parts():
    owners = clustered(Known().vectors("teacher"), 3, seed=0)
    assert owners == [0, 1, 2] * 4
    assert sorted(sizes(clustered(torch.randn(10, 4), 4, seed=1), 4)) == [2, 2, 3, 3]


def test_an_order_that_misses_and_repeats_classes_says_which():
    with pytest.raises(ConfigError, match=r"not each of the data's classes 0\.\.3 once: it misses 2, repeats 1$"):
        along([0, 1, 1, 3], 4, 2)
    with pytest.raises(ConfigError, match="misses 1, has the unknown 9"):
        along([0, 9], 2, 2)
    with pytest.raises(ConfigError, match="students=5 for 4 classes"):
        consecutive(4, 5)
    with pytest.raises(ConfigError, match=r"it misses 2$"):
        Ordered(classes=(0, 1)).build(3, 2, Known())


def test_partitions_survive_the_disk_and_serve_other_runs(tmp_path):
    found = Clustered(seed=3).build(12, 3, Known())
    found.save(tmp_path)
    assert Partition.load(tmp_path / "partition.json") == found
    assert FromFile(path=tmp_path / "partition.json").build(12, 3, Known()) == found
    with pytest.raises(ConfigError, match="12 classes for 3 students, this run 12 for 4"):
        FromFile(path=tmp_path / "partition.json").build(12, 4, Known())


@pytest.mark.parametrize(("content", "owners"), [([2, 0, 1, 3], (0, 1, 0, 1)), ([[1, 3], [0], [2]], (1, 0, 2, 0))])
def test_a_file_of_classes_is_an_order_or_the_parts_themselves(tmp_path, content, owners):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(content))
    assert FromFile(path=file).build(4, max(owners) + 1, Known()).class_to_student == owners


@pytest.mark.parametrize("content", ["[[0, 1], [1]]", "[0, 0]", "{]", '{"classes": 3}', "[]", "[[]]", "[true]"])
def test_files_that_are_no_partition_are_refused(tmp_path, content):
    file = tmp_path / "mine.json"
    file.write_text(content)
    with pytest.raises((ConfigError, CheckpointError)):
        FromFile(path=file).build(2, 2, Known())


@pytest.mark.parametrize("content", [[*range(10), 3], [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 3]]])
def test_files_are_held_against_the_classes_of_the_data(tmp_path, content):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"data's classes 0\.\.9 once: it repeats 3$"):
        FromFile(path=file).build(10, 2, Known())
    file.write_text(json.dumps([*range(10)]))
    with pytest.raises(ConfigError, match=r"0\.\.11 once: it misses 10, 11$"):
        FromFile(path=file).build(12, 2, Known())


def test_facts_about_digits():
    source = Digits().build()
    teacher = DiT((4, 4), 1, width=16, depth=1, heads=2, num_classes=10)
    facts = MeasuredFacts(source, lambda: teacher)
    assert facts.counts().sum() == 1797 and facts.counts().min() > 170
    assert torch.equal(facts.vectors("teacher"), teacher.y_embedder.embedding_table.weight[:10])
    assert facts.vectors("pixels").shape == (10, 3 * 64)
    edm = EdmUNet((8, 8), 1, num_classes=10, width=16, multipliers=(1,), blocks=1)
    assert torch.equal(class_table(edm), edm.map_label.weight.T)


def test_a_source_without_some_classes_keeps_their_numbers():
    whole = Digits().build()
    part = restrict(whole, {3, 7})
    images, labels = part.fetch(range(len(part)))
    expected = [index for index, label in enumerate(whole.labels().tolist()) if label in (3, 7)]
    assert torch.equal(labels, part.labels()) and set(labels.tolist()) == {3, 7}
    assert torch.equal(images, whole.fetch(expected)[0])
    assert (part.num_classes, part.class_names) == (10, whole.class_names)
    assert part.fingerprint() != whole.fingerprint()
    with pytest.raises(DataError, match="no image"):
        restrict(part, {5})

import math

import pytest
import torch

from genlab.nn.grid_rope import GridRope, grid_places

MODES = ["normal", "linear", "ntk-aware", "ntk-aware-pro1", "ntk-aware-pro2", "ntk-by-parts", "yarn"]


def scores(rope: GridRope, places: torch.Tensor) -> torch.Tensor:
    """q k^T [N,N] of one query and one key that stand at every place."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, rope.head_width, generator=generator).expand(2, 1, 1, places.shape[2], -1)
    turn = rope.rotation(places)
    return (turn(q) @ turn(k).mT)[0, 0]


@pytest.mark.parametrize("mode", MODES)
def test_scores_depend_on_the_distance_alone(mode):
    rope = GridRope(16, mode, trained=4, target=(8, 8))
    here, moved = grid_places(3, 4), grid_places(3, 4) + torch.tensor([[[2], [1]]])
    torch.testing.assert_close(scores(rope, here), scores(rope, moved))


def test_places_are_columns_then_rows_and_rows_turn_the_first_half():
    places = grid_places(2, 3)
    assert places[0].tolist() == [[0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 1]]
    turn = GridRope(8).rotation(places)
    frequency = torch.tensor([1.0, 1 / 100])
    angle = torch.cat([1 * frequency, 2 * frequency])  # the last token: row 1, column 2
    torch.testing.assert_close(turn.cos[0, 0, 5], angle.cos())
    torch.testing.assert_close(turn.sin[0, 0, 5], angle.sin())


def test_adjacent_features_turn_like_complex_numbers():
    turn = GridRope(8).rotation(grid_places(2, 2))
    x = torch.randn(1, 3, 4, 8)
    phase = torch.complex(turn.cos, turn.sin)
    expected = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * phase).flatten(-2)
    torch.testing.assert_close(turn(x), expected)


@pytest.mark.parametrize("mode", ["linear", "ntk-aware", "ntk-by-parts", "yarn"])
def test_on_trained_grids_nothing_changes(mode):
    size = torch.tensor([16, 16])
    for found, plain in zip(GridRope(72, mode).frequencies(size), GridRope(72).frequencies(size)):
        torch.testing.assert_close(found, plain)


def test_every_mode_stretches_slow_frequencies_and_ntk_keeps_the_fastest():
    size = torch.tensor([32, 32])
    plain = GridRope(72).frequencies(size)[0]
    for mode in ("linear", "ntk-aware", "yarn"):
        found = GridRope(72, mode).frequencies(size)[0]
        torch.testing.assert_close(found[-1], plain[-1] / 2)
        assert (found[0] == plain[0]) == (mode != "linear")


def test_decoupled_axes_stretch_each_by_its_own_length():
    size = torch.tensor([16, 32])
    row, column = GridRope(72, "linear", decoupled=True).frequencies(size)
    torch.testing.assert_close(row, 2 * column)
    row, column = GridRope(72, "linear").frequencies(size)
    assert torch.equal(row, column)


def test_magnitudes_are_those_of_the_released_code():
    assert GridRope(72, "ntk-aware-pro2", target=(20, 20)).magnitude() == pytest.approx(1.0979445)
    assert GridRope(72, "ntk-aware-pro1", target=(16, 16)).magnitude() == pytest.approx(1.118034)
    assert GridRope(72, "yarn", target=(10, 20)).magnitude() == pytest.approx(0.1 * math.log(1.25) + 1)
    assert GridRope(72, "yarn", target=(8, 8)).magnitude() == 1


def test_sizes_of_images_take_the_place_of_the_target():
    rope = GridRope(16, "ntk-aware", trained=4, target=(4, 4))
    sizes = torch.tensor([[[8, 8]], [[4, 4]]])
    turn = rope.rotation(grid_places(4, 4).expand(2, -1, -1), sizes)
    large = GridRope(16, "ntk-aware", trained=4, target=(8, 8)).rotation(grid_places(4, 4))
    torch.testing.assert_close(turn.cos[:1], large.cos)
    torch.testing.assert_close(turn.cos[1:], rope.rotation(grid_places(4, 4)).cos)

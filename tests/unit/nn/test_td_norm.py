import math

import pytest
import torch
import torch.nn.functional as F

from genlab.nn.axial_rope import AxialRope, CosineScale, cell_centres
from genlab.nn.td_concat import TdConcatLinear
from genlab.nn.td_norm import TdLayerNorm, TdRmsNorm, TimeVectors


def awake(times: TimeVectors) -> TimeVectors:
    """Vectors that do depend on time."""
    torch.manual_seed(0)
    times.allocate()
    with torch.no_grad():
        for parameter in times.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5)
    return times


def test_vectors_go_from_clean_to_noisy():
    times = TimeVectors()
    slots = [times.reserve(3, 1.0), times.reserve(2, 0.0)]
    awake(times)
    with torch.no_grad():
        times.slope.fill_(99.0)
        times.offset.zero_()
    low, high = times(torch.tensor([-1.0])), times(torch.tensor([1.0]))
    assert [tuple(low[slot].shape) for slot in slots] == [(1, 3), (1, 2)]
    torch.testing.assert_close(torch.cat(low, dim=1)[0], times.clean.detach())
    torch.testing.assert_close(torch.cat(high, dim=1)[0], times.noisy.detach())


def test_fresh_norms_are_plain_norms_at_all_times():
    times = TimeVectors()
    layer, rms = TdLayerNorm(6, times), TdRmsNorm(6, times, bias=True)
    vectors = times.allocate()(torch.tensor([-1.0, 0.7]))
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(layer(x, vectors), F.layer_norm(x, (6,)))
    torch.testing.assert_close(rms(x, vectors), F.rms_norm(x, (6,), eps=1e-12))


def test_a_tiny_token_is_held_down_outside_the_root():
    times = TimeVectors()
    norm = TdRmsNorm(4, times)
    vectors = times.allocate()(torch.zeros(1))
    x = torch.full((1, 1, 4), 1e-8)
    torch.testing.assert_close(norm(x, vectors), torch.full((1, 1, 4), 0.5))
    assert norm(torch.zeros(1, 1, 4), vectors).abs().max() == 0


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_map_by_map_is_the_norm_of_the_concatenation(offset):
    times = TimeVectors()
    layer = TdConcatLinear(maps=3, width=5, outputs=4, times=times)
    vectors = awake(times)(torch.tensor([-0.3, 0.8]))
    maps = [offset + torch.randn(2, 3, 2, 5) * scale for scale in (1, 2, 3)]
    running = layer.start(vectors)
    for x in maps:
        running.add(x)
    weight, bias = (vectors[layer.slots[name]].view(2, 1, 1, 15) for name in ("weight", "bias"))
    expected = layer.linear(F.layer_norm(torch.cat(maps, dim=-1), (15,)) * weight + bias)
    torch.testing.assert_close(running.finish(), expected, atol=1e-5 * (1 + offset), rtol=1e-4)


def test_cells_tile_the_longer_side():
    row, column = cell_centres(2, 4)
    assert column[:4].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert row.tolist() == [-0.25] * 4 + [0.25] * 4


def test_rotary_logits_depend_on_distance_alone():
    rope = AxialRope(heads=2, head_width=8)
    q, k = torch.randn(2, 1, 2, 1, 8).expand(2, 1, 2, 9, 8)
    turn = rope((3, 3))
    logits = turn(q) @ turn(k).mT  # [1,2,9,9]
    torch.testing.assert_close(logits[..., 0, 4], logits[..., 4, 8])
    assert (logits[..., 0, 4] - logits[..., 0, 8]).abs().max() > 1e-3


def test_cosine_logits_are_bounded_and_a_scale_beyond_the_bound_still_learns():
    scale = CosineScale(heads=1)
    with torch.no_grad():
        scale.log_scale.fill_(math.log(500.0))
    x = torch.randn(1, 1, 3, 8) * 7
    logits = scale(x) @ scale(x).mT / math.sqrt(8)
    torch.testing.assert_close(logits.diagonal(dim1=-2, dim2=-1), torch.full((1, 1, 3), 100.0))
    logits.sum().backward()
    assert scale.log_scale.grad.abs() > 0

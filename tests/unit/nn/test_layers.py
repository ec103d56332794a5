import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genlab.nn.attention import Attention
from genlab.nn.embed import sincos_2d, time_features
from genlab.nn.mlp import SwiGlu
from genlab.nn.patch import PatchEmbedding, unpatchify
from genlab.nn.rope import FixedRope


def test_attention_is_the_softmax_formula():
    torch.manual_seed(0)
    layer = Attention(width=8, heads=2)
    x = torch.randn(3, 5, 8)
    q, k, v = (part.view(3, 5, 2, 4).transpose(1, 2) for part in layer.qkv(x).chunk(3, dim=2))
    weights = (q @ k.transpose(2, 3) / math.sqrt(4)).softmax(-1)
    expected = layer.proj((weights @ v).transpose(1, 2).reshape(3, 5, 8))
    torch.testing.assert_close(layer(x), expected)


def test_attention_with_normalised_and_rotated_queries_sees_only_their_direction():
    torch.manual_seed(0)
    layer = Attention(8, 2, norm=lambda width: nn.RMSNorm(width), rotate=lambda x: x.flip(-1))
    x = torch.randn(1, 4, 8)
    before = layer(x)
    with torch.no_grad():
        layer.qkv.weight[:16] *= 3  # queries and keys
        layer.qkv.bias[:16] *= 3
    torch.testing.assert_close(layer(x), before)


@pytest.mark.parametrize("grid", [(3, 3), (2, 5)])
def test_unpatchify_puts_each_token_where_the_patch_embedding_read_it(grid):
    patch, channels = 2, 3
    embed = PatchEmbedding(channels, patch, patch * patch * channels)
    identity = torch.eye(channels * patch * patch).view(-1, channels, patch, patch)  # feature = (channel, row, column)
    nn.init.zeros_(embed.proj.bias)
    embed.proj.weight.data = identity.view(channels, patch * patch, -1).transpose(0, 1).reshape_as(embed.proj.weight)
    x = torch.randn(2, channels, grid[0] * patch, grid[1] * patch)
    torch.testing.assert_close(unpatchify(embed(x), grid, patch), x)


def test_positions_encode_the_column_first_and_sines_before_cosines():
    width, grid = 16, (2, 3)
    table = sincos_2d(width, grid)
    assert table.shape == (6, width)
    row, column, token = 1, 2, 5
    frequency = [10_000 ** (-j / 4) for j in range(4)]
    expected = [f(place * w) for place in (column, row) for f in (math.sin, math.cos) for w in frequency]
    torch.testing.assert_close(table[token], torch.tensor(expected))
    torch.testing.assert_close(table[row * grid[1] + column], table[token])


def test_time_features_are_cosines_then_sines_in_float32():
    t = torch.tensor([0.0, 0.25, 999.0], dtype=torch.float64)
    features = time_features(t, 8)
    frequency = torch.tensor([10_000 ** (-i / 4) for i in range(4)])
    angle = t.float()[:, None] * frequency
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, torch.cat([angle.cos(), angle.sin()], 1))


def test_rotary_scores_depend_on_the_distance_of_rows_and_columns_alone():
    torch.manual_seed(0)
    rows, columns, width = 4, 5, 8
    rope = FixedRope(width, (rows, columns))
    q, k = torch.randn(width), torch.randn(width)
    turned_q, turned_k = (rope(v.expand(1, 1, rows * columns, width))[0, 0] for v in (q, k))
    scores = (turned_q @ turned_k.T).view(rows, columns, rows, columns)
    torch.testing.assert_close(scores[0, 1, 2, 4], scores[1, 0, 3, 3])
    torch.testing.assert_close(scores[0, 0, 0, 0], q @ k)


def test_rotary_positions_turn_the_first_half_with_the_row_in_adjacent_pairs():
    rope = FixedRope(8, (3, 3))
    token = rope(torch.tensor([1.0, 0, 1, 0, 1, 0, 1, 0]).expand(1, 1, 9, 8))[0, 0, 1 * 3 + 2]  # row 1, column 2
    angles = [place * 10_000 ** (-j / 2) for place in (1, 2) for j in range(2)]
    torch.testing.assert_close(token, torch.tensor([f(angle) for angle in angles for f in (math.cos, math.sin)]))


def test_swiglu_is_its_formula():
    layer, x = SwiGlu(6, 4), torch.randn(2, 3, 6)
    gate, features = layer.w12(x).split(4, dim=-1)
    torch.testing.assert_close(layer(x), layer.w3(F.silu(gate) * features))

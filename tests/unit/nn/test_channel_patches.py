import pytest
import torch

from genlab.nn.channel_patches import from_patches, to_patches


@pytest.mark.parametrize("grid", [(2, 3), (1, 4)])
def test_there_and_back(grid):
    x = torch.randn(2, 3, 2 * grid[0], 2 * grid[1])
    torch.testing.assert_close(from_patches(to_patches(x, 2), grid, 2), x)


def test_features_are_channel_row_column():
    x = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    token = to_patches(x, 2)[0, 1]  # the first row's second patch
    torch.testing.assert_close(token, x[0, :, :2, 2:].flatten())

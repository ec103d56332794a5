import torch

from genlab.nn.projector import Projector
from genlab.processes.alignment import alignment


def test_aligned_features_have_the_least_loss_whatever_their_length():
    features = [torch.randn(2, 3, 5), torch.randn(2, 3, 4)]
    torch.testing.assert_close(alignment([3 * f for f in features], features), torch.full((2,), -1.0))
    torch.testing.assert_close(alignment([3 * features[0], -features[1]], features), torch.zeros(2), atol=1e-6, rtol=0)


def test_half_precision_does_not_overflow():
    large = torch.full((1, 2, 8), 3e4, dtype=torch.float16)
    torch.testing.assert_close(alignment([large], [large]), torch.tensor([-1.0]))


def test_projectors_keep_the_tokens():
    assert Projector(6, 16, 5)(torch.randn(2, 3, 6)).shape == (2, 3, 5)

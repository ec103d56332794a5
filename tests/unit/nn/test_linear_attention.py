import pytest
import torch

from genlab.nn.linear_attention import HybridAttention, attend, states_before, written


def draws(images: int = 4) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, images, 3, 5, 4, generator=generator)  # [B,S,H,N,d]
    decay = -torch.rand(2, images, 3, 5, generator=generator)
    return q, k, v, decay, torch.randn(2, 3, 4, 4, generator=generator)


def token_by_token(q, k, v, decay, state):
    """The definition, in float64: inside an image softmax, across images a state that decays by the mean."""
    q, k, v, decay, state = (value.double() for value in (q, k, v, decay, state))
    k = k / k.shape[-1] ** 0.5
    outputs = []
    for image in range(q.shape[1]):
        inner = (q[:, image] @ k[:, image].mT).softmax(-1) @ v[:, image]
        total = torch.zeros_like(decay[:, 0, :, 0])
        rows = []
        for token in range(q.shape[3]):
            total = total + decay[:, image, :, token]
            cross = torch.einsum("bhd,bhde->bhe", q[:, image, :, token], state)
            rows.append(inner[:, :, token] + total.exp().unsqueeze(-1) * cross)
        outputs.append(torch.stack(rows, dim=2))
        mean = decay[:, image].mean(-1).exp()[..., None, None]
        state = mean * state + k[:, image].mT @ v[:, image]
    return torch.stack(outputs, dim=1), state


def test_all_images_at_once_equal_the_recurrence():
    q, k, v, decay, start = draws()
    before, after = states_before(written(k, v), decay.mean(-1), start)
    expected, state = token_by_token(q, k, v, decay, start)
    torch.testing.assert_close(attend(q, k, v, decay, before).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after.double(), state, rtol=1e-5, atol=1e-5)


def test_long_sequences_with_strong_decay_stay_finite():
    _, k, v, decay, _ = draws(60)
    before, after = states_before(written(k, v), 100 * decay.mean(-1))
    assert before.isfinite().all() and after.isfinite().all()


def test_images_of_another_label_are_unknown():
    _, k, v, decay, _ = draws()
    label = torch.tensor([[0, 0, 1, 1]]).expand(2, 4)
    same = label[:, :, None] == label[:, None, :]
    before, _ = states_before(written(k, v), decay.mean(-1), same=same)
    alone, _ = states_before(written(k, v)[:, 2:], decay[:, 2:].mean(-1))
    assert before[:, 2].abs().max() == 0
    torch.testing.assert_close(before[:, 3], alone[:, 1])


@pytest.mark.parametrize("started", [False, True])
def test_step_by_step_equals_the_sequence(started):
    torch.manual_seed(0)
    layer = HybridAttention(12, 3)
    x, c = torch.randn(2, 4, 5, 12), torch.randn(2, 4, 1, 12)
    state = torch.randn(2, 3, 4, 4) if started else None
    expected, after = layer(x, c, state, keep=True)
    for image in range(4):
        out, state = layer(x[:, image : image + 1], c[:, image : image + 1], state, keep=True)
        torch.testing.assert_close(out, expected[:, image : image + 1])
    torch.testing.assert_close(state, after)


def test_under_autocast_states_are_float32():
    torch.manual_seed(0)
    layer = HybridAttention(16, 2)
    x, c = torch.randn(2, 3, 5, 16), torch.randn(2, 3, 1, 16)
    expected, _ = layer(x, c, keep=True)
    with torch.autocast("cpu", torch.bfloat16):
        out, state = layer(x, c, keep=True)
    assert state.dtype == torch.float32
    assert (out - expected).abs().max() < 0.05 * expected.abs().max()

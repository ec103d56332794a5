"""Small tokenizers with random weights, as training would leave them."""

import torch

from genlab.tokenization.kl import KL
from genlab.tokenization.multiscale import MultiscaleVQ
from genlab.tokenization.quantizers.residual import ResidualVQ
from genlab.tokenization.storage import save_tokenizer
from genlab.tokenization.vq import VQ

_SMALL = {"width": 16, "multipliers": (1, 2), "blocks": 1, "mid_attention": False, "channels": 8, "groups": 4}
KINDS = {
    "rvq": VQ(**_SMALL, quantizer=ResidualVQ(vocab=16, depth=3)),
    "var": MultiscaleVQ(**_SMALL, scales=(1, 2, 4, 8)),
    "kl": KL(**_SMALL),
}


def write_tokenizer(folder, kind, image_size=16, name=None):
    """A tokenizer's folder, and the tokenizer."""
    torch.manual_seed(1)
    tokenizer = KINDS[kind].build(image_size).eval()
    facts = {"name": name or folder.name, "image_size": image_size, "data": "digits"}
    save_tokenizer(folder, KINDS[kind], tokenizer, facts)
    return tokenizer

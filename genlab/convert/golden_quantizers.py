"""Recomputes the golden files of the quantisers: of RQ-VAE, vector-quantize-pytorch, and taming (Gumbel)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from genlab.convert.goldens import Case, Check, Golden
from genlab.tokenization.quantizers.books import AveragedBook, Averaging, LinearBook
from genlab.tokenization.quantizers.codebook import to_maps, to_vectors
from genlab.tokenization.quantizers.contract import Quantized, Quantizer
from genlab.tokenization.quantizers.gumbel import GumbelQuantizer, GumbelVQ
from genlab.tokenization.quantizers.kmeans import kmeans
from genlab.tokenization.quantizers.residual import ResidualQuantizer, ResidualVQ
from genlab.tokenization.quantizers.scalar import BSQ, FSQ, LFQ
from genlab.tokenization.quantizers.vector import AveragedVQ, SimVQ

TIGHT = 1e-5


def rq_bottleneck(golden: Golden) -> Iterator[Check]:
    """Codes, partial sums, the straight-through gradient, and every way of decoding."""
    quantizer = _rq(golden, Averaging()).eval()
    for d in range(quantizer.depth if not quantizer.config.shared else 1):
        _average_book(quantizer, d).weight.copy_(golden[f"in.codebook.{d}"])
    x = golden["in.x"].clone().requires_grad_()
    result = quantizer(to_maps(x))
    quantized = to_vectors(result.z)
    ((quantized * golden["in.grad_weight"]).sum() + result.loss.mean()).backward()
    codes = result.codes
    layers = list(quantizer.scan(quantizer.to_blocks(to_maps(golden["in.x"]))))
    sums = torch.stack([layer.vectors for layer in layers]).cumsum(0)
    rests = torch.stack([layer.residual - layer.vectors for layer in layers])
    yield Check("out.codes", codes, 0.0)
    yield Check("out.commitment_loss", result.loss.mean(), TIGHT)
    yield Check("out.quantized", quantized, TIGHT)
    yield Check("out.grad_x", _given(x.grad), TIGHT)
    yield Check("out.partial_sums", sums, TIGHT)
    yield Check("out.residual_norms", rests.norm(dim=-1), TIGHT)
    yield Check("out.embed_code", to_vectors(quantizer.decode(codes)), TIGHT)
    yield Check("out.embed_with_depth", quantizer.embed(codes), TIGHT)
    for name in golden.group("out"):
        kind, _, number = name.rpartition("_")
        if kind == "embed_partial_add":
            yield Check(f"out.{name}", to_vectors(quantizer.decode(codes[..., : int(number) + 1])), TIGHT)
        elif kind == "embed_partial_select":
            yield Check(f"out.{name}", to_vectors(quantizer.decode_depth(codes, int(number))), TIGHT)
        elif name.startswith("soft_codes_temp"):
            temperature = float(name.removeprefix("soft_codes_temp"))
            yield Check(f"out.{name}", quantizer.soft_codes(to_maps(golden["in.x"]), temperature), TIGHT)


def rq_ema(golden: Golden) -> Iterator[Check]:
    """Training passes: the averages and codes after each; dead codes take the vectors in their order."""
    config = golden.config
    revive = float(config["restart_unused_codes"])
    quantizer = _rq(golden, Averaging(decay=config["decay"], eps=config["eps"], revive_below=revive))
    books = range(len(quantizer.books))
    for d in books:
        book = _average_book(quantizer, d)
        book.revives_first = True
        book.choose = _by_slot  # type: ignore[method-assign]
        _load(book, *(golden[f"in.{name}.{d}"] for name in ("codebook", "cluster_size", "embed_ema")))
    for step in range(sum(name.startswith("x") for name in golden.group("in"))):
        x = golden[f"in.x{step}"].clone().requires_grad_()
        result = quantizer(to_maps(x))
        (result.z.sum() + result.loss.mean()).backward()
        yield Check(f"out.step{step}.codes", result.codes, 0.0)
        yield Check(f"out.step{step}.quantized", to_vectors(result.z), TIGHT)
        yield Check(f"out.step{step}.commitment_loss", result.loss.mean(), TIGHT)
        yield Check(f"out.step{step}.grad_x", _given(x.grad), TIGHT)
        for d in books:
            yield from _state(f"out.step{step}", f".{d}", _average_book(quantizer, d), sums="embed_ema")


def vq(golden: Golden) -> Iterator[Check]:
    """Training passes with averages, rotation, cosine and revival as the file says, then one in evaluation."""
    config = golden.config
    settings = AveragedVQ(
        vocab=config["codebook_size"],
        unit=config["use_cosine_sim"],
        commitment=config["commitment_weight"],
        rotation=config["rotation_trick"],
        averaging=Averaging(decay=config["decay"], eps=config["eps"], revive_below=config["threshold_ema_dead_code"]),
    )
    quantizer = settings.build(config["dim"])
    book = quantizer.embedding
    assert isinstance(book, AveragedBook)
    book.choose = _in_order  # type: ignore[method-assign]
    _load(book, golden["in.codebook"], torch.ones(settings.vocab), golden["in.codebook"])
    steps = sum(name.startswith("x") for name in golden.group("in"))
    for step in range(steps):
        x = golden[f"in.x{step}"].clone().requires_grad_()
        result = quantizer(_as_maps(x))
        quantized = _as_rows(result.z)
        ((quantized * golden["in.grad_weight"]).sum() + result.loss.mean()).backward()
        yield from _outcome(f"out.step{step}", result)
        yield Check(f"out.step{step}.grad_x", _given(x.grad), TIGHT)
        yield from _state(f"out.step{step}", "", book, sums="embed_avg")
    if "out.eval.indices" in golden.tensors:
        with torch.no_grad():
            result = quantizer.eval()(_as_maps(golden["in.x0"]))
        yield Check("out.eval.indices", result.codes.flatten(1), 0.0)
        yield Check("out.eval.quantized", _as_rows(result.z), TIGHT)
        yield Check("out.eval.loss", golden["out.eval.loss"], 0.0, skipped="the library has no loss in evaluation")


def kmeans_init(golden: Golden) -> Iterator[Check]:
    """k-means from the first vectors, alone and in a first training pass."""
    config, x = golden.config, golden["in.x"]
    vocab, iterations, cosine = config["codebook_size"], config["kmeans_iters"], config["use_cosine_sim"]
    rows = x.flatten(0, 1)
    rows = torch.nn.functional.normalize(rows, dim=1) if cosine else rows
    means, bins = kmeans(rows, rows[:vocab], iterations, cosine)
    yield Check("out.means", means, TIGHT)
    yield Check("out.bins", bins, 0.0)
    settings = AveragedVQ(
        vocab=vocab,
        unit=cosine,
        commitment=config["commitment_weight"],
        rotation=config["rotation_trick"],
        averaging=Averaging(decay=config["decay"], revive_below=0.0, kmeans=iterations),
    )
    quantizer = settings.build(config["dim"])
    book = quantizer.embedding
    assert isinstance(book, AveragedBook)
    book.choose = _in_order  # type: ignore[method-assign]
    result = quantizer(_as_maps(x))
    yield Check("out.vq_indices", result.codes.flatten(1), 0.0)
    yield Check("out.vq_quantized", _as_rows(result.z), TIGHT)
    yield Check("out.vq_loss", result.loss.mean(), TIGHT)
    yield Check("out.vq_codebook_after_first_step", book.weight, TIGHT)
    yield Check("out.vq_cluster_size_after_first_step", book.counts, TIGHT)


def residual_vq_lib(golden: Golden) -> Iterator[Check]:
    """The library's ResidualVQ: one evaluation and one training pass."""
    config, x = golden.config, golden["in.x"].clone().requires_grad_()
    settings = ResidualVQ(
        vocab=config["codebook_size"],
        depth=config["num_quantizers"],
        shared=config["shared_codebook"],
        averaging=Averaging(decay=config["decay"], revive_below=config["threshold_ema_dead_code"]),
        commitment=config["commitment_weight"],
    )
    quantizer = settings.build(config["dim"])
    for d in range(len(quantizer.books)):
        table = golden[f"in.codebook.{d}"]
        _load(_average_book(quantizer, d), table, torch.ones(len(table)), table)
    codes = quantizer.encode(_as_maps(x))
    yield Check("out.eval.indices", codes[:, 0], 0.0)
    yield Check("out.eval.codes", quantizer.embed(codes)[:, 0].movedim(-2, 0), TIGHT)
    yield Check("out.eval.quantized", _as_rows(quantizer.decode(codes)), TIGHT)
    layers = list(quantizer.scan(to_vectors(_as_maps(x))))
    errors = torch.stack([(layer.residual - layer.vectors).square().mean() for layer in layers])
    result = quantizer(_as_maps(x))
    yield Check("out.train.indices", result.codes[:, 0], 0.0)
    yield Check("out.train.quantized", _as_rows(result.z), TIGHT)
    yield Check("out.train.losses", config["commitment_weight"] * errors, TIGHT)
    # The file's gradient is that of sum(output) + sum(losses); the library passes the output's once for each depth.
    (settings.depth * (result.z.sum() + result.loss.mean())).backward()
    yield Check("out.train.grad_x", _given(x.grad), TIGHT)
    for d in range(len(quantizer.books)):
        yield from _state("out.train", f".{d}", _average_book(quantizer, d), sums=None)


def scalar_quantizers(golden: Golden) -> Iterator[Check]:
    """FSQ in both forms, LFQ, BSQ and SimVQ."""
    config = golden.config
    levels = tuple(config["fsq_levels"])
    for name, symmetric in (("fsq", False), ("fsq_sym", True)):
        fsq = FSQ(levels=levels, symmetric=symmetric).build(len(levels))
        z, result = _pass(golden, fsq, "in.fsq_z")
        yield Check(f"out.{name}_q", _as_rows(result.z), TIGHT)
        yield Check(f"out.{name}_indices", result.codes.flatten(1), 0.0)
        if not symmetric:
            result.z.sum().backward()
            yield Check("out.fsq_grad", _given(z.grad), TIGHT)
            yield Check("out.fsq_all_codes", _all_codes(fsq), TIGHT)
    for name, kind in (("lfq", LFQ), ("bsq", BSQ)):
        settings = kind(
            bits=config[f"{name}_dim"],
            entropy=config["entropy_loss_weight"],
            diversity=config["diversity_gamma"],
            commitment=config["commitment_loss_weight"],
            sharpness=config["inv_temperature"],
        )
        signs = settings.build(settings.bits)
        z, result = _pass(golden, signs, f"in.{name}_z")
        _, parts = signs.rule(_as_maps(golden[f"in.{name}_z"]), settings.sharpness, return_loss_breakdown=True)
        (result.z.sum() + result.loss.mean()).backward()
        yield Check(f"out.{name}_q", _as_rows(result.z), TIGHT)
        yield Check(f"out.{name}_indices", result.codes.flatten(1), 0.0)
        yield Check(f"out.{name}_codes", _all_codes(signs), TIGHT)
        yield Check(f"out.{name}_aux", result.loss.mean(), TIGHT)
        yield Check(f"out.{name}_commit", result.terms["commitment"].mean(), TIGHT)
        yield Check(f"out.{name}_per_sample_entropy", parts.per_sample_entropy, TIGHT)
        yield Check(f"out.{name}_batch_entropy", parts.batch_entropy, TIGHT)
        yield Check(f"out.{name}_grad", _given(z.grad), TIGHT)
    sim = config["simvq"]
    linear = SimVQ(
        vocab=sim["codebook_size"],
        commitment=sim["input_to_quantize_commit_loss_weight"],
        rotation=sim["rotation_trick"],
    )
    quantizer = linear.build(sim["dim"])
    book = quantizer.embedding
    assert isinstance(book, LinearBook)
    book.frozen.copy_(golden["param.simvq.frozen_codebook"])
    book.transform.weight.data.copy_(golden["param.simvq.code_transform.weight"])
    z, result = _pass(golden, quantizer, "in.simvq_z")
    (result.z.sum() + sim["commitment_weight"] * result.loss.mean()).backward()
    yield Check("out.simvq_q", _as_rows(result.z), TIGHT)
    yield Check("out.simvq_indices", result.codes.flatten(1), 0.0)
    yield Check("out.simvq_loss", sim["commitment_weight"] * result.loss.mean(), TIGHT)
    yield Check("out.simvq_grad_z", _given(z.grad), TIGHT)
    yield Check("out.simvq_grad_W", _given(book.transform.weight.grad), TIGHT)


def gumbel_quantizer(golden: Golden) -> Iterator[Check]:
    """A training pass with the file's noise."""
    config = golden.config
    settings = GumbelVQ(vocab=config["n_embed"], kl=config["kl_weight"])
    quantizer = GumbelQuantizer(settings, config["num_hiddens"], config["embedding_dim"])
    quantizer.load_state_dict(golden.group("param"), strict=False)  # the file does not count passes
    z = golden["in.z"].clone().requires_grad_()
    result = quantizer.choose(z, golden["in.gumbel"], config["tau"])
    (result.z.sum() + result.loss.mean()).backward()
    yield Check("out.indices", result.codes, 0.0)
    yield Check("out.z_q", result.z, TIGHT)
    yield Check("out.kl", result.loss.mean(), TIGHT)
    yield Check("out.grad_z", _given(z.grad), TIGHT)


CASES: dict[str, Case] = {
    "rq_bottleneck": rq_bottleneck,
    "rq_ema": rq_ema,
    "vq": vq,
    "kmeans_init": kmeans_init,
    "residual_vq_lib": residual_vq_lib,
    "scalar_quantizers": scalar_quantizers,
}
VQGAN_CASES: dict[str, Case] = {"gumbel_quantizer": gumbel_quantizer}


def _rq(golden: Golden, averaging: Averaging) -> ResidualQuantizer:
    """RQ-VAE's quantiser, whose loss is the plain commitment loss."""
    (height, width, channels), (rows, columns, depth) = golden.config["latent_shape"], golden.config["code_shape"]
    settings = ResidualVQ(
        vocab=golden.config["n_embed"],
        depth=depth,
        shared=golden.config["shared_codebook"],
        averaging=averaging,
        commitment=1.0,
        block=(height // rows, width // columns),
    )
    return settings.build(channels)


def _average_book(quantizer: ResidualQuantizer, depth: int) -> AveragedBook:
    book = quantizer.book(depth)
    assert isinstance(book, AveragedBook)
    return book


def _load(book: AveragedBook, table: Tensor, counts: Tensor, sums: Tensor) -> None:
    book.weight.copy_(table)
    book.counts.copy_(counts)
    book.sums.copy_(sums)


def _state(prefix: str, suffix: str, book: AveragedBook, sums: str | None) -> Iterator[Check]:
    yield Check(f"{prefix}.codebook{suffix}", book.weight.clone(), TIGHT)
    yield Check(f"{prefix}.cluster_size{suffix}", book.counts.clone(), TIGHT)
    if sums:
        yield Check(f"{prefix}.{sums}{suffix}", book.sums.clone(), TIGHT)


def _in_order(vectors: Tensor, wanted: Tensor) -> Tensor:
    """The first vectors for the wanted codes."""
    return vectors[(wanted.cumsum(0) - 1).clamp_min(0) % len(vectors)]


def _by_slot(vectors: Tensor, wanted: Tensor) -> Tensor:
    """Vector k for code k."""
    return vectors[torch.arange(len(wanted)) % len(vectors)]


def _pass(golden: Golden, quantizer: Quantizer, name: str) -> tuple[Tensor, Quantized]:
    """The input as a leaf, and the training pass on it."""
    z = golden[name].clone().requires_grad_()
    return z, quantizer.train()(_as_maps(z))


def _outcome(prefix: str, result: Quantized) -> Iterator[Check]:
    yield Check(f"{prefix}.indices", result.codes.flatten(1), 0.0)
    yield Check(f"{prefix}.quantized", _as_rows(result.z), TIGHT)
    yield Check(f"{prefix}.loss", result.loss.mean(), TIGHT)


def _all_codes(quantizer: Quantizer) -> Tensor:
    """The vectors [V,C] of all codes."""
    return _as_rows(quantizer.decode(torch.arange(quantizer.vocab).view(1, 1, -1)))[0]


def _as_maps(rows: Tensor) -> Tensor:
    """[B,N,C] -> [B,C,1,N]."""
    return to_maps(rows.unsqueeze(1))


def _as_rows(maps: Tensor) -> Tensor:
    """[B,C,1,N] -> [B,N,C]."""
    return to_vectors(maps)[:, 0]


def _given(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient

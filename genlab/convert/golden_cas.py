"""Golden files of system "cas": classifiers trained on generated data, and detection of generated images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from genlab.convert.goldens import Case, Check, Golden
from genlab.evaluation import classifier, rigid
from genlab.evaluation.classifier import Labelled

_SCORE_TOLERANCE = 1e-6  # of 1 - s, absolute


def _rigid(golden: Golden) -> Iterator[Check]:
    encode, normalise = _encoder(golden), _normaliser(golden)
    pixels, noise = golden["in.image_uint8"].float() / 255.0, golden["in.noise"]
    features = encode(normalise(pixels))
    blur = golden.config["blur"]
    blurred = rigid.gaussian_blur(pixels, blur["sigma"], blur["kernel"])
    blur_similarity = rigid.similarity(features, encode(normalise(blurred)))
    yield Check("out.feature", features, 1e-5)
    yield Check("out.blurred", blurred, 1e-6)
    for name in golden.group("out"):
        kind, _, number = name.rpartition("_")
        score = partial(Check, f"out.{name}", tolerance=_SCORE_TOLERANCE, absolute=True)
        if kind == "sim_blur":
            yield score(blur_similarity)
        elif kind.startswith("sim_"):
            space: rigid.Space = kind.removeprefix("sim_")  # type: ignore[assignment]
            settings = rigid.RigidSettings(strength=float(number), space=space)
            yield score(rigid.noise_similarities(encode, normalise, pixels, noise, settings, features))
        elif kind == "score_mean":
            settings = rigid.RigidSettings(strength=float(number))
            mean = rigid.score_with_noise(encode, normalise, pixels, noise, settings)
            yield score(mean)
            yield Check("out.min_noise_blur", torch.minimum(mean, blur_similarity), _SCORE_TOLERANCE, absolute=True)


def _encoder(golden: Golden) -> Callable[[Tensor], Tensor]:
    from timm.models.vision_transformer import VisionTransformer

    network = VisionTransformer(**golden.config["vit"]).eval().requires_grad_(False)
    network.load_state_dict(golden.group("param"))
    return network


def _normaliser(golden: Golden) -> Callable[[Tensor], Tensor]:
    mean, std = (torch.tensor(golden.config[key]).view(3, 1, 1) for key in ("mean", "std"))
    return lambda pixels: (pixels - mean) / std


def _detection_metrics(golden: Golden) -> Iterator[Check]:
    found = rigid.detection(golden["in.real"], golden["in.fake"])
    values = {
        "auroc": found.auroc,
        "fpr_at_tpr95": found.fpr_at_tpr95,
        "ap_real_positive": found.ap_real_positive,
        "ap_fake_positive": found.ap_fake_positive,
        "threshold_5pct_real": found.threshold,
        "fake_detected": found.fake_detected,
        "real_rejected": found.real_rejected,
        "accuracy_at_threshold": found.accuracy,
    }
    for name, value in values.items():
        yield Check(f"out.{name}", torch.tensor(value, dtype=torch.float64), 1e-12)


def _cas_protocol(golden: Golden) -> Iterator[Check]:
    config = golden.config
    data = {
        key: Labelled(golden[f"in.x_{key}"], golden[f"in.y_{key}"]) for key in ("synthetic", "real_train", "real_test")
    }
    order = golden["in.order"]
    recipe = classifier.Recipe(
        lr=tuple(config["lr"]),
        batch=config["batch"],
        momentum=config["momentum"],
        weight_decay=config["weight_decay"],
    )
    training = {
        "syn": data["synthetic"],
        "real": data["real_train"],
        "both": classifier.first_of_each(data["synthetic"], data["real_train"], order.shape[1] // 2),
    }
    for name, examples in training.items():
        linear = classifier.fit(_linear(golden), examples, order, recipe)
        assert isinstance(linear, nn.Linear)
        on_real, on_synthetic = (classifier.assess(linear, data[key]) for key in ("real_test", "synthetic"))
        yield Check(f"out.{name}.W", linear.weight, 1e-6)
        yield Check(f"out.{name}.b", linear.bias, 1e-6)
        yield Check(f"out.{name}.logits_real_test", classifier.predict(linear, data["real_test"].inputs), 1e-6)
        yield Check(f"out.{name}.top1_real_test", torch.tensor([on_real.top1]), 1e-6)
        yield Check(f"out.{name}.top5_real_test", torch.tensor([on_real.top5]), 1e-6)
        yield Check(f"out.{name}.per_class_real_test", on_real.per_class, 1e-6)
        yield Check(f"out.{name}.top1_on_synthetic", torch.tensor([on_synthetic.top1]), 1e-6)


def _linear(golden: Golden) -> nn.Linear:
    weight, bias = golden["param.W0"], golden["param.b0"]
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": weight, "bias": bias})
    return linear


CASES: dict[str, Case] = {
    "rigid": _rigid,
    "detection_metrics": _detection_metrics,
    "cas_protocol": _cas_protocol,
}

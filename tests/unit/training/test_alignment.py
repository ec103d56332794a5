"""Alignment with a frozen encoder: the losses, who learns from them, and what is left in checkpoints and exports."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from genlab import config as configs
from genlab.commands import plans
from genlab.commands.plans import plan_generator, plan_tokenizer
from genlab.commands.train import train
from genlab.core.contracts import Batch, to_float
from genlab.core.errors import ConfigError, DataError, WeightsUnavailable
from genlab.data.latents import LatentSource
from genlab.pretrained import from_pretrained
from genlab.tokenization.losses.adversarial import adaptive_weight
from genlab.tokenization.storage import load_tokenizer
from genlab.training.vision_features import VisionEncoder
from samplers.noise import SampleRng

ENCODER = {"model": "timm:test_vit", "pretrained": False}
TRAINING = {"images": 16, "batch": 8, "ema": [0.5], "trackers": [], "preview_count": 2, "lr": 1e-3}
NETWORKS = {
    "dit": {"name": "dit", "depth": 2, "width": 16, "heads": 2, "patch": 4},
    "fit": {"name": "fit", "depth": 2, "width": 16, "heads": 2, "patch": 4},
    "arflow": {"name": "arflow", "depth": 2, "width": 16, "heads": 2, "patch": 4},
}


def recipe(network="dit", **alignment):
    return {
        "name": "aligned",
        "data": {"name": "digits"},
        "tokenizer": {"name": "pixels", "channels": 1},
        "network": NETWORKS[network],
        "process": {"name": "arflow", "sequence": 2} if network == "arflow" else {"name": "flow"},
        "training": TRAINING,
        "sampling": {"steps": 2},
        "alignment": {"encoder": ENCODER, "depth": 1, "width": 8, **alignment},
    }


def tokenizer_recipe(**alignment):
    small = {"name": "kl", "width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4, "channels": 2}
    return {
        "name": "aligned-kl",
        "data": {"name": "digits"},
        "tokenizer": {**small, "mid_attention": False},
        "training": TRAINING,
        "reconstruction": {"perceptual": None, "alignment": {"encoder": ENCODER, **alignment}},
    }


def plan(tree):
    config = configs.validate(tree, "test")
    return plan_generator(config, config.data.build())


def networks(objective):
    return {name: role.network for name, role in objective.roles().items()}


def batch(size=8, side=8):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8)
    return Batch(torch.tensor([3, 1, 3, 0, 1, 1, 0, 3])[:size], torch.arange(size), images)


def side(tree):
    return configs.validate(tree, "test").data.size


def write(folder, tree):
    file = folder / "recipe.yaml"
    file.write_text(configs.yaml.safe_dump(tree))
    return file


@pytest.mark.parametrize("network", NETWORKS)
def test_the_loss_is_the_process_s_plus_the_alignment_of_every_image_s_own_tokens(network):
    objective = plan(recipe(network)).objective
    objective.label_dropout = 0.0
    nets, data = networks(objective), batch(side=side(recipe()))
    wrapped, inputs = nets["network"], []
    for parameter in wrapped.trained.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # blocks begin as the identity

    def seen(x, t, label):
        inputs.append((x, t, label))
        return wrapped(x, t, label)

    found = objective.turns(0)[0].loss({**nets, "network": seen}, data, SampleRng(0, data.position))
    ((x, t, label),) = inputs
    tokens = {}
    hook = wrapped.trained.blocks[0].register_forward_hook(lambda m, i, out: tokens.update(out=out))
    with torch.no_grad():
        wrapped.trained(x, t, label)
        hook.remove()
        hidden = tokens["out"][0] if isinstance(tokens["out"], tuple) else tokens["out"]
        own = F.normalize(wrapped.head(hidden.flatten(0, -3)), dim=-1)
    order = label.flatten().tolist()
    assert sorted(order) == order == sorted(data.label.tolist())
    images = data.images[data.label.argsort(stable=True)]
    target = F.normalize(nets["encoder"](to_float(images)), dim=-1)
    expected = -(own * target).sum(-1).mean(1)
    assert torch.allclose(found["alignment"], expected, atol=1e-5)
    rng = SampleRng(0, data.position).fork(2).rows(data.label.argsort(stable=True))
    clean = objective.generator.tokenizer.encode(to_float(images))
    plain = objective.generator.process.loss(wrapped.trained, clean, data.label.sort(stable=True).values, rng)["loss"]
    assert torch.allclose(found["loss"], plain + 0.5 * expected, atol=1e-5)


def test_gradients_reach_the_projector_and_the_network_up_to_the_block_and_not_the_encoder():
    objective = plan(recipe()).objective
    nets, data = networks(objective), batch(side=side(recipe()))
    objective.turns(0)[0].loss(nets, data, SampleRng(0, data.position))["alignment"].mean().backward()
    moved = {name for name, p in nets["network"].named_parameters() if p.grad is not None and p.grad.any()}
    assert {"head.0.weight", "head.4.bias"} <= moved
    assert any(name.startswith("trained.x_embedder") for name in moved)
    assert not any(name.startswith("trained.blocks.1") for name in moved)
    assert all(p.grad is None and not p.requires_grad for p in nets["encoder"].parameters())


def test_every_parameter_has_a_gradient_and_recomputed_blocks_change_nothing():
    gradients = []
    for recompute in (False, True):
        tree = recipe()
        tree["training"] = {**TRAINING, "activation_checkpointing": recompute}
        objective = plan(tree).objective
        nets, data = networks(objective), batch(side=side(tree))
        objective.turns(0)[0].loss(nets, data, SampleRng(0, data.position))["loss"].mean().backward()
        gradients.append([p.grad for p in nets["network"].parameters()])
    assert all(a is not None and torch.equal(a, b) for a, b in zip(*gradients))


def test_a_run_resumes_exactly_and_exports_no_projector(tmp_path):
    file = write(tmp_path, recipe())
    whole = train(file, [], tmp_path / "whole")
    train(file, ["training.images=8"], tmp_path / "parts")
    parts = train(file, [], tmp_path / "parts")
    kept = [load_file(run / "checkpoints" / "000000016" / "network.safetensors") for run in (whole, parts)]
    assert {"head.0.weight", "trained.pos_embed"} <= kept[0].keys()
    assert all(torch.equal(value, kept[1][name]) for name, value in kept[0].items())
    exported = load_file(whole / "export" / "network.safetensors")
    assert {f"trained.{name}" for name in exported} == {name for name in kept[0] if name.startswith("trained.")}
    average = load_file(whole / "checkpoints" / "000000016" / "network.ema-0.5.safetensors")
    state = from_pretrained(whole).network.state_dict()
    assert all(torch.equal(value, average[f"trained.{name}"]) for name, value in state.items())


def test_the_tokenizer_s_loss_has_the_alignment_at_its_adaptive_weight():
    config = configs.validate_tokenizer(tokenizer_recipe(), "test")
    objective = plan_tokenizer(config, config.data.build()).objective
    nets, data = networks(objective), batch(side=config.data.size)
    objective.turns(0)
    found = objective._reconstruct(nets, data, SampleRng(0, data.position))
    images = to_float(data.images)
    made = objective.tokenizer(images, SampleRng(0, data.position).fork(0))
    aligned = nets["tokenizer"].head(made.latents, nets["encoder"](images))
    l1 = (made.images - images).abs().mean((1, 2, 3))
    weight = 0.1 * adaptive_weight(l1.mean(), aligned.mean(), objective.tokenizer.encoder.conv_out.weight)
    assert torch.allclose(found["alignment"], aligned, atol=1e-5)
    assert torch.allclose(found["loss"], l1 + made.loss + weight * aligned, rtol=1e-4)
    found["loss"].mean().backward()
    assert all(p.grad is not None for p in nets["tokenizer"].parameters())
    assert nets["tokenizer"].head.project.weight.grad.any()


def test_a_tokenizer_s_export_has_no_projection(tmp_path):
    run = train(write(tmp_path, tokenizer_recipe(adaptive=False)), [], tmp_path)
    saved = load_file(run / "checkpoints" / "000000016" / "tokenizer.safetensors")
    assert "head.project.weight" in saved
    exported = load_tokenizer(run).state_dict()
    assert {f"trained.{name}" for name in exported} == {name for name in saved if name.startswith("trained.")}


def test_features_follow_the_tokens_the_model_s_own_normalisation_and_the_named_file(tmp_path):
    encoder = VisionEncoder(**ENCODER).build(3)
    images = torch.rand(2, 3, 48, 48) * 2 - 1
    expected = encoder.backbone.model.forward_features(images)[:, 1:]  # it wants (x - 0.5) / 0.5 of [0,1]
    assert encoder.size == 48 and not encoder.training
    assert torch.allclose(encoder(images), expected, atol=1e-5)
    assert encoder(images[..., :32, :32]).shape == (2, 9, 64)
    file = tmp_path / "vit.pth"
    torch.save(encoder.backbone.model.state_dict(), file)
    again = VisionEncoder(model="timm:test_vit", weights=file).build(3)
    assert torch.equal(again(images), encoder(images))
    convolutional = VisionEncoder(model="timm:test_resnet", pretrained=False).build(2)
    assert convolutional(images).shape == (2, 4, 96)


def test_transformers_of_a_local_folder(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    model = Dinov2Model(Dinov2Config(**sizes)).eval()
    model.save_pretrained(tmp_path)
    encoder = VisionEncoder(model=f"transformers:{tmp_path}").build(3)
    images = torch.rand(2, 3, 42, 42) * 2 - 1
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = model(((images + 1) / 2 - mean) / std).last_hidden_state[:, 1:]
    assert torch.allclose(encoder(images), expected, atol=1e-5)
    partial = {key: value for key, value in model.state_dict().items() if not key.startswith("layernorm")}
    save_file(partial, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsUnavailable, match=r"without layernorm\.bias"):
        VisionEncoder(model=f"transformers:{tmp_path}").build(3)


def test_what_cannot_be_aligned_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="only 2 blocks"):
        configs.validate(recipe(depth=3), "test")
    unet = {"name": "edm2", "width": 16, "multipliers": [1], "blocks": 1}
    with pytest.raises(ConfigError, match="no single stack of transformer blocks"):
        configs.validate({**recipe(), "network": unet, "process": {"name": "edm"}, "sampling": {}}, "test")
    codes = tokenizer_recipe()
    codes["tokenizer"] = {"name": "vq", "width": 8, "multipliers": [1, 2], "groups": 4, "channels": 4}
    codes["tokenizer"]["quantizer"] = {"name": "ema", "vocab": 8}
    with pytest.raises(ConfigError, match="not codes ones"):
        configs.validate_tokenizer(codes, "test")
    with pytest.raises(ConfigError, match="timm has no 'nothing'"):
        VisionEncoder(model="timm:nothing").build(2)
    with pytest.raises(WeightsUnavailable, match="there is nothing at"):
        VisionEncoder(model="timm:test_vit", weights=tmp_path / "none.pth").build(2)
    (tmp_path / "cut.pth").write_bytes(b"no weights")
    with pytest.raises(WeightsUnavailable, match=r"cut\.pth"):
        VisionEncoder(model="timm:test_vit", weights=tmp_path / "cut.pth").build(2)
    with pytest.raises(WeightsUnavailable, match="Give a copy as encoder"):
        VisionEncoder(model=f"transformers:{tmp_path}").build(2)
    with pytest.raises(DataError, match="a latent cache has none"):
        plans._align(configs.validate(recipe(), "test"), None, object.__new__(LatentSource))

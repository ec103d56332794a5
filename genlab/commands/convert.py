"""`genlab convert`: published weights become an export that every other command takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from genlab import config as configs
from genlab import pretrained
from genlab.config import RunConfig
from genlab.convert import autoencoders, dit, edm, enat, flax_pickle, shortcut, var
from genlab.convert.checkpoint_files import find_state, read_checkpoint
from genlab.convert.fetch import fetch
from genlab.convert.generators import FAMILIES, Family, Found, Hints, recognise
from genlab.core.contracts import LatentSpec
from genlab.core.errors import CheckpointError, ConfigError
from genlab.core.files import whole_folder
from genlab.tokenization import storage
from genlab.tokenization.kl import KL

ORIGINS: tuple[str, ...] = (*FAMILIES, "tokenizer", "diffusers")
_LICENSES = {
    "dit": "cc-by-nc-4.0",
    "sit": "mit",
    "lightningdit": "mit",
    "repa": "mit",
    "edm": "cc-by-nc-sa-4.0",
    "edm2": "cc-by-nc-sa-4.0",
    "meanflow": "mit",
    "imf": "mit",
    "shortcut": "mit",
}
"""Of the published weights, as far as they state one."""
_TOKENIZERS = {
    "tokenizers/sd-vae-ft-ema": "stabilityai/sd-vae-ft-ema",
    "tokenizers/sd-vae-ft-mse": "stabilityai/sd-vae-ft-mse",
    "tokenizers/vavae-f16d32": "hustvl/vavae-imagenet256-f16d32-dinov2:vavae-imagenet256-f16d32-dinov2.pt",
    "tokenizers/sd-vae-edm2": "stabilityai/sd-vae-ft-mse --statistics edm2",
    "tokenizers/kl-16": "kl16.ckpt",
    "tokenizers/var-vqvae": "FoundationVision/var:vae_ch160v4096z32.pth",
    "tokenizers/flexvar-vq": "jiaosiyu1999/FlexVAR:FlexVAE.pth",
    "tokenizers/maskgit-vqgan": "vqgan_jax_strongaug.ckpt",
}
"""Where the tokenizers of the ImageNet recipes are published."""
_STATISTICS = "latents_stats.pt"


@dataclass(frozen=True)
class Options:
    """The command's options; see its help."""

    origin: str | None = None
    recipe: Path | None = None
    weights: Literal["ema", "raw"] = "ema"
    heads: int | None = None
    classes: int | None = None
    statistics: str | None = None
    overrides: Sequence[str] = ()


def convert(checkpoint: str, out: Path, options: Options) -> None:
    """Write a generator's or a tokenizer's export to `out`, and say what it is.

    Raises:
        CheckpointError: not there, damaged, unknown, or of another kind than the options say.
        ConfigError: a recipe that does not fit.
    """
    if options.origin is not None and options.origin not in ORIGINS:
        raise ConfigError(f"--from: got {options.origin!r} (allowed: {', '.join(ORIGINS)})")
    check_free(out)
    source = fetch(checkpoint)
    kind = _diffusers_class(source)
    if kind is not None and kind.startswith("DiT"):
        found, which = _diffusers_network(source), "unnamed"
    elif kind is not None or options.origin == "tokenizer":
        return _tokenizer(source, out, options)
    elif source.suffix == ".pkl" and options.origin != "shortcut":
        found, which = recognise(edm.read_pickle(source), str(source), wanted=options.origin), "ema"
    else:
        content = _content(source)
        if options.origin is None and _is_tokenizer(find_state(content, str(source))):
            return _tokenizer(source, out, options)
        state, which = dit.select(content, str(source), options.weights)
        found = recognise(state, str(source), _hints(state, options), options.origin)
    family = _family(found, "dit" if kind else options.origin, str(source))
    _generator(source, out, found, family, which, options)
    return None


def check_free(out: Path) -> None:
    """Raises ConfigError for a folder that holds something else than an export, which would be replaced."""
    if out.exists() and not (out / "config.json").is_file() and (out.is_file() or any(out.iterdir())):
        raise ConfigError(f"{out}: is there already and no export; name a new folder with -o")


def _is_tokenizer(state: Mapping[str, Tensor]) -> bool:
    return any("decoder.conv_in." in key for key in state)


def _content(source: Path) -> Any:
    """What a checkpoint file holds, with its weights under `model` and averages under `ema` where it has several."""
    if flax_pickle.matches(source):
        return shortcut.named(flax_pickle.read(source), str(source))
    return _under_common_names(read_checkpoint(source))


def _under_common_names(content: Any) -> Any:
    """A trainer's checkpoint with its weights under `model`, and averages under `ema`, whatever it calls them."""
    trainer = content.get("trainer") if isinstance(content, Mapping) else None
    for key in ("var_wo_ddp", "mvar_wo_ddp"):  # VAR, FlexVAR; M-VAR. They keep no averages
        if isinstance(trainer, Mapping) and key in trainer:
            return trainer[key]
    if isinstance(content, Mapping) and "model_ema" in content:  # xAR
        return {"ema": content["model_ema"], **{key: content[key] for key in ("model",) if key in content}}
    return content


def _hints(state: Mapping[str, Tensor], options: Options) -> Hints:
    """What the options and the given recipe say that weights do not tell."""
    hints = Hints(options.heads)
    if options.recipe is None or not (var.family_of(state) or enat.matches(state)):
        return hints
    tree = configs.read(options.recipe, options.overrides)
    _check_tokenizer(tree.get("tokenizer"))
    config = configs.validate(tree, str(options.recipe))
    scales = config.tokenizer.latent_spec(config.data.size).scales
    return hints._replace(scales=scales, decoder_depth=getattr(config.network, "decoder_depth", None))


def _diffusers_class(source: Path) -> str | None:
    """What a diffusers folder says that it holds; None for files.

    Raises:
        CheckpointError: a folder without a description.
    """
    if source.is_file():
        return None
    for name in ("model_index.json", "config.json", "transformer/config.json", "vae/config.json"):
        try:
            return str(json.loads((source / name).read_text(encoding="utf-8"))["_class_name"])
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{source / name}: describes no diffusers model ({error})") from error
    raise CheckpointError(f"{source}: a folder, but not diffusers'; give the file of weights in it")


def _diffusers_network(source: Path) -> Found:
    loaded = dit.load_diffusers(source)
    network = loaded.network
    heads = dit.diffusers_config(network)["num_attention_heads"]
    return recognise(network.state_dict(), str(source), Hints(heads))


def _family(found: Found, wanted: str | None, where: str) -> Family:
    """The one family that a network is of. Raises CheckpointError if it is not the wanted one, or cannot be told."""
    shown = found.preset or found.section["name"]
    if wanted in found.families:
        return next(family for family in found.families if family == wanted)
    if wanted is not None:
        raise CheckpointError(f"{where}: by its weights {' or '.join(found.families)}, not {wanted}")
    if len(found.families) > 1:
        raise CheckpointError(
            f"{where}: a {shown}, but {' and '.join(found.families)} have the same tensors and mean other times by "
            f"them: add {' or '.join(f'--from {family}' for family in found.families)}"
        )
    return found.families[0]


def _generator(source: Path, out: Path, found: Found, family: Family, which: str, options: Options) -> None:
    if options.classes is not None and options.classes != found.num_classes:
        raise CheckpointError(f"{source}: is for {found.num_classes} classes (and none), not {options.classes}")
    with whole_folder(out) as folder:
        own = source / "vae" if (source / "vae" / "config.json").is_file() else None
        config, spec = _config(found, family, own, folder, options)
        tokenizer = config.tokenizer.build(spec.image_size)
        network = found.network(spec)
        description = pretrained.describe(config, tokenizer, found.num_classes, _class_names(found.num_classes))
        origin = {"source": source.name, "family": family, "preset": found.preset or "none", "weights": which}
        description |= {"ema": None, "data": "unknown", **origin}
        pretrained.write(folder, description, network.state_dict(), tuple(origin))
    count = sum(parameter.numel() for parameter in network.parameters())
    print(
        f"{found.preset or f'{family} of no published size'}: {count / 1e6:.1f} M parameters, {_WHICH[which]}, "
        f"{found.num_classes} classes, {spec.image_size} px -> {out}"
    )


_WHICH = {"ema": "averaged weights (EMA)", "raw": "raw weights", "unnamed": "the only weights in the file"}


def _config(
    found: Found, family: Family, own: Path | None, folder: Path, options: Options
) -> tuple[RunConfig, LatentSpec]:
    """The recipe with the network that was found, and what its tokenizer makes of the images.

    Args:
        own: a diffusers VAE that came with the network; it is converted into `folder`.
    """
    file = options.recipe or _recipe(found, family)
    tree = configs.read(file, options.overrides)
    given = tree.get("network") or {}
    sized = {key: value for key, value in given.items() if key != "preset"} if isinstance(given, dict) else {}
    same = sized.get("name") == found.section["name"]
    tree["network"] = {**(sized if same else {}), **found.section}
    tree["name"] = (found.preset or family).replace("/", "-")
    if options.recipe is None:
        tree["license"] = _LICENSES.get(family, "unspecified")
    if own is not None:
        _save_tokenizer(own, folder / "tokenizer", 256, None)
        tree["tokenizer"] = {"name": "trained", "path": str(folder / "tokenizer")}
    _check_tokenizer(tree.get("tokenizer"))
    config = configs.validate(tree, str(file))
    spec = config.tokenizer.latent_spec(config.data.size)
    if found.channels is not None and spec.channels != found.channels:
        raise CheckpointError(
            f"the network is for latents of {found.channels} channels, tokenizer {config.tokenizer.name} of {file} "
            f"makes {spec.channels}: give another --recipe or tokenizer"
        )
    if spec.vocab != found.vocab:
        raise CheckpointError(
            f"the network is for {found.vocab} codes, tokenizer {config.tokenizer.name} of {file} has {spec.vocab}: "
            "give another --recipe or tokenizer"
        )
    if spec.grid != found.grid and not found.any_grid:
        size = config.data.size * found.grid[0] // spec.grid[0]
        if options.recipe is not None or any(override.startswith("data.size=") for override in options.overrides):
            raise CheckpointError(
                f"the network is for latents of {found.grid[0]} x {found.grid[1]}, images of "
                f"{config.data.size} px have {spec.grid[0]} x {spec.grid[1]}: set data.size={size}"
            )
        config = config.model_copy(update={"data": config.data.model_copy(update={"size": size})})
        spec = config.tokenizer.latent_spec(size)
    if spec.scales != found.scales and not found.any_grid:
        raise CheckpointError(
            f"the network is for scales {found.scales}, tokenizer {config.tokenizer.name} of {file} has {spec.scales}: "
            "give another --recipe or tokenizer"
        )
    learned = getattr(config.process, "variance", None) == "learned_range"
    if learned and not found.section.get("learn_sigma"):
        raise CheckpointError(
            "the network predicts no variances, but the recipe's process reads them: add process.variance=fixed_small"
        )
    return config, spec


def _recipe(found: Found, family: Family) -> Path:
    """The ImageNet recipe whose process, sampling and tokenizer the published weights go with.

    Raises:
        ConfigError: there is none.
    """
    large = "imagenet512" if found.grid[0] > (16 if found.vocab else 32) else "imagenet256"
    stages = len(found.section.get("stages", ()))
    preset = (found.preset or "").lower().replace("-", "_")
    names = {
        "dit": f"{large}/dit_xl_2",
        "sit": f"{large}/sit_xl_2",
        "repa": f"{large}/sit_xl_2",
        "lightningdit": "imagenet256/lightningdit_xl_1",
        "arflow": "imagenet256/arflow_xl_2",
        "fit": "imagenet256/dit_xl_2" if found.section.get("learn_sigma") else "imagenet256/fitv2_xl_2",
        "dimr": {2: "imagenet256/dimr_xl_2r", 3: "imagenet512/dimr_xl_3r"}.get(stages, ""),
        "var": "imagenet512/var_d36" if large == "imagenet512" else "imagenet256/var_d16",
        "flexvar": "imagenet256/flexvar_d24",
        "mvar": "imagenet256/mvar_d24",
        "xar": f"imagenet256/{preset or 'xar_b'}",
        "enat": f"{large}/enat_l",
        "meanflow": f"imagenet256/meanflow_{'b_4' if preset == 'dit_b_4' else 'xl_2'}",
        "imf": "imagenet256/imf_xl_2",
        "shortcut": "imagenet256/shortcut_xl_2",
        "edm": "imagenet64/edm_adm" if preset == "adm_imagenet64" else "",
        "edm2": "imagenet512/edm2_s" if (found.grid, found.channels) == ((64, 64), 4) else "",
    }
    for root in (Path(), Path(__file__).parents[2]):
        if names[family] and (file := root / "configs" / f"{names[family]}.yaml").is_file():
            return file
    raise ConfigError(f"no recipe for these {family} weights is at hand (configs/): give one with --recipe")


def _check_tokenizer(tokenizer: Any) -> None:
    """Raises CheckpointError if a recipe's trained tokenizer is not there yet."""
    path = tokenizer.get("path") if isinstance(tokenizer, dict) and tokenizer.get("name") == "trained" else None
    if path is None or Path(path).exists() or (path not in _TOKENIZERS and not tokenizer.get("recipe")):
        return
    published = _TOKENIZERS.get(path, "its published file")
    raise CheckpointError(
        f"the generator's tokenizer {path} is not there: make it with\n"
        f"  genlab convert {published} -o {path}\nor name another one: tokenizer.path=FOLDER"
    )


def _class_names(count: int) -> tuple[str, ...]:
    """ImageNet's names for 1000 classes, in the order of its folders; else numbers."""
    if count != 1000:
        return tuple(map(str, range(count)))
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    return tuple(_IMAGENET_CATEGORIES)


def _tokenizer(source: Path, out: Path, options: Options) -> None:
    size = 256
    for override in options.overrides:
        key, _, value = override.partition("=")
        if key != "data.size" or not value.isdigit():
            raise ConfigError(f"{override!r}: of a tokenizer, data.size=SIDE is all that can be set")
        size = int(value)
    config = _save_tokenizer(source, out, size, options.statistics)
    print(f"tokenizer {config.name}, {size} px -> {out}")


def _save_tokenizer(source: Path, out: Path, size: int, statistics: str | None) -> Any:
    """Convert a published tokenizer into `out`; its config."""
    config, state = autoencoders.load_tokenizer(source)
    beside = source.parent / _STATISTICS
    if statistics == "edm2" and isinstance(config, KL) and config.channels == 4:
        config, state = config.model_copy(update=edm.LATENTS), edm.with_unit_range(state)
    elif statistics is not None or (isinstance(config, KL) and source.is_file() and beside.is_file()):
        config = _standardised(config, fetch(statistics) if statistics else beside)
    tokenizer = config.build(size)
    tokenizer.load_state_dict(dict(state))
    facts = {
        "name": source.stem,
        "image_size": size,
        "data": "unknown",
        "license": "unspecified",
        "source": source.name,
    }
    storage.save_tokenizer(out, config, tokenizer, facts)
    return config


def _standardised(config: Any, file: Path) -> Any:
    """A KL config with the mean and deviation of each channel in `file`, as VA-VAE publishes them."""
    content = read_checkpoint(file)
    values: dict[str, tuple[float, ...]] = {}
    for key in ("mean", "std"):
        found = content.get(key) if isinstance(content, Mapping) else None
        if not isinstance(found, Tensor) or not isinstance(config, KL) or found.numel() not in (1, config.channels):
            raise CheckpointError(f"{file}: no mean and std of the latents of a KL tokenizer")
        values[key] = tuple(found.flatten().double().tolist())
    return config.model_copy(update=values)

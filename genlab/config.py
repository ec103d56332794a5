"""The config tree: YAML and `key=value` overrides -> frozen, validated objects.

Each class sits beside the thing it builds; this file only joins them. A `name:` may also be `package.module:Class`,
a Settings subclass of the user's own that keeps the same contract.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, Self, TypeVar

import torch
import yaml
from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, WrapValidator, model_validator
from pydantic_core import PydanticCustomError

from genlab.config_errors import describe, nearest
from genlab.core.contracts import SamplingSettings
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.data.configs import DataConfig
from genlab.distillation.consistency import ConsistencyDistillation
from genlab.distillation.continuous_consistency import ContinuousConsistencyDistillation
from genlab.distillation.dmd2 import Dmd2Settings
from genlab.distillation.progressive import ProgressiveDistillation
from genlab.distillation.reflow import Reflow
from genlab.distillation.score_matching import ScoreMatchingSettings
from genlab.distillation.settings import Parts
from genlab.distillation.students import MultiStudentSettings
from genlab.evaluation.protocols import EvaluationSettings, ExpectedScore
from genlab.finetuning import adapters
from genlab.finetuning.settings import FinetuneSettings
from genlab.networks.arflow import ARFlowConfig
from genlab.networks.dimr import DiMRConfig
from genlab.networks.dit import DiTConfig
from genlab.networks.edm2 import Edm2Config
from genlab.networks.edm_unet import EdmUNetConfig
from genlab.networks.enat import ENATConfig
from genlab.networks.fit_config import FiTConfig
from genlab.networks.flexvar import FlexVARConfig
from genlab.networks.imf_dit import IMFDiTConfig
from genlab.networks.interval_dit import IntervalDiTConfig
from genlab.networks.masked_transformer import MaskedTransformerConfig
from genlab.networks.mvar import MVARConfig
from genlab.networks.resgen import ResGenConfig
from genlab.networks.routed import RoutedConfig
from genlab.networks.var import VARConfig
from genlab.networks.xar import XARConfig
from genlab.processes.arflow import AutoregressiveFlowConfig
from genlab.processes.consistency import ConsistencyConfig
from genlab.processes.continuous_consistency import ContinuousConsistencyConfig
from genlab.processes.diffusion import DiffusionConfig
from genlab.processes.edm import EdmConfig
from genlab.processes.few_step import FewStepConfig
from genlab.processes.flow import FlowConfig
from genlab.processes.improved_mean_flow import ImprovedMeanFlowConfig
from genlab.processes.masked import MaskedConfig
from genlab.processes.mean_flow import MeanFlowConfig
from genlab.processes.next_scale import NextScaleConfig
from genlab.processes.next_x import NextXConfig
from genlab.processes.residual_masked import ResidualMaskedConfig
from genlab.processes.shortcut import ShortcutConfig
from genlab.processes.vp import VpDiffusionConfig
from genlab.tokenization.configs import TokenizerConfig
from genlab.tokenization.pixels import Pixels
from genlab.tokenization.trained import Trained
from genlab.training.reconstruction import ReconstructionSettings
from genlab.training.representation import RepresentationAlignment
from genlab.training.settings import TrainingSettings

TRUST_MODULES = "trust_modules"  # key of the validation context: may `name: package.module:Class` be imported?


def _own_class(value: Any, handler: Any, info: ValidationInfo) -> Any:
    """Let `name: package.module:Class` stand for a config class outside genlab."""
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or ":" not in name:
        return handler(value)
    if not (info.context or {}).get(TRUST_MODULES):
        raise PydanticCustomError(
            "untrusted", "{name} is code from outside genlab; pass --trust to import it", {"name": name}
        )
    module, _, attribute = name.partition(":")
    try:
        owner = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PydanticCustomError(
            "no_class", "cannot import {name}: {error}", {"name": name, "error": str(error)}
        ) from error
    if not (isinstance(owner, type) and issubclass(owner, Settings)):
        raise PydanticCustomError("no_class", "{name} is no subclass of genlab.core.settings.Settings", {"name": name})
    return owner.model_validate(value, context=info.context)


_open = WrapValidator(_own_class)
_SingleNetwork = Annotated[
    DiTConfig
    | IntervalDiTConfig
    | IMFDiTConfig
    | DiMRConfig
    | FiTConfig
    | ARFlowConfig
    | EdmUNetConfig
    | Edm2Config
    | VARConfig
    | FlexVARConfig
    | MVARConfig
    | ResGenConfig
    | ENATConfig
    | MaskedTransformerConfig
    | XARConfig,
    Field(discriminator="name"),
]
NetworkConfig = Annotated[_SingleNetwork | RoutedConfig[Annotated[_SingleNetwork, _open]], Field(discriminator="name")]
ProcessConfig = Annotated[
    FlowConfig
    | DiffusionConfig
    | VpDiffusionConfig
    | AutoregressiveFlowConfig
    | EdmConfig
    | ConsistencyConfig
    | ContinuousConsistencyConfig
    | NextScaleConfig
    | MeanFlowConfig
    | ImprovedMeanFlowConfig
    | ShortcutConfig
    | ResidualMaskedConfig
    | NextXConfig
    | FewStepConfig
    | MaskedConfig,
    Field(discriminator="name"),
]
DistillationConfig = Annotated[
    Dmd2Settings
    | ConsistencyDistillation
    | ContinuousConsistencyDistillation
    | ProgressiveDistillation
    | Reflow
    | ScoreMatchingSettings
    | MultiStudentSettings,
    Field(discriminator="name"),
]
S = TypeVar("S", bound=SamplingSettings)


class GeneratorConfig(Settings, Generic[S]):
    """What a generator is made of."""

    tokenizer: Annotated[Annotated[Pixels | Trained, Field(discriminator="name")], _open] = Pixels()
    network: Annotated[NetworkConfig, _open]
    process: Annotated[ProcessConfig, _open]
    sampling: S
    """Default sampling settings; which keys there are depends on the process."""


class _Run(Settings):
    """What every training run says, whatever it trains."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """The run's folder below runs/; by default made of the config's path."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    license: str = Field(default="unspecified", max_length=200)
    """Licence of the trained weights, written into the export."""
    data: Annotated[DataConfig, _open]
    training: TrainingSettings
    expected: tuple[ExpectedScore, ...] = ()
    """Published or measured scores, which `genlab evaluate --check` compares with."""

    def identity(self) -> dict[str, Any]:
        """Flat `section.key` -> value of all that must agree for a checkpoint to be continued bit for bit."""
        parts = {"seed", "data", "tokenizer", "network", "process", "training"}
        parts |= {"reconstruction", "alignment", "finetune", "distillation"}
        tree = self.model_dump(mode="json", include=parts)
        free = {"images", "micro_batch", "workers", "compile", "activation_checkpointing", "log_every", "trackers"}
        free |= {"keep_last", "keep_every"} | {
            f"{what}_{how}" for what in ("preview", "checkpoint", "snapshot") for how in ("every", "count")
        }
        tree["training"] = {key: value for key, value in tree["training"].items() if key not in free}
        return dict(_flatten(tree))

    def _refuse_label_dropout(self, what: str) -> None:
        """Raises ConfigError if it is set, for runs that train without it."""
        if self.training.label_dropout != TrainingSettings.model_fields["label_dropout"].default:
            raise ConfigError(f"training.label_dropout means nothing to {what}; remove it")


class TokenizerRunConfig(_Run):
    """One training run of a tokenizer: what reconstructs which images, judged how."""

    tokenizer: Annotated[TokenizerConfig, _open]
    reconstruction: ReconstructionSettings

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        """What can be known without data, weights or a device."""
        self.reconstruction.check(self.tokenizer.latent_spec(self.data.size))
        self._refuse_label_dropout("a tokenizer")
        return self


class RunConfig(_Run, GeneratorConfig[S], Generic[S]):
    """One training run of a generator: what is trained on what, how, and how it samples by default."""

    evaluation: EvaluationSettings = EvaluationSettings()
    finetune: FinetuneSettings | None = None
    """The trained generator to start from, and what of it is trained; by default all of a network with new weights."""
    alignment: RepresentationAlignment | None = None
    """Draw a transformer's hidden tokens towards a vision encoder's features while it trains (REPA)."""
    distillation: DistillationConfig | None = None
    """The trained generator to learn from, and how."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        """What can be known without data, weights or a device."""
        spec = self.tokenizer.latent_spec(self.data.size)
        if spec.kind not in self.process.latents:
            wants = " or ".join(sorted(self.process.latents))
            raise PydanticCustomError(
                "mismatch",
                "process {process} works on {wants} tokens, tokenizer {tokenizer} makes {kind} ones",
                {"process": self.process.name, "wants": wants, "tokenizer": self.tokenizer.name, "kind": spec.kind},
            )
        with torch.device("meta"):
            network = self.network.build(spec, 1)
        check = getattr(self.process, "check", None)  # a process that needs more of its network than the contract says
        if check is not None:
            check(network)
        if self.alignment is not None:
            self.alignment.check(network, spec)
        if self.finetune is not None:
            adapters.apply(network, self.finetune.method)
        self._check_distillation()
        return self

    def _check_distillation(self) -> None:
        """Raises ConfigError for a student that does not suit its teacher's recipe, and for one without a teacher."""
        if self.distillation is None:
            if self.process.name == "few_step":
                raise ConfigError(
                    "process few_step learns from a teacher: add distillation: {name: dmd2, teacher: RUN}"
                )
            return
        if self.finetune is not None or self.alignment is not None:
            raise ConfigError("distillation goes with neither finetune nor alignment; remove them")
        if not self.distillation.drops_labels:
            self._refuse_label_dropout(f"distillation {self.distillation.name}, whose students always know their class")
        teacher, recipe = self.distillation.teacher, self.distillation.recipe
        known = recipe is not None and (Path(recipe).exists() or not Path(teacher).exists())
        self.distillation.check(self.parts(), load(str(recipe)).parts() if known else None)

    def parts(self) -> Parts:
        """What of the generator can be compared before it exists; the network, of one class, holds no memory."""
        spec = self.tokenizer.latent_spec(self.data.size)
        with torch.device("meta"):
            network = self.network.build(spec, 1)
        return Parts(spec, network, self.process.build())


def _flatten(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in tree.items():
        rows += _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return rows


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of numbers and booleans (1e-3 is a number, `no` is a word), and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is no word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag.rsplit(":", 1)[1] in ("null", "merge")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_NUMBERS = {
    "bool": (r"^(?:true|True|false|False)$", "tTfF"),
    "int": (r"^[-+]?(?:0|[1-9][0-9_]*)$", "-+0123456789"),
    "float": (r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
}


def _add_numbers() -> None:
    import re

    for name, (pattern, first) in _NUMBERS.items():
        _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(pattern), list(first))


_add_numbers()


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from None


def read(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The raw tree of a YAML file with `section.key=value` overrides applied. Raises ConfigError."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = sorted(str(file) for file in Path("configs").rglob("*.yaml"))
        raise ConfigError(f"{path}: no such config{nearest(str(path), known)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    tree = _parse(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a config is a mapping of sections, got {type(tree).__name__}")
    tree.setdefault("name", "-".join(path.with_suffix("").parts[-2:]).lstrip(".-"))
    for override in overrides:
        _override(tree, override)
    return tree


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r}: an override reads section.key=value, such as training.lr=3e-4")
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{override!r}: {section!r} is a value, not a section")
    tree[last] = _parse(value, override)


def validate(tree: dict[str, Any], where: str, trust: bool = False) -> RunConfig:
    """The raw tree of a generator's recipe. Raises ConfigError of a line or two: key, value, what is allowed."""
    if is_tokenizer(tree):
        raise ConfigError(f"{where}: the recipe of a tokenizer; a generator's is wanted here")
    return _validate(_of_process(RunConfig, tree, trust), tree, where, trust)


def validate_tokenizer(tree: dict[str, Any], where: str, trust: bool = False) -> TokenizerRunConfig:
    """As `validate`, for the recipe of a tokenizer."""
    return _validate(TokenizerRunConfig, tree, where, trust)


def is_tokenizer(tree: dict[str, Any]) -> bool:
    """Whether a recipe trains a tokenizer: it has a `reconstruction:` section and no network and process."""
    return "reconstruction" in tree and not {"network", "process"} & set(tree)


def validate_parts(tree: dict[str, Any], where: str, trust: bool = False) -> GeneratorConfig:
    """As `validate`, for the parts of a generator alone."""
    return _validate(_of_process(GeneratorConfig, tree, trust), tree, where, trust)


def _of_process(kind: Any, tree: dict[str, Any], trust: bool) -> Any:
    """The generic config class `kind` with the sampling section of the tree's process."""
    return kind[_sampling_class(tree, {TRUST_MODULES: trust})]


def _validate(model: Any, tree: dict[str, Any], where: str, trust: bool) -> Any:
    context = {TRUST_MODULES: trust}
    defaults: dict[str, Any] = {"sampling": {}} if "sampling" in model.model_fields else {}
    try:
        text = json.dumps({**defaults, **tree})  # JSON mode: lists become tuples, but "3" is no number
        return model.model_validate_json(text, strict=True, context=context)
    except ValidationError as error:
        raise ConfigError(describe(error, model, where)) from None
    except (TypeError, ValueError, ConfigError) as error:
        raise ConfigError(f"{where}: {error}") from None


class _ProcessOnly(Settings):
    process: Annotated[ProcessConfig, _open]


def _sampling_class(tree: dict[str, Any], context: dict[str, Any]) -> type[SamplingSettings]:
    """The class of the `sampling:` section, which the process names (any, where the process itself is at fault)."""
    try:
        text = json.dumps({"process": tree.get("process")})
        return _ProcessOnly.model_validate_json(text, strict=True, context=context).process.Sampling
    except (ValidationError, TypeError, ValueError):
        return SamplingSettings


def load(path: str | Path, overrides: Sequence[str] = (), trust: bool = True) -> RunConfig:
    """A generator's recipe with overrides, validated. A file on disk is the user's own, so its modules are trusted."""
    return validate(read(path, overrides), str(path), trust)


def load_run(path: str | Path, overrides: Sequence[str] = (), trust: bool = True) -> RunConfig | TokenizerRunConfig:
    """As `load`, for whatever the recipe trains."""
    tree = read(path, overrides)
    return (validate_tokenizer if is_tokenizer(tree) else validate)(tree, str(path), trust)


def override_sampling(settings: SamplingSettings, overrides: Sequence[str]) -> SamplingSettings:
    """`settings` with `key=value` changes, validated again. Raises ConfigError."""
    tree = settings.model_dump(mode="json")
    for override in overrides:
        _override(tree, override)
    try:
        return type(settings).model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        raise ConfigError(describe(error, type(settings), "sampling")) from None


def dump(config: Settings) -> str:
    """A config as YAML, complete: reading it gives an equal config."""
    tree = config.model_dump(mode="json")
    order = [key for key in ("name", "seed", "license", "data") if key in tree]
    return yaml.safe_dump({key: tree[key] for key in [*order, *tree]}, sort_keys=False, allow_unicode=True)


def schema() -> dict[str, Any]:
    """The JSON schema of a config file (a generator's or a tokenizer's), for editors."""
    flows = FlowConfig.Sampling | AutoregressiveFlowConfig.Sampling
    samplings = flows | DiffusionConfig.Sampling | VpDiffusionConfig.Sampling | EdmConfig.Sampling
    samplings |= FewStepConfig.Sampling | ConsistencyConfig.Sampling
    samplings |= MeanFlowConfig.Sampling | ImprovedMeanFlowConfig.Sampling
    samplings |= NextScaleConfig.Sampling | NextXConfig.Sampling | ResidualMaskedConfig.Sampling | MaskedConfig.Sampling
    return TypeAdapter(RunConfig[samplings] | TokenizerRunConfig).json_schema()  # type: ignore[valid-type, arg-type]

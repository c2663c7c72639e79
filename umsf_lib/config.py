"""Profiles, which hold all settings of a run, and the errors that the library raises.

A profile is a YAML file in ``profiles/``; its sections are the dataclasses below. Pydantic checks
each value against the type beside it; then the values are frozen. An override such as
``cluster.balance=0.5`` changes one value, so you can try something without editing a file.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

IGNORE = 255  # label id of pixels that are never scored
PROFILES = Path(__file__).parent / "profiles"
HARDWARE = ("device", "deterministic", "stale")  # settings that may change when a run is resumed


class UmsfError(Exception):
    """Base class of errors that a user can fix; the message is one sentence."""


class DataError(UmsfError):
    """A file or folder is missing, cannot be read, or does not match the others."""


class WriteError(DataError, OSError):
    """A file cannot be written: the disk is full, or the folder is closed to this user."""


class ConfigError(UmsfError):
    """A parameter is unknown, has the wrong type or is out of range."""


class MissingStageError(UmsfError):
    """A stage is missing: the notebook that writes its files has not been run yet."""


class CheckpointError(UmsfError):
    """A checkpoint is damaged or was made with other settings."""


def _with_exponent(value: Any) -> Any:
    """Convert text such as 1e-3, which YAML does not read as a number."""
    is_number = isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d*)?[eE][+-]?\d+", value)
    return float(value) if is_number else value


Number = Annotated[float, BeforeValidator(_with_exponent)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Sigmas = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
Weights = Annotated[tuple[NonNegative, ...], Field(strict=False, min_length=3, max_length=3)]


@dataclass(frozen=True, config=ConfigDict(strict=True, allow_inf_nan=False))
class Settings:
    """Base of what users write in YAML; unknown names are refused, and values keep their type."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_names(cls, given: Any) -> Any:
        known = [field.name for field in dataclasses.fields(cls)]
        for name in given if isinstance(given, dict) else ():
            if name not in known:
                raise PydanticCustomError("unknown_name", "", {"name": str(name), "known": known})
        return {} if given is None else given  # a section without lines


@dataclass(frozen=True)
class SyntheticConfig(Settings):
    """Synthetic scenes, which are made when no data folder is given."""

    train: PositiveInt = 8
    val: PositiveInt = 4
    test: PositiveInt = 12  # a bootstrap over scenes needs about twelve
    size_px: PositiveInt = 512
    difficulty: Literal["easy", "mild", "realistic"] = "easy"  # mild: less class imbalance


@dataclass(frozen=True)
class ViewConfig(Settings):
    """Windows, and the two augmented views of each window."""

    window_px: PositiveInt = 64
    overlap_px: NonNegativeInt = 16  # between the tiles that make up one epoch
    # Side of the smallest crop, as a share of the window's side.
    scale_min: Annotated[Positive, Field(le=1)] = 0.7
    # Optical jitter, in standard deviations; strong jitter destroys radiometry.
    gain: NonNegative = 0.1
    offset: NonNegative = 0.1
    blur: Share = 0.5  # probability of an optical blur
    speckle_looks: NonNegativeInt = 8  # looks of the extra Gamma speckle on the SAR view; 0: none
    sar_gain: NonNegative = 0.1
    sensor_drop: Share = 0.0  # probability that one of the two sensors is left out of a view


@dataclass(frozen=True)
class DespeckleConfig(Settings):
    """Training of the despeckling front end on synthetic speckle."""

    channels: PositiveInt = 16
    steps: PositiveInt = 200
    batch: PositiveInt = 8
    crop_px: PositiveInt = 48
    lr: Positive = 2e-3


@dataclass(frozen=True)
class ModelConfig(Settings):
    """Encoders, fusion and heads."""

    sensors: Literal["both", "optical", "sar"] = "both"
    backbone: Literal["small", "resnet18", "resnet50"] = "small"
    weights: Literal["none", "imagenet"] = "none"
    norm: Literal["batch", "group"] = "batch"  # group: loses absolute levels
    channels: PositiveInt = 64
    stride: PositiveInt = 4
    fusion: Literal["attention", "concat", "add"] = "attention"
    heads: PositiveInt = 8
    despeckle: bool = True
    projection_hidden: PositiveInt = 128
    projection_dim: PositiveInt = 64
    cluster_hidden: PositiveInt = 64

    def __post_init__(self) -> None:
        """Refuse heads that the attention cannot share its channels between."""
        if (self.sensors, self.fusion) == ("both", "attention") and self.channels % self.heads:
            raise ConfigError(
                f"model.heads is {self.heads}, which does not divide model.channels "
                f"({self.channels}); set model.heads to a divisor of it."
            )


@dataclass(frozen=True)
class PretrainConfig(Settings):
    """Momentum-contrast pretraining."""

    epochs: PositiveInt = 10
    steps_per_epoch: NonNegativeInt = 0  # 0: one window per tile of the training scenes
    batch: PositiveInt = 16
    optimizer: Literal["sgd", "adamw"] = "sgd"  # adamw: use an lr of about .002
    lr: Positive = 0.03  # SGD: for a batch of 32, scaled linearly; AdamW: for any batch
    momentum: Share = 0.9  # SGD only
    weight_decay: NonNegative = 1e-4
    warmup_epochs: NonNegativeInt = 1
    tau: Positive = 0.07
    queue_size: PositiveInt = 2048
    ema: Share = 0.99
    # Weights of a window's positives: its other view, the other sensor, a neighbour (SauMoCo).
    positives: Weights = (
        1.0,
        1.0,
        0.0,
    )
    fused: NonNegative = 1.0  # weight of the contrastive loss on fused tokens
    neighbour_m: NonNegative = 400.0  # largest ground distance to a neighbour, m
    homogeneity: NonNegative = 0.0  # largest difference to a neighbour, in std; 0: any
    pixel_m: Positive = 10.0  # pixel size of scenes that neither a CRS nor a sheet name locates
    tokens: PositiveInt = 16  # dense positives per window
    pooled: Share = 0.5  # share of the pooled contrastive loss; the rest is the dense one
    amp: bool = True
    compile: bool = False  # torch.compile for blocks and loss, on CUDA only
    checkpoint_every: PositiveInt = 100  # steps


@dataclass(frozen=True)
class ClusterConfig(Settings):
    """Local statistics, teacher mixture and self-training of the clustering head."""

    num_clusters: NonNegativeInt = 0  # 0: the number of classes of the data set
    sigmas_px: Sigmas = (1.5, 5.0)
    max_dims: PositiveInt = 16  # of the statistics; PCA reduces them where there are more
    tokens: PositiveInt = 16000
    restarts: PositiveInt = 5
    components: PositiveInt = 2  # Gaussians per cluster, in the teacher and in the merged mixture
    teacher: Literal["mixture", "kmeans"] = "mixture"
    teacher_share: Share = 0.5  # of the teacher in the final posteriors; the rest is the network's
    initial: Literal["pretrained", "random"] = "pretrained"
    rounds: PositiveInt = 1  # from the second on, the network's own posteriors are the teacher
    steps: PositiveInt = 200  # per round
    batch: PositiveInt = 8
    lr: Positive = 2e-3
    clustering: NonNegative = 0.5
    consistency: NonNegative = 0.5
    balance: NonNegative = 0.1  # weak, because land cover is far from balanced
    temperature: Positive = 0.5
    ema: Share = 0.99
    # Sigma of the guided filter on posteriors (of the teacher, of maps); 0: none.
    smoothing_px: NonNegative = 16.0


@dataclass(frozen=True)
class BaselineConfig(Settings):
    """Learned baselines; they see as many windows as UMSF-Net (see ``baselines.base``)."""

    heads: PositiveInt = 3  # DeepCluster, SCAN, mutual information; one is chosen without labels
    prototypes: PositiveInt = 10  # per cluster, in DeepCluster and SwAV; merged afterwards
    tokens: PositiveInt = 64  # samples per window
    queue_size: PositiveInt = 3840  # tokens per view, in SwAV
    lr: Positive = 1e-3


@dataclass(frozen=True)
class MapConfig(Settings):
    """Whole-scene inference and the units of scoring."""

    tile_px: PositiveInt = 512
    overlap_px: NonNegativeInt = 64
    patch_px: PositiveInt = 64  # side of a patch in the patch-majority protocol


@dataclass(frozen=True)
class Config(Settings):
    """All settings that decide the results of a run."""

    profile: str
    data: str = ""  # folder of scenes; empty: synthetic scenes
    layout: str = "whu-opt-sar"
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a CUDA GPU if there is one
    deterministic: bool = False  # bit-identical pretraining on a GPU, but slower
    stale: Literal["say", "keep", "fresh"] = "say"  # of older code: keep and say; keep; train again
    synthetic: SyntheticConfig = SyntheticConfig()
    views: ViewConfig = ViewConfig()
    despeckle: DespeckleConfig = DespeckleConfig()
    model: ModelConfig = ModelConfig()
    pretrain: PretrainConfig = PretrainConfig()
    cluster: ClusterConfig = ClusterConfig()
    baseline: BaselineConfig = BaselineConfig()
    map: MapConfig = MapConfig()

    def __post_init__(self) -> None:
        """Refuse windows that are not a whole number of tokens wide."""
        if self.views.window_px % self.model.stride:
            raise ConfigError(
                f"views.window_px is {self.views.window_px}, which is not a multiple of "
                f"model.stride ({self.model.stride}); set views.window_px to a multiple of it."
            )

    def section(self, *names: str) -> dict[str, Any]:
        """Return the named fields as plain data, for manifests and digests."""
        everything = dataclasses.asdict(self)
        return {name: everything[name] for name in names}

    def changed(self, **changes: Mapping[str, Any]) -> Config:
        """Return a copy with some values changed, for example ``cluster={"balance": 1.0}``.

        Raises:
            ConfigError: see ``load_config``.
        """
        tree = dataclasses.asdict(self)
        return _checked(
            tree | {s: tree.get(s, {}) | new for s, new in changes.items()}, "these changes"
        )


def load_config(
    profile: str, *, data: str = "", layout: str = "", seed: int = 0, overrides: str = ""
) -> Config:
    """Read a profile and apply overrides.

    Args:
        profile: name of a file in ``profiles/``.
        data: folder of scenes; empty for synthetic ones.
        layout: name or YAML path of the layout; empty means ``whu-opt-sar``.
        seed: for scenes, initial weights and all random draws.
        overrides: ``section.key=value`` pairs and top-level ones (``device=cpu``,
            ``deterministic=true``, ``stale=fresh``), separated by spaces.

    Raises:
        ConfigError: the profile, a section or a key is unknown, or a value has the wrong type, is
            not one of the choices, is out of range or does not go with another value.
    """
    import yaml  # here, because building networks from these dataclasses needs no YAML

    path = PROFILES / f"{profile}.yaml"
    check_choice("profile", profile, sorted(p.stem for p in PROFILES.glob("*.yaml")))
    tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for pair in overrides.split():
        name, equals, text = pair.partition("=")
        section, dot, key = name.partition(".")
        if not equals or not (dot or name in HARDWARE):
            raise ConfigError(f"override '{pair}' does not have the form section.key=value.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"override '{pair}': '{text}' is not valid YAML; write a plain value."
            ) from error
        if dot:
            tree[section] = (tree.get(section) or {}) | {key: value}
        else:
            tree[name] = value
    top = {"profile": profile, "data": data, "layout": layout or "whu-opt-sar", "seed": seed}
    return _checked(top | tree, path.name)


def _checked(tree: Mapping[str, Any], where: str) -> Config:
    """Build settings from plain data, read as JSON: strict pydantic takes no dict for a section."""
    try:
        return TypeAdapter(Config).validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        raise ConfigError(first_mistake(error, where)) from error


def first_mistake(error: ValidationError, where: str) -> str:
    """Return one sentence about the first mistake that pydantic found ``where``."""
    found = error.errors()[0]
    name, value, text = ".".join(map(str, found["loc"])), found["input"], found["msg"]
    if found["type"] == "unknown_name":
        prefix, context = name and f"{name}.", found["ctx"]
        return unknown_name(
            prefix + context["name"], [prefix + key for key in context["known"]], where
        )
    if found["type"] == "missing":
        return f"{where} lacks {name}; add it."
    place = f"{name} in {where}" if name else where
    _, should, wanted = text.partition(" should ")  # as in 'Input should be a valid integer'
    if should:
        return f"{place} must {wanted}, but it is {value!r} ({type(value).__name__})."
    return f"{place}: {text.removeprefix('Value error, ')}."


def check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value that is not one of the choices.

    Raises:
        ConfigError: the message lists the choices.
    """
    if value not in choices:
        raise ConfigError(f"{what} '{value}' is unknown; choose one of: {', '.join(choices)}.")


def unknown_name(name: str, known: Iterable[str], where: str) -> str:
    """Return one sentence about an unknown name, with the most similar known one."""
    ends = {full.rpartition(".")[2]: full for full in known}  # without the common section
    near = difflib.get_close_matches(name.rpartition(".")[2], ends, n=1)
    hint = f"did you mean '{ends[near[0]]}'?" if near else f"known: {', '.join(ends.values())}."
    return f"'{name}' is not a parameter of {where}; {hint}"

"""Profiles: every number of a run, validated once, frozen; and the errors the library raises.

A profile is a YAML file in ``profiles/``; its sections are the dataclasses below. One value is
changed with an override such as ``cluster.balance=0.5``, so nothing is edited to try something.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IGNORE = 255  # train label of pixels that are never scored
PROFILES = Path(__file__).parent / "profiles"


class UmsfError(Exception):
    """Base of every error a user can mend; its message is one sentence."""


class DataError(UmsfError):
    """A file or folder is missing, unreadable, or does not fit the other ones."""


class ConfigError(UmsfError):
    """A parameter is unknown, mistyped or out of range."""


class MissingStageError(UmsfError):
    """A notebook was started before the one whose files it reads."""


class CheckpointError(UmsfError):
    """A checkpoint is damaged or belongs to other settings."""


@dataclass(frozen=True)
class SyntheticConfig:
    """Synthetic scenes, made when no data folder is given."""

    train: int = 8
    val: int = 4
    test: int = 12  # a bootstrap over scenes needs a dozen
    size_px: int = 512
    difficulty: str = "easy"  # easy | mild: with less imbalance | realistic


@dataclass(frozen=True)
class ViewConfig:
    """Windows and the two augmented views of each."""

    window_px: int = 64
    overlap_px: int = 16  # of the tiling that defines one epoch
    scale_min: float = 0.7  # side of the smallest crop, in windows; small crops lose context
    gain: float = 0.1  # optical, in standard deviations: strong jitter destroys radiometry
    offset: float = 0.1
    blur: float = 0.5  # probability of an optical blur
    speckle_looks: int = 8  # extra speckle on the SAR view: Gamma of this many looks; 0: none
    sar_gain: float = 0.1
    sensor_drop: float = 0.0  # probability that a view lacks one of two sensors


@dataclass(frozen=True)
class DespeckleConfig:
    """Training of the despeckling front end on synthetic speckle."""

    channels: int = 16
    steps: int = 200
    batch: int = 8
    crop_px: int = 48
    lr: float = 2e-3


@dataclass(frozen=True)
class ModelConfig:
    """Encoders, fusion and heads."""

    sensors: str = "both"  # both | optical | sar
    backbone: str = "small"  # small | resnet18 | resnet50
    weights: str = "none"  # none | imagenet
    norm: str = "batch"  # group: nothing is shared in a batch, but levels are lost
    channels: int = 64
    stride: int = 4
    fusion: str = "attention"
    heads: int = 8
    despeckle: bool = True
    projection_hidden: int = 128
    projection_dim: int = 64
    cluster_hidden: int = 64


@dataclass(frozen=True)
class PretrainConfig:
    """Momentum-contrast pretraining."""

    epochs: int = 10
    steps_per_epoch: int = 0  # 0: as many windows as the training scenes have tiles
    batch: int = 16
    optimizer: str = "sgd"  # sgd | adamw, whose lr is about .002
    lr: float = 0.03  # of SGD for a batch of 32, scaled linearly; of AdamW for any batch
    momentum: float = 0.9  # of SGD
    weight_decay: float = 1e-4
    warmup_epochs: int = 1
    tau: float = 0.07
    queue_size: int = 2048
    ema: float = 0.99
    # Weights of a window's positives: another view of it, the other sensor, a neighbour (SauMoCo).
    positives: tuple[float, float, float] = (1.0, 1.0, 0.0)
    fused: float = 1.0  # weight of the fused tokens' contrast
    neighbour_m: float = 400.0  # ground distance of the farthest neighbour
    homogeneity: float = 0.0  # keep neighbours this alike, in standard deviations; 0: all
    pixel_m: float = 10.0  # of scenes that neither CRS nor sheet name place on the ground
    tokens: int = 16  # dense positives per window
    pooled: float = 0.5  # share of the pooled contrast; the rest is dense
    amp: bool = True
    compile: bool = False  # torch.compile of blocks and loss, on CUDA only
    checkpoint_every: int = 100  # steps


@dataclass(frozen=True)
class ClusterConfig:
    """Local statistics, teacher mixture, self-training of the clustering head."""

    num_clusters: int = 0  # 0: as many as the data set has classes
    sigmas_px: tuple[float, ...] = (1.5, 5.0)
    max_dims: int = 16  # of the statistics, by PCA where there are more
    tokens: int = 16000
    restarts: int = 5
    components: int = 2  # per cluster, of the teacher and of the merged mixture
    teacher: str = "mixture"  # mixture | kmeans
    teacher_share: float = 0.5  # of the final posteriors; the network has the rest
    initial: str = "pretrained"  # pretrained | random
    rounds: int = 1  # in further ones the network's own posteriors are the teacher
    steps: int = 200  # per round
    batch: int = 8
    lr: float = 2e-3
    clustering: float = 0.5
    consistency: float = 0.5
    balance: float = 0.1  # weak: land cover is far from balanced
    temperature: float = 0.5
    ema: float = 0.99
    smoothing_px: float = 16.0  # reach of the guided filter on posteriors, teacher's and maps'


@dataclass(frozen=True)
class BaselineConfig:
    """Learned baselines; they see as many windows as ours (see ``baselines.base``)."""

    heads: int = 3  # of DeepCluster, SCAN, mutual information; one is chosen without labels
    prototypes: int = 10  # per cluster, DeepCluster and SwAV: merged afterwards
    tokens: int = 64  # samples per window
    queue_size: int = 3840  # of SwAV, tokens per view
    lr: float = 1e-3


@dataclass(frozen=True)
class MapConfig:
    """Whole-scene inference and scoring units."""

    tile_px: int = 512
    overlap_px: int = 64
    patch_px: int = 64  # patch-majority protocol


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's numbers."""

    profile: str
    data: str = ""  # folder of scenes; empty: synthetic scenes
    layout: str = "whu-opt-sar"
    seed: int = 0
    device: str = "auto"  # auto: a CUDA GPU when there is one | cpu | cuda
    deterministic: bool = False  # pretraining on a GPU: bit for bit the same, but slower
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    despeckle: DespeckleConfig = field(default_factory=DespeckleConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    map: MapConfig = field(default_factory=MapConfig)

    def section(self, *names: str) -> dict[str, Any]:
        """The named fields as plain data, for manifests and digests."""
        everything = dataclasses.asdict(self)
        return {name: everything[name] for name in names}

    def changed(self, **changes: Mapping[str, Any]) -> Config:
        """With other values in some sections, for example ``cluster={"balance": 1.0}``."""
        sections = {s: dataclasses.replace(getattr(self, s), **new) for s, new in changes.items()}
        return dataclasses.replace(self, **sections)


HARDWARE = ("device", "deterministic")  # settings that may differ where a run goes on

CHOICES = {
    "device": ("auto", "cpu", "cuda"),
    "synthetic.difficulty": ("easy", "mild", "realistic"),
    "model.sensors": ("both", "optical", "sar"),
    "model.backbone": ("small", "resnet18", "resnet50"),
    "model.weights": ("none", "imagenet"),
    "model.norm": ("group", "batch"),
    "model.fusion": ("concat", "add", "attention"),
    "pretrain.optimizer": ("sgd", "adamw"),
    "cluster.teacher": ("mixture", "kmeans"),
    "cluster.initial": ("pretrained", "random"),
}

_ZERO_ALLOWED = {
    "views": "overlap_px gain offset blur speckle_looks sar_gain sensor_drop",
    "pretrain": "steps_per_epoch momentum weight_decay warmup_epochs ema positives fused pooled "
    "neighbour_m homogeneity",
    "cluster": "num_clusters teacher_share clustering consistency balance ema smoothing_px",
    "map": "overlap_px",
}
_AT_MOST_ONE = {
    "views": "scale_min blur sensor_drop",
    "pretrain": "momentum ema pooled",
    "cluster": "teacher_share ema",
}
ZERO_ALLOWED, AT_MOST_ONE = (
    {f"{section}.{key}" for section, keys in table.items() for key in keys.split()}
    for table in (_ZERO_ALLOWED, _AT_MOST_ONE)
)


def load_config(
    profile: str,
    *,
    data: str = "",
    layout: str = "",
    seed: int = 0,
    overrides: str = "",
) -> Config:
    """Read a profile and apply overrides.

    Args:
        profile: name of a file in ``profiles/``.
        data: folder of scenes; empty for synthetic ones.
        layout: name or YAML path of the layout; empty means ``whu-opt-sar``.
        seed: of scenes, initial weights and every draw.
        overrides: ``section.key=value`` pairs, and ``device=value`` and ``deterministic=true``,
            separated by spaces.

    Raises:
        ConfigError: unknown profile, section, key, wrong type, choice or range.
    """
    import yaml  # not above: the networks are built from these dataclasses without any file

    path = PROFILES / f"{profile}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise ConfigError(f"profile '{profile}' is unknown; choose one of: {known}.")
    tree = yaml.safe_load(path.read_text()) or {}
    for pair in overrides.split():
        _apply_override(tree, pair)
    top = {"profile": profile, "data": data, "layout": layout or "whu-opt-sar", "seed": seed}
    return _build(Config, top | tree, str(path.name), "")


def _apply_override(tree: dict[str, Any], pair: str) -> None:
    import yaml

    name, equals, text = pair.partition("=")
    section, dot, key = name.partition(".")
    if not equals or not (dot or name in HARDWARE):
        raise ConfigError(f"override '{pair}' has not the form section.key=value.")
    try:
        target = tree.setdefault(section, {}) if dot else tree
        target[key or name] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override '{pair}': '{text}' is no value; write it as YAML.") from error


def _build(cls: Any, values: Mapping[str, Any], source: str, prefix: str) -> Any:
    kinds = typing.get_type_hints(cls)
    unknown = [name for name in values if name not in kinds]
    if unknown:
        raise ConfigError(unknown_name(prefix + unknown[0], [prefix + k for k in kinds], source))
    built = {}
    for name, value in values.items():
        full, kind = prefix + name, kinds[name]
        if dataclasses.is_dataclass(kind):
            built[name] = _build(kind, value or {}, source, full + ".")
        else:
            built[name] = _check(value, kind, full, source)
    return cls(**built)


def _check(value: Any, kind: Any, name: str, source: str) -> Any:
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        kinds = typing.get_args(kind)
        if kinds[-1] is not ... and len(value) != len(kinds):
            raise ConfigError(
                f"{name} in {source} must be {len(kinds)} numbers, but it is {list(value)}."
            )
        return tuple(_check(v, kinds[0], name, source) for v in value)
    if kind is float:
        value = _as_float(value)
    if type(value) is not kind:
        wanted = getattr(kind, "__name__", str(kind))
        got = f"{value!r} ({type(value).__name__})"
        raise ConfigError(f"{name} in {source} must be {wanted}, but it is {got}.")
    allowed = CHOICES.get(name)
    if allowed and value not in allowed:
        raise ConfigError(f"{name} is {value!r}, but it must be one of {', '.join(allowed)}.")
    if kind in (int, float):
        _check_range(value, name)
    return value


def _check_range(value: float, name: str) -> None:
    if not 0 <= value < math.inf:
        raise ConfigError(f"{name} is {value}, but it must be finite and not negative.")
    if value == 0 and name not in ZERO_ALLOWED | {"seed"}:
        raise ConfigError(f"{name} is 0, but it must be larger.")
    if value > 1 and name in AT_MOST_ONE:
        raise ConfigError(f"{name} is {value}, but it must be at most 1.")


def _as_float(value: Any) -> Any:
    """Whole numbers, and 1e-3, which YAML takes for a text because it has no point."""
    if isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return float(value) if type(value) is int else value


def unknown_name(name: str, known: typing.Iterable[str], where: str) -> str:
    """One sentence about a misspelt name, with the nearest known one."""
    ends = {full.rpartition(".")[2]: full for full in known}  # without the section, which all share
    near = difflib.get_close_matches(name.rpartition(".")[2], ends, n=1)
    hint = f"did you mean '{ends[near[0]]}'?" if near else f"known: {', '.join(ends.values())}."
    return f"'{name}' is not a parameter of {where}; {hint}"

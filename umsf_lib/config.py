"""Profiles, which hold all settings of a run, and the errors that the library raises.

A profile is a YAML file in ``profiles/``; its sections are the dataclasses below. Values are
validated once and then frozen. An override such as ``cluster.balance=0.5`` changes one value, so
you can try something without editing a file.
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

IGNORE = 255  # label id of pixels that are never scored
PROFILES = Path(__file__).parent / "profiles"


class UmsfError(Exception):
    """Base class of errors that a user can fix; the message is one sentence."""


class DataError(UmsfError):
    """A file or folder is missing, cannot be read, or does not match the others."""


class ConfigError(UmsfError):
    """A parameter is unknown, has the wrong type or is out of range."""


class MissingStageError(UmsfError):
    """A stage is missing: the notebook that writes its files has not been run yet."""


class CheckpointError(UmsfError):
    """A checkpoint is damaged or was made with other settings."""


@dataclass(frozen=True)
class SyntheticConfig:
    """Synthetic scenes, which are made when no data folder is given."""

    train: int = 8
    val: int = 4
    test: int = 12  # a bootstrap over scenes needs about twelve
    size_px: int = 512
    difficulty: str = "easy"  # easy | mild (less class imbalance) | realistic


@dataclass(frozen=True)
class ViewConfig:
    """Windows, and the two augmented views of each window."""

    window_px: int = 64
    overlap_px: int = 16  # between the tiles that make up one epoch
    scale_min: float = 0.7  # side of the smallest crop, as a share of the window's side
    gain: float = 0.1  # optical jitter, in standard deviations; strong jitter destroys radiometry
    offset: float = 0.1
    blur: float = 0.5  # probability of an optical blur
    speckle_looks: int = 8  # looks of the extra Gamma speckle on the SAR view; 0: none
    sar_gain: float = 0.1
    sensor_drop: float = 0.0  # probability that one of the two sensors is left out of a view


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
    norm: str = "batch"  # batch | group: independent of the batch, but loses absolute levels
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
    steps_per_epoch: int = 0  # 0: one window per tile of the training scenes
    batch: int = 16
    optimizer: str = "sgd"  # sgd | adamw (use an lr of about .002)
    lr: float = 0.03  # SGD: for a batch of 32, scaled linearly; AdamW: for any batch
    momentum: float = 0.9  # SGD only
    weight_decay: float = 1e-4
    warmup_epochs: int = 1
    tau: float = 0.07
    queue_size: int = 2048
    ema: float = 0.99
    # Weights of a window's positives: its other view, the other sensor, a neighbour (SauMoCo).
    positives: tuple[float, float, float] = (1.0, 1.0, 0.0)
    fused: float = 1.0  # weight of the contrastive loss on fused tokens
    neighbour_m: float = 400.0  # largest ground distance to a neighbour, m
    homogeneity: float = 0.0  # largest difference to a neighbour, in standard deviations; 0: any
    pixel_m: float = 10.0  # pixel size of scenes that neither a CRS nor a sheet name locates
    tokens: int = 16  # dense positives per window
    pooled: float = 0.5  # share of the pooled contrastive loss; the rest is the dense one
    amp: bool = True
    compile: bool = False  # torch.compile for blocks and loss, on CUDA only
    checkpoint_every: int = 100  # steps


@dataclass(frozen=True)
class ClusterConfig:
    """Local statistics, teacher mixture and self-training of the clustering head."""

    num_clusters: int = 0  # 0: the number of classes of the data set
    sigmas_px: tuple[float, ...] = (1.5, 5.0)
    max_dims: int = 16  # of the statistics; PCA reduces them where there are more
    tokens: int = 16000
    restarts: int = 5
    components: int = 2  # Gaussians per cluster, in the teacher and in the merged mixture
    teacher: str = "mixture"  # mixture | kmeans
    teacher_share: float = 0.5  # of the teacher in the final posteriors; the rest is the network's
    initial: str = "pretrained"  # pretrained | random
    rounds: int = 1  # from the second round on, the network's own posteriors are the teacher
    steps: int = 200  # per round
    batch: int = 8
    lr: float = 2e-3
    clustering: float = 0.5
    consistency: float = 0.5
    balance: float = 0.1  # weak, because land cover is far from balanced
    temperature: float = 0.5
    ema: float = 0.99
    smoothing_px: float = 16.0  # sigma of the guided filter on posteriors (teacher, maps); 0: none


@dataclass(frozen=True)
class BaselineConfig:
    """Learned baselines; they see as many windows as UMSF-Net (see ``baselines.base``)."""

    heads: int = 3  # DeepCluster, SCAN, mutual information; one is chosen without labels
    prototypes: int = 10  # per cluster, in DeepCluster and SwAV; merged afterwards
    tokens: int = 64  # samples per window
    queue_size: int = 3840  # tokens per view, in SwAV
    lr: float = 1e-3


@dataclass(frozen=True)
class MapConfig:
    """Whole-scene inference and the units of scoring."""

    tile_px: int = 512
    overlap_px: int = 64
    patch_px: int = 64  # side of a patch in the patch-majority protocol


@dataclass(frozen=True)
class Config:
    """All settings that decide the results of a run."""

    profile: str
    data: str = ""  # folder of scenes; empty: synthetic scenes
    layout: str = "whu-opt-sar"
    seed: int = 0
    device: str = "auto"  # auto (a CUDA GPU if there is one) | cpu | cuda
    deterministic: bool = False  # bit-identical pretraining on a GPU, but slower
    stale: str = "say"  # training by older code: say: kept, with a warning | keep | fresh: again
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    despeckle: DespeckleConfig = field(default_factory=DespeckleConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    map: MapConfig = field(default_factory=MapConfig)

    def section(self, *names: str) -> dict[str, Any]:
        """Return the named fields as plain data, for manifests and digests."""
        everything = dataclasses.asdict(self)
        return {name: everything[name] for name in names}

    def changed(self, **changes: Mapping[str, Any]) -> Config:
        """Return a copy with some values changed, for example ``cluster={"balance": 1.0}``."""
        sections = {s: dataclasses.replace(getattr(self, s), **new) for s, new in changes.items()}
        return dataclasses.replace(self, **sections)


HARDWARE = ("device", "deterministic", "stale")  # settings that may change when a run is resumed

CHOICES = {
    "device": ("auto", "cpu", "cuda"),
    "stale": ("say", "keep", "fresh"),
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
        seed: for scenes, initial weights and all random draws.
        overrides: ``section.key=value`` pairs and top-level ones (``device=cpu``,
            ``deterministic=true``, ``stale=fresh``), separated by spaces.

    Raises:
        ConfigError: the profile, a section or a key is unknown, or a value has the wrong type, is
            not one of the choices or is out of range.
    """
    import yaml  # here, because building networks from these dataclasses needs no YAML

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
        raise ConfigError(f"override '{pair}' does not have the form section.key=value.")
    try:
        target = tree.setdefault(section, {}) if dot else tree
        target[key or name] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override '{pair}': '{text}' is not valid YAML; write a plain value."
        ) from error


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
        raise ConfigError(f"{name} is 0, but it must be larger than 0.")
    if value > 1 and name in AT_MOST_ONE:
        raise ConfigError(f"{name} is {value}, but it must be at most 1.")


def _as_float(value: Any) -> Any:
    """Convert whole numbers, and text such as 1e-3, which YAML does not read as a number."""
    if isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return float(value) if type(value) is int else value


def unknown_name(name: str, known: typing.Iterable[str], where: str) -> str:
    """Return one sentence about an unknown name, with the most similar known one."""
    ends = {full.rpartition(".")[2]: full for full in known}  # without the common section
    near = difflib.get_close_matches(name.rpartition(".")[2], ends, n=1)
    hint = f"did you mean '{ends[near[0]]}'?" if near else f"known: {', '.join(ends.values())}."
    return f"'{name}' is not a parameter of {where}; {hint}"

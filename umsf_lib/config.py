"""Profiles, which hold all settings of a run, and the errors that the library raises.

A profile is a YAML file in ``profiles/``; its sections are the dataclasses below. Pydantic checks
each value against the type beside it; then the values are frozen. An override such as
``cluster.balance=0.5`` changes one value, so you can try something without editing a file.
"""

from __future__ import annotations

import codecs
import dataclasses
import difflib
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
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
MOST_CLASSES = 254  # and clusters: maps are uint8, where 0 is nodata and 255 is ``IGNORE``
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # no part of a name
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


class Stopped(KeyboardInterrupt):
    """A signal stopped the command; a training has written a checkpoint and says where."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number  # of the signal


def expanded(path: str | Path) -> Path:
    """Return a path that a user gave, with ``~`` replaced by the home folder.

    Raises:
        ConfigError: it holds bytes that are not text in this locale.
    """
    if re.search("[\ud800-\udfff]", str(path)):
        raise ConfigError(
            f"{str(path)!r} is not text in this locale; set PYTHONUTF8=1, or rename the folder."
        )
    return Path(os.path.expanduser(path))  # Path.expanduser fails where there is no such user


def composed(text: str) -> str:
    """Return text with composed characters (NFC), because macOS decomposes names of files."""
    return unicodedata.normalize("NFC", text)


def read_text(path: Path) -> str:
    """Read a text that a user wrote: UTF-8, or UTF-16 that begins with its mark; see ``composed``.

    Raises:
        DataError: the file cannot be read or has another encoding.
    """
    try:
        content = path.read_bytes()
        marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path} line {line} is not UTF-8; save the file as UTF-8.") from error
    if "\0" in text:
        raise DataError(f"{path} holds null bytes, so it is not UTF-8; save the file as UTF-8.")
    return composed(text.replace("\ufeff", ""))  # marks of files that were joined


class _Loader(yaml.SafeLoader):
    """Reads as numbers only what is spelled as such, and refuses a key that is there twice.

    YAML 1.1 would read 010 as 8, 1:30 as 90, 1.10 as 1.1 and 2020-01-01 as a date; here they stay
    text, which names keep and numbers convert or refuse.
    """

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        tag: str = super().resolve(kind, value, implicit)
        typed = kind is yaml.ScalarNode and implicit[0] and not tag.endswith((":null", ":bool"))
        if typed and not re.fullmatch(r"-?(0|[1-9]\d*)(\.(0|\d*[1-9]))?|-?\.inf|\.nan|<<", value):
            return "tag:yaml.org,2002:str"
        return tag

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = []
        for key, _ in node.value:
            if key.tag.endswith((":bool", ":null")):
                key.tag = "tag:yaml.org,2002:str"  # as written: no value goes by a key true
            if key.value in seen:
                problem = f"'{key.value}' is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.append(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, where: str) -> Any:
    """Read YAML 1.1 without its surprises (see ``_Loader``).

    Raises:
        ConfigError: the text is not YAML or has a key twice; the message names the line.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:  # !!int x
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        reason = " ".join((getattr(error, "problem", "") or str(error)).split())
        raise ConfigError(
            f"{where} cannot be read as YAML: {line}{reason}; correct it there."
        ) from error


def _number(value: Any) -> Any:
    """Convert the text of a number that is not spelled as Python prints it, as in 1e-3 or .50."""
    spelled = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
    return float(value) if isinstance(value, str) and re.fullmatch(spelled, value) else value


Number = Annotated[float, BeforeValidator(_number)]
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
class SceneConfig(Settings):
    """How scenes are read."""

    # Replaces the rule of both sensors in the layout (see ``layout.Sensor``); layout: keeps it.
    standardise: Literal["layout", "set", "shrunken", "scene"] = "layout"


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
    band_drop: Share = 0.0  # probability that an optical band is left out of a view


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
    # Start of pretraining: umsf-small has seen Sentinel pairs and simulated scenes (models.kept).
    weights: Literal["none", "imagenet", "umsf-small"] = "none"
    norm: Literal["batch", "group"] = "batch"  # group: loses absolute levels
    channels: PositiveInt = 64
    stride: PositiveInt = 4
    fusion: Literal["attention", "concat", "add", "asanet", "amm_fusenet", "ref_net"] = "attention"
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

    # 0: the number of classes of the data set, 12 if it has none
    num_clusters: Annotated[NonNegativeInt, Field(le=MOST_CLASSES)] = 0
    sigmas_px: Sigmas = (1.5, 5.0)
    max_dims: PositiveInt = 16  # of each kind of token; PCA reduces them where there are more
    tokens: PositiveInt = 16000
    restarts: PositiveInt = 5
    components: PositiveInt = 2  # Gaussians per cluster, in the teacher and in the merged mixture
    teacher: Literal["mixture", "kmeans"] = "mixture"
    # What the teacher clusters; the network is that which self-training starts from (``initial``).
    # auto: both, but statistics for simulated scenes, whose classes differ in nothing else.
    teacher_tokens: Literal["auto", "statistics", "network", "both"] = "auto"
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
class SupervisedConfig(Settings):
    """Training of the fusion networks with labels."""

    backbone: Literal["small", "resnet18", "resnet50", "convnext_tiny"] = "small"
    weights: Literal["none", "imagenet", "umsf-small"] = "none"  # of the backbone, at first
    channels: PositiveInt = 64  # of the decoders
    steps: PositiveInt = 600
    batch: PositiveInt = 16
    lr: Positive = 1e-3
    weight_decay: NonNegative = 5e-4
    power: Positive = 0.9  # of the polynomial schedule of the learning rate
    labelled: Annotated[Share, Field(gt=0)] = 1.0  # of the training windows


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
    seed: Annotated[NonNegativeInt, Field(lt=2**32)] = 0  # scikit-learn takes no larger one
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a CUDA GPU if there is one
    deterministic: bool = False  # bit-identical pretraining on a GPU, but slower
    stale: Literal["say", "keep", "fresh"] = "say"  # of older code: keep and say; keep; train again
    synthetic: SyntheticConfig = SyntheticConfig()
    scenes: SceneConfig = SceneConfig()
    views: ViewConfig = ViewConfig()
    despeckle: DespeckleConfig = DespeckleConfig()
    model: ModelConfig = ModelConfig()
    pretrain: PretrainConfig = PretrainConfig()
    cluster: ClusterConfig = ClusterConfig()
    baseline: BaselineConfig = BaselineConfig()
    supervised: SupervisedConfig = SupervisedConfig()
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
    path = PROFILES / f"{profile}.yaml"
    check_choice("profile", profile, sorted(p.stem for p in PROFILES.glob("*.yaml")))
    text = read_text(path)
    tree = read_yaml(text, path.name) or {}
    for pair in overrides.split():
        name, equals, spelled = pair.partition("=")
        section, dot, key = name.partition(".")
        if not equals or bool(dot) == (section in HARDWARE):
            raise ConfigError(f"override '{pair}' does not have the form section.key=value.")
        value = read_yaml(spelled, f"override '{pair}': '{spelled}'")
        if dot:
            tree[section] = (tree.get(section) or {}) | {key: value}
        else:
            tree[name] = value
    top = {"profile": profile, "data": data, "layout": layout or "whu-opt-sar", "seed": seed}
    return _checked(top | tree, path.name, "" if overrides else text)


def _checked(tree: Mapping[str, Any], where: str, text: str = "") -> Config:
    """Build settings from plain data, read as JSON: strict pydantic takes no dict for a section."""
    try:
        return TypeAdapter(Config).validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        raise ConfigError(first_mistake(error, where, text)) from error


def first_mistake(error: ValidationError, where: str, yaml_text: str = "") -> str:
    """Return one sentence about the first mistake that pydantic found ``where``.

    It begins with the line, if the mistake is in ``yaml_text``.
    """
    found = error.errors()[0]
    line = _line_of((*found["loc"], found.get("ctx", {}).get("name")), yaml_text)
    return (f"Line {line}: " if line else "") + _sentence(found, where)


def _line_of(steps: Sequence[Any], text: str) -> int:
    """Return the line that a path of keys and positions leads to, as far as it goes; 0: none."""
    node, line = yaml.compose(text, _Loader), 0
    for step in steps:
        if isinstance(node, yaml.MappingNode):
            key, node = next((pair for pair in node.value if pair[0].value == step), (None, node))
        elif isinstance(node, yaml.SequenceNode) and step in range(len(node.value)):
            key = node = node.value[step]
        else:
            break
        line = key.start_mark.line + 1 if key else line
    return line


def _sentence(found: Any, where: str) -> str:
    """Say what is wrong with one value."""
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
        quotes = "; put a word such as no in quotes" if isinstance(value, bool) else ""
        return f"{place} must {wanted}, but it is {value!r} ({type(value).__name__}){quotes}."
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

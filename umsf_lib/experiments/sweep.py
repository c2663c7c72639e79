"""Suites of runs that compare methods and variants.

A suite has one run folder per variant and seed, with the methods that it compares there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ..baselines import LEARNED
from ..config import Config, ConfigError, DataError, check_choice
from ..data.layout import load_layout
from ..models.kept import fits_kept
from ..run import Run, other_settings, project_root
from ..supervised import CEILING
from ..supervised.networks import FUSING, NETWORKS
from .pipeline import METHODS, USUAL, pretrain_run, run_everything, stages_of
from .records import RunRecord, is_evaluated, read_records, read_run

FOURFOLD = "4 x the profile's"  # a value that depends on the profile
# Question -> variant -> section -> values that differ from the profile's.
GROUPS: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
    "sensors": {
        "optical": {"model": {"sensors": "optical"}},
        "sar": {"model": {"sensors": "sar"}},
    },
    "fusion": {name: {"model": {"fusion": name}} for name in ("concat", "add")},
    "pretraining": {
        "no_pretraining": {"cluster": {"initial": "random"}},
        "epochs_x4": {"pretrain": {"epochs": FOURFOLD}},
        "umsf_small": {
            "model": {"weights": "umsf-small"},
            "pretrain": {"optimizer": "adamw", "lr": 0.0005},
        },
    },
    # The layout's own rule is left out (see ``Sweep.variants``).
    "standardisation": {
        f"standardise_{rule}": {"scenes": {"standardise": rule}}
        for rule in ("set", "shrunken", "scene")
    },
    "loss terms": {
        "no_intra": {"pretrain": {"positives": (0.0, 1.0, 0.0)}},
        "no_cross": {"pretrain": {"positives": (1.0, 0.0, 0.0)}},
        "no_fused": {"pretrain": {"fused": 0.0}},
        "with_fused": {"pretrain": {"fused": 1.0}},
        "no_clustering": {"cluster": {"clustering": 0.0}},
        "no_consistency": {"cluster": {"consistency": 0.0}},
    },
    "teacher": {
        "teacher_kmeans": {"cluster": {"teacher": "kmeans"}},
        "teacher_statistics": {"cluster": {"teacher_tokens": "statistics"}},
        "teacher_network": {"cluster": {"teacher_tokens": "network"}},
        "network_alone": {"cluster": {"teacher_share": 0.0}},
        "two_rounds": {"cluster": {"rounds": 2}},
    },
    "components": {
        "components_1": {"cluster": {"components": 1}},
        "components_2": {"cluster": {"components": 2}},
        "components_3": {"cluster": {"components": 3}},
    },
    "balance": {
        "balance_0": {"cluster": {"balance": 0.0}},
        "balance_1": {"cluster": {"balance": 1.0}},
    },
    "smoothing": {"no_smoothing": {"cluster": {"smoothing_px": 0.0}}},
    "windows": {
        # The profile's own size is left out (see ``Sweep.variants``).
        "windows_32": {"views": {"window_px": 32, "overlap_px": 8}},
        "windows_64": {"views": {"window_px": 64, "overlap_px": 16}},
        "windows_128": {"views": {"window_px": 128, "overlap_px": 32}},
    },
    "steps": {"steps_x4": {"cluster": {"steps": FOURFOLD}}},
    # Rare classes are less rare. The test scenes differ from those of base, so none can be paired.
    "imbalance": {"mild_imbalance": {"synthetic": {"difficulty": "mild"}}},
    # Contrastive and clustering loss with weight 1 on pooled windows, seven clusters, no teacher.
    # Clustering follows pretraining; the paper adds it after a quarter of the epochs.
    "as published": {"as_published": {"pretrain": {"pooled": 1.0}, "cluster": {"num_clusters": 7}}},
}
# Number of training scenes; the other scenes stay the same (see ``synthesize``).
SIZES = {f"scenes_{count}": {"synthetic": {"train": count}} for count in (4, 16, 32, 64)}
ABLATED = {name: changes for group in GROUPS.values() for name, changes in group.items()}
# Fusions of other networks, in the suite ``fusions`` only.
PUBLISHED = {name: {"model": {"fusion": name}} for name in ("asanet", "amm_fusenet", "ref_net")}
# Share of the labelled windows that the networks of ``supervised`` see, and how they start.
LABELLED: dict[str, dict[str, dict[str, Any]]] = {
    "labelled_5th": {"supervised": {"labelled": 0.2}},
    "labelled_20th": {"supervised": {"labelled": 0.05}},
    "start_umsf_small": {"supervised": {"weights": "umsf-small"}},
}
# Number of clusters, for which nothing is pretrained anew; each is named, so none are merged.
CLUSTERS = {
    f"clusters_{count}": {"cluster": {"num_clusters": count, "components": 1}}
    for count in (12, 8, 16)
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = (
    {"base": {}} | ABLATED | PUBLISHED | SIZES | LABELLED | CLUSTERS
)
OURS: Sequence[str] = ("umsf",)
SCALED: Sequence[str] = ("umsf", "mixture-statistics", "merged-statistics")
# On real land each cluster is named by itself, so K is larger and the same for all methods, and
# nothing is merged.
LAND: Sequence[str] = tuple(
    name
    for name in METHODS
    if name not in CEILING and not name.endswith(("-pixels", "-random")) and "merged" not in name
)
FUSING_METHODS: Sequence[str] = tuple(f"supervised-{name}" for name in FUSING)
ALONE: Sequence[str] = ("supervised-concat",)  # with one sensor there is nothing to concatenate
STATISTICS: Sequence[str] = ("kmeans-statistics", "mixture-statistics")
# Suite -> variant -> methods; "base" comes first, as the others copy stages they share with it.
# A variant without methods is not scored: the others only share its pretraining.
SUITES: dict[str, dict[str, Sequence[str]]] = {
    "first": {"base": USUAL, "optical": OURS, "sar": OURS, "no_pretraining": OURS},
    "baselines": {"base": (*USUAL, *LEARNED, "supervised")}
    | {"optical": OURS, "sar": OURS, "no_pretraining": OURS},
    "ablations": {name: OURS for name in ("base", *ABLATED)}
    | {"mild_imbalance": SCALED, "as_published": ("mutual-information",)},
    "scale": {"base": SCALED, "no_pretraining": OURS, "epochs_x4": OURS}
    | {name: SCALED for name in SIZES}
    | {f"{name}-no_pretraining": OURS for name in SIZES}
    | {"scenes_64-epochs_x4": OURS},
    "land": {"base": ()}
    | {
        "-".join(filter(None, (own, name))): methods
        for name in CLUSTERS
        for own, methods in {
            "": LAND,
            "optical": OURS,
            "sar": OURS,
            "no_pretraining": OURS,
            "umsf_small": OURS,
            "standardise_set": STATISTICS,
            "standardise_scene": STATISTICS,
        }.items()
    },
    # Parts of ``land`` at 12 clusters, and what is done otherwise one at a time.
    "land-ablations": {"base": (), "clusters_12": OURS}
    | {
        f"{name}-clusters_12": OURS
        for name in (
            *("optical", "sar", "concat", "add", "no_pretraining", "umsf_small", "with_fused"),
            *("standardise_set", "standardise_shrunken", "standardise_scene"),
            *("teacher_statistics", "teacher_network", "network_alone"),
        )
    }
    | {"clusters_12-components_2": OURS},
    "supervised": {
        "base": tuple(f"supervised-{name}" for name in NETWORKS),
        "optical": ALONE,
        "sar": ALONE,
    },
    # Fewer labels, and where the networks start; UMSF-Net itself learns from all of them.
    "labels": {
        "base": ("supervised", "supervised-amm_fusenet"),
        "labelled_5th": ("supervised-amm_fusenet",),
        "labelled_20th": FUSING_METHODS,
        "labelled_20th-start_umsf_small": FUSING_METHODS,
    },
    "fusions": {"base": (), "clusters_12": OURS}
    | {f"{name}-clusters_12": OURS for name in (*GROUPS["fusion"], *PUBLISHED)},
}
# Variants and methods that are done if a suite has no records.
SMALLEST = ("base", "no_pretraining", "clusters_12")
SMALL_METHODS = (*USUAL, *ALONE, "supervised-amm_fusenet")
AFTER_PRETRAINING = {"cluster", "baseline", "map"}  # sections that do not affect pretraining
# How clusters get classes (see ``evaluation.stage.evaluate``).
MATCHINGS = {
    "validation": "Clusters are matched one to one with classes on the validation scenes.",
    "named": "Each cluster has the class that is most frequent in it on the validation scenes.",
    "test": "Clusters are matched one to one with classes on the test scenes themselves.",
}


@dataclass(frozen=True)
class Sweep:
    """The runs of one suite.

    Attributes:
        config: settings of all runs, except for seed and variant.
        suite: a key of ``SUITES``.
        seeds: each variant has one run per seed.
        name: first part of the names of the runs, before seed and variant.
        records: file with records of runs that are not in ``runs/`` (see ``records``).
        matching: a key of ``MATCHINGS``, under which the tables are made; "" for the usual one (see
            ``matching_of``).
        block: number of neighbouring test scenes that the intervals draw together (see
            ``metrics.paired_bootstrap``), in the order of the split.
        smallest: only ``SMALLEST`` of the suite, in the run ``name``, which has a single seed.

    Raises:
        ConfigError: the suite is unknown.
    """

    config: Config
    suite: str
    seeds: Sequence[int]
    name: str = ""
    records: Path | None = None
    matching: str = ""
    block: int = 1
    smallest: bool = False

    def __post_init__(self) -> None:
        """Refuse an unknown suite or matching, and blocks of no scene."""
        check_choice("suite", self.suite, SUITES)
        if self.matching:
            check_choice("matching", self.matching, MATCHINGS)
        if self.block < 1:
            raise ConfigError(f"--block is {self.block}; give the number of scenes, at least 1.")

    @property
    def prefix(self) -> str:
        """``name``, or by default profile and data set."""
        config = self.config
        data = Path(config.data).name if config.data else config.synthetic.difficulty
        return self.name or f"{config.profile}-{data}"

    @property
    def folder(self) -> Path:
        """Folder that holds the run folders."""
        return project_root() / "runs"

    @cached_property
    def variants(self) -> dict[str, Sequence[str]]:
        """Variant -> methods.

        Left out are variants with the same settings as an earlier one in this profile, or with the
        layout's own rule of standardisation, those from ``umsf-small`` of networks of other shapes,
        variants with SAR alone of data without SAR and, for data that is not synthetic, variants
        with other synthetic scenes.
        """
        found: dict[str, Sequence[str]] = {}
        seen: list[Config] = []
        layout = load_layout(self.config.layout)
        own_rule = f"standardise_{layout.optical.standardise}"
        for name, methods in SUITES[self.suite].items():
            config = vary_config(self.config, name)
            if config in seen or (self.config.data and other_scenes(name)):
                continue
            if layout.sar is None and config.model.sensors == "sar":
                continue
            if self.config.scenes.standardise == "layout" and own_rule in name.split("-"):
                continue
            if config.model.weights == "umsf-small" and not fits_kept(config.model):
                continue
            if config.supervised.weights == "umsf-small" and config.supervised.backbone != "small":
                continue
            if methods:
                seen.append(config)
            if not self.smallest:
                found[name] = methods
            elif name in SMALLEST:
                found[name] = tuple(method for method in methods if method in SMALL_METHODS)
        return found

    def matching_of(self, fitted: Collection[str]) -> str:
        """Choose one of the matchings that were fitted: as asked for, or the usual one.

        That is "named" in suites with a number of clusters (``CLUSTERS``), "validation" in the
        others, and "test" where there are no validation scenes.

        Raises:
            DataError: the matching that is asked for was not fitted.
        """
        named = any(CLUSTERS.keys() & name.split("-") for name in SUITES[self.suite])
        wanted = self.matching or ("named" if named else "validation")
        if self.matching and wanted not in fitted:
            raise DataError(
                f"The runs {self.prefix}-<seed> have no matching '{wanted}', only "
                f"{', '.join(name for name in MATCHINGS if name in fitted)}; leave out --matching, "
                "or evaluate scenes with a validation part anew."
            )
        return wanted if wanted in fitted else "test"

    def base(self, seed: int) -> Run:
        """Open the base run of a seed."""
        return Run.open(replace(self.config, seed=seed), self._base_name(seed))

    def _base_name(self, seed: int) -> str:
        return self.name if self.smallest else f"{self.prefix}-{seed}"

    def planned(self) -> Iterator[tuple[str, int, str, Config]]:
        """Yield variant, seed, name and settings of each run, the base run of each seed first."""
        for seed in self.seeds:
            for variant in self.variants:
                ending = "" if variant == "base" else f"-{variant}"
                config = vary_config(replace(self.config, seed=seed), variant)
                yield variant, seed, f"{self._base_name(seed)}{ending}", config

    def run(self) -> None:
        """Do all runs that are neither finished nor recorded with these settings."""
        kept = read_records(self.records)
        for variant, seed, name, config in self.planned():
            if not self.variants[variant]:
                continue  # its stages are done when the first variant shares them
            methods = self.variants[variant]
            wanted = set(methods) - set(CEILING) or set(methods)  # not all data has a ceiling
            same = name in kept and not other_settings(kept[name].manifest["config"], config)
            if (
                same
                and wanted <= kept[name].methods
                and not is_evaluated(Run.folder_of(config, name))
            ):
                why = f"{self.records} has it with the same settings"
                print(f"run {name}: skipped, {why}", flush=True)
                continue
            print(f"run {name}", flush=True)
            trained = any("despeckle" in stages_of(name) for name in methods)
            run_everything(open_variant(self.base(seed), variant, trained), methods)

    def finished(self) -> Iterator[tuple[str, int, RunRecord, pd.DataFrame]]:
        """Yield variant, seed, record and scores of all evaluated runs.

        The scores are those of the suite's methods; their column ``variant`` has the suite's names.

        Raises:
            ConfigError: a run folder was made with other settings; the message lists the
                differences.
        """
        kept = read_records(self.records)
        for variant, seed, name, config in self.planned():
            own = is_evaluated(folder := Run.folder_of(config, name))
            record = read_run(folder) if own else kept.get(name)
            if record is None:
                continue
            if listed := other_settings(record.manifest["config"], config):
                if own:
                    raise ConfigError(
                        f"{folder} was made with other settings ({listed}); ask for those "
                        "or choose another run name."
                    )
                continue
            scores = record.scores(config)
            scores = scores[scores.method.isin(self.variants[variant])]
            if len(scores):  # the run may be of another suite
                yield variant, seed, record, scores.assign(variant=variant)


def vary_config(config: Config, variant: str) -> Config:
    """Return the settings of a variant; ``a-b`` is variant b of variant a."""
    for part in variant.split("-"):
        config = config.changed(**_changes(config, part))
    return config


def open_variant(run: Run, variant: str, trained: bool = True) -> Run:
    """Open the run of a variant beside the base run, and copy the stages that both share.

    Nothing is copied, or done for it first, if no method of the variant has ``trained`` networks.
    """
    for part in variant.split("-"):
        if not (changes := _changes(run.config, part)):
            continue
        shared = [] if other_scenes(part) or "scenes" in changes else ["data", "despeckle"]
        if AFTER_PRETRAINING.issuperset(changes):
            shared.append("pretrain")
        if not trained:
            shared = []
        if not all(run.is_done(stage) for stage in shared):  # recorded perhaps, but without weights
            pretrain_run(run)
        run = run.variant(part, shared, **changes)
    return run


def _changes(config: Config, variant: str) -> dict[str, dict[str, Any]]:
    """Return section -> values that a variant changes, with multiples computed."""
    return {
        section: {
            key: 4 * getattr(getattr(config, section), key) if value == FOURFOLD else value
            for key, value in values.items()
        }
        for section, values in VARIANTS[variant].items()
    }


def other_scenes(variant: str) -> bool:
    """Return whether a variant has other synthetic scenes than ``base``."""
    return any("synthetic" in VARIANTS[part] for part in variant.split("-"))


def rival(variant: str, method: str) -> str | None:
    """Return the variant whose ``umsf`` a row is compared with, on the same test scenes.

    This is usually ``base``. A row with its own training scenes is compared with ``umsf`` on the
    same training scenes. That ``umsf`` itself is compared with ``base``, or with nothing (None) if
    its test scenes differ, too. A row with its own number of clusters is compared with ``umsf`` at
    the same number.
    """
    first, *_ = parts = variant.split("-")
    if named := CLUSTERS.keys() & parts:
        return named.pop()
    if not other_scenes(first) or (variant, method) == (first, "umsf"):
        return None if "difficulty" in VARIANTS[first].get("synthetic", {}) else "base"
    return first

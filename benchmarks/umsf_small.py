"""Make the weights ``umsf-small`` again: pretrain on Sentinel pairs and simulated scenes.

    python benchmarks/umsf_small.py PAIRS [--steps 1500]

PAIRS is the folder of the 31 pairs of Sentinel-2 and Sentinel-1 (layout ``pairs``; see
``data/README.md``). The simulated scenes have development seeds. No labels take part. Both sets are
joined as scenes of blue, green, red, near infrared and one SAR band: the near infrared, which the
pairs lack, is its mean there, and bands of all scenes are dropped at random. The result is
``umsf_lib/models/umsf-small.pt`` (float16) with its record.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from umsf_lib.config import load_config
from umsf_lib.data.layout import load_layout
from umsf_lib.data.scene_set import (
    NORMALISATION,
    SceneRecord,
    SceneSet,
    normalisation,
    standardisation,
)
from umsf_lib.data.stage import prepare
from umsf_lib.data.synthetic import synthesize
from umsf_lib.models.kept import SHARED, WEIGHTS
from umsf_lib.models.stage import train_despeckler
from umsf_lib.pretraining.stage import load_pretrained, pretrain
from umsf_lib.run import Run, sha256_of, write_json
from umsf_lib.training.checkpoints import write_state

BANDS = ("blue", "green", "red", "nir")
SIMULATED = (("easy", 100), ("realistic", 101))  # difficulty, seed
SCENES = 12  # simulated ones of each kind, 512 px
EPOCHS = 10
RECIPE = (
    f"views.band_drop=0.2 pretrain.fused=0 pretrain.epochs={EPOCHS} pretrain.batch=24 "
    "pretrain.optimizer=adamw pretrain.lr=0.002 pretrain.queue_size=8192"
)
DATA = [
    "31 pairs of Sentinel-2 (red, green, blue) and Sentinel-1 (VH) from github.com/VolkovVl/"
    "Optical-SAR-dataset: contains modified Copernicus Sentinel data, free to use",
    f"{SCENES} simulated scenes of 512 px of each kind (the difficulty and seed of simulated)",
]


def joined(sets: Sequence[SceneSet], folder: Path) -> SceneSet:
    """Join training scenes as one set with the bands ``BANDS``, standardised as in their own."""
    arrays: dict[str, list[np.ndarray]] = {role: [] for role in ("optical", "sar", "valid")}
    records: list[SceneRecord] = []
    for number, scenes in enumerate(sets):
        moments = standardisation(scenes, scenes.statistics)
        bands = scenes.layout.optical.bands
        there = [band in bands for band in BANDS]
        source = [bands.index(band) if band in bands else 0 for band in BANDS]
        for index in scenes.indices("train"):
            record = scenes.records[index]
            here = slice(record.offset, record.offset + record.height * record.width)
            # A missing band is 0, with mean 0 and std 1.
            optical = scenes.flat("optical")[source, here] * np.array(there, np.uint8)[:, None]
            for role, part in (
                ("optical", optical),
                *((r, scenes.flat(r)[..., here]) for r in ("sar", "valid")),
            ):
                arrays[role].append(part)
            mean, std = (x[index][source] for x in moments["optical"])
            own = {
                "optical": (np.where(there, mean, 0.0), np.where(there, std, 1.0)),
                "sar": tuple(x[index] for x in moments["sar"]),
            }
            means, stds = ({role: pair[i].tolist() for role, pair in own.items()} for i in (0, 1))
            start = sum(r.height * r.width for r in records)
            name = f"{number}-{record.name}"
            records.append(replace(record, name=name, offset=start, mean=means, std=stds))
    folder.mkdir(parents=True, exist_ok=True)
    for role, parts in arrays.items():
        np.save(folder / f"{role}.npy", np.concatenate(parts, axis=-1))
    layout = load_layout("whu-opt-sar").standardised("scene")  # as the records say
    split = {"train": [r.name for r in records], "val": [], "test": []}
    return SceneSet(folder, layout, tuple(records), split, {})


def simulated(difficulty: str, seed: int) -> SceneSet:
    """Simulate the development scenes of one kind."""
    wanted = f"synthetic.difficulty={difficulty} synthetic.train={SCENES}"
    config = load_config("quick", seed=seed, overrides=wanted)
    run = Run.open(config, f"umsf-small-{difficulty}-{seed}")
    return prepare(synthesize(run), load_layout(config.layout).standardised("shrunken"))


def main() -> None:
    """Train, and write the weights and their record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()
    text = f"{RECIPE} pretrain.steps_per_epoch={args.steps // EPOCHS}"
    run = Run.open(load_config("land", seed=100, overrides=text), f"umsf-small-{args.steps}")
    pairs = prepare(args.pairs, load_layout("pairs").standardised("set"))
    scenes = joined([pairs, *(simulated(*kind) for kind in SIMULATED)], run.folder / "joined")

    def make() -> list[str]:
        write_json(run.path(NORMALISATION), normalisation(scenes))
        return [NORMALISATION]

    run.stage("data", make, {"scenes": [record.name for record in scenes.records]})
    with tqdm(total=args.steps) as bar:
        train_despeckler(run, scenes)

        def progress(step: int, steps: int, row: object) -> None:
            bar.update(step - bar.n)

        pretrain(run, scenes, progress=progress)
    network, config = load_pretrained(run, scenes), run.config
    weights = {
        name: weight.half() if weight.is_floating_point() else weight
        for name, weight in network.state_dict().items()
        if not name.startswith("sar.despeckler.")
    }
    write_state(WEIGHTS, weights)
    record = {
        "made": f"{datetime.date.today()}, by benchmarks/umsf_small.py --steps {args.steps}",
        "data": DATA,
        "simulated": SIMULATED,
        "bands": {"optical": BANDS, "sar": scenes.layout.sensor("sar").bands},
        "model": {name: getattr(config.model, name) for name in SHARED},
        **config.section("views", "despeckle", "pretrain", "seed"),
        "seconds": run.manifest["stages"]["pretrain"]["wall_s"],
        "torch": torch.__version__,
        "sha256": sha256_of(WEIGHTS),
    }
    write_json(WEIGHTS.with_suffix(".json"), record)
    print(f"{WEIGHTS}: {WEIGHTS.stat().st_size / 1e6:.2f} MB, sha256 {record['sha256']}")


if __name__ == "__main__":
    main()

"""Draw the maps of a run beside k-means on colour and SAR, unmarked, for a choice by eye.

    python benchmarks/blind_maps.py RUN OUTPUT 047 101 171 208 272 --seed 0

RUN is the name of a finished run of ``umsf map`` on unlabelled pairs, the numbers are some of its
scenes. OUTPUT gets ``NNN.png`` for each (optical, SAR, and the two maps as A and B in random
order), ``key.json``, which says which is which, and ``side_by_side.png`` with the methods' names.

K-means clusters the pixels of all mapped scenes, without surroundings, into as many clusters as the
run has. The rule of ``umsf_lib.maps.colors`` colours both maps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from sklearn.cluster import KMeans

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from umsf_lib.config import IGNORE, UmsfError, load_config  # noqa: E402
from umsf_lib.data.scene_set import SceneSet  # noqa: E402
from umsf_lib.data.stage import load_data  # noqa: E402
from umsf_lib.figures.imagery import label_image, optical_composite, sar_image  # noqa: E402
from umsf_lib.figures.style import new_panels, show_picture, styled  # noqa: E402
from umsf_lib.maps.colors import cluster_means, colored, judged  # noqa: E402
from umsf_lib.maps.stage import NODATA, load_legend  # noqa: E402
from umsf_lib.run import Run, project_root, settings_of, write_json  # noqa: E402

SIGMA_PX = 2.0
SAMPLE = 31  # k-means is fitted to every 31st pixel
Picture = NDArray[Any]  # (H, W, 3), uint8 or float in [0, 1]


def blurred(scenes: SceneSet, scene: int) -> NDArray[np.float32]:
    """Return the bands and the log SAR of a scene after a Gaussian blur, ``(H, W, C)``."""
    planes = [*scenes.plane("optical", scene), scenes.log_sar(scene)]
    return np.stack([gaussian_filter(np.float32(p), SIGMA_PX) for p in planes], axis=-1)


def kmeans_maps(
    scenes: SceneSet, which: Sequence[int], num_clusters: int, seed: int
) -> dict[int, Picture]:
    """Cluster scenes by k-means on standardised ``blurred`` pixels; scene -> coloured map."""
    valid = {scene: np.asarray(scenes.plane("valid", scene)) for scene in which}
    drawn = np.concatenate([blurred(scenes, s)[valid[s]][::SAMPLE] for s in which])  # (n, C)
    mean, std = drawn.mean(axis=0), drawn.std(axis=0)
    model = KMeans(num_clusters, n_init=10, random_state=seed).fit((drawn - mean) / std)
    maps = {}
    for scene in which:
        maps[scene] = np.full(valid[scene].shape, IGNORE, np.uint8)
        maps[scene][valid[scene]] = model.predict(
            (blurred(scenes, scene)[valid[scene]] - mean) / std
        )
    table, _ = judged(cluster_means(scenes, maps.items(), num_clusters), scenes.layout)
    classes, row_of = colored(table)
    rows = np.full(IGNORE + 1, IGNORE)
    rows[:num_clusters] = row_of
    return {scene: label_image(rows[clusters], classes) for scene, clusters in maps.items()}


def our_map(run: Run, name: str) -> Picture:
    """Read the map of a scene in its colours."""
    classes = load_legend(run).classes
    with rasterio.open(run.path("maps", f"{name}.prediction.tif")) as source:
        codes = source.read(1)
    ids = np.full(256, IGNORE)
    for row in classes:
        ids[row.code] = row.id
    ids[NODATA] = IGNORE
    return label_image(ids[codes], classes)


def imagery(scenes: SceneSet, scene: int) -> dict[str, Picture]:
    """Return the pictures of both sensors, by title."""
    valid, optical = np.asarray(scenes.plane("valid", scene)), scenes.plane("optical", scene)
    log_sar = scenes.log_sar(scene)
    assert log_sar is not None
    picture = optical_composite(optical, scenes.layout.optical.rgb, valid)
    return {"optical": picture, "SAR": sar_image(log_sar, valid)}


@styled
def panels(rows: Sequence[Mapping[str, Picture]], columns: int, inches: float) -> Figure:
    """Draw pictures by title, ``columns`` in a row and each ``inches`` wide."""
    pictures = [item for row in rows for item in row.items()]
    lines = len(pictures) // columns
    figure, axes = new_panels(lines, columns, columns * inches, lines * (inches + 0.2))
    for ax, (title, picture) in zip(axes.flat, pictures, strict=True):
        show_picture(ax, picture, title)
    return figure


def write_trial(run: Run, output: Path, names: Sequence[str], seed: int) -> None:
    """Write the pictures, the key and the figure with names; see the module."""
    scenes, rng = load_data(run), np.random.default_rng(seed)
    count = len(load_legend(run).of_cluster)
    theirs = kmeans_maps(scenes, scenes.indices("test"), count, run.config.seed)
    key, rows = {}, []
    for name in names:
        scene = scenes.index(name)
        maps = {"UMSF-Net": our_map(run, name), "k-means": theirs[scene]}
        shown = imagery(scenes, scene)
        key[name] = dict(zip("AB", rng.permutation([*maps]).tolist(), strict=True))
        unmarked = {letter: maps[method] for letter, method in key[name].items()}
        panels([shown, unmarked], 2, 7.0).savefig(output / f"{name}.png", dpi=150)
        rows.append({f"{name}: {title}": p for title, p in (shown | maps).items()})
    panels(rows, 4, 3.0).savefig(output / "side_by_side.png", dpi=100)
    write_json(output / "key.json", {"seed": seed, "clusters": count, "pairs": key})


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("output", type=Path)
    parser.add_argument("scenes", nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        settings = settings_of(project_root() / "runs" / options.run)  # none where there is no run
        run = Run.open(load_config(**{"profile": "quick"} | settings), options.run, create=False)
        options.output.mkdir(parents=True, exist_ok=True)
        write_trial(run, options.output, options.scenes, options.seed)
    except UmsfError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

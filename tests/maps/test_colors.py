"""Colours of clusters without names: blue and green where physics says so, and never in doubt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from umsf_lib.data.layout import Layout
from umsf_lib.data.scene_set import SceneSet
from umsf_lib.maps.colors import cluster_means, colored, judged

from ..fakes import load_layout

# Eight kinds of ground as stretched bytes of red, green and blue, and ln intensity of SAR
STRETCHED = pd.DataFrame.from_dict(
    {
        "lake": (44, 84, 121, 7.5),
        "wood": (50, 81, 102, 9.9),
        "homes": (121, 139, 157, 9.7),
        "roofs": (215, 222, 228, 10.3),
        "runway": (161, 173, 185, 7.9),  # dark in SAR, bright in optical
        "peat": (75, 75, 76, 7.7),  # dark in both, but it does not absorb red
        "plough": (124, 125, 142, 8.8),
        "shade": (60, 75, 95, 9.4),  # dark in optical only; not green enough
    },
    orient="index",
    columns=["red", "green", "blue", "sar"],
)
# The same kinds in reflectance, with near infrared
CALIBRATED = pd.DataFrame.from_dict(
    {
        "lake": (0.06, 0.05, 0.03, 0.02, -4.4),
        "wood": (0.03, 0.05, 0.03, 0.30, -1.9),
        "homes": (0.14, 0.15, 0.15, 0.20, -1.6),
        "roofs": (0.24, 0.26, 0.26, 0.25, -1.0),  # NDWI .02, but bright in SAR
        "snow": (0.80, 0.82, 0.81, 0.78, -3.9),  # NDWI .02 and dark in SAR, but bright
        "soil": (0.07, 0.10, 0.14, 0.20, -2.8),
        "steppe": (0.08, 0.11, 0.13, 0.24, -2.6),  # NDVI .30
    },
    orient="index",
    columns=["blue", "green", "red", "nir", "sar"],
)


def table_of(means: pd.DataFrame) -> pd.DataFrame:
    return means.reset_index(drop=True).assign(share=1 / len(means))


def kinds(means: pd.DataFrame, layout: Layout) -> dict[str, str]:
    """What each kind of ground is taken for, if anything."""
    found = judged(table_of(means), layout)[0]["kind"]
    return {name: kind for name, kind in zip(means.index, found, strict=True) if kind}


def with_nir(scaling: str, *, sar: bool = True) -> Layout:
    layout = load_layout("dfc2020")
    optical = replace(
        layout.optical, bands=("blue", "green", "red", "nir"), rgb=(2, 1, 0), scaling=scaling
    )
    if sar:
        return replace(layout, optical=optical)
    folders = {role: names for role, names in layout.folders.items() if role != "sar"}
    pattern = {role: layout.pattern[role] for role in folders}
    return replace(layout, optical=optical, sar=None, folders=folders, pattern=pattern)


RIGHT = {"lake": "water-like", "wood": "vegetation-like"}


def test_means_are_those_of_the_valid_pixels_of_all_scenes(pairs: SceneSet) -> None:
    shapes = {s: (pairs.records[s].height, pairs.records[s].width) for s in (0, 3)}
    maps = {s: np.arange(h * w).reshape(h, w) % 3 for s, (h, w) in shapes.items()}
    found = cluster_means(pairs, maps.items(), 4)
    assert [*found] == ["red", "green", "blue", "sar", "share"]
    for cluster in range(3):
        green, echo, count = [], [], 0
        for scene, ids in maps.items():
            here = (ids == cluster) & pairs.plane("valid", scene)
            green.append(pairs.plane("optical", scene)[1][here])
            echo.append(2 * np.log(pairs.plane("sar", scene)[0][here].astype(float)))
            count += here.sum()
        assert found.green[cluster] == pytest.approx(np.concatenate(green).mean())
        assert found.sar[cluster] == pytest.approx(np.concatenate(echo).mean())
        assert found.share[cluster] > 0.3
    assert np.isnan(found.green[3]) and found.share[3] == 0 and found.share.sum() == 1


def test_rgb_and_sar_tell_water_and_vegetation_and_say_how() -> None:
    layout = load_layout("pairs")
    assert kinds(STRETCHED, layout) == RIGHT
    said = judged(table_of(STRETCHED), layout)[1]
    assert said.startswith("blue (1 of 8 clusters): water-like, dark in SAR and in optical, as ")
    assert "green (1 of 8): vegetation-like by GRVI" in said and said.endswith("there is no nir")


def test_another_stretch_changes_nothing() -> None:
    """Levels are not calibrated: another gain, and SAR another constant."""
    other = STRETCHED * 0.6 + [0, 0, 0, 7]
    other.sar += 0.4 * STRETCHED.sar
    assert kinds(other, load_layout("pairs")) == RIGHT


def test_no_blue_or_green_where_nothing_stands_out() -> None:
    dry = STRETCHED.loc[["homes", "roofs", "runway", "plough"]]
    assert kinds(dry, load_layout("pairs")) == {}
    woods = pd.concat([STRETCHED.loc[["wood"]] + [0, i, 0, 0] for i in range(4)])
    assert kinds(woods, load_layout("pairs")) == {}  # as green as each other: nobody knows


def test_reflectance_with_nir_has_fixed_levels() -> None:
    layout = with_nir("reflectance")
    assert kinds(CALIBRATED, layout) == RIGHT
    woods = pd.concat([CALIBRATED.loc[["wood"]]] * 3)
    assert judged(table_of(woods), layout)[0].kind.tolist() == ["vegetation-like"] * 3
    assert "NDWI above 0, dark in SAR; green" in judged(table_of(CALIBRATED), layout)[1]


def test_without_sar_water_needs_reflectance() -> None:
    alone = CALIBRATED.drop(columns="sar", index="roofs")
    assert kinds(alone, with_nir("reflectance", sar=False)) == RIGHT
    stretched = with_nir("stretched8", sar=False)
    bare = alone.drop(index="steppe")
    assert kinds(bare, stretched) == {"wood": "vegetation-like"}
    said = judged(table_of(bare), stretched)[1]
    assert "blue (0 of 5 clusters): not given, as water needs" in said
    assert kinds(CALIBRATED.drop(index="steppe"), with_nir("stretched8")) == RIGHT


def test_bands_without_such_names_give_no_colours() -> None:
    layout = load_layout("pairs")
    optical = replace(layout.optical, bands=("b1", "b2", "b3"))
    named = STRETCHED.rename(columns={"red": "b1", "green": "b2", "blue": "b3"})
    table, said = judged(table_of(named), replace(layout, optical=optical))
    assert set(table.kind) == {""} and said.count("not given") == 2


# Colours


def random_table(count: int, water: int, plants: int) -> pd.DataFrame:
    rng = np.random.default_rng(count)
    kind = np.array(["water-like"] * water + ["vegetation-like"] * plants + [""] * count)[:count]
    columns = {name: rng.random(count) for name in ("sar", "brightness", "grvi")}
    return pd.DataFrame({**columns, "kind": rng.permutation(kind)})


def test_water_is_blue_and_vegetation_green_in_order() -> None:
    table = random_table(12, 3, 3)
    rows, row_of = colored(table)
    assert [(row.id, row.code) for row in rows] == [(i, i + 1) for i in range(12)]
    assert [row.name for row in rows[2:7]] == [
        "cluster 2, water-like",
        *(f"cluster {i}, vegetation-like" for i in (3, 4, 5)),
        "cluster 6",
    ]
    assert sorted(row_of) == list(range(12))
    placed = table.set_index(row_of).sort_index()
    assert placed.brightness[:3].is_monotonic_increasing
    assert placed.grvi[3:6].is_monotonic_decreasing
    assert placed.sar[6:].is_monotonic_increasing
    rgb = np.array([row.rgb for row in rows])
    assert (rgb[:3].argmax(1) == 2).all() and (rgb[3:6].argmax(1) == 1).all()
    assert rgb[:3].sum(1).tolist() == sorted(rgb[:3].sum(1))  # brighter water is lighter
    assert rgb[3:6].sum(1).tolist() == sorted(rgb[3:6].sum(1))  # the greenest is the darkest
    assert (rgb[6:, 1] <= rgb[6:, 0] + 2).all()  # none of the others is green
    again, same = colored(table)
    assert again == rows and (same == row_of).all()


def test_bright_ground_gets_light_colours() -> None:
    table = random_table(9, 0, 0)
    table["sar"], table["brightness"] = 1.0, np.linspace(0, 1, 9)
    rows, row_of = colored(table.drop(columns="sar"))
    light = np.array([rows[row].rgb for row in row_of]) @ (0.3, 0.59, 0.11)
    assert (np.diff(light) > 0).all()


def lab(rgb: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """CIELAB of sRGB bytes ``(n, 3)``, after a linear change of what the eye sees."""
    part = rgb / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ seen.T, 0, 1)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    ratio = linear @ to_xyz.T / (0.9505, 1, 1.089)
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    x, y, z = f.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


SEEN = {  # Machado, Oliveira and Fernandes 2009, severity 1
    "all": np.eye(3),
    "no green": np.array(
        [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]
    ),
    "no red": np.array(
        [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]
    ),
}


@pytest.mark.parametrize(("count", "water", "plants"), [(12, 1, 2), (12, 3, 3), (16, 2, 3)])
def test_colours_can_be_told_apart_by_readers_who_miss_red_or_green(
    count: int, water: int, plants: int
) -> None:
    rows, _ = colored(random_table(count, water, plants))
    rgb = np.array([row.rgb for row in rows])
    for eye, seen in SEEN.items():
        colors = lab(rgb, seen)
        apart = np.linalg.norm(colors[:, None] - colors, axis=-1) + 999 * np.eye(count)
        assert apart.min() > (25 if eye == "all" else 12), eye


def test_as_many_clusters_as_a_map_holds_have_codes_and_colours() -> None:
    rows, row_of = colored(random_table(254, 20, 20))
    assert len({row.code for row in rows}) == 254 and sorted(row_of) == list(range(254))
    assert all(0 <= part <= 255 for row in rows for part in row.rgb)


def test_a_cluster_that_does_not_occur_comes_last() -> None:
    means = table_of(STRETCHED)
    means.loc[0, ["red", "green", "blue", "sar"]] = np.nan
    table, _ = judged(means, load_layout("pairs"))
    assert colored(table)[1][0] == len(means) - 1

"""Flat memory maps against rasterio's own reads, and statistics against NumPy over all pixels."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from umsf_lib.config import IGNORE, DataError, load_config
from umsf_lib.data import rasters, synthetic
from umsf_lib.data.layout import load_layout
from umsf_lib.data.scene import Scene
from umsf_lib.data.scene_set import (
    SceneSet,
    normalisation,
    standardisation,
    valid_labels,
)
from umsf_lib.data.stage import load_data, prepare
from umsf_lib.data.synthetic import synthesize
from umsf_lib.run import Run, sha256_of

from ..fakes import SET, bands, truth, write_fake, write_set

LAYOUTS = ("whu", "terramesh", "pairs")
ROLES = ("optical", "sar")


@pytest.fixture(params=LAYOUTS)
def scenes(request: pytest.FixtureRequest) -> SceneSet:
    found: SceneSet = request.getfixturevalue(request.param)
    return found


def physical(scenes: SceneSet, index: int, role: str) -> np.ndarray:
    """Valid pixels ``(C, n)`` float64: SAR as ln intensity."""
    found = truth(scenes, index)
    values = found["optical" if role == "optical" else "ln_sar"]
    return values[:, found["valid"]].astype(np.float64)


def tree(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_maps_hold_what_rasterio_reads(scenes: SceneSet) -> None:
    assert [record.name for record in scenes.records] == SET
    for index in range(len(SET)):
        expected = truth(scenes, index)
        for role in ("optical", "sar"):
            np.testing.assert_array_equal(scenes.plane(role, index), expected[role])
            assert scenes.flat(role).dtype == expected[role].dtype
        valid = expected["valid"]
        assert 0 < valid.sum() < valid.size
        np.testing.assert_array_equal(scenes.plane("valid", index), valid)
        assert scenes.records[index].valid_px == valid.sum()


def test_label_ids_follow_the_class_table(whu: SceneSet, terramesh: SceneSet) -> None:
    for scenes in (whu, terramesh):
        for index in range(len(SET)):
            with rasterio.open(scenes.sources[SET[index]].label) as file:
                codes, ids = file.read(1), scenes.plane("label", index)
            known = {land.code: land.id for land in scenes.layout.classes}
            expected = [[known.get(int(code), IGNORE) for code in row] for row in codes]
            np.testing.assert_array_equal(ids, expected)
            tables_to_score = valid_labels(scenes, index)
            invalid = ~truth(scenes, index)["valid"]
            assert (tables_to_score[invalid] == IGNORE).all()
            np.testing.assert_array_equal(tables_to_score[~invalid], ids[~invalid])


def test_without_labels_every_pixel_is_ignored(pairs: SceneSet) -> None:
    assert not pairs.labelled and (pairs.flat("label") == IGNORE).all()


def test_scenes_lie_behind_each_other_without_a_gap(scenes: SceneSet) -> None:
    end = 0
    for record in scenes.records:
        assert record.offset == end
        end += record.height * record.width
    assert scenes.flat("valid").shape == (end,) and scenes.flat("optical").shape[1] == end


def test_splits(whu: SceneSet, terramesh: SceneSet) -> None:
    assert whu.split == {"train": SET[:2], "val": [SET[2]], "test": SET[3:]}
    assert whu.indices("test") == [3, 4] and whu.index(SET[2]) == 2
    assert terramesh.split == {"train": SET, "val": [], "test": SET}


def test_streaming_in_strips_equals_reading_whole(whu: SceneSet, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(rasters, "STRIP_PX", 7)  # no scene's height is a multiple
    root = whu.sources[SET[0]].optical.parents[1]
    strips = prepare(root, whu.layout, tmp_path)
    for role in ("optical", "sar", "label", "valid"):
        assert sha256_of(strips.folder / f"{role}.npy") == sha256_of(whu.folder / f"{role}.npy")
    for one, other in zip(strips.records, whu.records, strict=True):
        assert (one.name, one.offset, one.valid_px) == (other.name, other.offset, other.valid_px)
        for role in ("optical", "sar"):
            np.testing.assert_allclose(one.mean[role], other.mean[role], rtol=1e-12)
            np.testing.assert_allclose(one.std[role], other.std[role], rtol=1e-9)


def test_statistics_are_those_of_all_training_pixels(scenes: SceneSet) -> None:
    statistics = scenes.statistics
    for role in ("optical", "sar"):
        parts = [physical(scenes, index, role) for index in scenes.indices("train")]
        together = np.concatenate(parts, axis=1)  # (C, n)
        assert together.shape[1] != parts[0].shape[1] * len(parts)  # scenes weigh by their pixels
        np.testing.assert_allclose(statistics[role]["mean"], together.mean(axis=1), rtol=1e-9)
        np.testing.assert_allclose(statistics[role]["std"], together.std(axis=1), rtol=1e-7)
    json.dumps(statistics)


def test_each_record_has_its_own_moments(scenes: SceneSet) -> None:
    for index, record in enumerate(scenes.records):
        # In a fixed order: other bytes of the same numbers would have every stage computed again.
        assert list(record.mean) == list(record.std) == ["optical", "sar"]
        for role in ("optical", "sar"):
            values = physical(scenes, index, role)
            np.testing.assert_allclose(record.mean[role], values.mean(axis=1), rtol=1e-9)
            np.testing.assert_allclose(record.std[role], values.std(axis=1), rtol=1e-7)


def test_8_bit_scenes_keep_half_of_their_level_and_calibrated_ones_all(scenes: SceneSet) -> None:
    """Against moments of the pixels as rasterio reads them."""
    usual = {"terramesh": "set", "pairs": "shrunken"}.get(scenes.layout.name, "scene")
    found = {"": scenes}
    for rule in ("set", "shrunken", "scene"):
        found[rule] = dataclasses.replace(scenes, layout=scenes.layout.standardised(rule))
    train = scenes.indices("train")
    for role in ROLES:
        assert scenes.layout.sensor(role).standardise == usual
        pixels = [physical(scenes, index, role) for index in range(len(scenes.records))]
        together = np.concatenate([pixels[index] for index in train], axis=1)
        moments = np.array([[x.mean(axis=1), x.std(axis=1)] for x in (*pixels, together)])
        scene, whole = moments[:-1], moments[-1:]
        expected = {"set": 0 * scene + whole, "shrunken": (scene + whole) / 2, "scene": scene}
        for rule, each in found.items():
            mean, std = standardisation(each, scenes.statistics)[role]
            assert mean.dtype == std.dtype == np.float32
            pairs = np.stack([mean, std], axis=1)  # (S, 2, C)
            np.testing.assert_allclose(pairs, expected[rule or usual], rtol=1e-5)


def test_a_second_call_changes_nothing(tmp_path: Path) -> None:
    layout = write_set(tmp_path / "data")
    first = prepare(tmp_path / "data", layout, tmp_path / "prepared")
    before = tree(tmp_path / "prepared")
    again = prepare(tmp_path / "data", layout, tmp_path / "prepared")
    assert tree(tmp_path / "prepared") == before and again.records == first.records
    assert len(list((tmp_path / "prepared").iterdir())) == 1
    assert first.folder.stat().st_mode & 0o777 == 0o755  # not only for who made it


def test_a_changed_file_is_prepared_anew(tmp_path: Path) -> None:
    layout = write_set(tmp_path / "data")
    first = prepare(tmp_path / "data", layout, tmp_path / "prepared")
    write_fake(tmp_path / "data", "whu-opt-sar", SET[0], seed=9)
    second = prepare(tmp_path / "data", layout, tmp_path / "prepared")
    assert second.folder != first.folder
    np.testing.assert_array_equal(second.plane("optical", 0), bands(layout, "optical", 9))


def test_a_file_of_the_same_size_but_another_time_is_prepared_anew(tmp_path: Path) -> None:
    layout = write_set(tmp_path / "data")
    first = prepare(tmp_path / "data", layout, tmp_path / "prepared")
    label = first.sources[SET[0]].label
    assert label is not None
    os.utime(label, ns=(1, 1))
    assert prepare(tmp_path / "data", layout, tmp_path / "prepared").folder != first.folder


def test_a_half_written_folder_is_made_again(tmp_path: Path) -> None:
    layout = write_set(tmp_path / "data")
    first = prepare(tmp_path / "data", layout, tmp_path / "prepared")
    whole = sha256_of(first.folder / "optical.npy")
    (first.folder / "manifest.json").unlink()
    (first.folder / "optical.npy").write_bytes(b"half")
    assert (
        sha256_of(prepare(tmp_path / "data", layout, tmp_path / "prepared").folder / "optical.npy")
        == whole
    )


@pytest.mark.parametrize("role", ["optical", "sar", "label", "valid"])
def test_a_flipped_bit_or_a_lost_array_is_said_and_mended_by_deleting(tmp_path, role) -> None:
    layout = write_set(tmp_path / "data")
    folder = prepare(tmp_path / "data", layout, tmp_path / "prepared").folder
    array, whole = folder / f"{role}.npy", sha256_of(folder / f"{role}.npy")
    flipped = bytearray(array.read_bytes())
    flipped[-1] ^= 1
    array.write_bytes(flipped)
    for said in (sha256_of(array), "missing"):
        with pytest.raises(DataError, match=f"{role}.npy has changed.*{said}.*{whole}.*delete"):
            prepare(tmp_path / "data", layout, tmp_path / "prepared")
        array.unlink(missing_ok=True)
    shutil.rmtree(folder)
    assert prepare(tmp_path / "data", layout, tmp_path / "prepared").folder == folder
    assert sha256_of(array) == whole


def test_scenes_are_read_in_strips_only(tmp_path: Path, monkeypatch) -> None:
    layout = write_set(tmp_path / "data")
    monkeypatch.setattr(rasters, "STRIP_PX", 7)
    sizes, read = [], Scene.read

    def watched(scene: Scene, window: Window) -> dict[str, np.ndarray]:
        sizes.append((window.height, window.width))
        return read(scene, window)

    monkeypatch.setattr(Scene, "read", watched)
    scenes = prepare(tmp_path / "data", layout, tmp_path / "prepared")
    assert max(sizes) == (7, scenes.records[0].width)
    pixels = sum(height * width for height, width in sizes if (height, width) != (1, 1))
    assert pixels == sum(r.height * r.width for r in scenes.records)  # each once


def dark(role: str) -> dict[str, Any]:
    array = np.zeros((4 if role == "optical" else 1, 48, 56), np.uint8)
    return {role: array}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (dark("optical"), ["0 valid pixels of 2688", "nodata"]),
        (dark("sar"), ["0 valid pixels of 2688", "nodata"]),
        ({"label": np.full((48, 56), 15, np.uint8)}, ["15 (2688 px)", "lbl"]),
        ({"sar": np.ones((1, 48, 50), np.uint8)}, ["56 x 48", "50 x 48"]),
        ({"sar": None}, ["no SAR partner"]),
    ],
)
def test_a_bad_scene_is_named_and_leaves_nothing_behind(tmp_path, change, parts) -> None:
    layout = write_fake(tmp_path / "data", "whu-opt-sar", SET[0])
    write_fake(tmp_path / "data", "whu-opt-sar", SET[1], **change)
    with pytest.raises(DataError) as caught:
        prepare(tmp_path / "data", layout, tmp_path / "prepared")
    for part in [SET[1], *parts]:
        assert part in str(caught.value)
    assert not (tmp_path / "prepared").exists() or not list((tmp_path / "prepared").iterdir())


def test_nodata_only_where_both_sensors_have_it_apart_is_all_nodata(tmp_path: Path) -> None:
    layout = load_layout("whu-opt-sar")
    optical, sar = bands(layout, "optical"), bands(layout, "sar")
    optical[:, :24] = 0
    sar[:, 24:] = 0
    write_fake(tmp_path, "whu-opt-sar", optical=optical, sar=sar)
    with pytest.raises(DataError, match="0 valid pixels"):
        prepare(tmp_path, layout, tmp_path / "prepared")


def test_files_of_other_number_types_keep_their_values(tmp_path: Path) -> None:
    layout = load_layout("terramesh")
    fractions = bands(layout, "optical").astype(np.float32) / 7
    write_fake(tmp_path / "data", "terramesh", SET[0])  # int16
    write_fake(tmp_path / "data", "terramesh", SET[1], optical=fractions)
    scenes = prepare(tmp_path / "data", layout, tmp_path / "prepared")
    np.testing.assert_array_equal(scenes.plane("optical", 0), bands(layout, "optical"))
    np.testing.assert_array_equal(scenes.plane("optical", 1), fractions)


@pytest.mark.parametrize("name", ["pie-rgb-sar", "ddhr-sk"])
def test_8_bit_tiles_of_one_stretch_are_standardised_together(tmp_path: Path, name: str) -> None:
    """A tile of water alone stays dark: its own mean and std would turn it into noise."""
    for number, bright in enumerate((1, 3)):
        layout = load_layout(name)
        pixels = {role: bands(layout, role, number) // 4 * bright for role in ("optical", "sar")}
        write_fake(tmp_path / "data", name, str(number), **pixels)
    scenes = prepare(tmp_path / "data", layout, tmp_path / "prepared")
    for mean, std in standardisation(scenes, scenes.statistics).values():
        assert (mean[0] == mean[1]).all() and (std[0] == std[1]).all()


def test_a_constant_band_can_be_standardised(tmp_path: Path) -> None:
    layout = load_layout("whu-opt-sar")
    optical = bands(layout, "optical")
    optical[1] = 77
    write_fake(tmp_path / "data", "whu-opt-sar", optical=optical)
    scenes = prepare(tmp_path / "data", layout, tmp_path / "prepared")
    mean, std = standardisation(scenes, scenes.statistics)["optical"]
    assert mean[0, 1] == 77 and 0 < std[0, 1] < 1e-3


def test_arrays_are_copy_on_write(whu: SceneSet) -> None:
    before = sha256_of(whu.folder / "optical.npy")
    flat = whu.flat("optical")
    flat[:] = 0
    assert sha256_of(whu.folder / "optical.npy") == before and whu.flat("optical").any()


# The stage


def open_run(project: Path, **change: Any) -> Run:
    return Run.open(dataclasses.replace(load_config("tiny"), **change), "mine")


def test_load_data_is_a_stage_with_statistics(project: Path, tmp_path: Path) -> None:
    layout = write_set(tmp_path / "data")
    run = open_run(project, data=str(tmp_path / "data"))
    scenes = load_data(run)
    assert scenes.folder.parent == project / "data" / "prepared" and scenes.layout == layout
    saved = json.loads(run.path("statistics.json").read_text())
    assert saved == normalisation(scenes) and list(run.outputs_of("data")) == ["statistics.json"]
    assert list(saved["sar"]) == ["bands", "scaling", "standardise", "mean", "std"]
    for role, table in scenes.statistics.items():
        assert saved[role].items() >= table.items()
    before = tree(run.folder)
    load_data(run)
    assert tree(run.folder) == before
    (tmp_path / "data" / "split.txt").write_text(
        "train:\n" + "\n".join(SET[1:]) + "\ntest:\n" + SET[0]
    )
    load_data(run)
    assert json.loads(run.path("statistics.json").read_text()) != saved


def test_synthetic_scenes_are_written_once_with_their_split(project, monkeypatch) -> None:
    calls = []

    def write(folder: Path, names: list[str], seed: int, *size: int, difficulty: str) -> None:
        calls.extend((name, seed, size, difficulty) for name in names)
        for name in names:
            write_fake(folder, "whu-opt-sar", Path(name).stem)

    monkeypatch.setattr(synthetic, "write_scenes", write)
    run = open_run(project, seed=3)
    folder = synthesize(run)
    assert folder == synthesize(run)
    assert len({name for name, *_ in calls}) == 5  # 2 + 1 + 2, each once
    assert [about for _, *about in calls] == 5 * [[3, (128, 128), "easy"]]
    assert folder.parent == project / "data" / "synthetic"
    scenes = load_data(run)
    assert {part: len(names) for part, names in scenes.split.items()} == {
        "train": 2,
        "val": 1,
        "test": 2,
    }
    assert sorted(sum(scenes.split.values(), [])) == [r.name for r in scenes.records]
    (folder / "split.txt").unlink()  # as after an interruption
    assert synthesize(run) == folder and len(calls) == 10
    for change in ({"size_px": 64}, {"train": 4}):
        other = dataclasses.replace(run.config.synthetic, **change)
        more = synthesize(Run(run.folder, dataclasses.replace(run.config, synthetic=other), {}))
        assert more != folder
    lines = (more / "split.txt").read_text().split("train:")
    assert lines[0] == (folder / "split.txt").read_text().split("train:")[0]  # same val and test
    assert len(lines[1].split()) == 4


def test_scenes_of_older_code_are_made_and_prepared_again(project: Path, monkeypatch, capsys):
    run = Run.open(load_config("tiny"))
    scenes = load_data(run)
    file = scenes.sources[scenes.records[0].name].optical
    simulated, prepared = file.stat().st_mtime_ns, scenes.folder
    load_data(run)
    assert file.stat().st_mtime_ns == simulated and capsys.readouterr().out == ""
    edited = {"umsf_lib.data.stage": "edited reader"}
    digest = lambda *modules: edited.get(modules[0], "as it was")  # noqa: E731
    for name in ("stage", "synthetic"):
        monkeypatch.setattr(f"umsf_lib.data.{name}.code_digest", digest)
    load_data(run)  # the simulator has changed, too: another digest than the real one
    said = capsys.readouterr().out
    assert "simulated by older code" in said and file.stat().st_mtime_ns > simulated
    again = load_data(run)
    assert "older code" not in capsys.readouterr().out
    edited["umsf_lib.data.stage"] = "edited once more"
    assert load_data(run).folder == again.folder != prepared
    assert f"scenes {again.folder.name} were prepared by older code" in capsys.readouterr().out


def test_a_layout_in_utf16_prepares_the_same_scenes(tmp_path: Path) -> None:
    layout = write_fake(tmp_path / "data", "pairs", "a")
    own = tmp_path / "own.yaml"
    own.write_text(layout.source.read_text(encoding="utf-8"), encoding="utf-16")
    found = prepare(tmp_path / "data", load_layout(str(own)), tmp_path / "prepared")
    assert found.folder == prepare(tmp_path / "data", layout, tmp_path / "prepared").folder


def test_a_run_may_standardise_otherwise_than_its_layout(project: Path, tmp_path: Path) -> None:
    """As a layout file with that rule would, but the scenes are prepared once."""
    layout = write_set(tmp_path / "data")
    text = layout.source.read_text().replace("standardise: scene", "standardise: set")
    (tmp_path / "own.yaml").write_text(text)
    written = load_data(
        open_run(project, data=str(tmp_path / "data"), layout=str(tmp_path / "own.yaml"))
    )
    run = Run.open(load_config("tiny", data=str(tmp_path / "data")), "usual")
    usual, saved = load_data(run), json.loads(run.path("statistics.json").read_text())
    config = load_config("tiny", data=str(tmp_path / "data"), overrides="scenes.standardise=set")
    run = Run.open(config, "other")
    scenes = load_data(run)
    assert scenes.folder == usual.folder != written.folder
    found = json.loads(run.path("statistics.json").read_text())
    assert found == normalisation(written) != saved
    for role, pair in standardisation(written, written.statistics).items():
        np.testing.assert_array_equal(pair, standardisation(scenes, scenes.statistics)[role])

"""Windows against slices of the files, and tilings against brute force."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from umsf_lib.config import ConfigError, DataError, load_config
from umsf_lib.data import windows as module
from umsf_lib.data.layout import load_layout
from umsf_lib.data.scene_set import SceneSet
from umsf_lib.data.stage import prepare
from umsf_lib.data.windows import (
    PixelStore,
    draw_windows,
    open_store,
    tile_scene,
    tile_starts,
    training_tiles,
)

from ..conftest import CPU
from ..fakes import SIZE, bands, truth, write_fake


def whole(scenes: SceneSet, index: int) -> dict[str, np.ndarray]:
    """A scene standardised in float64 from the files alone; invalid pixels 0."""
    found, table = truth(scenes, index), scenes.statistics
    valid, parts = found["valid"], {"valid": found["valid"][None]}
    for role, values in (("optical", found["optical"].astype(float)), ("sar", found["ln_sar"])):
        inside = values[:, valid]
        mean, std = inside.mean(axis=1), inside.std(axis=1)
        if scenes.layout.name == "terramesh":
            mean, std = np.array(table[role]["mean"]), np.array(table[role]["std"])
        parts[role] = np.where(valid, (values - mean[:, None, None]) / std[:, None, None], 0)
    return parts


@pytest.mark.parametrize("name", ["whu", "terramesh"])
def test_windows_equal_slices_of_the_files(name: str, request: pytest.FixtureRequest) -> None:
    scenes = request.getfixturevalue(name)
    store = request.getfixturevalue(f"{name}_store")
    by_hand = [whole(scenes, index) for index in range(len(scenes.records))]
    rng = np.random.default_rng(0)
    height, width = 11, 17
    scene = rng.integers(0, len(by_hand), 40)
    row = np.array([rng.integers(0, by_hand[s]["valid"].shape[1] - height + 1) for s in scene])
    col = np.array([rng.integers(0, by_hand[s]["valid"].shape[2] - width + 1) for s in scene])
    batch = store.windows(*map(torch.from_numpy, (scene, row, col)), (height, width))
    log_std = batch.pop("sar_log_std")
    assert torch.equal(log_std[:, :, 0, 0], store.std["sar"][torch.from_numpy(scene)])
    assert set(batch) == {"optical", "sar", "valid"} and batch["valid"].dtype == torch.bool
    assert not batch["valid"].all()
    for i, (s, r, c) in enumerate(zip(scene, row, col, strict=True)):
        for key, values in batch.items():
            expected = by_hand[s][key][:, r : r + height, c : c + width]
            np.testing.assert_allclose(values[i].numpy(), expected, atol=2e-4)
            invalid = ~by_hand[s]["valid"][0, r : r + height, c : c + width]
            assert (values[i].numpy()[:, invalid] == 0).all()


def test_a_whole_scene_and_its_source_values(whu: SceneSet, whu_store: PixelStore) -> None:
    for index, record in enumerate(whu.records):
        batch = whu_store.scene(index)
        assert batch["valid"].shape == (1, 1, record.height, record.width)
        np.testing.assert_allclose(batch["sar"][0].numpy(), whole(whu, index)["sar"], atol=2e-4)
        valid = whu.plane("valid", index)
        back = whu_store.unscaled(batch["optical"], "optical", index)[0].numpy()
        np.testing.assert_allclose(back[:, valid], whu.plane("optical", index)[:, valid], atol=1e-3)
        back = whu_store.unscaled(batch["sar"], "sar", index)[0].numpy()
        np.testing.assert_allclose(
            np.exp(back[:, valid] / 2), whu.plane("sar", index)[:, valid], rtol=1e-4
        )


def test_over_the_far_edges_the_edge_is_repeated(whu: SceneSet, whu_store: PixelStore) -> None:
    for index, record in enumerate(whu.records):
        row, col = record.height - 6, record.width - 4
        place = [torch.tensor([v]) for v in (index, row, col)]
        batch = whu_store.windows(*place, 10)
        corner = whole(whu, index)
        for key in ("optical", "sar", "valid"):
            part = corner[key][:, row:, col:]
            expected = np.pad(part, ((0, 0), (0, 4), (0, 6)), mode="edge")
            np.testing.assert_allclose(batch[key][0].numpy(), expected, atol=2e-4)


def some_places(scenes: SceneSet, count: int) -> tuple[torch.Tensor, ...]:
    """Scene, row and col of windows, many of which reach over an edge."""
    generator = torch.Generator().manual_seed(0)
    scene = torch.arange(count) % len(scenes.records)
    sides = torch.tensor([(r.height, r.width) for r in scenes.records])[scene]
    row, col = (torch.rand(count, 2, generator=generator) * sides).long().T
    return scene, row, col


@pytest.mark.parametrize("name", ["whu", "terramesh"])
@pytest.mark.parametrize("size", [(9, 14), (60, 70)])  # larger than some scenes
def test_windows_of_a_gpu_are_those_of_the_memory_maps(name, size, request, monkeypatch) -> None:
    scenes, mapped = (request.getfixturevalue(n) for n in (name, f"{name}_store"))
    monkeypatch.setattr(module, "_fits", lambda flats, device: True)
    resident = PixelStore(scenes, scenes.statistics, CPU)
    assert resident.resident and not mapped.resident
    where = some_places(scenes, 30)
    one, other = resident.windows(*where, size), mapped.windows(*where, size)
    assert one["valid"].shape == (30, 1, *size) and one.keys() == other.keys()
    for key, values in one.items():
        torch.testing.assert_close(values, other[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 3])
def test_neither_pieces_nor_threads_change_a_window(whu, whu_store, monkeypatch, threads) -> None:
    where = some_places(whu, 7)
    whole = whu_store.windows(*where, (19, 16))
    monkeypatch.setattr(module, "PIECE_PX", 5 * 16)  # 4 pieces of 5 rows, the last of 4
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    pieces = whu_store.windows(*where, (19, 16))
    none = whu_store.windows(*(place[:0] for place in where), (19, 16))
    for key, values in whole.items():
        assert torch.equal(values, pieces[key])
        assert none[key].shape == (0, *values.shape[1:])


def test_a_batch_that_is_held_keeps_its_values(whu: SceneSet, whu_store: PixelStore) -> None:
    one, two = (torch.stack(some_places(whu, 12))[:, k : k + 6] for k in (0, 6))
    held = whu_store.windows(*one, 16)["optical"]
    part, copy = held[2:3, 1].view(16, 16), held.clone()
    assert not torch.equal(whu_store.windows(*two, 16)["optical"], copy)
    assert torch.equal(held, copy)
    del held
    whu_store.windows(*two, 16)
    assert torch.equal(part, copy[2, 1])  # a view holds it, too


def test_memory_of_a_batch_that_is_gone_is_used_again(whu, whu_store, monkeypatch) -> None:
    def address(place: torch.Tensor) -> int:
        return whu_store.windows(*place, 16)["optical"].data_ptr()

    place = torch.stack(some_places(whu, 6))
    assert address(place) == address(place)
    monkeypatch.setattr(module, "RECYCLED_BYTES", 0)
    address(place)
    assert "optical" not in whu_store.spare  # nothing large is kept


@pytest.mark.parametrize("sensors", ["both", "optical", "sar"])
def test_a_store_holds_the_sensors_that_the_network_sees(whu: SceneSet, sensors: str) -> None:
    config = load_config("tiny", overrides=f"model.sensors={sensors}")
    store = open_store(whu, config, CPU)
    roles = {"optical", "sar"} if sensors == "both" else {sensors}
    units = {"sar_log_std"} if "sar" in roles else set()
    assert set(store.roles) == roles and set(store.scene(0)) == roles | units | {"valid"}


def test_16_bit_values_above_32767_keep_their_value(tmp_path: Path, monkeypatch) -> None:
    layout = load_layout("terramesh")
    optical = bands(layout, "optical").astype(np.uint16) * 15
    assert optical.max() > 40000
    write_fake(tmp_path / "data", "terramesh", optical=optical)
    scenes = prepare(tmp_path / "data", layout, tmp_path / "prepared")
    for resident in (False, True):
        monkeypatch.setattr(module, "_fits", lambda flats, device, answer=resident: answer)
        store = PixelStore(scenes, scenes.statistics, CPU)
        back = store.unscaled(store.scene(0)["optical"], "optical", 0)[0]
        np.testing.assert_allclose(back.numpy(), optical, rtol=1e-4, atol=0.1)


# Tiling


@pytest.mark.parametrize(("size", "overlap"), [(8, 0), (8, 3), (8, 7), (16, 4)])
def test_tiles_cover_every_pixel_and_stay_inside(size: int, overlap: int) -> None:
    for length in range(size, 60):
        starts = tile_starts(length, size, overlap)
        covered = np.zeros(length, int)
        for start in starts:
            assert 0 <= start <= length - size
            covered[start : start + size] += 1
        assert covered.min() >= 1
        assert starts == sorted(set(starts)) and starts[-1] == length - size
        gaps = np.diff(starts)
        assert (gaps[:-1] == size - overlap).all() and (gaps <= size - overlap).all()
        # No tiling with this overlap does with fewer.
        assert size + (len(starts) - 2) * (size - overlap) < length or len(starts) == 1


def test_a_whu_scene_has_551_tiles() -> None:
    corners = tile_scene(3704, 5556, 256, 64)
    assert corners.shape == (551, 2) and 551 * 80 == 44080
    assert tuple(corners[-1]) == (3704 - 256, 5556 - 256) and tuple(corners[0]) == (0, 0)
    assert len(np.unique(corners, axis=0)) == 551
    assert len(tile_scene(5556, 3704, 512, 0)) == len(tile_scene(5555, 3704, 512, 0)) == 88


def test_windows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="48 px is smaller than a window of 64 px.*views.window_px"):
        tile_starts(48, 64, 16)
    for overlap in (16, 20):
        with pytest.raises(ConfigError, match=f"16 px cannot overlap by {overlap} px"):
            tile_starts(48, 16, overlap)
    with pytest.raises(ConfigError):
        tile_starts(48, 0, 0)


def test_training_tiles_are_half_valid_and_of_training_scenes(whu: SceneSet) -> None:
    size, overlap = 8, 2
    expected = []
    for scene in (0, 1):
        valid = whole(whu, scene)["valid"][0]
        for row in tile_starts(valid.shape[0], size, overlap):
            for col in tile_starts(valid.shape[1], size, overlap):
                if 2 * valid[row : row + size, col : col + size].sum() >= size * size:
                    expected.append((scene, row, col))
    tiles = training_tiles(whu, size, overlap)
    assert tiles.tolist() == [list(tile) for tile in expected] and tiles.dtype == torch.int64
    every = sum(len(tile_scene(r.height, r.width, size, overlap)) for r in whu.records[:2])
    assert len(expected) < every  # some were dropped


def test_a_window_that_is_exactly_half_valid_counts(tmp_path: Path) -> None:
    layout = load_layout("whu-opt-sar")
    optical = bands(layout, "optical")
    optical[:, :4] = optical[:, 8:13] = 0
    write_fake(tmp_path / "data", "whu-opt-sar", optical=optical)
    scenes = prepare(tmp_path / "data", layout, tmp_path / "prepared")
    assert set(training_tiles(scenes, 8, 0)[:, 1].tolist()) == {0, 16, 24, 32, 40}


def test_a_set_without_a_half_valid_window_is_refused(tmp_path: Path) -> None:
    layout = load_layout("whu-opt-sar")
    optical = bands(layout, "optical")
    optical[:, ::2] = optical[:, :, ::4] = 0
    write_fake(tmp_path / "data", "whu-opt-sar", optical=optical)
    scenes = prepare(tmp_path / "data", layout, tmp_path / "prepared")
    with pytest.raises(DataError, match="no training window of 16 px.*50% valid ground"):
        training_tiles(scenes, 16, 0)


def test_drawn_windows_lie_inside_their_scene_near_a_tile(whu, whu_store: PixelStore) -> None:
    size, jitter = 16, 9
    tiles = training_tiles(whu, size, 4)
    generator = torch.Generator().manual_seed(0)
    scene, row, col = draw_windows(tiles, 3000, size, jitter, whu_store.places, generator)
    assert scene.shape == row.shape == col.shape == (3000,) and set(scene.tolist()) == {0, 1}
    reached = set()
    for s, r, c in zip(scene.tolist(), row.tolist(), col.tolist(), strict=True):
        record = whu.records[s]
        assert 0 <= r <= record.height - size and 0 <= c <= record.width - size
        reached.add((s, r, c))
    own = tiles[tiles[:, 0] == 0, 1:]
    corners = torch.stack([row, col], 1)[scene == 0]
    nearest = (corners[:, None] - own[None]).abs().amax(dim=2).amin(dim=1)
    assert nearest.max() <= jitter
    assert len(reached) > 1000  # windows are moved, not only picked
    assert {0, whu.records[0].height - size} <= set(row[scene == 0].tolist())


def test_without_jitter_the_tiles_themselves_are_drawn(whu, whu_store: PixelStore) -> None:
    tiles = training_tiles(whu, SIZE // 3, 0)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack(draw_windows(tiles, 500, SIZE // 3, 0, whu_store.places, generator), 1)
    assert {tuple(t) for t in drawn.tolist()} == {tuple(t) for t in tiles.tolist()}


def test_draws_follow_the_generator_alone(whu: SceneSet, whu_store: PixelStore) -> None:
    tiles = training_tiles(whu, 16, 4)

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(int(torch.randint(1000, (1,))))  # the global state must not matter
        generator = torch.Generator().manual_seed(seed)
        return torch.stack(draw_windows(tiles, 50, 16, 5, whu_store.places, generator))

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


def test_a_store_reads_only_what_it_is_given(whu: SceneSet) -> None:
    statistics = whu.statistics
    store = PixelStore(dataclasses.replace(whu), {"sar": statistics["sar"]}, CPU)
    assert set(store.planes) == {"sar", "valid"} and set(store.mean) == {"sar"}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.bool_])
def test_what_fits_on_the_device_is_counted_as_it_is_kept(
    dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    flats = {"optical": np.zeros((4, 999), dtype), "valid": np.zeros((1, 999), np.bool_)}
    kept = sum(t.numel() * t.element_size() for t in map(module._tensor, flats.values()))
    for free, fits in ((2 * kept, False), (2 * kept + 2, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        assert module._fits(flats, torch.device("cuda")) == fits
    assert not module._fits(flats, torch.device("cpu"))

"""Scenes of two sets joined for ``umsf-small``: each is seen as in its own set."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.umsf_small import BANDS, joined
from umsf_lib.data.layout import load_layout
from umsf_lib.data.scene_set import SceneSet
from umsf_lib.data.stage import prepare
from umsf_lib.data.windows import PixelStore

from ..fakes import write_fake, write_set


def store_of(scenes: SceneSet) -> PixelStore:
    return PixelStore(scenes, scenes.statistics, torch.device("cpu"))


def test_every_scene_is_standardised_as_in_its_own_set(tmp_path: Path) -> None:
    for number, name in enumerate(("004", "047", "100")):
        write_fake(tmp_path / "pairs", "pairs", name, number)
    write_set(tmp_path / "whu")  # two of its five scenes train
    sets = [
        prepare(tmp_path / of, load_layout(layout), tmp_path / "prepared")
        for of, layout in (("pairs", "pairs"), ("whu", "whu-opt-sar"))
    ]
    store = store_of(joined(sets, tmp_path / "joined"))
    names = [
        f"{n}-{scenes.records[i].name}"
        for n, scenes in enumerate(sets)
        for i in scenes.indices("train")
    ]
    assert [record.name for record in store.records] == names and len(names) == 5
    row = 0
    for scenes in sets:
        own, bands = store_of(scenes), scenes.layout.optical.bands
        for index in scenes.indices("train"):
            expected, found = own.scene(index), store.scene(row)
            for channel, band in enumerate(BANDS):
                values = found["optical"][:, channel]
                if band in bands:
                    torch.testing.assert_close(values, expected["optical"][:, bands.index(band)])
                else:
                    assert band == "nir" and not values.any()  # its mean
            torch.testing.assert_close(found["sar"], expected["sar"])
            assert torch.equal(found["valid"], expected["valid"])
            row += 1

"""What the library does for the notebooks, so that their cells stay short."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from papermill.parameterize import parameterize_path

from umsf_lib.config import IGNORE, MissingStageError, load_config
from umsf_lib.data.scene_set import SceneSet, class_shares, labels_at, valid_labels
from umsf_lib.models.encoders import Despeckle
from umsf_lib.models.speckle import boxcar, lee
from umsf_lib.models.stage import despeckle_band, filter_band
from umsf_lib.notebooks import _unformatted
from umsf_lib.run import Run, write_json

from .fakes import SET, truth


@pytest.mark.parametrize("name", ["whu", "terramesh"])
def test_log_sar_equals_the_files(name: str, request: pytest.FixtureRequest) -> None:
    scenes: SceneSet = request.getfixturevalue(name)
    for index in range(len(SET)):
        found, band = truth(scenes, index), scenes.log_sar(index)
        assert band is not None
        np.testing.assert_allclose(band[found["valid"]], found["ln_sar"][0][found["valid"]])


def test_class_shares_equal_a_slow_count(whu: SceneSet, pairs: SceneSet) -> None:
    shares = class_shares(whu)
    assert list(shares) == ["train", "val", "test"] and class_shares(pairs) == {}
    for part, found in shares.items():
        ids = [i for scene in whu.indices(part) for i in valid_labels(whu, scene).flat]
        known = [i for i in ids if i != IGNORE]
        assert found.tolist() == pytest.approx([known.count(c) / len(known) for c in range(7)])


def test_labels_at_places(whu: SceneSet) -> None:
    rng = np.random.default_rng(0)
    scene = rng.integers(0, len(SET), 200)
    row, col = (rng.integers(0, 70, 200) for _ in range(2))  # some lie past the border
    found = labels_at(whu, scene, row, col)
    for s, r, c, label in zip(scene, row, col, found, strict=True):
        record = whu.records[s]
        assert label == valid_labels(whu, s)[min(r, record.height - 1), min(c, record.width - 1)]


def test_one_band_through_the_front_end() -> None:
    band = np.random.default_rng(0).normal(5, 1, (20, 24))
    fresh, trained = Despeckle(4), Despeckle(4)
    torch.nn.init.normal_(trained.layers[-1].weight, std=0.1)
    np.testing.assert_allclose(despeckle_band(fresh, band), band, rtol=1e-6)
    images = filter_band(trained, band, 4)
    np.testing.assert_array_equal(images["boxcar 5"], boxcar(np.exp(band), 5))
    np.testing.assert_array_equal(images["Lee 7"], lee(np.exp(band), 7, 4))
    with torch.no_grad():
        expected = trained(torch.from_numpy(band[None, None]).float())[0, 0].exp().numpy()
    np.testing.assert_allclose(images["learned"], expected, rtol=1e-6)


def test_a_variant_takes_over_stages_and_leaves_its_run_alone(tmp_path: Path) -> None:
    run = Run.open(load_config("tiny"), "mine", tmp_path)

    def stage(of: Run, name: str, inputs: dict[str, int]) -> bool:
        def make() -> list[str]:
            write_json(of.path("checkpoints", f"{name}.json"), inputs)
            return [f"checkpoints/{name}.json"]

        return of.stage(name, make, inputs)

    stage(run, "data", {"a": 1})
    stage(run, "despeckle", {"b": 2})
    before = run.path("manifest.json").read_bytes()
    other = run.variant("soft", ["data", "despeckle"], pretrain={"tau": 0.2})
    assert other.folder == tmp_path / "mine-soft"
    assert (other.config.pretrain.tau, other.config.pretrain.ema) == (0.2, run.config.pretrain.ema)
    assert not stage(other, "data", {"a": 1})  # taken over, so not computed
    assert stage(other, "despeckle", {"b": 3})  # other inputs: computed anew
    again = run.variant("soft", ["data", "despeckle"], pretrain={"tau": 0.2})
    assert not stage(again, "despeckle", {"b": 3})  # and not overwritten by the run's own
    assert run.path("manifest.json").read_bytes() == before
    with pytest.raises(MissingStageError, match="03_momentum"):
        run.variant("soft", ["pretrain"], pretrain={"tau": 0.2})


def test_papermill_leaves_braces_in_paths(tmp_path: Path) -> None:
    path = tmp_path / "{a} {0} }{" / "01.ipynb"
    assert parameterize_path(_unformatted(path), {"a": 1}) == str(path)

"""``umsf-small``: bands are matched by name or wavelength, and the response of a scene is kept."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from umsf_lib.config import ConfigError, load_config
from umsf_lib.data.layout import Layout, load_layout
from umsf_lib.models import kept
from umsf_lib.models.encoders import pyramid
from umsf_lib.models.umsf_net import UmsfNet

KEPT = ["blue", "green", "red", "nir"]


def network(layout: Layout, overrides: str = "") -> UmsfNet:
    config = load_config("quick", overrides=overrides)
    torch.manual_seed(0)
    return UmsfNet(config.model, layout, config.despeckle.channels).eval()


def of_bands(*bands: str, sar: tuple[str, ...] = ("vh",)) -> Layout:
    layout = load_layout("pairs")
    assert layout.sar is not None
    optical = replace(layout.optical, bands=bands, rgb=(0, 0, 0))
    return replace(layout, optical=optical, sar=replace(layout.sar, bands=sar))


def test_filters_go_to_the_band_of_that_name() -> None:
    np.testing.assert_array_equal(
        kept.spread(KEPT, ["red", "green", "blue"]),
        [[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]],
    )


def test_other_bands_get_those_of_the_nearest_wavelength() -> None:
    """Red edge at 783 nm is nearer to 833 than to 665 nm; two share the near infrared."""
    shares = kept.spread(KEPT, ["coastal", "blue", "rededge1", "rededge3", "nir"])
    np.testing.assert_array_equal(shares[0], [0.5, 0.5, 0, 0, 0])
    np.testing.assert_array_equal(shares[2], [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(shares[3], [0, 0, 0, 0.5, 0.5])


def test_a_band_of_unknown_wavelength_gets_the_mean() -> None:
    np.testing.assert_array_equal(kept.spread(KEPT, ["elevation"]), np.full((4, 1), 0.25))


def test_equal_bands_together_give_the_response_of_one() -> None:
    """Two SAR bands, or the red edge beside nir, with the same values change nothing."""
    few, many = of_bands(*KEPT), of_bands(*KEPT, "nir08", sar=("vv", "vh"))
    small, large = network(few), network(many)
    for net, layout in ((small, few), (large, many)):
        kept.start_from_kept(net, layout)
    large.sar.despeckler.load_state_dict(small.sar.despeckler.state_dict())  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(0)
    optical = torch.randn((2, 4, 32, 32), generator=generator)
    sar = torch.randn((2, 1, 32, 32), generator=generator)
    one = {"optical": optical, "sar": sar, "sar_log_std": torch.ones(2, 1, 1, 1)}
    more = {
        "optical": optical[:, [0, 1, 2, 3, 3]],
        "sar": sar.repeat(1, 2, 1, 1),
        "sar_log_std": torch.ones(2, 2, 1, 1),
    }
    with torch.no_grad():
        for name, maps in small.features(one).items():
            torch.testing.assert_close(large.features(more)[name], maps, atol=1e-4, rtol=1e-4)


def test_a_band_that_the_data_lack_is_as_one_at_its_mean() -> None:
    every, rgb = of_bands(*KEPT), of_bands("red", "green", "blue")
    full, part = network(every), network(rgb)
    for net, layout in ((full, every), (part, rgb)):
        kept.start_from_kept(net, layout)
    x = torch.randn((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    blue_first = torch.cat([x.flip(1), torch.zeros(2, 1, 32, 32)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(part.optical(x), full.optical(blue_first))  # type: ignore[misc]


@pytest.mark.parametrize("sensor", ["optical", "sar"])
def test_one_sensor_starts_with_its_own_encoder_and_projector(sensor: str) -> None:
    layout = of_bands(*KEPT)
    both, alone = network(layout), network(layout, f"model.sensors={sensor}")
    for net in (both, alone):
        kept.start_from_kept(net, layout)
    own, every = alone.state_dict(), both.state_dict()
    for name, weight in own.items():
        if "despeckler" not in name:
            torch.testing.assert_close(weight, every[name.replace("fused", sensor)])


def test_the_despeckler_and_the_head_stay() -> None:
    layout = of_bands(*KEPT)
    net = network(layout)
    net.set_num_clusters(5)
    before = {n: w.clone() for n, w in net.state_dict().items()}
    kept.start_from_kept(net, layout)
    same = {n for n, w in net.state_dict().items() if torch.equal(w, before[n])}
    assert {n.split(".")[0] for n in same if "despeckler" in n or "clustering" in n} == {
        "sar",
        "clustering",
    }
    assert "optical.0.weight" not in same


@pytest.mark.parametrize("other", ["model.fusion=concat", "model.fusion=add", "model.heads=4"])
def test_another_fusion_stays_and_the_encoders_are_the_kept_ones(other: str) -> None:
    layout = of_bands(*KEPT)
    net, usual = network(layout, other), network(layout)
    before = {n: w.clone() for n, w in net.state_dict().items() if n.startswith("fusion.")}
    for each in (net, usual):
        kept.start_from_kept(each, layout)
    own, every = net.state_dict(), usual.state_dict()
    assert all(torch.equal(own[n], w) for n, w in before.items())
    encoders = [n for n in own if n.startswith(("optical.", "sar.backbone.", "projectors."))]
    assert encoders and all(torch.equal(own[n], every[n]) for n in encoders)


def test_a_network_of_other_shapes_is_refused() -> None:
    layout = of_bands(*KEPT)
    with pytest.raises(ConfigError, match=r"model.channels is 64, but here it is 32; set"):
        kept.start_from_kept(network(layout, "model.channels=32"), layout)


@torch.no_grad()
@pytest.mark.parametrize("sar", [("vh",), ("vv", "vh"), ()])
def test_streams_start_as_the_encoders_of_umsf_net(sar: tuple[str, ...]) -> None:
    """A SAR stream as the kept encoder that is shown the same image as despeckled and original."""
    layout = of_bands(*KEPT, "nir08", sar=sar) if sar else load_layout("naip")
    net = network(layout, "" if sar else "model.sensors=optical")
    kept.start_from_kept(net, layout)
    bands = {"optical": len(layout.optical.bands)} | ({"sar": len(sar)} if sar else {})
    streams = nn.ModuleDict({role: pyramid("small", n)[0] for role, n in bands.items()}).eval()
    before = copy.deepcopy(streams)
    kept.start_streams(streams, layout)
    x = {role: torch.randn(2, n, 32, 32) for role, n in bands.items()}
    pairs = [(net.optical, x["optical"])]
    if net.sar is not None:
        pairs.append((net.sar.backbone, torch.cat([x["sar"], x["sar"]], dim=1)))
    for (role, maps), (encoder, given) in zip(x.items(), pairs, strict=True):
        stages = list(streams[role].children())
        for stage, end in zip(stages[:3], (3, 4, 6), strict=True):  # strides 1, 2, 4
            maps = stage(maps)
            torch.testing.assert_close(maps, encoder[:end](given))  # type: ignore[index]
        for number, earlier in enumerate(before[role].children()):
            weights = zip(stages[number].parameters(), earlier.parameters(), strict=True)
            assert {torch.equal(*pair) for pair in weights} == {number >= 3}


def test_a_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(kept.WEIGHTS.read_bytes())
    content[len(content) // 2] ^= 1
    path = tmp_path / "umsf-small.pt"
    path.write_bytes(content)
    path.with_suffix(".json").write_text(kept.WEIGHTS.with_suffix(".json").read_text())
    monkeypatch.setattr(kept, "WEIGHTS", path)
    with pytest.raises(ConfigError, match="is damaged: its sha256 is"):
        kept.kept_record()


def test_the_kept_file_is_small_and_its_record_says_whence() -> None:
    record = json.loads(kept.WEIGHTS.with_suffix(".json").read_text())
    assert kept.WEIGHTS.stat().st_size < 5e6
    assert "Copernicus" in " ".join(record["data"]) and record["pretrain"]["batch"] > 0
    assert all(seed >= 100 for _, seed in record["simulated"])  # development seeds

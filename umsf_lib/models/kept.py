"""The weights ``umsf-small``, which come with the project, for the bands of any data set.

They were pretrained without labels on Sentinel pairs and simulated scenes; ``umsf-small.json``
beside them says how, and ``benchmarks/umsf_small.py`` makes them again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config import ConfigError, ModelConfig
from ..data.layout import Layout
from ..run import sha256_of
from ..training.checkpoints import load_weights
from .umsf_net import UmsfNet

WEIGHTS = Path(__file__).parent / "umsf-small.pt"
# Centres of optical bands, um (Sentinel-2).
WAVELENGTHS = {
    "coastal": 0.443,
    "blue": 0.492,
    "green": 0.56,
    "red": 0.665,
    "rededge1": 0.704,
    "rededge2": 0.741,
    "rededge3": 0.783,
    "nir": 0.833,
    "nir08": 0.865,
    "watervapour": 0.945,
    "cirrus": 1.374,
    "swir16": 1.614,
    "swir22": 2.202,
}
SHARED = (
    "backbone",
    "norm",
    "channels",
    "stride",
    "despeckle",
    "projection_hidden",
    "projection_dim",
)  # settings that decide the shapes of weights


def kept_record() -> dict[str, Any]:
    """Read how ``umsf-small`` was made: settings, bands, data, steps and the SHA-256 of the file.

    Raises:
        ConfigError: the weights are not those of the record.
    """
    record: dict[str, Any] = json.loads(WEIGHTS.with_suffix(".json").read_text(encoding="utf-8"))
    if (found := sha256_of(WEIGHTS)) != record["sha256"]:
        raise ConfigError(
            f"{WEIGHTS} is damaged: its sha256 is {found}, but its record says "
            f"{record['sha256']}; restore the file from the repository."
        )
    return record


def start_from_kept(network: UmsfNet, layout: Layout) -> None:
    """Give a network the weights ``umsf-small``; its despeckler and clustering head stay.

    So does a fusion of another kind (the kept one is untrained, as it had no contrast of its own).

    The filters of a band go to the band of that name. A band that the kept weights lack gets those
    of the nearest wavelength (of the mean of all bands if its own is not known; SAR bands all get
    those of the one kept band). Filters that several bands get are divided by their number, so
    that equal bands together give the response of one.

    Raises:
        ConfigError: the network has other shapes, or the kept file is damaged.
    """
    record = kept_record()
    _check_model(network.model, record["model"])
    state = _kept_state(layout, np.eye(2))  # first the despeckled bands, then the original ones
    if network.sensors != "both":  # what follows one sensor was trained as its projector
        own = f"projectors.{network.sensors}."
        state |= {n.replace(own, "projectors.fused."): w for n, w in state.items() if own in n}
    own_parts = ["sar.despeckler.", "clustering."]
    kept = record["model"]
    if (network.model.fusion, network.model.heads) != (kept["fusion"], kept["heads"]):
        own_parts.append("fusion.")
    for name, weight in network.state_dict().items():
        if name.startswith(tuple(own_parts)):
            state[name] = weight
    load_weights(network, {name: state[name] for name in network.state_dict()}, WEIGHTS)


def start_streams(streams: nn.ModuleDict, layout: Layout) -> None:
    """Give the stages of strides 1 to 4 of backbones ``small`` the weights ``umsf-small``.

    Bands are treated as in ``start_from_kept``. There is no despeckler, so a SAR band gets the sum
    of the filters of the despeckled and of the original band.

    Args:
        streams: sensor -> stages, see ``encoders.pyramid``.
        layout: its bands are those of the streams.

    Raises:
        ConfigError: the kept file is damaged.
    """
    state = _kept_state(layout, np.ones((2, 1)))
    for role, stages in streams.items():
        full, half, quarter = list(stages.children())[:3]
        # Named as ``small_resnet`` is.
        body = nn.Sequential(*full.children(), half, *quarter.children())
        before = {"optical": "optical.", "sar": "sar.backbone."}[role]
        own = {n.removeprefix(before): w for n, w in state.items() if n.startswith(before)}
        load_weights(body, own, WEIGHTS)


def _kept_state(layout: Layout, sar_inputs: np.ndarray) -> dict[str, Tensor]:
    """Load the kept weights, with first filters for the bands of a layout.

    ``sar_inputs (2, n)``: the share of both kept SAR filters that each of n sets of SAR bands gets.
    """
    optical = kept_record()["bands"]["optical"]
    state = torch.load(WEIGHTS, map_location="cpu", weights_only=True)
    state = {name: w.float() if w.is_floating_point() else w for name, w in state.items()}
    firsts = {"optical.0.weight": spread(optical, layout.optical.bands)}
    if layout.sar is not None:
        sar = np.full((1, len(layout.sar.bands)), 1 / len(layout.sar.bands))
        firsts["sar.backbone.0.weight"] = np.kron(sar_inputs, sar)
    for name, shares in firsts.items():
        mixed = torch.from_numpy(shares).float()  # (kept bands, bands)
        # (C, kept bands, 3, 3) x (kept bands, bands) -> (C, bands, 3, 3)
        state[name] = torch.einsum("ckhw,kb->cbhw", state[name], mixed)
    return state


def spread(kept: Sequence[str], bands: Sequence[str]) -> np.ndarray:
    """Return the share ``(kept, bands)`` of each kept band's filters that each band gets."""
    sources = np.zeros((len(kept), len(bands)))
    for column, band in enumerate(bands):
        if band in kept:
            sources[kept.index(band), column] = 1
        elif band in WAVELENGTHS:
            apart = [abs(WAVELENGTHS[name] - WAVELENGTHS[band]) for name in kept]
            sources[int(np.argmin(apart)), column] = 1
        else:
            sources[:, column] = 1 / len(kept)
    takers: np.ndarray = (sources > 0).sum(axis=1, keepdims=True).clip(min=1)
    return sources / takers


def fits_kept(model: ModelConfig) -> bool:
    """Return whether a network of these settings can start from ``umsf-small``."""
    kept = kept_record()["model"]
    return all(getattr(model, name) == kept[name] for name in SHARED)


def _check_model(model: ModelConfig, kept: dict[str, Any]) -> None:
    for name in SHARED:
        if (value := getattr(model, name)) != kept[name]:
            raise ConfigError(
                f"model.weights is umsf-small, whose model.{name} is {kept[name]!r}, but here it "
                f"is {value!r}; set model.{name}={kept[name]}, or model.weights=none."
            )

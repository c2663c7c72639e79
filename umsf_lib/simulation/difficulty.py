"""How easy or hard scenes are to classify: one table with all numbers of each difficulty.

"realistic" is calibrated to measurements on WHU-OPT-SAR (``benchmarks/simulator_realism.py``),
except for the near infrared of the classes, which is assumed. "easy" has smooth outlines, almost
correct labels and multi-looked SAR. "mild" is as easy, but rare classes are less rare, to study the
effect of class imbalance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..config import ConfigError
from .terrain import CITY, FARMLAND, FOREST, OTHERS, ROAD, VILLAGE, WATER

ORCHARD = 7  # a cover, not a class: labelled as farmland, but woody


@dataclass(frozen=True)
class Difficulty:
    """What the land of a scene is like, and how the two sensors see it."""

    share: tuple[float, ...]  # of the pixels, per class; those of a single scene vary
    # Share of each labelled class whose true cover is something else: groves and ponds in fields,
    # clearings in forest, gardens in villages. Annotators draw one outline around all of it.
    hidden: dict[int, dict[int, float]]
    hidden_px: float  # scale of these patches
    hidden_tracks: bool  # whether tracks cross the fields
    orchard_share: float  # of the fields
    ragged: float  # fine detail in outlines
    # A row per class, then orchard. Columns 0..6, DN: blue, green, red, near infrared; spread of
    # brightness, of greenness; fine texture. Columns 7..11: mean SAR amplitude (DN); effect of
    # vigour, spread between parcels, fine texture, effect of field rows (dB). Real fields and
    # forest have the same mean SAR and spread, but forest has a lower median: its spread is texture
    # (tree crowns), that of fields lies between parcels.
    covers: tuple[tuple[float, ...], ...]
    looks: float  # WHU-OPT-SAR's amplitude statistics fit 1; easy scenes are multi-looked
    scene_dn: float  # spread of the offsets between scenes, for both sensors
    haze: float  # 1: 9 DN in blue at two standard deviations of its thickness
    relief: float  # 1: full hill shading and layover; below 1: partly corrected
    optical_texture_px: float  # scale of the fine texture
    sar_texture_px: float
    speckle_px: float  # correlation of speckle over one or two pixels, left by resampling


EASY = Difficulty(
    share=(0.404, 0.038, 0.057, 0.064, 0.407, 0.010, 0.019),  # measured over all WHU-OPT-SAR scenes
    hidden={
        FARMLAND: {FOREST: 0.01},
        FOREST: {FARMLAND: 0.01},
        VILLAGE: {FARMLAND: 0.04, FOREST: 0.04},
        CITY: {FOREST: 0.04, OTHERS: 0.04},
    },
    hidden_px=9.0,
    hidden_tracks=False,
    orchard_share=0.08,
    ragged=0.3,
    covers=(
        (106, 98, 82, 107, 6, 8, 4, 40, -2.9, 0.6, 0.5, 0.5),
        (120, 118, 107, 84, 6, 3, 12, 66, 0.0, 1.0, 2.5, 0.0),
        (109, 102, 87, 98, 5, 4, 5, 50, 0.0, 1.0, 1.5, 0.0),
        (101, 93, 72, 52, 4, 3, 3, 18, 0.0, 1.0, 0.5, 0.0),
        (101, 92, 73, 117, 5, 5, 4, 56, -0.7, 0.8, 0.5, 0.0),
        (119, 117, 106, 85, 4, 2, 3, 19, 0.0, 1.0, 0.5, 0.0),
        (110, 103, 88, 98, 5, 4, 4, 36, 0.0, 1.5, 1.0, 0.0),
        (101, 93, 74, 115, 5, 5, 5, 46, -1.0, 1.0, 1.0, 0.5),
    ),
    looks=3.0,
    scene_dn=4.0,
    haze=0.4,
    relief=0.2,
    optical_texture_px=2.5,
    sar_texture_px=4.0,
    speckle_px=1.0,
)
REALISTIC = Difficulty(
    share=EASY.share,
    hidden={
        FARMLAND: {FOREST: 0.20, WATER: 0.02, VILLAGE: 0.02, OTHERS: 0.02},
        FOREST: {FARMLAND: 0.23, OTHERS: 0.02, ORCHARD: 0.02},
        VILLAGE: {FARMLAND: 0.12, FOREST: 0.06, OTHERS: 0.05},
        CITY: {FOREST: 0.10, OTHERS: 0.15, VILLAGE: 0.08},
        WATER: {FARMLAND: 0.10, FOREST: 0.06, OTHERS: 0.04},
        ROAD: {FARMLAND: 0.35, FOREST: 0.10},
        OTHERS: {FARMLAND: 0.30, FOREST: 0.15, CITY: 0.05},
    },
    hidden_px=40.0,
    hidden_tracks=True,
    orchard_share=0.06,
    ragged=8.0,
    covers=(
        (105.2, 97.2, 85.9, 104, 7, 9, 16, 54, -0.5, 1.6, 0.0, 0.5),
        (118, 114, 119, 88, 11, 8, 16, 43, 0.0, 1.5, 3.0, 0.0),
        (108, 97.5, 86.5, 95, 15, 13, 19, 65, 0.0, 1.5, 3.0, 0.0),
        (96.3, 86.3, 68, 60, 18, 11, 11, 17, 0.0, 3.0, 10.0, 0.0),
        (90.6, 79.5, 62, 107, 7, 9, 16, 41.8, 0.0, 0.5, 5.0, 0.0),
        (116, 107.5, 92.5, 90, 20, 14, 15, 32, 0.0, 2.5, 4.0, 0.0),
        (113, 104.5, 91, 96, 24, 14, 20, 62, 0.0, 2.0, 3.0, 0.0),
        (100, 90, 75, 110, 7, 9, 16, 48, 0.0, 1.0, 2.5, 0.5),
    ),
    looks=1.0,
    scene_dn=7.0,
    haze=1.0,
    relief=0.5,
    optical_texture_px=1.4,
    sar_texture_px=4.5,
    speckle_px=0.88,
)
MILD = replace(EASY, share=(0.29, 0.09, 0.11, 0.13, 0.30, 0.02, 0.06))
DIFFICULTIES = {"easy": EASY, "mild": MILD, "realistic": REALISTIC}


def difficulty_of(name: str) -> Difficulty:
    """Return "easy", "mild" or "realistic".

    Raises:
        ConfigError: the name is none of these.
    """
    if name not in DIFFICULTIES:
        known = ", ".join(DIFFICULTIES)
        raise ConfigError(f"difficulty is {name!r}, but it must be one of {known}.")
    return DIFFICULTIES[name]

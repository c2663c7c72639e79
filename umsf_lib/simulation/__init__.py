"""Simulated scenes: a landscape made by simple natural processes, seen by two sensors.

A seed gives arrays in the format of WHU-OPT-SAR. The steps are relief (``terrain``), roads and
villages (``settlements``), land cover (``landscape``) and images (``sensors``).
"""

from .. import hand_on

__getattr__, __all__ = hand_on(
    __name__,
    sensors="simulate_scene",
)

"""Simulated scenes: a landscape grown by process, and what two sensors see of it.

In comes a seed, out come arrays in the form of WHU-OPT-SAR. Relief first (``terrain``), then
roads and villages (``settlements``), their land cover (``landscape``) and its images
(``sensors``).
"""

from .. import hand_on

__getattr__, __all__ = hand_on(
    __name__,
    sensors="simulate_scene",
)

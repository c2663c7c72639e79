"""UMSF-Net: unsupervised land-cover classification from paired optical and SAR images.

A dozen rooms, in the order in which data meets them: config, run, simulation, data, training,
models, figures, pretraining, clustering, baselines, evaluation, maps, experiments, notebooks. What
a room's notebook calls stands in its ``stage.py``; the room hands it on.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

__version__ = "0.2.0"


def hand_on(room: str, **names: str) -> tuple[Callable[[str], Any], list[str]]:
    """Let a room hand on names of its files, each file imported when it is first asked for.

    So reading and checking data imports no torch.

    Args:
        room: ``__name__`` of the package.
        names: file -> the names in it, separated by spaces.

    Returns:
        ``__getattr__`` and ``__all__`` of the package.
    """
    home = {name: file for file, listed in names.items() for name in listed.split()}

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{room}.{home[name]}"), name)

    return get, sorted(home)

"""UMSF-Net: unsupervised land-cover classification from paired optical and SAR images.

The modules and packages, in the order in which data passes through them: config, progress, run,
simulation, data, training, models, figures, pretraining, clustering, baselines, supervised,
evaluation, maps, experiments, notebooks. Most functions that a notebook calls are in the package's
``stage.py``; the package exports them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

__version__ = "0.3.0"


def hand_on(room: str, **names: str) -> tuple[Callable[[str], Any], list[str]]:
    """Export names from the files of a package; import each file when it is first used.

    Reading and checking data therefore does not import torch.

    Args:
        room: ``__name__`` of the package.
        names: file -> the names it exports, separated by spaces.

    Returns:
        ``__getattr__`` and ``__all__`` for the package.
    """
    home = {name: file for file, listed in names.items() for name in listed.split()}

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{room}.{home[name]}"), name)

    return get, sorted(home)

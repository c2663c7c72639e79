"""Methods that see labels, those of the training scenes: what can be read from the same images.

``ceiling`` trains UMSF-Net itself. ``stage`` trains the fusion ``networks`` of other authors, with
their ``decoders``.
"""

from collections.abc import Callable
from functools import partial

from ..clustering.inference import Classifier
from .ceiling import fit_supervised, has_ceiling
from .networks import NETWORKS
from .stage import fit_network

# They have seen labels, so they do not compete with the other methods.
CEILING: dict[str, Callable[..., Classifier]] = {"supervised": fit_supervised} | {
    f"supervised-{name}": partial(fit_network, name) for name in NETWORKS
}

__all__ = ["CEILING", "has_ceiling"]

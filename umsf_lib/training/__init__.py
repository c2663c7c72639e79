"""Training: one loop for all networks, its checkpoints, and several processes.

The loop takes a function that returns the loss of a step. It trains a module and returns the rows
of the training log.
"""

from .. import hand_on

__getattr__, __all__ = hand_on(
    __name__,
    loop="print_progress train trainable",
)

"""Training: one loop for everything that is trained, its checkpoints, and several processes.

In comes a function that gives the loss of a step, out come a trained module and the rows of its
log.
"""

from .. import hand_on

__getattr__, __all__ = hand_on(
    __name__,
    loop="print_progress train trainable",
)

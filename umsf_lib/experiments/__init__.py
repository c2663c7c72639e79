"""Experiments: comparisons of methods and variants, and tables of their results.

``pipeline`` runs all stages of one run, ``sweep`` does many runs, ``records`` stores their results
in one file, and ``tables`` makes tables of them.
"""

from .. import hand_on

__getattr__, __all__ = hand_on(
    __name__,
    pipeline="METHODS PRETRAINED methods run_everything",
    records="RECORDS",
    sweep="Sweep",
    tables="method_costs print_sweep",
)

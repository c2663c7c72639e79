"""Experiments: what is compared with what, and tables made of records.

``pipeline`` runs all stages of one run, ``sweep`` many runs; ``records`` keeps what they found in
one file, ``tables`` reads it.
"""

from .. import hand_on

__getattr__, __all__ = hand_on(
    __name__,
    pipeline="METHODS PRETRAINED methods run_everything",
    records="RECORDS",
    tables="method_costs print_sweep",
)

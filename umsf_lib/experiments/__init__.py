"""Experiments: what is compared with what, and tables made of records.

``pipeline`` runs all stages of one run, ``sweep`` many runs; ``records`` keeps what they found in
one file, ``tables`` reads it.
"""

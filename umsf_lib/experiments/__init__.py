"""Experiments: what is compared with what, and tables made of records.

``pipeline`` runs all stages of one run, ``sweep`` many runs, ``tables`` reads their records.
"""

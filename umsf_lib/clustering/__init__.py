"""Clustering: tokens in, clusters out, without labels. Open ``stage`` first.

A mixture on ``tokens`` (``mixture``) teaches the network (``self_training``, ``losses``);
``inference`` and ``smoothing`` make maps of whole scenes; ``task`` is what every method is given.
"""

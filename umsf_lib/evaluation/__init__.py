"""Evaluation: clusters and labels in, scores as tidy records out. Open ``stage`` first.

``metrics`` are pure functions of tables; ``probe`` asks what labels make of frozen features.
"""

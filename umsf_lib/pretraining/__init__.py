"""Pretraining: momentum contrast without labels. Open ``stage`` first.

Windows become batches of two views (``augmentations``, ``batches``, ``neighbours``), whose tokens
are contrasted with queues of older keys (``moco``, ``momentum``, ``losses``).
"""

"""Pretraining: momentum contrast without labels. Open ``stage`` first.

Windows become batches of two views (``augmentations``, ``batches``, ``neighbours``), whose tokens
are contrasted with queues of older keys (``moco``, ``momentum``, ``losses``).
"""

from .. import hand_on

__getattr__, __all__ = hand_on(
    __name__,
    losses="COLLAPSE_COSINE COLLAPSE_STD chance_level collapsed embedding_statistics info_nce",
    batches="as_arrays",
    moco="embeddings unit",
    momentum="Queue key_network momentum_update",
    neighbours="Neighbours draw_in_disc",
    stage="WindowSource build_learner build_network load_pretrained new_network pretrain",
)

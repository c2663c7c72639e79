"""Evaluation: clusters and labels in, scores as tidy records out. Open ``stage`` first.

``metrics`` holds pure functions of tables. ``probe`` judges frozen features with labels.
"""

from .. import hand_on

__getattr__, __all__ = hand_on(
    __name__,
    metrics="accuracy apply_mapping ari confusion contingency hungarian mean_iou nmi scores",
    probe="JUDGES PROTOCOLS accuracy_table judge leak mean_variogram patches_of probe_features"
    " same_class",
    stage="evaluate fitted_matching load_records",
)

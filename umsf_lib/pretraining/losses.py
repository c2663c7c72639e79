"""InfoNCE and the collapse monitor of pretraining: pure functions of tensors.

Rows are samples ``(M, D)``. Everything is computed in float32 or wider, even under autocast.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Healthy unit embeddings spread over the sphere: std 1/sqrt(D) per dimension, cosine near 0.
# Below 30 % of that std, or above this cosine, the rows are nearly one and the same vector.
COLLAPSE_STD = 0.3
COLLAPSE_COSINE = 0.9


def at_least_float32(x: Tensor) -> Tensor:
    """Widen to float32 what autocast may have cast to a shorter type."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def info_nce(q: Tensor, k: Tensor, queue: Tensor, tau: float, mask: Tensor | None = None) -> Tensor:
    """Contrast each query with its own key against a queue of older keys.

    Leading dimensions hold several contrasts, each with its own queries, keys and queue.

    ``-ln[ e^(q.k/tau) / (e^(q.k/tau) + sum_j w_j e^(q.u_j/tau)) ]``, averaged over the queries.
    No gradient flows into ``k`` or ``queue``. Call ``Queue.enqueue`` after ``backward()``, which
    needs the queue unchanged; autograd raises an error if it was changed in place in between.

    Args:
        q: Queries ``(..., M, D)``, unit rows.
        k: Keys ``(..., M, D)``, unit rows; row i is the positive of query i.
        queue: Negatives ``(..., Q, D)``, unit rows.
        tau: Temperature, > 0.
        mask: ``(M, Q)`` bool, True = use this negative (w = 1), or None for all.

    Returns:
        ``(...)``, one value per contrast, in nats; 0 where there is no query at all (two views that
        do not overlap).

    Source: van den Oord et al. 2018 (CPC), He et al. 2020 (MoCo).
    """
    # Autocast would run the matmul in bfloat16, whose 3 digits are too few before exp(. / tau).
    with torch.autocast(q.device.type, enabled=False):
        q, k, queue = (at_least_float32(x) for x in (q, k.detach(), queue.detach()))
        positive = (q * k).sum(-1) / tau  # (..., M)
        negative = (q / tau) @ queue.mT  # (..., M, D) x (..., D, Q) -> (..., M, Q): large
        if mask is not None:
            # The lowest finite number, not -inf: a row without negatives would have a nan gradient.
            negative.masked_fill_(~mask, torch.finfo(negative.dtype).min)
        # -ln[e^p / (e^p + e^n)] = softplus(n - p): exact also where the loss is tiny.
        return F.softplus(negative.logsumexp(-1) - positive).sum(-1) / max(q.shape[-2], 1)


def chance_level(queue_size: int, dim: int, tau: float) -> tuple[float, float]:
    """Return the two InfoNCE values, in nats, of a network that has learned nothing.

    Returns:
        ``ln(1+Q)`` for collapsed embeddings (all equal), and ``ln(1+Q) + 1/(2 D tau^2)`` for random
        unit embeddings, whose cosines are close to N(0, 1/D).
    """
    collapsed_level = math.log1p(queue_size)
    return collapsed_level, collapsed_level + 1 / (2 * dim * tau**2)


@torch.no_grad()
def embedding_statistics(
    z: Tensor, k: Tensor, queue: Tensor, mask: Tensor | None = None
) -> dict[str, float]:
    """Measure whether the embeddings still differ from each other.

    Args:
        z: Queries ``(M, D)``; normalised here.
        k: Keys ``(M, D)``, unit rows.
        queue: Negatives ``(Q, D)``, unit rows.
        mask: ``(M, Q)`` bool, True = use this negative, as in ``info_nce``.

    Returns:
        ``std``: over the batch, mean of the dimensions (1/sqrt(D) is healthy, 0 = collapse);
        ``mean_cosine`` of different rows (0 is healthy, 1 = collapse); ``top1``: share of queries
        closer to their own key than to every negative (chance 1/(1+Q)). NaN of fewer than two rows.
    """
    if len(z) < 2:
        return dict.fromkeys(("std", "mean_cosine", "top1"), math.nan)
    with torch.autocast(z.device.type, enabled=False):
        z = F.normalize(at_least_float32(z), dim=1)
        negative = z @ queue.to(z).T  # (M, D) x (D, Q) -> (M, Q)
        if mask is not None:
            negative = negative.masked_fill(~mask, -torch.inf)
        top1 = ((z * k).sum(1) > negative.amax(1)).double().mean()
        # |sum of rows|^2 = M + sum of the cosines of all M(M-1) ordered pairs.
        rows = len(z)
        mean_cosine = (z.sum(0).square().sum() - rows) / (rows * (rows - 1))
        std = z.std(0, correction=0).mean()
    values = torch.stack([std.double(), mean_cosine.double(), top1]).tolist()  # one device sync
    return dict(zip(("std", "mean_cosine", "top1"), values, strict=True))


def collapsed(stats: dict[str, float], dim: int) -> str | None:
    """Return a warning sentence if the embeddings have collapsed, else None.

    An untrained network often looks collapsed, so call this only after the warm-up.

    Args:
        stats: From ``embedding_statistics``.
        dim: D, the embedding width.
    """
    healthy = dim**-0.5
    if not (stats["std"] < COLLAPSE_STD * healthy or stats["mean_cosine"] > COLLAPSE_COSINE):
        return None  # NaN, too: too few rows to tell
    return (
        f"The embeddings have collapsed: std {stats['std']:.4f} (healthy {healthy:.4f}, alarm below"
        f" {COLLAPSE_STD * healthy:.4f}), mean cosine {stats['mean_cosine']:.3f} (healthy 0, alarm"
        f" above {COLLAPSE_COSINE}); lower pretrain.lr, or raise pretrain.ema or pretrain.batch."
    )

"""Losses of self-training and of clustering heads: pure functions of class scores.

Scores are ``(M, K)`` or ``(B, K, H, W)`` for K classes. A ``weight`` per sample, >= 0, is ``(M,)``
or ``(B, H, W)``; None weighs all alike. Losses are scalars in nats.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pretraining.losses import at_least_float32


def clustering_loss(
    probs: Tensor, balance: float, prior: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Reward confident assignments and cluster sizes near a prior.

    ``mean_i H(p_i) + balance * KL(mean_i p_i || prior)``. With balance 1 and the uniform prior this
    is ``ln K - I(sample; cluster)``: maximal mutual information.

    Args:
        probs: sums to 1 over K.
        balance: weight of the size term; small (0.25) where class sizes differ a lot.
        prior: expected cluster shares ``(K,)``, positive, sum 1; uniform if None.
        weight: see above.

    Returns:
        With the uniform prior: 0 for one-hot, balanced assignments; ln K for uniform ones;
        balance * ln K if one cluster takes all samples.

    Source: Krause et al. 2010 (RIM), Hu et al. 2017 (IMSAT).
    """
    p = at_least_float32(probs).transpose(0, 1).flatten(1)  # (B, K, H, W) -> (K, B H W)
    expected = torch.full_like(p[:, 0], 1 / len(p)) if prior is None else prior.to(p)
    shares = _mean(p, weight)  # (K,)
    imbalance = (shares * (_safe_log(shares) - _safe_log(expected))).sum()
    return -_mean((p * _safe_log(p)).sum(0), weight) + balance * imbalance


def consistency_loss(
    student_logits: Tensor, teacher: Tensor, temperature: float, weight: Tensor | None = None
) -> Tensor:
    """Cross entropy of the student against the sharpened teacher, which gets no gradient.

    ``teacher`` holds the probabilities of the EMA network for the other view. A ``temperature``
    below 1 sharpens them: 0.5 squares them, 1 leaves them as they are.

    Source: Caron et al. 2021 (DINO), Xie et al. 2020 (UDA).
    """
    return soft_cross_entropy(student_logits, sharpen(teacher.detach(), temperature), weight)


def sharpen(probs: Tensor, temperature: float) -> Tensor:
    """Raise probabilities to the power 1/temperature and renormalise over dimension 1."""
    return (_safe_log(at_least_float32(probs)) / temperature).softmax(1)


def soft_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross entropy against class probabilities; 0 where all weights are 0."""
    logits = at_least_float32(logits)
    loss = F.cross_entropy(logits, target.to(logits), reduction="none")  # (M,) or (B, H, W)
    return _mean(loss.flatten(), weight)


def symmetric_kl(logits_a: Tensor, logits_b: Tensor) -> Tensor:
    """Half of KL(a||b) + KL(b||a), averaged over samples; 0 exactly where both agree."""
    log_a, log_b = (at_least_float32(x).log_softmax(1) for x in (logits_a, logits_b))
    return 0.5 * ((log_a.exp() - log_b.exp()) * (log_a - log_b)).sum(1).mean()


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of ``(..., samples)`` over the samples; 0 where all weights are 0."""
    if weight is None:
        return values.mean(-1)
    weight = weight.flatten().to(values)
    return (values * weight).sum(-1) / weight.sum().clamp_min(torch.finfo(values.dtype).tiny)


def _safe_log(p: Tensor) -> Tensor:
    """Log with a floor, so that p ln p and its gradient stay finite at p = 0."""
    return p.clamp_min(torch.finfo(p.dtype).tiny).log()

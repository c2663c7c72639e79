"""Losses against closed forms, slow loops and gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from umsf_lib.clustering.losses import (
    clustering_loss,
    consistency_loss,
    sharpen,
    soft_cross_entropy,
    symmetric_kl,
)
from umsf_lib.pretraining.losses import (
    chance_level,
    collapsed,
    embedding_statistics,
    info_nce,
)


def unit(rows: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator), dim=1)


def slow_info_nce(q: Tensor, k: Tensor, queue: Tensor, tau: float, mask: Tensor) -> float:
    total = 0.0
    for i in range(len(q)):
        positive = math.exp(float(q[i] @ k[i]) / tau)
        negatives = sum(
            math.exp(float(q[i] @ queue[j]) / tau) for j in range(len(queue)) if mask[i, j]
        )
        total -= math.log(positive / (positive + negatives))
    return total / len(q)


@pytest.mark.parametrize("tau", [0.07, 0.2, 1.0])
def test_info_nce_equals_a_loop(tau: float) -> None:
    q, k, queue = (unit(n, 8, seed).double() for n, seed in ((5, 1), (5, 2), (11, 3)))
    mask = torch.rand(5, 11, generator=torch.Generator().manual_seed(4)) > 0.4
    everything = torch.ones_like(mask)
    assert info_nce(q, k, queue, tau, mask).item() == pytest.approx(
        slow_info_nce(q, k, queue, tau, mask), rel=1e-9
    )
    assert info_nce(q, k, queue, tau).item() == pytest.approx(
        slow_info_nce(q, k, queue, tau, everything), rel=1e-9
    )


def test_info_nce_equals_cross_entropy_with_target_zero() -> None:
    """MoCo writes the same loss as a classification whose right answer is column 0."""
    q, k, queue = unit(6, 16, 1), unit(6, 16, 2), unit(40, 16, 3)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / 0.07
    expected = F.cross_entropy(logits, torch.zeros(6, dtype=torch.long))
    assert torch.allclose(info_nce(q, k, queue, 0.07), expected, atol=1e-5)


def test_random_embeddings_sit_at_the_second_chance_line() -> None:
    q, k, queue = unit(2048, 256, 1), unit(2048, 256, 2), unit(8192, 256, 3)
    equal, random = chance_level(8192, 256, 0.07)
    assert info_nce(q, k, queue, 0.07).item() == pytest.approx(random, abs=0.06)
    same = unit(1, 256)
    collapsed_loss = info_nce(same.expand(9, -1), same.expand(9, -1), same.expand(8192, -1), 0.07)
    assert collapsed_loss.item() == pytest.approx(equal, abs=1e-5)


def test_chance_level_of_the_paper_profile() -> None:
    equal, random = chance_level(65_536, 256, 0.07)
    assert (equal, random) == (pytest.approx(11.0904, abs=1e-4), pytest.approx(11.489, abs=1e-3))


def test_perfect_positive_has_its_closed_form() -> None:
    """Own key found, all negatives orthogonal: ln(1 + Q e^(-1/tau)), also where it is tiny."""
    query, orthogonal = torch.eye(4)[:1], torch.eye(4)[1:].repeat(100, 1)
    for tau in (0.02, 0.07, 0.5):
        expected = math.log1p(300 * math.exp(-1 / tau))
        loss = info_nce(query, query, orthogonal, tau)
        assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_perfect_positive_among_random_negatives() -> None:
    """The value 0.059 quoted for Q = 65 536 is this form; here with a smaller queue."""
    q, queue, tau = unit(512, 256, 1), unit(8192, 256, 2), 0.07
    form = math.log1p(8192 * math.exp(1 / (2 * 256 * tau**2) - 1 / tau))
    assert info_nce(q, q, queue, tau).item() == pytest.approx(form, rel=0.05)


def test_masked_negatives_count_nothing() -> None:
    q, k, queue = unit(3, 8, 1), unit(3, 8, 2), unit(10, 8, 3)
    mask = torch.ones(3, 10, dtype=torch.bool)
    mask[:, 6:] = False
    assert torch.allclose(info_nce(q, k, queue, 0.1, mask), info_nce(q, k, queue[:6], 0.1))


def test_a_row_without_negatives_has_no_loss_and_no_nan() -> None:
    q = unit(2, 8, 1).requires_grad_()
    mask = torch.tensor([[False] * 5, [True] * 5])
    loss = info_nce(q, unit(2, 8, 2), unit(5, 8, 3), 0.07, mask)
    loss.backward()
    assert q.grad is not None and torch.isfinite(q.grad).all()
    assert (q.grad[0] == 0).all() and (q.grad[1] != 0).any()


def test_no_queries_give_a_zero_that_can_be_differentiated() -> None:
    q = torch.empty(0, 8, requires_grad=True)
    loss = info_nce(q, torch.empty(0, 8), unit(5, 8), 0.07)
    loss.backward()
    assert loss.item() == 0


def test_gradient_reaches_queries_only() -> None:
    q, k, queue = (unit(4, 8, seed).double().requires_grad_() for seed in (1, 2, 3))
    info_nce(q, k, queue, 0.2).backward()
    assert q.grad is not None and k.grad is None and queue.grad is None
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / 0.2
    naive = F.cross_entropy(logits, torch.zeros(4, dtype=torch.long))
    assert torch.allclose(q.grad, torch.autograd.grad(naive, q)[0])


def test_modalities_are_symmetric() -> None:
    optical, sar, queue_opt, queue_sar = (unit(n, 16, s) for s, n in enumerate((7, 7, 30, 30)))

    def cross(a: Tensor, b: Tensor, queue_a: Tensor, queue_b: Tensor) -> Tensor:
        return 0.5 * (info_nce(a, b, queue_b, 0.07) + info_nce(b, a, queue_a, 0.07))

    forward = cross(optical, sar, queue_opt, queue_sar)
    assert torch.equal(forward, cross(sar, optical, queue_sar, queue_opt))
    # Identical modalities through shared nets: cross-modal contrast is the intra-modal one.
    intra = info_nce(optical, optical, queue_opt, 0.07)
    assert torch.equal(cross(optical, optical, queue_opt, queue_opt), intra)


def test_autocast_does_not_touch_the_logits() -> None:
    q, k, queue = unit(64, 128, 1), unit(64, 128, 2), unit(512, 128, 3)
    expected = info_nce(q, k, queue, 0.07)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = info_nce(q, k, queue, 0.07)
        from_bfloat16 = info_nce(q.bfloat16(), k.bfloat16(), queue, 0.07)
    assert inside.dtype == torch.float32 and torch.equal(inside, expected)
    assert from_bfloat16.dtype == torch.float32
    assert from_bfloat16.item() == pytest.approx(expected.item(), abs=0.02)


@pytest.mark.parametrize("balance", [0.0, 0.25, 1.0])
def test_clustering_loss_oracles(balance: float) -> None:
    one_hot = torch.eye(7).repeat(3, 1)
    uniform = torch.full((21, 7), 1 / 7)
    one_cluster = torch.eye(7)[2].expand(21, 7)
    assert clustering_loss(one_hot, balance).item() == pytest.approx(0, abs=1e-6)
    assert clustering_loss(uniform, balance).item() == pytest.approx(math.log(7), abs=1e-6)
    assert clustering_loss(one_cluster, balance).item() == pytest.approx(
        balance * math.log(7), abs=1e-6
    )


def test_clustering_loss_is_negative_mutual_information() -> None:
    p = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).double().softmax(1)
    joint = p / len(p)  # p(sample, cluster)
    independent = joint.sum(0, keepdim=True) * joint.sum(1, keepdim=True)
    information = (joint * (joint / independent).log()).sum()
    assert torch.allclose(clustering_loss(p, 1.0), math.log(6) - information)


def test_clustering_loss_with_a_prior_is_zero_at_the_prior() -> None:
    prior = torch.tensor([0.5, 0.25, 0.25])
    as_expected = torch.eye(3)[[0, 0, 1, 2]]
    assert clustering_loss(as_expected, 1.0, prior).item() == pytest.approx(0, abs=1e-6)
    balanced = torch.eye(3)
    gap = sum(math.log((1 / 3) / p) / 3 for p in (0.5, 0.25, 0.25))
    assert clustering_loss(balanced, 2.0, prior).item() == pytest.approx(2 * gap, abs=1e-6)


def test_clustering_loss_of_a_map_equals_that_of_its_pixels() -> None:
    maps = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    pixels = maps.permute(0, 2, 3, 1).reshape(-1, 5)
    assert torch.allclose(clustering_loss(maps, 0.5), clustering_loss(pixels, 0.5))


def test_clustering_loss_stays_finite_at_certainty() -> None:
    logits = torch.tensor([[500.0, 0.0, -500.0]], requires_grad=True)
    clustering_loss(logits.softmax(1), 1.0).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_sharpen_is_a_normalised_power() -> None:
    p = torch.rand(9, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    assert torch.allclose(sharpen(p, 0.5), p**2 / (p**2).sum(1, keepdim=True))
    assert torch.allclose(sharpen(p, 1.0), p)
    assert torch.equal(sharpen(torch.eye(3), 0.5), torch.eye(3))


def test_consistency_is_least_at_the_sharpened_teacher() -> None:
    teacher = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).softmax(1)
    target = sharpen(teacher, 0.5)
    entropy = -(target * target.log()).sum(1).mean()
    logits = target.log().requires_grad_()
    loss = consistency_loss(logits, teacher, 0.5)
    loss.backward()
    assert torch.allclose(loss, entropy, atol=1e-6)
    assert logits.grad is not None and logits.grad.abs().max() < 1e-7


def test_consistency_gives_the_teacher_no_gradient() -> None:
    student, teacher = (torch.randn(4, 3).requires_grad_() for _ in range(2))
    consistency_loss(student, teacher.softmax(1), 0.5).backward()
    assert student.grad is not None and teacher.grad is None


def test_soft_cross_entropy_with_weights_equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = (torch.randn(2, 4, 3, 3, generator=generator) for _ in range(2))
    target, weight = target.softmax(1), torch.rand(2, 3, 3, generator=generator)
    total = 0.0
    for b in range(2):
        for y in range(3):
            for x in range(3):
                log_p = logits[b, :, y, x].log_softmax(0)
                total -= float(weight[b, y, x] * (target[b, :, y, x] * log_p).sum())
    expected = total / float(weight.sum())
    assert soft_cross_entropy(logits, target, weight).item() == pytest.approx(expected, rel=1e-5)
    alike = soft_cross_entropy(logits, target, torch.full((2, 3, 3), 0.3))
    assert torch.allclose(alike, soft_cross_entropy(logits, target))
    assert soft_cross_entropy(logits, target, torch.zeros(2, 3, 3)).item() == 0


def test_soft_cross_entropy_of_hard_targets_is_the_usual_one() -> None:
    logits, ids = torch.randn(8, 5), torch.randint(5, (8,))
    assert torch.allclose(
        soft_cross_entropy(logits, F.one_hot(ids, 5)), F.cross_entropy(logits, ids)
    )


def test_symmetric_kl_is_the_mean_of_both_directions() -> None:
    a, b = torch.randn(6, 4), torch.randn(6, 4)
    log_a, log_b = a.log_softmax(1), b.log_softmax(1)
    both = F.kl_div(log_a, log_b, reduction="batchmean", log_target=True) + F.kl_div(
        log_b, log_a, reduction="batchmean", log_target=True
    )
    assert torch.allclose(symmetric_kl(a, b), both / 2, atol=1e-6)
    assert torch.equal(symmetric_kl(a, b), symmetric_kl(b, a))
    assert symmetric_kl(a, a + 3).item() == pytest.approx(0, abs=1e-6)  # same probabilities
    assert symmetric_kl(a, b) > 0


def test_statistics_of_healthy_embeddings() -> None:
    z, queue = unit(2000, 64, 1), unit(500, 64, 2)
    stats = embedding_statistics(3 * z, z, queue)
    assert stats["std"] == pytest.approx(1 / 8, rel=0.02)
    assert stats["mean_cosine"] == pytest.approx(0, abs=0.002)
    assert stats["top1"] == 1
    assert collapsed(stats, 64) is None


def test_statistics_equal_a_loop() -> None:
    z, k, queue = unit(6, 3, 1), unit(6, 3, 2), unit(4, 3, 3)
    mask = torch.rand(6, 4, generator=torch.Generator().manual_seed(4)) > 0.5
    stats = embedding_statistics(z, k, queue, mask)
    cosines = [float(z[i] @ z[j]) for i in range(6) for j in range(6) if i != j]
    hits = [all(z[i] @ k[i] > z[i] @ queue[j] for j in range(4) if mask[i, j]) for i in range(6)]
    assert stats["mean_cosine"] == pytest.approx(sum(cosines) / 30, abs=1e-6)
    assert stats["top1"] == pytest.approx(sum(hits) / 6)


def test_collapse_is_seen_and_said() -> None:
    point = unit(1, 64, 1)
    near = F.normalize(point + 1e-3 * unit(100, 64, 2), dim=1)
    stats = embedding_statistics(near, near, near[:50])
    message = collapsed(stats, 64)
    assert stats["std"] < 1e-3 and stats["mean_cosine"] > 0.99
    assert message is not None and "0.1250" in message and message.endswith(".")
    few_dimensions = F.pad(unit(500, 2, 3), (0, 62))  # spread out, but only in 2 of 64 dimensions
    assert collapsed(embedding_statistics(few_dimensions, few_dimensions, near), 64) is not None


def test_several_contrasts_at_once_are_each_by_itself() -> None:
    q, k, queue = (torch.stack([unit(n, 8, s + i) for i in range(3)]) for n, s in
                   ((4, 0), (4, 10), (9, 20)))  # fmt: skip
    mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(1)) > 0.3
    together = info_nce(q, k, queue, 0.1, mask)
    alone = [info_nce(*one, 0.1, mask) for one in zip(q, k, queue, strict=True)]
    assert together.shape == (3,) and torch.allclose(together, torch.stack(alone), atol=1e-6)

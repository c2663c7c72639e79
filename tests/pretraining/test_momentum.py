"""Key networks against the closed form of the average; queue against a slow FIFO."""

from collections import deque

import pytest
import torch
from torch import nn

from umsf_lib.pretraining.losses import info_nce
from umsf_lib.pretraining.momentum import Queue, key_network, momentum_update


def small_net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))


def fill(queue: Queue, batch: int, first: int) -> list[tuple[list[float], int, float, float]]:
    """Enqueue keys that carry their own serial number, and return them as plain rows."""
    serial = torch.arange(first, first + batch)
    keys = torch.stack([serial + 0.5, -serial.float()], dim=1)
    queue.enqueue(keys, serial, serial * 2.0, serial * 3.0)
    return [([n + 0.5, -float(n)], n, n * 2.0, n * 3.0) for n in serial.tolist()]


def rows_from_oldest(queue: Queue) -> list[tuple[list[float], int, float, float]]:
    order = (torch.arange(len(queue.entries)) + int(queue.pointer)) % len(queue.entries)
    columns = (queue.entries, queue.scene, queue.row, queue.col)
    return list(zip(*(column[order].tolist() for column in columns), strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_queue_equals_a_slow_fifo(seed: int) -> None:
    """Random queue and batch sizes, empty batches and batches several queues long among them."""
    generator = torch.Generator().manual_seed(seed)
    size = int(torch.randint(1, 12, (), generator=generator))
    queue = Queue(size, 2, generator)
    fifo = deque(rows_from_oldest(queue), maxlen=size)
    first = 0
    for batch in torch.randint(0, 3 * size + 2, (30,), generator=generator).tolist():
        fifo.extend(fill(queue, batch, first))
        first += batch
        assert rows_from_oldest(queue) == list(fifo)
        assert 0 <= int(queue.pointer) < size


def test_queue_starts_with_random_unit_vectors_of_no_scene() -> None:
    queue = Queue(4096, 16, torch.Generator().manual_seed(0))
    assert torch.allclose(queue.entries.norm(dim=1), torch.ones(4096))
    assert queue.entries.mean(0).abs().max() < 0.02
    assert (queue.scene == -1).all() and queue.scene.dtype == torch.int64
    again = Queue(4096, 16, torch.Generator().manual_seed(0))
    assert torch.equal(queue.entries, again.entries)
    assert not list(queue.parameters())


def test_no_initial_entry_is_left_after_one_turn() -> None:
    queue = Queue(10, 2)
    for first in range(0, 12, 4):
        assert (queue.scene == -1).any()
        fill(queue, 4, first)
    assert (queue.scene >= 0).all()


def test_state_dict_restores_the_queue_exactly() -> None:
    queue = Queue(7, 2)
    fill(queue, 5, 0)
    restored = Queue(7, 2)
    restored.load_state_dict(queue.state_dict())
    for each in (queue, restored):
        fill(each, 4, 5)
    for name, value in queue.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name]), name


def test_enqueue_keeps_no_graph_and_takes_bfloat16() -> None:
    queue = Queue(4, 2)
    keys = torch.ones(2, 2, dtype=torch.bfloat16, requires_grad=True)
    where = torch.zeros(2)
    queue.enqueue(keys * 2, where.long(), where, where)
    assert queue.entries.dtype == torch.float32 and not queue.entries.requires_grad
    assert (queue.entries[:2] == 2).all()


def test_enqueue_belongs_after_backward() -> None:
    queue, where = Queue(8, 2), torch.zeros(3)
    q = torch.randn(3, 2, requires_grad=True)
    loss = info_nce(q, q, queue.entries, 0.2)
    queue.enqueue(q, where.long(), where, where)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    info_nce(q, q, queue.entries, 0.2).backward()
    queue.enqueue(q, where.long(), where, where)


def test_own_ground_mask_equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)

    def ground(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scene = torch.randint(0, 3, (count,), generator=generator)
        place = torch.randint(0, 100, (2, count), generator=generator).float()
        return scene, place[0], place[1]

    queue = Queue(60, 2)
    entries = ground(50)  # the last 10 stay at their random start
    queue.enqueue(torch.zeros(50, 2), *entries)
    scene, row, col = ground(40)
    keep = queue.other_location_mask(scene, row, col, 16.0)
    assert keep.shape == (40, 60) and keep.dtype == torch.bool and not keep.all()
    for i in range(40):
        for j in range(60):
            far = abs(row[i] - queue.row[j]) >= 16 or abs(col[i] - queue.col[j]) >= 16
            assert keep[i, j] == (scene[i] != queue.scene[j] or far)
    assert keep[:, 50:].all()


def test_momentum_update_equals_the_closed_form() -> None:
    """With a resting query: theta_n = m^n theta_0 + (1 - m^n) theta_query."""
    query, key = small_net(0).double(), small_net(1).double()
    start = [p.clone() for p in key.parameters()]
    for _ in range(50):
        momentum_update(key, query, 0.97)
    share = 0.97**50
    for p, first, goal in zip(key.parameters(), start, query.parameters(), strict=True):
        assert torch.allclose(p, share * first + (1 - share) * goal, rtol=0, atol=1e-12)


def test_momentum_update_follows_a_moving_query() -> None:
    query, key = nn.Linear(1, 1, bias=False).double(), nn.Linear(1, 1, bias=False).double()
    expected = key.weight.item()
    for step in range(20):
        with torch.no_grad():
            query.weight.fill_(step)
        momentum_update(key, query, 0.9)
        expected = 0.9 * expected + 0.1 * step
    assert key.weight.item() == pytest.approx(expected, abs=1e-12)


def test_momentum_one_freezes_and_zero_copies() -> None:
    query, key = small_net(0), small_net(1)
    before = [p.clone() for p in key.parameters()]
    momentum_update(key, query, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(key.parameters(), before, strict=True))
    momentum_update(key, query, 0.0)
    pairs = zip(key.parameters(), query.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_batch_norm_buffers_are_copied() -> None:
    query = small_net(0)
    key = key_network(query)
    query(torch.randn(4, 2, 8, 8))  # moves the running statistics of the query only
    momentum_update(key, query, 0.999)
    for mine, theirs in zip(key.buffers(), query.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    assert key[1].num_batches_tracked == 1 and key[1].running_mean.abs().sum() > 0


def test_key_network_gets_no_gradient_and_shares_nothing() -> None:
    query = small_net(0)
    query(torch.randn(2, 2, 8, 8)).sum().backward()
    key = key_network(query)
    assert all(not p.requires_grad and p.grad is None for p in key.parameters())
    assert all(p.requires_grad and p.grad is not None for p in query.parameters())
    mine = {p.data_ptr() for p in key.parameters()}
    assert mine.isdisjoint(p.data_ptr() for p in query.parameters())
    x = torch.randn(3, 2, 8, 8)
    q, k = query(x).mean((2, 3)), key(x).mean((2, 3))
    info_nce(q, k, torch.randn(5, 3), 0.2).backward()
    assert all(p.grad is None for p in key.parameters())

"""ASANet's, AMM-FuseNet's and REF-Net's modules: counts, invariants, and slow answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umsf_lib.clustering.losses import soft_cross_entropy
from umsf_lib.clustering.self_training import TaughtView, self_training_loss
from umsf_lib.config import load_config
from umsf_lib.data.layout import load_layout
from umsf_lib.models.fusion import FUSIONS, AmmFusenetFusion, AsanetFusion, RefNetFusion, ref_net
from umsf_lib.models.fusion.amm_fusenet import ChannelAttention, DenseAspp
from umsf_lib.models.fusion.asanet import CascadeFusion, SemanticFocus
from umsf_lib.models.fusion.ref_net import (
    FLOOR,
    LARGEST_STEP,
    SelectiveScan2d,
    SensorStreams,
    ShareAndDifference,
    VssBlock,
)
from umsf_lib.models.fusion.selective_scan import LinearScan, selective_scan
from umsf_lib.models.umsf_net import UmsfNet
from umsf_lib.pretraining.momentum import key_network

PUBLISHED = ("asanet", "amm_fusenet", "ref_net")


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def maps(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(*shape), torch.randn(*shape)


# ASANet


def test_asanet_has_as_many_parameters_as_published() -> None:
    for channels in (96, 192, 384, 768):
        assert count(CascadeFusion(channels, faithful=True)) == 22 * channels**2 + 104 * channels
    stages = [(SemanticFocus(c), CascadeFusion(c, faithful=True)) for c in (96, 192, 384, 768)]
    assert sum(count(module) for stage in stages for module in stage) == 17_502_000


def test_semantic_focus_amplifies_what_only_one_sensor_shows() -> None:
    focus, (o, s) = SemanticFocus(8), maps(2, 8, 5, 6)
    found = focus(o, s)
    for own, other, recalibrated in ((o, s, found[0]), (s, o, found[1])):
        strongest = (own - other).flatten(2).max(dim=2).values  # (B, C)
        gain = 1 + torch.sigmoid(focus.bottleneck(strongest[:, :, None, None]))
        assert gain.min() > 1 and gain.max() < 2
        torch.testing.assert_close(recalibrated, own * gain)
    for one, swapped in zip(found, reversed(focus(s, o)), strict=True):
        assert torch.equal(one, swapped)
    same = focus(o, o)
    zero = 1 + torch.sigmoid(focus.bottleneck(torch.zeros(1, 8, 1, 1)))
    assert torch.equal(same[0], same[1])
    torch.testing.assert_close(same[0], o * zero)


@pytest.mark.parametrize("faithful", [False, True])
def test_cascade_fusion_equals_its_formula_place_by_place(faithful: bool) -> None:
    fusion, (o, s) = CascadeFusion(8, faithful).eval(), maps(2, 8, 4, 5)
    joint, mix = fusion.joint.weight[:, :, 0, 0], fusion.mix.weight[:, :, 0, 0]
    both = torch.cat([o, s], dim=1)
    g = (torch.einsum("oc,bchw->bohw", joint, both) + fusion.joint.bias[:, None, None]).mean((2, 3))
    gates = [torch.sigmoid(gate(g[:, :, None, None])) for gate in fusion.gates]
    a, b = o * gates[0], s * gates[1]
    found = fusion(o, s)
    for row in range(4):
        for col in range(5):
            pair = [m[:, :, row, col] for m in (a, b)]
            w = torch.cat(pair, dim=1) @ mix.T + fusion.mix.bias  # (B, C)
            first, second = (
                w @ select.weight[:, :, 0, 0].T + select.bias for select in fusion.selectors
            )
            if faithful:
                weights = [first.softmax(dim=1), second.softmax(dim=1)]
            else:
                weights = [torch.sigmoid(first - second), torch.sigmoid(second - first)]
            expected = weights[0] * pair[0] + weights[1] * pair[1]
            torch.testing.assert_close(found[:, :, row, col], expected)
    assert not torch.allclose(found, fusion(s, o), atol=1e-3)  # the sensors are not alike


def test_what_is_mended_in_asanet() -> None:
    """Scale, a batch of one, and dead weights: as published, and otherwise."""
    faithful, mended = CascadeFusion(64, faithful=True), CascadeFusion(64)
    o, s = maps(4, 64, 6, 6)
    scales = [float(fusion(o, s).detach().std() / o.std()) for fusion in (faithful, mended)]
    assert scales[0] < 2 / 64 < 0.2 < scales[1]
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        faithful(o[:1], s[:1])
    for fusion in (faithful, mended):
        fusion(o, s).square().sum().backward()
        tapped = fusion.gates[0][2].weight.grad.flatten(2)[:, 0]  # type: ignore[index]
        assert ((tapped != 0).sum(dim=1) <= 1).all() and (tapped != 0).any()
        assert tapped.shape[1] == (9 if fusion is faithful else 1)
    assert mended(o[:1], s[:1]).isfinite().all()


# AMM-FuseNet


def test_channel_attention_reads_each_channel_with_two_neighbours() -> None:
    attention, (x, _) = ChannelAttention(), maps(2, 6, 3, 4)
    assert count(attention) == 3
    kernel, means = attention.conv.weight.flatten(), F.pad(x.mean((2, 3)), (1, 1))
    for c in range(6):
        gain = torch.sigmoid(means[:, c : c + 3] @ kernel)
        torch.testing.assert_close(attention(x)[:, c], x[:, c] * gain[:, None, None])
    nn.init.zeros_(attention.conv.weight)
    assert torch.equal(attention(x), x / 2)


def test_the_dense_pyramid_has_the_published_size_and_reach() -> None:
    assert count(DenseAspp(256, 256)) == 6_360_076  # without the 1 x 1 that no code reads
    torch.manual_seed(0)
    pyramid, x = DenseAspp(2, 3).eval(), torch.rand(1, 2, 101, 101, requires_grad=True)
    for module in pyramid.modules():
        if isinstance(module, ChannelAttention):  # it reads the whole map
            nn.init.zeros_(module.conv.weight)
        elif isinstance(module, nn.Conv2d):  # positive, so that no ReLU stops the gradient
            module.weight.data.abs_()
    dense: Tensor = x
    for branch in pyramid.branches:
        last = branch(dense)
        dense = torch.cat([dense, last], dim=1)
    last[0, :, 50, 50].sum().backward()
    assert x.grad is not None
    rows = x.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    assert (int(rows.min()), int(rows.max())) == (50 - 39, 50 + 39)  # 3 + 6 + 12 + 18


# REF-Net


def sequential(
    tokens: Tensor, step: Tensor, rate: Tensor, write: Tensor, read: Tensor, skip: Tensor
) -> Tensor:
    """The recurrence of ``selective_scan``, token by token."""
    state = torch.zeros_like(step[0][..., None, :] * rate)
    found = []
    for u, delta, b, c in zip(tokens, step, write, read, strict=True):
        decay = torch.exp(delta[..., None, :] * rate)
        state = decay * state + delta[..., None, :] * b[..., None] * u[..., None, :]
        found.append((c[..., None] * state).sum(dim=-2) + skip * u)
    return torch.stack(found)


def sequence(length: int, state: int, channels: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    middle = (2, 4)  # batch, routes
    return [
        draw(length, *middle, channels),
        draw(length, *middle, channels).abs(),
        -draw(4, state, channels).abs(),
        draw(length, *middle, state),
        draw(length, *middle, state),
        draw(4, channels),
    ]


@pytest.mark.parametrize("state", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 3, 6, 7, 8, 333])
def test_the_parallel_scan_equals_the_recurrence_forwards_and_backwards(
    length: int, state: int
) -> None:
    found, slow = ([x.requires_grad_() for x in sequence(length, state)] for _ in range(2))
    results = selective_scan(*found), sequential(*slow)
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
    weight = torch.randn(results[0].shape, dtype=torch.float64)
    for result in results:
        (weight * result).sum().backward()
    for own, other in zip(found, slow, strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-9, atol=1e-9)


def test_the_scan_equals_its_matrix_and_sees_no_later_token() -> None:
    """y = M u with M_ij = C_i exp(A sum of steps j+1..i) step_j B_j below the diagonal."""
    u, step, rate, write, read, _ = sequence(8, 2)
    found = selective_scan(u, step, rate, write, read, torch.zeros(4, 3, dtype=torch.float64))
    expected = torch.zeros_like(u)
    for i in range(8):
        for j in range(i + 1):
            decay = torch.exp(step[j + 1 : i + 1].sum(dim=0)[..., None, :] * rate)
            entry = (read[i][..., None] * decay * write[j][..., None]).sum(dim=-2) * step[j]
            expected[i] += entry * u[j]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    later = u.clone()
    later[5:] += 1
    again = selective_scan(later, step, rate, write, read, torch.zeros_like(rate[:, 0]))
    assert torch.equal(again[:5], found[:5]) and not torch.equal(again[5], found[5])


def test_the_gradient_of_the_scan_is_that_of_finite_differences() -> None:
    decay, added = torch.rand(7, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    pair = (decay.requires_grad_(), added.requires_grad_())
    assert torch.autograd.gradcheck(LinearScan.apply, pair)
    assert torch.autograd.gradcheck(selective_scan, [x.requires_grad_() for x in sequence(5, 2, 2)])


def test_ref_net_has_as_many_parameters_as_published() -> None:
    assert count(SelectiveScan2d(128)) == 89_856
    assert count(VssBlock(128)) == 222_080
    assert count(ShareAndDifference(128)) == 1_034_752


def test_steps_of_the_scan_begin_between_their_limits() -> None:
    torch.manual_seed(0)
    step = F.softplus(SelectiveScan2d(64).bias.detach())
    assert FLOOR < step.min() < 0.0015 and 0.07 < step.max() <= LARGEST_STEP * 1.001


@torch.no_grad()
def test_without_steps_every_route_returns_its_tokens() -> None:
    torch.manual_seed(0)
    scan, x = SelectiveScan2d(8), torch.randn(2, 16, 5, 7)
    scan.expand.zero_()
    scan.bias.fill_(-80)
    torch.testing.assert_close(scan.core(x), 4 * x)


@torch.no_grad()
def test_with_shared_weights_the_scan_turns_with_its_map() -> None:
    torch.manual_seed(0)
    scan, x = SelectiveScan2d(8, state=2), torch.randn(2, 16, 5, 7)
    scan.bias.uniform_(-1, 1)
    assert not torch.allclose(scan.core(x.mT), scan.core(x).mT, atol=1e-3)
    for weight in (scan.project, scan.expand, scan.bias, scan.log_rate, scan.skip):
        weight.copy_(weight[:1].expand_as(weight))
    found = scan.core(x)
    assert not torch.allclose(found, 4 * x, atol=1e-2)
    torch.testing.assert_close(scan.core(x.mT), found.mT)
    torch.testing.assert_close(scan.core(x.flip(2, 3)), found.flip(2, 3))


def test_the_scan_of_a_map_and_its_gradient_are_those_of_four_sequences() -> None:
    torch.manual_seed(0)
    scan = SelectiveScan2d(4, state=2).double()
    nn.init.uniform_(scan.bias, -1, 1)
    weights = [scan.project, scan.expand, scan.bias, scan.log_rate, scan.skip]
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64, requires_grad=True)
    rows = torch.arange(15)
    columns = rows.view(3, 5).T.flatten()
    slow = torch.zeros(2, 8, 15, dtype=torch.float64)
    for k, order in enumerate((rows, columns, rows.flip(0), columns.flip(0))):
        u = x.flatten(2)[:, :, order].permute(2, 0, 1)  # (L, B, D)
        low, write, read = (u @ scan.project[k].T).split(scan.sizes, dim=2)
        step = F.softplus(low @ scan.expand[k].T + scan.bias[k])
        y = sequential(u, step, -scan.log_rate[k].exp(), write, read, scan.skip[k])
        slow = slow.index_add(2, order, y.permute(1, 2, 0))
    results = scan.core(x), slow.view_as(x)
    torch.testing.assert_close(*results)
    weight = torch.randn_like(x)
    found, expected = (
        torch.autograd.grad((weight * result).sum(), [x, *weights]) for result in results
    )
    for pair in zip(found, expected, strict=True):
        torch.testing.assert_close(*pair)


def test_the_gradient_reaches_the_scan_in_the_order_of_its_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[bool] = []

    def watched(*inputs: Tensor) -> Tensor:
        result = selective_scan(*inputs)
        result.register_hook(lambda gradient: seen.append(gradient.is_contiguous()))
        return result + 0

    monkeypatch.setattr(ref_net, "selective_scan", watched)
    scan, x = SelectiveScan2d(4), torch.randn(2, 8, 3, 5)
    scan.core(x).square().sum().backward()
    assert seen == [True]


@torch.no_grad()
def test_equal_sensors_differ_nowhere() -> None:
    split, (x, _) = ShareAndDifference(16).eval(), maps(2, 16, 6, 5)
    _, of_optical, of_sar, difference = split(x, x)
    assert torch.equal(of_optical, of_sar)
    nothing = split.difference(torch.zeros(1, 16, 1, 1))
    torch.testing.assert_close(difference, nothing.expand_as(difference))
    other = split(x, x + 1)[3]
    assert not torch.allclose(other, nothing.expand_as(other), atol=1e-3)


# In UMSF-Net


@pytest.mark.parametrize("name", FUSIONS)
def test_every_fusion_takes_one_window_in_training_and_large_maps_window_by_window(
    name: str,
) -> None:
    torch.manual_seed(0)
    fusion, (o, s) = FUSIONS[name](16, 2), maps(1, 16, 4, 4)
    fused, _ = fusion(o, s)
    assert fused.shape == o.shape and fused.isfinite().all()
    fusion.eval()
    o, s = maps(2, 16, 40, 33)
    fused, aux = fusion(o, s)
    found = {"": fused} | aux
    assert {m.shape[2:] for m in found.values()} == {(40, 33)}
    alone, _ = fusion(o[..., 16:32, :16], s[..., 16:32, :16])
    torch.testing.assert_close(fused[..., 16:32, :16], alone, rtol=1e-4, atol=1e-5)


def network_with(fusion: str) -> UmsfNet:
    torch.manual_seed(0)
    model = load_config("tiny", overrides=f"model.fusion={fusion}").model
    return UmsfNet(model, load_layout("whu-opt-sar"), 4)


def windows(count: int = 2, size: int = 32) -> dict[str, Tensor]:
    optical, sar = torch.randn(count, 4, size, size), torch.randn(count, 1, size, size)
    return {"optical": optical, "sar": sar, "sar_log_std": torch.ones(count, 1, 1, 1)}


def gradients(module: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


def test_the_cross_sensor_contrast_reads_what_ref_net_says_is_shared() -> None:
    network = network_with("ref_net")
    assert isinstance(network.fusion, RefNetFusion)
    assert network.streams is None  # pretraining has no use for them
    found = network.features(windows())
    assert list(found) == ["optical", "sar", "fused", "cross_optical", "cross_sar", "difference"]
    rows = {name: m.flatten(2).transpose(1, 2).flatten(0, 1) for name, m in found.items()}
    projected = network.project(rows)
    head = network.projectors["cross_sar"]
    torch.testing.assert_close(projected["cross_sar"], head(rows["cross_sar"]))
    (projected["cross_optical"].sum() + projected["cross_sar"].square().sum()).backward()
    split = network.fusion.split
    assert gradients(split.shared) and not gradients(split.difference)
    usual = network_with("attention")
    rows = {name: rows[name] for name in ("optical", "sar", "fused")}
    again = usual.project(rows)["cross_sar"]
    torch.testing.assert_close(again, usual.projectors["cross_sar"](rows["sar"]))


def views_of(taught: Tensor) -> tuple[TaughtView, TaughtView]:
    theta = torch.eye(2, 3).expand(len(taught), 2, 3)
    first, second = (TaughtView(windows(len(taught)), theta, None, taught=taught) for _ in range(2))
    return first, second


def test_the_streams_of_ref_net_learn_from_the_teacher_with_a_small_weight() -> None:
    config = load_config("tiny", overrides="cluster.clustering=0 cluster.consistency=0")
    network = network_with("ref_net")
    network.set_num_clusters(3)
    network.eval()  # so that both passes agree
    views = views_of(torch.rand(2, 3, 8, 8).softmax(dim=1))
    shares, generator = torch.full((3,), 1 / 3), torch.Generator()
    loss, parts = self_training_loss(network, network, views, shares, config, generator)
    expected, streams = 0.0, 0.0
    assert isinstance(network.streams, SensorStreams) and network.clustering is not None
    for view in views:
        found = network.features(view.images)
        o, s, m = (found[name] for name in ("optical", "sar", "difference"))
        read = (network.streams.optical(o + m), network.streams.sar(s + m))
        expected += soft_cross_entropy(network.clustering(found["fused"]), view.taught, None) / 2
        for one in read:
            streams += soft_cross_entropy(network.clustering(one), view.taught, None) / 2
    torch.testing.assert_close(parts["teacher"], expected)
    torch.testing.assert_close(loss, expected + 0.005 * streams)  # the weight of REF-Net
    loss.backward()
    assert gradients(network.streams.optical) and gradients(network.streams.sar)


@pytest.mark.parametrize("kind", [AsanetFusion, AmmFusenetFusion, RefNetFusion])
def test_the_key_network_has_the_same_fusion(kind: Callable[[int, int], nn.Module]) -> None:
    name = next(name for name, fusion in FUSIONS.items() if fusion is kind)
    network = network_with(name)
    copy = key_network(network).eval()
    images = windows()
    found = network.eval().features(images)["fused"]
    assert isinstance(copy.fusion, kind)  # type: ignore[arg-type]
    assert torch.equal(copy.features(images)["fused"], found)
    assert not any(p.requires_grad for p in copy.parameters())

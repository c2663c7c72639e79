"""Despeckling front end, encoders, fusion and the whole network, against independent answers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet50

from umsf_lib.config import ConfigError, DespeckleConfig, load_config
from umsf_lib.data.layout import load_layout
from umsf_lib.models import encoders
from umsf_lib.models.encoders import Despeckle, box_mean, encoder, inflate, torchvision_resnet
from umsf_lib.models.fusion.attention import AttentionFusion
from umsf_lib.models.fusion.simple import AddFusion, ConcatFusion
from umsf_lib.models.speckle import add_speckle, boxcar, enl, lee, patchwork, ratio_statistics
from umsf_lib.models.stage import fit_despeckler
from umsf_lib.models.umsf_net import PROJECTORS, UmsfNet, clustering_head
from umsf_lib.pretraining.losses import info_nce


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def gamma(looks: int, size: int = 200) -> np.ndarray:
    return np.random.default_rng(0).gamma(looks, 1 / looks, (size, size))


def test_front_end_starts_as_the_identity_and_follows_scale() -> None:
    torch.manual_seed(0)
    module, y = Despeckle(8), torch.randn(2, 2, 20, 24)
    assert torch.equal(module(y), y)
    nn.init.normal_(module.layers[-1].weight, std=0.1)  # type: ignore[arg-type]
    assert torch.allclose(module(y + 3), module(y) + 3, atol=1e-4)
    assert not torch.allclose(module(y), y)


@pytest.mark.parametrize("crop_px", [32, 64])  # of images of 48 px
def test_trained_front_end_raises_enl_and_keeps_the_mean(crop_px: int) -> None:
    torch.manual_seed(0)
    generator, module = torch.Generator().manual_seed(0), Despeckle(8)
    settings = DespeckleConfig(channels=8, steps=80, batch=4, crop_px=crop_px, lr=5e-3)
    fit_despeckler(module, patchwork(16, 48, generator), settings, generator)
    noisy = add_speckle(torch.zeros(1, 1, 96, 96), 4, generator, correlated=False)
    with torch.no_grad():
        before, after = (x[..., 10:-10, 10:-10].exp().numpy() for x in (noisy, module(noisy)))
    assert enl(after) > 3 * enl(before)
    assert abs(after.mean() / before.mean() - 1) < 0.1


def test_box_mean_equals_scipy() -> None:
    image = gamma(2, 24)
    ours = box_mean(torch.from_numpy(image)[None, None], 5)[0, 0].numpy()
    assert np.allclose(ours, boxcar(image, 5))


def test_classical_filters() -> None:
    image = gamma(1)
    assert enl(boxcar(image, 5)[5:-5, 5:-5]) == pytest.approx(25, rel=0.15)
    assert np.allclose(lee(7 * image, 7, 1), 7 * lee(image, 7, 1))
    point = np.ones((21, 21))
    point[10, 10] = 100.0
    assert lee(point, 7, 4)[10, 10] > 80
    truth = np.full(image.shape, 3.0)
    stats = ratio_statistics(truth * image, truth)
    assert stats["mean"] == pytest.approx(1, abs=0.02) and stats["enl"] == pytest.approx(
        1, abs=0.05
    )
    assert abs(stats["lag1"]) < 0.02


@pytest.mark.parametrize(
    ("backbone", "stride"), [("small", 4), ("resnet18", 4), ("resnet18", 16), ("resnet50", 8)]
)
def test_encoders_have_the_stride_they_promise(backbone: str, stride: int) -> None:
    net = encoder(backbone, 5, channels=32, stride=stride)
    assert net(torch.zeros(1, 5, 64, 64)).shape == (1, 32, 64 // stride, 64 // stride)


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_denser_resnet18_holds_every_token_of_the_strided_one(stride: int) -> None:
    torch.manual_seed(0)
    usual = torchvision_resnet("resnet18", 3, 32, "batch", "none", None).eval()
    denser = torchvision_resnet("resnet18", 3, stride, "batch", "none", None).eval()
    denser.load_state_dict(usual.state_dict())
    images, step = torch.randn(1, 3, 96, 96), 32 // stride
    expected = usual(images)
    error = (denser(images)[:, :, ::step, ::step] - expected).abs().max()
    assert error < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(("stride", "replaced"), [(16, (0, 0, 1)), (8, (0, 1, 1)), (4, (1, 1, 1))])
def test_dilation_equals_torchvision(stride: int, replaced: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    ours = torchvision_resnet("resnet50", 3, stride, "batch", "none", None).eval()
    flags = [bool(flag) for flag in replaced]
    theirs = resnet50(weights=None, replace_stride_with_dilation=flags).eval()
    body = nn.Sequential(*list(theirs.children())[:-2])
    body.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert torch.allclose(body(images), ours(images), atol=1e-5)


def test_resnet50_has_its_published_parameters() -> None:
    assert count(torchvision_resnet("resnet50", 3, 32, "batch", "none", (0, 1, 2))) == 23_508_032
    assert count(torchvision_resnet("resnet50", 1, 32, "batch", "none", None)) == 23_501_760


def test_inflation_keeps_colours_and_the_response_to_equal_bands() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 7, 2, 3, bias=False)
    made = inflate(conv, 4, (2, 1, 0))
    factor = made.weight[0, 2, 0, 0] / conv.weight[0, 0, 0, 0]
    assert torch.allclose(made.weight[:, [2, 1, 0]], factor * conv.weight, atol=1e-6)
    gray = torch.randn(1, 1, 16, 16)
    before, after = conv(gray.expand(1, 3, 16, 16)), made(gray.expand(1, 4, 16, 16))
    ratio = ((after * before).sum() / before.square().sum()).item()
    assert ratio == pytest.approx(1, abs=0.3)


def test_weights_that_cannot_be_had_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(ConfigError, match=r"ResNet18_Weights.*model\.weights=none.*checkpoints"):
        encoders.fetch_weights("resnet18")
    with pytest.raises(ConfigError, match=r"model\.norm=batch"):
        encoder("resnet18", 3, channels=32, stride=8, weights="imagenet")
    with pytest.raises(ConfigError, match=r"model\.stride is 5"):
        encoder("small", 3, channels=32, stride=5)


@pytest.mark.parametrize("channels", [96, 128])
def test_fusion_parameter_counts(channels: int) -> None:
    assert count(AttentionFusion(channels, 8)) == 10 * channels**2 + 17 * channels + 2
    assert count(ConcatFusion(channels, 8)) == 2 * channels**2 + 2 * channels
    assert count(AddFusion(channels, 8)) == 2 * channels


def test_concat_with_identity_weights_adds() -> None:
    fusion, o, s = ConcatFusion(6, 1), torch.randn(1, 6, 3, 4), torch.randn(1, 6, 3, 4)
    eye = torch.eye(6)
    fusion.mix.weight = nn.Parameter(torch.cat([eye, eye], 1)[:, :, None, None])
    assert torch.allclose(fusion.mix(torch.cat([o, s], 1)), o + s, atol=1e-6)


def test_cross_attention_equals_torch_multihead_attention() -> None:
    torch.manual_seed(0)
    ours = AttentionFusion(16, 4).from_sar
    theirs = nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    q, kv, bias = torch.randn(2, 9, 16), torch.randn(2, 9, 16), torch.zeros(4, 9, 9)
    mixed, weights = theirs(q, kv, kv, average_attn_weights=False)
    assert torch.allclose(ours(q, kv, bias), mixed, atol=1e-5)
    assert torch.allclose(ours.weights(q, kv, bias), weights, atol=1e-5)


@pytest.mark.parametrize("side", [1, 4])
def test_attention_learns_only_from_more_than_one_token(side: int) -> None:
    torch.manual_seed(0)
    fusion = AttentionFusion(16, 4)
    o, s = torch.randn(2, 2, 16, side, side)
    fused, aux = fusion(o, s, need_weights=True)
    fused.square().sum().backward()
    weights, gradient = aux["attention_optical"], fusion.from_sar.q.weight.grad.abs().max()
    assert torch.allclose(weights.sum(3), torch.ones(()), atol=1e-5)
    if side == 1:
        assert torch.equal(weights, torch.ones_like(weights)) and gradient < 1e-8
    else:
        assert gradient > 1e-6


def test_steep_slopes_make_attention_local_and_flat_ones_ignore_order() -> None:
    torch.manual_seed(0)
    fusion, o, s = AttentionFusion(16, 4), torch.randn(1, 16, 3, 3), torch.randn(1, 16, 3, 3)
    fusion.slopes.fill_(1e4)
    whole, single = fusion(o, s)[0], fusion(o[..., 1:2, 1:2], s[..., 1:2, 1:2])[0]
    assert torch.allclose(whole[..., 1:2, 1:2], single, atol=1e-5)
    fusion.slopes.zero_()
    order = torch.randperm(9)
    mixed = [x.flatten(2)[:, :, order].view_as(x) for x in (o, s)]
    expected = fusion(o, s)[0].flatten(2)[:, :, order].view_as(o)
    assert torch.allclose(fusion(*mixed)[0], expected, atol=1e-5)


def test_large_maps_attend_within_windows() -> None:
    torch.manual_seed(0)
    fusion, o, s = AttentionFusion(8, 2), torch.randn(1, 8, 48, 32), torch.randn(1, 8, 48, 32)
    fused, aux = fusion(o, s)
    block = (..., slice(16, 32), slice(16, 32))
    alone, gates = fusion(o[block], s[block])
    assert torch.allclose(fused[block], alone, atol=1e-5)
    assert torch.allclose(aux["gates"][block], gates["gates"], atol=1e-5)


def windows_of(count: int) -> dict[str, torch.Tensor]:
    """Random windows as a pixel store gives them."""
    images = {"optical": torch.randn(count, 4, 32, 32), "sar": torch.randn(count, 1, 32, 32)}
    return images | {"sar_log_std": torch.ones(count, 1, 1, 1)}


@pytest.mark.parametrize("sensors", ["both", "optical", "sar"])
def test_every_parameter_of_the_network_learns(sensors: str) -> None:
    torch.manual_seed(0)
    model = load_config("tiny", overrides=f"model.sensors={sensors}").model
    net = UmsfNet(model, load_layout("whu-opt-sar"), 4)
    net.set_num_clusters(7)
    if net.despeckler is not None:  # at its zero start only the last layer has a gradient
        nn.init.normal_(net.despeckler.layers[-1].weight, std=0.1)  # type: ignore[arg-type]
    images = windows_of(2)
    features = net.features(images)
    projected = net.project({name: maps.mean((2, 3)) for name, maps in features.items()})
    assert tuple(projected) == PROJECTORS[sensors]
    logits = net(images)
    assert logits.shape == (2, 7, 8, 8)
    total = logits.square().sum() + sum(p.square().sum() for p in projected.values())
    total.backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None]


def test_heads_have_the_published_sizes() -> None:
    model = load_config("paper").model
    assert count(clustering_head(model.channels, model.cluster_hidden, 7)) == 1_052_679


@pytest.mark.parametrize("backbone", ["small", "resnet18"])
def test_blocks_compile_whole_and_change_nothing(backbone: str, monkeypatch) -> None:
    """Without a graph break: ``fullgraph`` raises at one."""
    torch.manual_seed(0)
    model = load_config("tiny", overrides=f"model.backbone={backbone}").model
    network = UmsfNet(model, load_layout("whu-opt-sar"))
    usual, compiled = nn.Module.compile, []

    def tables_to_score(module: nn.Module, **options: object) -> None:
        compiled.append(type(module).__name__)
        usual(module, fullgraph=True, backend="eager", **options)

    monkeypatch.setattr(nn.Module, "compile", tables_to_score)
    other = copy.deepcopy(network)
    other.compile_blocks()
    blocks = {"small": "ResidualBlock", "resnet18": "BasicBlock"}[backbone]
    assert set(compiled) == {blocks, "Despeckle", "AttentionFusion"}
    assert compiled.count(blocks) == {"small": 6, "resnet18": 16}[backbone]
    images = windows_of(2)
    maps, same = network.features(images), other.features(images)
    for name, values in maps.items():
        assert torch.allclose(values, same[name], atol=1e-5)


def test_the_compiled_loss_has_no_graph_break() -> None:
    loss = torch.compile(info_nce, dynamic=True, fullgraph=True, backend="eager")
    for count in (5, 7):
        q, k = (F.normalize(torch.randn(2, count, 8), dim=2) for _ in range(2))
        queue, mask = F.normalize(torch.randn(2, 30, 8), dim=2), torch.rand(count, 30) > 0.2
        assert torch.allclose(loss(q, k, queue, 0.1, mask), info_nce(q, k, queue, 0.1, mask))

"""Whole supervised networks: published counts, shapes, what their streams read."""

from __future__ import annotations

import re
import sys

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

from umsf_lib.config import ConfigError, SupervisedConfig
from umsf_lib.data.layout import load_layout
from umsf_lib.models import encoders
from umsf_lib.models.encoders import pyramid, small_resnet
from umsf_lib.supervised.decoders import MdfDecoder, UperHead, top_down
from umsf_lib.supervised.networks import (
    EARLY,
    NETWORKS,
    WHOLE,
    AmmFusenet,
    Asanet,
    Form,
    LevelFusion,
    RefNet,
    supervised_network,
)

BOTH = {"optical": 4, "sar": 1}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def images(count: int = 2, height: int = 32, width: int = 32, **bands: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {role: torch.randn(count, n, height, width) for role, n in (bands or BOTH).items()}


def test_whole_networks_have_the_published_size() -> None:
    """AMM-FuseNet's without the two convolutions of 66 048 weights that its code never reads."""
    with torch.device("meta"):  # shapes without values
        amm = AmmFusenet(Form({"optical": 13, "sar": 2}, 7, "resnet50", 256))
        ref = RefNet(Form({"optical": 3, "sar": 2}, 9, "resnet50", 128))
        asa = Asanet(Form({"optical": 3, "sar": 1}, 8, "convnext_tiny", 256), faithful=True)
    assert count(amm) == 62_332_663 - 2 * 66_048
    assert count(amm) - count(amm.streams) == 15_288_375 - 2 * 66_048
    assert count(ref) == 60_799_323
    heads = count(ref.decoder.heads)
    assert count(ref) - count(ref.streams) - heads == 13_782_912
    assert count(ref.decoder) - heads == 7_609_728
    assert count(asa.focus) + count(asa.fuse) == 17_502_000
    assert round((count(asa) - count(asa.side)) / 1e6) == 82  # as published, with ConvNeXt V2


@pytest.mark.parametrize("backbone", ["small", "resnet18", "convnext_tiny"])
def test_a_pyramid_halves_its_maps_from_stage_to_stage(backbone: str) -> None:
    stages, widths = pyramid(backbone, 5)
    maps, sides = torch.randn(1, 5, 64, 64), []
    for stage, width in zip(stages, widths, strict=True):
        maps = stage(maps)
        assert maps.shape[1] == width and maps.shape[2] == maps.shape[3]
        sides.append(64 // maps.shape[2])
    first = {"small": 1, "resnet18": 2, "convnext_tiny": 4}[backbone]
    assert sides == [first * 2**k for k in range(len(widths))]


def test_the_first_stages_of_small_are_the_encoder_of_umsf_net() -> None:
    torch.manual_seed(0)
    stages, _ = pyramid("small", 4)
    encoder, x = small_resnet(4, 64, "batch"), torch.randn(2, 4, 32, 32)
    own = [w for stage in list(stages)[:3] for w in stage.state_dict().values()]
    encoder.load_state_dict(dict(zip(encoder.state_dict(), own, strict=True)))
    maps = x
    for stage in list(stages.eval())[:3]:
        maps = stage(maps)
    torch.testing.assert_close(maps, encoder.eval()(x))


def imagenet(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A ResNet-18 in place of the one trained on ImageNet, with all its weights at random."""
    torch.manual_seed(0)
    net = resnet18(weights=None).eval()
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        for values in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            values.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    monkeypatch.setattr(
        encoders, "fetch_weights", lambda name: {"resnet18": net.state_dict()}[name]
    )
    return net


def levels_of(net: nn.Module, x: Tensor) -> list[Tensor]:
    """The maps of torchvision's ResNet at strides 2 to 32."""
    found = [net.relu(net.bn1(net.conv1(x)))]  # type: ignore[operator]
    found.append(net.layer1(net.maxpool(found[0])))  # type: ignore[operator]
    for layer in (net.layer2, net.layer3, net.layer4):
        found.append(layer(found[-1]))  # type: ignore[operator]
    return found


@torch.no_grad()
@pytest.mark.parametrize("rgb", [(0, 1, 2), (2, 1, 0), (1, 3, 0), None])
def test_imagenet_weights_give_the_maps_of_torchvision(
    rgb: tuple[int, int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three bands all colours, of one or four those of a gray image: see ``inflate``."""
    net, x = imagenet(monkeypatch), torch.randn(2, 3, 64, 64)
    bands = max(rgb) + 1 if rgb else 1
    if bands == 3:
        given = torch.empty_like(x)
        given[:, rgb] = x
    else:
        x = x[:, :1].expand(-1, 3, -1, -1)
        given = x[:, :1].expand(-1, bands, -1, -1)
    stages, maps = pyramid("resnet18", bands, "imagenet", rgb)[0].eval(), given
    for stage, level in zip(stages, levels_of(net, x), strict=True):
        maps = stage(maps)
        torch.testing.assert_close(maps, level, rtol=1e-4, atol=1e-4)


def test_only_the_optical_stream_has_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fourth band makes the sum of the filters 4/3 as large, so all are three quarters."""
    filters = imagenet(monkeypatch).conv1.weight  # type: ignore[union-attr]
    layout = load_layout("whu-opt-sar")
    settings = SupervisedConfig(backbone="resnet18", weights="imagenet")
    streams = supervised_network("add", Form.of_layout(layout, "both", settings)).streams
    optical, sar = (next(streams[role].parameters()) for role in BOTH)  # type: ignore[index, union-attr]
    torch.testing.assert_close(optical[:, [2, 1, 0]], 0.75 * filters)
    torch.testing.assert_close(sar, filters.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("backbone", ["small", "convnext_tiny"])
def test_imagenet_weights_of_other_backbones_are_refused(backbone: str) -> None:
    with pytest.raises(ConfigError, match=f"'{backbone}' does not have here; set supervised.wei"):
        supervised_network("add", Form(BOTH, 3, backbone, weights="imagenet"))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_trains_on_few_windows_of_any_size(name: str) -> None:
    torch.manual_seed(0)
    network = supervised_network(name, Form(BOTH, 3))
    few = 1 if network.takes_one else 2
    given = {role: x.requires_grad_() for role, x in images(few, 40, 23).items()}
    found = network(given)
    extra = {"asanet": 1, "ref_net": 2}.get(name, 0)
    assert [one.shape for one in found] == [(few, 3, 40, 23)] * (1 + extra)
    assert network.auxiliary == {"asanet": 0.4, "ref_net": 0.005}.get(name, 0)  # as published
    sum(one.square().mean() for one in found).backward()  # type: ignore[union-attr]
    without = [n for n, p in network.named_parameters() if p.grad is None]
    assert without == []
    for x in given.values():  # both sensors are read
        assert x.grad is not None and x.grad.any()
    assert len(network.eval()(images(1, 40, 23))) == 1


def test_deeplabv3plus_alone_does_not_train_on_one_window() -> None:
    found = {name: supervised_network(name, Form(BOTH, 3)) for name in NETWORKS}
    assert [name for name, one in found.items() if not one.takes_one] == ["deeplabv3plus"]
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        found["deeplabv3plus"](images(1, 64, 64))


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_is_cut_off_again(name: str) -> None:
    """A window filled up by hand to whole strides gives the same logits."""
    network = supervised_network(name, Form(BOTH, 3)).eval()
    given = images(1, 40, 23)
    padded = {role: F.pad(x, (0, 9, 0, 8), mode="replicate") for role, x in given.items()}
    with torch.no_grad():
        torch.testing.assert_close(network(given)[0], network(padded)[0][:, :, :40, :23])


def test_one_sensor_alone_has_nothing_to_fuse() -> None:
    for name in ("add", "asanet", "unet"):
        for role, bands in BOTH.items():
            network = supervised_network(name, Form({role: bands}, 3))
            if name not in EARLY:
                assert isinstance(network, LevelFusion) and not network.fusions
            assert network({role: images()[role]})[0].shape == (2, 3, 32, 32)
    layout, usual = load_layout("whu-opt-sar"), SupervisedConfig()
    rgb = (2, 1, 0)  # the file's order is blue, green, red, nir
    assert Form.of_layout(layout, "both", usual) == Form(BOTH, 7, rgb=rgb)
    other = SupervisedConfig(backbone="resnet18", channels=8, weights="imagenet")
    expected = Form({"sar": 1}, 7, "resnet18", 8, "imagenet", rgb)
    assert Form.of_layout(layout, "sar", other) == expected
    assert Form.of_layout(load_layout("naip"), "both", usual).bands == {"optical": 4}


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["small", "resnet18", "resnet50"])
@pytest.mark.parametrize(
    ("name", "kind"), [("unet", smp.Unet), ("deeplabv3plus", smp.DeepLabV3Plus)]
)
def test_early_fusion_is_the_usual_network_on_the_bands_of_both(
    name: str, kind: type[nn.Module], backbone: str
) -> None:
    torch.manual_seed(0)
    network = supervised_network(name, Form(BOTH, 3, backbone)).eval()
    own = backbone.replace("small", "resnet18")
    theirs = kind(own, encoder_weights=None, in_channels=5, classes=3).eval()
    theirs.load_state_dict(network.body.state_dict())  # type: ignore[union-attr]
    given = images(2, 64, 96)
    (found,) = network(given)
    assert found.std() > 1e-3
    torch.testing.assert_close(found, theirs(torch.cat([given["optical"], given["sar"]], dim=1)))


@pytest.mark.parametrize("name", EARLY)
def test_early_fusion_says_what_it_lacks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = f"fusion {name} has no backbone 'convnext_tiny'; set supervised.backbone to small, "
    with pytest.raises(ConfigError, match=said):
        supervised_network(name, Form(BOTH, 3, "convnext_tiny"))
    said = f"weights is imagenet, but fusion {name} starts from random weights; set supervised.we"
    with pytest.raises(ConfigError, match=said):
        supervised_network(name, Form(BOTH, 3, "resnet18", weights="imagenet"))
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    said = (
        f"fusion {name} needs segmentation-models-pytorch, which is not installed; run pip install "
        "segmentation-models-pytorch, or leave out this method."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        supervised_network(name, Form(BOTH, 3))
    assert supervised_network("add", Form(BOTH, 3)).takes_one  # needs no such package


def test_asanet_passes_recalibrated_maps_to_the_next_stage() -> None:
    """With gains of 1.5 everywhere, and normed, at the four levels that are fused."""
    network = Asanet(Form(BOTH, 3)).eval()
    for focus in network.focus:
        for weight in focus.parameters():
            nn.init.zeros_(weight)
    read: list[Tensor] = []
    stages = list(network.streams["optical"].children())
    stages[-1].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    given = images()
    with torch.no_grad():
        network(given)
        maps = stages[0](given["optical"])
        for norm, stage in zip(network.norms[0], stages[1:-1], strict=False):
            maps = 1.5 * stage(maps)
            maps = norm(maps)
            flat = maps.permute(1, 0, 2, 3).flatten(1)  # each place by itself, over the channels
            assert flat.mean(dim=0).abs().max() < 1e-4
    torch.testing.assert_close(read[0], maps)


def test_the_streams_of_ref_net_get_the_difference_with_one_sign() -> None:
    decoder = MdfDecoder(2, 8, 3)
    levels = [[torch.randn(2, 8, 8 // k, 8 // k) for k in (1, 2)] for _ in range(4)]
    fused, optical, sar, apart = levels
    read: list[Tensor] = []
    for entries in decoder.entries:
        next(entries.children()).register_forward_pre_hook(lambda _, x: read.append(x[0]))
    assert len(decoder(fused, (optical, sar), apart)) == 3
    for found, own in zip(read, (optical, sar), strict=True):
        torch.testing.assert_close(found, own[0] + apart[0])


def test_the_top_down_path_adds_every_coarser_map() -> None:
    maps = [
        torch.full((1, 1, side, side), value) for side, value in ((8, 1.0), (4, 10.0), (2, 100.0))
    ]
    assert [float(one.mean()) for one in top_down(maps)] == [111, 110, 100]
    doubled = top_down(maps, [nn.Upsample(scale_factor=1)] * 2)
    assert [one.shape for one in doubled] == [one.shape for one in maps]


def test_the_head_of_upernet_reads_all_levels_and_the_whole_of_the_coarsest() -> None:
    torch.manual_seed(0)
    head = UperHead((4, 6), 3, 8).eval()
    levels = [torch.randn(1, 4, 8, 8), torch.randn(1, 6, 4, 4)]
    before = head(levels)
    assert before.shape == (1, 3, 8, 8)
    for number, place in ((0, (0, 0)), (1, (0, 0))):
        other = [one.clone() for one in levels]
        other[number][0, :, place[0], place[1]] += 5
        moved = (head(other) - before).abs().amax(dim=1)[0]
        assert moved[0, 0] > 0 and (moved[7, 7] > 0) == (number == 1)  # pooling reaches it


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match="'asa' is unknown; choose one of: concat, add, attention"
    ):
        supervised_network("asa", Form(BOTH, 3))
    with pytest.raises(ConfigError, match="'vgg' is unknown; choose one of: small, resnet18"):
        supervised_network("add", Form(BOTH, 3, "vgg"))
    assert set(WHOLE) < set(NETWORKS)

"""Pretraining pairs per second: this step, the bare limit, and a peer, side by side.

    python benchmarks/pretraining.py [--small | --full] [--data FOLDER] [--rounds 5] [--compile]

It needs only this checkout, torch, torchvision, numpy, scipy, pydantic and pyyaml, so it can be
copied to any GPU machine. All ways train the same two encoders (same backbone, output stride and
despeckling front end) on windows of 4 + 1 bands. They take turns, round after round, and the
medians count:

- (a) this step: windows cut from scenes, two views, query and key passes, fusion, five contrasts
  with their queues, one backward pass, fused optimiser, momentum update;
- (b) the limit: forward, backward and update of the bare encoders with the same optimisations, on
  images that are already on the device; no keys, heads, queues or views;
- (c) a peer in the manner of facebookresearch/moco: one MoCo per sensor, eager, TF32, transforms of
  single images on the CPU in a DataLoader, shuffled keys, parameter-wise momentum update. It
  compares pooled windows only: no fusion, no cross-sensor contrast, no matched tokens;
- (c') the same with lightly's components, if it is installed.

A pair is 2 images trained and 2 passed forward, which equals 2.67 trained images. The efficiency of
(a) relative to (b) is computed in this unit. The last line is JSON. ``--small`` (the default
without CUDA) is the same code with ResNet-18, 64 px and few steps. ``--data`` is a folder below
data/prepared/ (real windows).
"""

from __future__ import annotations

import argparse
import copy
import datetime
import importlib.metadata
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

from umsf_lib.config import ConfigError, ModelConfig, PretrainConfig, ViewConfig
from umsf_lib.models.umsf_net import UmsfNet
from umsf_lib.pretraining.batches import Batch, two_views
from umsf_lib.pretraining.moco import MomentumContrast
from umsf_lib.run import to_device

BANDS = {"optical": 4, "sar": 1}
PAIR = 2 + 2 / 3  # trained images: a backward pass costs twice a forward pass
EPOCH, EPOCHS = 44_080, 200  # windows of 80 WHU-OPT-SAR scenes; epochs of the paper profile
LR, LOG_STD = 0.03, 0.8

SMALL = SimpleNamespace(
    model=ModelConfig(
        backbone="resnet18", channels=512, stride=16, projection_hidden=512, projection_dim=128
    ),
    views=ViewConfig(window_px=64),
    pretrain=PretrainConfig(),
    batches=(16, 32),
    steps=4,
)
FULL = SimpleNamespace(
    model=ModelConfig(
        backbone="resnet50", channels=2048, stride=16, projection_hidden=2048, projection_dim=256
    ),
    views=ViewConfig(window_px=256),
    pretrain=PretrainConfig(queue_size=65_536, ema=0.999),
    batches=(32, 256),
    steps=20,
)


class Pixels:
    """Scenes of uint8 pixels in one row, so that one gather reads a batch of windows."""

    def __init__(self, flats: dict[str, Tensor], places: list[tuple[int, int, int]]) -> None:
        self.flats, self.places = flats, torch.tensor(places)  # (C, P); (S, 3) offset, h, w
        self.device = flats["optical"].device

    @classmethod
    def random(cls, device: torch.device, scenes: int = 4, side: int = 1024) -> Pixels:
        generator = torch.Generator(device).manual_seed(0)
        options = {"generator": generator, "device": device, "dtype": torch.uint8}
        flats = {
            role: torch.randint(1, 256, (c, scenes * side * side), **options)
            for role, c in BANDS.items()
        }
        places = [(i * side * side, side, side) for i in range(scenes)]
        return cls(flats, places)

    @classmethod
    def prepared(cls, folder: Path, device: torch.device) -> Pixels:
        """Load memory maps that the tutorial has prepared to the device."""
        scenes = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["scenes"]
        flats = {role: torch.from_numpy(np.load(folder / f"{role}.npy")) for role in BANDS}
        for role, flat in flats.items():
            if flat.dtype != torch.uint8 or len(flat) != BANDS[role]:
                sys.exit(f"{folder / role}.npy is not {BANDS[role]} bands of 8 bits.")
        places = [(s["offset"], s["height"], s["width"]) for s in scenes]
        return cls({role: flat.to(device) for role, flat in flats.items()}, places)

    def draw(self, count: int, size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw scene, row, col of random windows."""
        scene = torch.randint(len(self.places), (count,), generator=generator)
        room = self.places[scene, 1:] - size + 1
        row, col = (torch.rand(count, 2, generator=generator) * room).long().T
        return scene, row, col

    def raw(self, where: tuple[Tensor, ...], size: int) -> dict[str, Tensor]:
        """Read source values ``(B, C, size, size)`` uint8."""
        scene, row, col = where
        offset, _, width = self.places[scene].T
        corner = torch.stack([offset + row * width + col, width])  # (2, B)
        start, step = to_device(corner, self.device)[:, :, None, None]
        line = torch.arange(size, device=self.device)
        index = start + line[:, None] * step + line  # (B, size, size)
        return {role: flat[:, index].transpose(0, 1) for role, flat in self.flats.items()}

    def windows(self, where: tuple[Tensor, ...], size: int) -> dict[str, Tensor]:
        """Read standardised windows, SAR as ln intensity."""
        found = {role: standardised(x.float(), role) for role, x in self.raw(where, size).items()}
        log_std = torch.full((len(where[0]), BANDS["sar"], 1, 1), LOG_STD)
        return found | {"sar_log_std": to_device(log_std, self.device)}


def standardised(x: Tensor, role: str) -> Tensor:
    """Standardise by a fixed mean and standard deviation, near those of WHU-OPT-SAR."""
    return (2 * x.log() - 7) / LOG_STD if role == "sar" else (x - 100) / 20


def new_network(form: SimpleNamespace) -> UmsfNet:
    torch.manual_seed(0)
    optical = SimpleNamespace(bands=range(BANDS["optical"]), rgb=(2, 1, 0))
    sar = SimpleNamespace(bands=range(BANDS["sar"]))
    return UmsfNet(form.model, SimpleNamespace(optical=optical, sar=sar))


class OfFixedUnits(nn.Module):
    """A SAR encoder that is told the units of its input once."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("log_std", torch.full((1, BANDS["sar"], 1, 1), LOG_STD))

    def forward(self, image: Tensor) -> Tensor:
        return self.encoder(image, self.log_std)


def encoders_of(network: UmsfNet) -> dict[str, nn.Module]:
    return {"optical": network.optical, "sar": OfFixedUnits(network.sar)}


def sgd(module: nn.Module, fused: bool | None = True) -> torch.optim.Optimizer:
    parameters = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.SGD(parameters, LR, momentum=0.9, weight_decay=1e-4, fused=fused)


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


class Ours:
    """(a): a step of ``pretrain``, without its log."""

    def __init__(self, form: SimpleNamespace, pixels: Pixels, batch: int) -> None:
        self.form, self.pixels, self.batch, device = form, pixels, batch, pixels.device
        self.generator = torch.Generator().manual_seed(0)
        self.learner = MomentumContrast(new_network(form), form.pretrain, self.generator).to(device)
        if device.type == "cuda":
            self.learner.tune_for_cuda(form.pretrain.compile)
        self.optimizer = sgd(self.learner.query)

    def feed(self) -> Batch:
        views, size = self.form.views, self.form.views.window_px
        where = self.pixels.draw(self.batch, size, self.generator)
        windows = 2 * [self.pixels.windows(where, size)]
        corners, tokens = 2 * (torch.stack(where[1:], 1).float(),), self.form.pretrain.tokens
        return two_views(windows, where[0], corners, views, tokens=tokens, generator=self.generator)

    def step(self) -> None:
        batch = self.feed()
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.pixels.device):
            loss, extra = self.learner(batch)
        loss.backward()
        self.optimizer.step()
        self.learner.enqueue(batch, extra["enqueue"])
        self.learner.update_keys()


class Bare:
    """(b): the encoders alone, on images that are already on the device."""

    def __init__(self, form: SimpleNamespace, pixels: Pixels, batch: int) -> None:
        network, self.device = new_network(form), pixels.device
        self.encoders = nn.ModuleDict(encoders_of(network))
        self.encoders.to(self.device)
        if self.device.type == "cuda" and form.pretrain.compile:
            network.compile_blocks()  # those of the encoders
        self.optimizer = sgd(self.encoders)
        size = form.views.window_px
        self.images = {
            role: torch.randn(batch, bands, size, size, device=self.device)
            for role, bands in BANDS.items()
        }

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device):
            maps = [self.encoders[role](image) for role, image in self.images.items()]
        torch.stack([m.float().square().mean() for m in maps]).sum().backward()
        self.optimizer.step()


class TwoCrops(Dataset[dict[str, tuple[Tensor, Tensor]]]):
    """One window of one sensor at a time, transformed twice on the CPU (MoCo v2's recipe)."""

    def __init__(self, pixels: Pixels, size: int, length: int) -> None:
        home = {role: flat.cpu() for role, flat in pixels.flats.items()}
        self.pixels, self.size, self.length = Pixels(home, pixels.places.tolist()), size, length
        self.crop = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(0.5, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
                v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], p=0.5),
            ]
        )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(index)
        windows = self.pixels.windows(self.pixels.draw(1, self.size, generator), self.size)
        return {role: (self.view(windows[role][0]), self.view(windows[role][0])) for role in BANDS}

    def view(self, image: Tensor) -> Tensor:
        bands = (len(image), 1, 1)
        return self.crop(image) * (1 + 0.1 * torch.randn(bands)) + 0.1 * torch.randn(bands)


def pooled_encoder(encoder: nn.Module, channels: int, dim: int) -> nn.Sequential:
    """Build MoCo v2's network: encoder, average pooling, two layers."""
    head = (nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, dim))
    return nn.Sequential(encoder, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)


class Moco(nn.Module):
    """facebookresearch/moco's builder for one sensor on one device."""

    def __init__(self, encoder: nn.Module, form: SimpleNamespace) -> None:
        super().__init__()
        dim, size = form.model.projection_dim, form.pretrain.queue_size
        self.encoder_q = pooled_encoder(encoder, form.model.channels, dim)
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.m, self.t = form.pretrain.ema, form.pretrain.tau
        self.register_buffer("queue", F.normalize(torch.randn(dim, size), dim=0))
        self.pointer = 0

    @torch.no_grad()
    def keys(self, image: Tensor) -> Tensor:
        for q, k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
            k.data = k.data * self.m + q.data * (1.0 - self.m)
        order = torch.randperm(len(image), device=image.device)  # shuffles over GPUs, if any
        k = F.normalize(self.encoder_k(image[order]), dim=1)
        return k[torch.argsort(order)]

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        self.queue[:, self.pointer : self.pointer + len(keys)] = keys.T
        self.pointer = (self.pointer + len(keys)) % self.queue.shape[1]

    def forward(self, image_q: Tensor, image_k: Tensor) -> Tensor:
        q = F.normalize(self.encoder_q(image_q), dim=1)
        k = self.keys(image_k)
        positive = torch.einsum("nc,nc->n", q, k)[:, None]
        negative = torch.einsum("nc,ck->nk", q, self.queue.clone().detach())
        logits = torch.cat([positive, negative], dim=1) / self.t
        self.enqueue(k)
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


def lightly_moco(encoder: nn.Module, form: SimpleNamespace) -> nn.Module:
    """Build the same from lightly's components."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import (
        batch_shuffle,
        batch_unshuffle,
        deactivate_requires_grad,
        update_momentum,
    )

    class LightlyMoco(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width, dim = form.model.channels, form.model.projection_dim
            self.backbone = nn.Sequential(encoder, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.head = MoCoProjectionHead(width, width, dim)
            self.key_backbone = copy.deepcopy(self.backbone)
            self.key_head = copy.deepcopy(self.head)
            deactivate_requires_grad(self.key_backbone)
            deactivate_requires_grad(self.key_head)
            bank = (form.pretrain.queue_size, dim)
            self.criterion = NTXentLoss(form.pretrain.tau, memory_bank_size=bank)

        def forward(self, image_q: Tensor, image_k: Tensor) -> Tensor:
            update_momentum(self.backbone, self.key_backbone, m=form.pretrain.ema)
            update_momentum(self.head, self.key_head, m=form.pretrain.ema)
            query = self.head(self.backbone(image_q))
            with torch.no_grad():
                shuffled, order = batch_shuffle(image_k)
                key = batch_unshuffle(self.key_head(self.key_backbone(shuffled)), order)
            return self.criterion(query, key)

    return LightlyMoco()


class Peer:
    """(c): one MoCo per sensor, fed by a DataLoader."""

    def __init__(
        self,
        form: SimpleNamespace,
        pixels: Pixels,
        batch: int,
        workers: int,
        make: Callable[[nn.Module, SimpleNamespace], nn.Module] = Moco,
    ) -> None:
        network, self.device = new_network(form), pixels.device
        encoders = encoders_of(network)
        self.mocos = nn.ModuleDict({role: make(e, form) for role, e in encoders.items()})
        self.mocos.to(self.device, memory_format=torch.contiguous_format)  # as the reference
        self.optimizer = sgd(self.mocos, fused=None)
        windows = TwoCrops(pixels, form.views.window_px, 10**6)
        pinned = self.device.type == "cuda"
        options: dict[str, Any] = {"pin_memory": pinned, "drop_last": True}
        self.loader = DataLoader(windows, batch, shuffle=True, num_workers=workers, **options)
        self.batches: Iterator[Any] | None = None

    def step(self) -> None:
        if self.batches is None:
            self.batches = iter(self.loader)  # its workers begin now
        images = next(self.batches)
        self.optimizer.zero_grad()
        for role in BANDS:  # each by itself: the activations of both would not fit a GPU of 80 GB
            views = (view.to(self.device, non_blocking=True) for view in images[role])
            self.mocos[role](*views).backward()
        self.optimizer.step()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(step: Callable[[], Any], steps: int, device: torch.device) -> float:
    """Measure the mean time of some steps; the device's queue is empty before and after."""
    wait(device)
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    wait(device)
    return (time.perf_counter() - begin) / steps


def in_turns(
    ways: dict[str, Callable[[], Any]], steps: int, rounds: int, device: torch.device
) -> dict[str, float]:
    """Measure median seconds per step of each way, in turns, after a warm-up.

    Taking turns shares other load of the machine between the ways. Their order changes from round
    to round, because the caches hold data of the way that ran before.
    """
    order = random.Random(0)
    taken: dict[str, list[float]] = {}
    for name, step in ways.items():
        try:
            seconds(step, 3, device)
        except torch.cuda.OutOfMemoryError:
            print(f"{name}: does not fit into the GPU's memory", file=sys.stderr)
            continue
        taken[name] = []
    for number in range(rounds):
        for name in order.sample(list(taken), len(taken)):
            taken[name].append(seconds(ways[name], steps, device))
            print(f"round {number + 1} {name:8s} {taken[name][-1]:9.4f} s", file=sys.stderr)
    return {name: statistics.median(values) for name, values in taken.items()}


def peers(form: SimpleNamespace, pixels: Pixels, batch: int, workers: int) -> dict[str, Peer]:
    found = {"peer": Peer(form, pixels, batch, workers)}
    try:
        import lightly  # noqa: F401

        found["lightly"] = Peer(form, pixels, batch, workers, lightly_moco)
    except ImportError:
        pass
    return found


def peak_memory_gb(step: Callable[[], Any], device: torch.device) -> float:
    """Measure the peak memory of one step on a GPU, or of the whole process so far on a CPU."""
    if device.type != "cuda":
        import resource  # Unix only

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    torch.cuda.reset_peak_memory_stats()
    seconds(step, 1, device)
    return torch.cuda.max_memory_allocated() / 1e9


def flops_of(step: Callable[[], Any]) -> int:
    """Count the FLOPs of convolutions and matrix products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def profile(step: Callable[[], Any], device: torch.device, steps: int = 2) -> dict[str, Any]:
    """Profile a step: the longest kernels, and how long the GPU waits for the host.

    Returns:
        Per step: ``span_s`` from the start of the first kernel to the end of the last, ``idle_s``
        without any kernel in this span, ``kernels`` (number), ``host_waits`` (calls in which the
        host waits for the GPU), and ``longest``: the ten kernels that take the most time, with
        seconds and calls. On a CPU these are operators, including those that call others.
    """
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profiler:
        seconds(step, steps, device)
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    work = ("kernel", "gpu_memcpy", "gpu_memset") if device.type == "cuda" else ("cpu_op",)
    found = sorted((e for e in events if e.get("cat") in work), key=lambda e: e["ts"])
    begin = end = found[0]["ts"]
    idle, total, calls = 0.0, Counter[str](), Counter[str]()
    for event in found:  # times in microseconds
        idle += max(0.0, event["ts"] - end)
        end = max(end, event["ts"] + event["dur"])
        total[event["name"][:120]] += event["dur"]
        calls[event["name"][:120]] += 1
    asked = [e["name"] for e in events if str(e.get("cat")).startswith("cuda_")]
    waits = sum("Synchronize" in name for name in asked) - 2  # those of ``seconds`` itself
    longest = [
        {"name": name, "s": round(us / steps / 1e6, 5), "calls": round(calls[name] / steps, 1)}
        for name, us in total.most_common(10)
    ]
    return {
        "span_s": round((end - begin) / steps / 1e6, 5),
        "idle_s": round(idle / steps / 1e6, 5),
        "kernels": round(len(found) / steps),
        "host_waits": round(max(0, waits) / steps, 1),
        "longest": longest,
    }


def measure(
    form: SimpleNamespace,
    pixels: Pixels,
    batch: int,
    *,
    rounds: int,
    steps: int = 0,
    workers: int = 0,
    data: str = "random",
    peer: bool = True,
) -> dict[str, Any]:
    """Measure a row of results.

    Args:
        form: ``SMALL`` or ``FULL``, or one like them.
        pixels: source of the windows.
        batch: number of windows.
        rounds: see ``in_turns``.
        steps: steps in each round; 0 for those of the form.
        workers: workers of the peer's DataLoader.
        data: name of the pixels in the results.
        peer: whether (c) takes part.
    """
    device = pixels.device
    ours = Ours(form, pixels, batch)
    seconds(ours.step, 1, device)
    memory = peak_memory_gb(ours.step, device)  # before the others have any
    bare = Bare(form, pixels, batch)
    ways = {"ours": ours.step, "feed": ours.feed, "bare": bare.step}
    others = peers(form, pixels, batch, workers) if peer else {}
    those = {name: other.step for name, other in others.items()}
    if workers:  # which would take the host from the others while they fill their queues
        took = in_turns(ways, steps or form.steps, rounds, device)
        took |= in_turns(those, steps or form.steps, rounds, device)
    else:
        took = in_turns(ways | those, steps or form.steps, rounds, device)
    if not {"ours", "feed", "bare"} <= took.keys():
        raise ConfigError(
            f"a batch of {batch} does not fit into the GPU's memory; take half of it."
        )
    pairs, images = batch / took["ours"], 2 * batch / took["bare"]
    ratio = {name: round(took[name] / took["ours"], 2) for name in took}
    flops = None if form.pretrain.compile else flops_of(ours.step)
    limit = None if form.pretrain.compile else flops_of(bare.step)
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu_name(),
        "backbone": form.model.backbone,
        "stride": form.model.stride,
        "window_px": form.views.window_px,
        "batch": batch,
        "data": data,
        "s_per_step": {name: round(value, 5) for name, value in took.items()},
        "pairs_per_s": round(pairs, 2),
        "image_equivalents_per_s": round(pairs * PAIR, 2),
        "bare_images_per_s": round(images, 2),
        "efficiency": round(pairs * PAIR / images, 3),
        "peer_ratio": ratio.get("peer"),
        "lightly_ratio": ratio.get("lightly"),
        "feed_share": round(took["feed"] / took["ours"], 3),
        "peak_memory_gb": round(memory, 2),
        "tflop": {"ours": flops and flops / 1e12, "bare": limit and limit / 1e12},
        "tflop_per_s": flops and round(flops / took["ours"] / 1e12, 3),
        "epoch_minutes": round(EPOCH / pairs / 60, 1),
        "epochs_200_hours": round(EPOCHS * EPOCH / pairs / 3600, 1),
        "compile": form.pretrain.compile,
        "peer_workers": workers if peer else None,
        "threads": torch.get_num_threads(),
        "lightly": importlib.metadata.version("lightly") if "lightly" in took else None,
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def projection(row: dict[str, Any]) -> str:
    """Say how long the paper profile's epochs would take at the measured rate."""
    form = f"{row['backbone']}, {row['window_px']} px, batch {row['batch']}"
    return (
        f"{form}: {row['pairs_per_s']} pairs/s; at this rate an epoch of {EPOCH} windows takes "
        f"{row['epoch_minutes']} min and {EPOCHS} epochs {row['epochs_200_hours']} h"
    )


def cpu_name() -> str:
    return f"CPU, {platform.machine()}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_true", help="ResNet-18, 64 px (default on a CPU)")
    size.add_argument("--full", action="store_true", help="ResNet-50, 256 px (default with CUDA)")
    parser.add_argument("--data", type=Path, help="folder of prepared scenes; default: random")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, help="per round; default: of the form")
    parser.add_argument("--workers", type=int, default=-1, help="of the peer's DataLoader")
    parser.add_argument("--compile", action="store_true", help="torch.compile in (a) and (b)")
    options = parser.parse_args()
    there = torch.cuda.is_available()
    device = torch.device("cuda" if there else "cpu")
    if options.workers < 0:  # one process per core of a GPU machine; in turn with it on a CPU
        options.workers = min(16, os.cpu_count() or 1) if there else 0
    form = FULL if options.full or (there and not options.small) else SMALL
    form.pretrain = replace(form.pretrain, compile=options.compile)
    pixels = Pixels.prepared(options.data, device) if options.data else Pixels.random(device)
    torch.set_float32_matmul_precision("high")
    rows = []
    for batch in form.batches:
        data = options.data.name if options.data else "random"
        sizes = {"rounds": options.rounds, "steps": options.steps, "workers": options.workers}
        rows.append(measure(form, pixels, batch, data=data, **sizes))
        print(projection(rows[-1]), file=sys.stderr)
    print(json.dumps(rows[-1] | ({"other_batches": rows[:-1]} if rows[1:] else {})))


if __name__ == "__main__":
    main()

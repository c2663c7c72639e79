"""The parts of gpu.sh: measurements on a GPU, the most important first.

- ``right``: twenty steps of ``quick`` from the same batches on the CPU and on the GPU; kill -9 and
  resume with ``deterministic=true``; the difference of two runs in the default mode.
- ``fast``: ``pretraining.py --full``, eager and compiled; a profile of the step.
- ``pays``: ``standard`` pretraining on ``realistic`` scenes with AdamW, in runs of growing length;
  scores of a linear probe and a mixture on its tokens, beside local statistics and random weights.
- ``rest``: self-training, scores and a map of 4096 x 4096 px, on the GPU and on the machine's CPU.
- ``paper``: twenty steps of the ``paper`` profile: memory, seconds, hours for WHU-OPT-SAR.

Each part runs in its own process with a time limit. A part that fails or takes too long does not
stop the next one. Measurements are written to ``gpu.json`` at once. All data is synthetic.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import datetime
import errno
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from umsf_lib.config import UmsfError, load_config
from umsf_lib.run import KEYS, git_id, versions, write_json

HERE = Path(__file__).resolve()
BOUNDS_S = {"right": 60, "fast": 180, "pays": 180, "rest": 60, "paper": 35}  # on an H100
TOTAL_S, SMALL_S = 530, 175  # of all parts together, and with --small
SCENES_S = 90  # for the scenes of pays, which are made while ``right`` runs
NEEDS_GB = {"right": 4, "fast": 16, "pays": 16, "rest": 8, "paper": 16}  # of the GPU's memory
DISK_GB = 10
WITHOUT_RASTERIO = ("fast",)
STEPS = 20  # of right and of paper
WEIGHTS_BYTES = 16e6
SCENES = "synthetic.difficulty=realistic"  # of pays
FEW = "synthetic.train=2 synthetic.val=1 synthetic.test=1"  # of right


@dataclass(frozen=True)
class Kit:
    """Inputs of every part.

    Attributes:
        out: folder of the results.
        small: use small sizes.
        device: the device to measure.
        deadline: value of ``time.monotonic``, in s, at which this part is stopped.
    """

    out: Path
    small: bool
    device: torch.device
    deadline: float

    def keep(self, part: str, **values: Any) -> None:
        """Add values to the results of a part; they are on disk when this returns."""
        path = self.out / "gpu.json"
        known = json.loads(path.read_text(encoding="utf-8"))
        known["parts"][part] |= values
        write_json(path, known)
        print(f"{part}: {json.dumps(values)}", flush=True)

    @property
    def profile(self) -> str:
        """Profile of the small stages."""
        return "tiny" if self.small else "quick"


def right(kit: Kit) -> None:
    """Compare losses with a CPU's, bits after kill -9 and resume, and two default runs."""
    from umsf_lib.data.stage import load_data
    from umsf_lib.run import Run

    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    run = Run.open(load_config(kit.profile, overrides=f"device=cpu {FEW}"), "losses")
    data = load_data(run)  # which all runs share
    names = {"whole": True}
    if kit.device.type == "cuda":  # a CPU gives the same bits every time
        names |= {"one": False, "two": False}
    running = {name: begin_run(kit, name, exact) for name, exact in names.items()}
    kit.keep("right", **same_losses(kit, run, data))
    kit.keep("right", **interrupted(kit, running))


def begin_run(kit: Kit, name: str, deterministic: bool) -> subprocess.Popen[bytes]:
    """Start a short pretraining in its own process."""
    steps, often = (5, 4) if kit.small else (30, 10)
    numbers = f"pretrain.epochs=2 pretrain.steps_per_epoch={steps}"
    numbers += f" pretrain.checkpoint_every={often}"
    overrides = f"{FEW} {numbers} device={kit.device.type} deterministic={deterministic}"
    options = ["--profile", kit.profile, "--run", name, "--overrides", overrides]
    return subprocess.Popen([sys.executable, "-m", "umsf_lib", "pretrain", *options])


def same_losses(kit: Kit, run: Any, data: Any) -> dict[str, Any]:
    """Take twenty steps from the same batches on the CPU and the GPU, in float32 and in float64.

    Training amplifies rounding errors, so float32 departs from float64 even on one device
    (``rounding``). In float64 the two devices must agree to many digits.

    Returns:
        ``losses`` of each way, and the relative differences of some pairs, step by step.
    """
    from umsf_lib.models.stage import train_despeckler
    from umsf_lib.pretraining.stage import build_learner, new_optimizer
    from umsf_lib.run import seed_everything
    from umsf_lib.training.loop import cosine_with_warmup

    config = run.config
    train_despeckler(run, data)
    generator = seed_everything(config.seed)
    learner, source = build_learner(run, data, generator)
    settings = config.pretrain
    places = dict.fromkeys((torch.device("cpu"), kit.device))
    ways = [(device, dtype) for device in places for dtype in (torch.float32, torch.float64)]
    nets = [copy.deepcopy(learner).to(device, dtype) for device, dtype in ways]
    optimizers = [new_optimizer(net, settings) for net in nets]
    peak = optimizers[0].param_groups[0]["lr"]
    losses = np.zeros((len(ways), STEPS))
    for step in range(STEPS):
        batch = source.draw(settings.batch, generator)
        for number, (net, optimizer) in enumerate(zip(nets, optimizers, strict=True)):
            same = moved(batch, *ways[number])
            optimizer.param_groups[0]["lr"] = peak * cosine_with_warmup(step, 150, 25)  # of quick
            optimizer.zero_grad(set_to_none=True)
            loss, extra = net(same)
            loss.backward()
            optimizer.step()
            net.enqueue(same, extra["enqueue"])
            net.update_keys()
            losses[number, step] = loss.item()
    named = dict(zip([f"{d.type}_{str(t)[6:]}" for d, t in ways], losses, strict=True))
    pairs = {"rounding": ("cpu_float32", "cpu_float64")}
    if kit.device.type == "cuda":
        pairs |= {f"devices_{t}": (f"cpu_{t}", f"cuda_{t}") for t in ("float32", "float64")}
    differ = {name: np.abs(named[a] / named[b] - 1).tolist() for name, (a, b) in pairs.items()}
    return {"losses": {name: values.tolist() for name, values in named.items()}, **differ}


def moved(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Move a batch's images to a device and dtype; the positions of its tokens get the dtype."""
    views = [
        replace(view, images={role: x.to(device, dtype) for role, x in view.images.items()})
        for view in (batch.first, batch.second)
    ]
    places = {"points_a": batch.points_a.to(dtype), "points_b": batch.points_b.to(dtype)}
    return replace(batch, first=views[0], second=views[1], **places)


def interrupted(kit: Kit, running: dict[str, subprocess.Popen[bytes]]) -> dict[str, Any]:
    """Compare a killed and resumed run with an unbroken one; on a GPU also two default runs."""
    victim, folder = begin_run(kit, "killed", True), run_folder("killed") / "checkpoints"
    while victim.poll() is None and not list(folder.glob("step-*.pt")):
        time.sleep(0.005)
    victim.kill()
    found: dict[str, Any] = {"killed_with_step": newest(folder), "killed_by": -victim.wait()}
    if found["killed_by"] != signal.SIGKILL:
        raise RuntimeError("the run that was to be killed had ended before")
    running = running | {"killed": begin_run(kit, "killed", True)}
    if failed := [name for name, process in running.items() if process.wait()]:
        raise RuntimeError(f"umsf pretrain failed for {failed}; see right.log")
    whole, killed = (
        torch.load(folder / newest(folder), map_location="cpu", weights_only=True)
        for folder in (run_folder(name) / "checkpoints" for name in ("whole", "killed"))
    )
    found["resumed_equals_unbroken"] = same_bits(whole, killed)
    kit.keep("right", **found)
    if "one" not in running:
        return found
    one, two = (pd.read_csv(run_folder(name) / "pretrain.csv") for name in ("one", "two"))
    differ = (one.loss / two.loss - 1).abs()
    steps_seen = one.step.astype(int).tolist()
    return {"default_mode_difference": dict(zip(steps_seen, differ.tolist(), strict=True))}


def same_bits(a: Any, b: Any) -> bool:
    """Return whether two checkpoints are equal: weights, queues, optimiser, log, random states."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_bits(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_bits, a, b))
    return bool(a == b)


def run_folder(name: str) -> Path:
    """Return the folder of a run of this kit."""
    return Path(os.environ["UMSF_ROOT"]) / "runs" / name


def newest(folder: Path) -> str:
    """Return the name of the newest checkpoint."""
    return max((path.name for path in folder.glob("step-*.pt")), default="none")


def fast(kit: Kit) -> None:
    """Measure the full step: pairs per second, efficiency, ratio to a peer, profile."""
    import pretraining as step

    cuda = kit.device.type == "cuda"
    form = step.SMALL if kit.small else step.FULL
    side, scenes = (256, 2) if kit.small else (4096, 16)
    pixels = step.Pixels.random(kit.device, scenes, side)
    torch.set_float32_matmul_precision("high")
    options: dict[str, Any] = {"rounds": 2, "steps": 1 if kit.small else 4}
    workers = min(16, os.cpu_count() or 1) if cuda else 0
    small, large = (2, 4) if kit.small else form.batches

    def measure(name: str, batch: int, compiled: bool = False, peer: bool = False) -> None:
        made = copy.copy(form)
        made.pretrain = replace(form.pretrain, compile=compiled)
        try:
            row = step.measure(made, pixels, batch, peer=peer, workers=workers, **options)
            kit.keep("fast", **{name: row})
            if not compiled:
                found = step.profile(step.Ours(form, pixels, batch).step, kit.device)
                kit.keep("fast", **{f"profile_{batch}": found})
        except (RuntimeError, UmsfError) as error:  # of one row; the others may do
            kit.keep("fast", **{name: {"error": one_line(error)}})
        if cuda:
            torch.cuda.empty_cache()

    measure(f"eager_{large}", large, peer=True)
    measure(f"eager_{small}", small, peer=True)
    if cuda:
        begin = time.monotonic()
        measure(f"compiled_{large}", large, compiled=True)
        kit.keep("fast", compiled_row_took_s=round(time.monotonic() - begin, 1))
        measure(f"compiled_{small}", small, compiled=True)


def pays(kit: Kit) -> None:
    """Pretrain for several lengths, each with its own schedule, and score the tokens."""
    from umsf_lib.clustering.stage import feature_tokens
    from umsf_lib.clustering.task import ClusteringTask
    from umsf_lib.clustering.tokens import StatisticTokens
    from umsf_lib.data.stage import load_data
    from umsf_lib.models.stage import train_despeckler
    from umsf_lib.pretraining.stage import load_pretrained, new_network, pretrain
    from umsf_lib.run import Run
    from umsf_lib.training.loop import print_progress

    profile = "tiny" if kit.small else "standard"
    settings = f"device={kit.device.type} {SCENES} pretrain.checkpoint_every=100000"
    settings += f" despeckle.steps={5 if kit.small else 500}"
    run = Run.open(load_config(profile, overrides=settings), "pays")
    data = load_data(run)
    begin = time.monotonic()
    train_despeckler(run, data)
    kit.keep("pays", despeckler_s=round(time.monotonic() - begin, 1), curve=[])
    task = ClusteringTask.of_run(run, data)
    curve: list[dict[str, Any]] = []

    def judge(name: str, token_map: Callable[[int], torch.Tensor], **about: Any) -> None:
        begin = time.monotonic()
        found = judged_tokens(token_map, task, kit.small)
        seconds = {"judged_s": round(time.monotonic() - begin, 1)}
        curve.append({"tokens": name, **about, **found, **seconds})
        kit.keep("pays", curve=curve)

    train, sigmas = data.indices("train"), run.config.cluster.sigmas_px
    judge("statistics", StatisticTokens(task.store, train, sigmas, task.stride))
    network = new_network(run, data).to(kit.device).eval()
    judge("network", feature_tokens(network, task, "fused"), steps=0)

    def learn(steps: int, optimizer: str, rate: float) -> float:
        """Train and judge; returns seconds per step."""
        of = {"optimizer": optimizer, "lr": rate, "epochs": 10, "steps_per_epoch": steps // 10}
        of["warmup_epochs"] = 1
        variant = run.variant(f"{optimizer}-{steps}", ("data", "despeckle"), pretrain=of)
        begin = time.monotonic()
        pretrain(variant, data, progress=print_progress(f"{optimizer} {steps}"))
        took = time.monotonic() - begin
        network = load_pretrained(variant, data).to(kit.device).eval()
        about = {"steps": steps, "optimizer": optimizer, "lr": rate, "trained_s": round(took, 1)}
        judge("network", feature_tokens(network, task, "fused"), **about)
        keep_weights(kit, network, variant.folder.name)
        return took / steps

    def fitting(each: float) -> int:
        """Return the number of steps for which there is time, including what follows them."""
        after = 1.3 * curve[-1]["judged_s"] + 5
        return int((kit.deadline - time.monotonic() - after) / each) // 10 * 10

    lengths = (10, 20) if kit.small else (150, 600, 2000, 6000)
    each, done = learn(lengths[0], "adamw", 0.002), lengths[0]
    for steps in lengths[1:]:
        steps = min(steps, fitting(each))
        if steps < 1.5 * done:  # it would tell little that is new
            break
        each, done = learn(steps, "adamw", 0.002), steps
    if fitting(each) >= lengths[1]:
        learn(lengths[1], "sgd", 0.03)


def judged_tokens(token_map: Any, task: Any, small: bool) -> dict[str, Any]:
    """Score tokens by a linear probe with few validation labels and by a mixture without labels."""
    from sklearn.decomposition import PCA

    from umsf_lib.clustering.mixture import fit_mixture
    from umsf_lib.evaluation.metrics import accuracy, confusion, contingency, many_to_one
    from umsf_lib.evaluation.probe import labelled_tokens, linear_probe

    scenes, stride, seed = task.scenes, task.stride, task.config.seed
    count, components = 500 if small else 20_000, 14
    known, test = (
        labelled_tokens(token_map, scenes, scenes.indices(part), stride, count, seed)
        for part in ("val", "test")
    )
    found: dict[str, Any] = {
        f"probe_{n}": linear_probe(known, test, n, seed) for n in (10, 50, 500)
    }
    sample = task.sample(token_map, stride)
    pca = PCA(min(task.config.cluster.max_dims, sample.shape[1]), random_state=seed).fit(sample)
    mixture = fit_mixture(pca.transform(sample), components, 1, seed)
    clusters = mixture.posteriors(pca.transform(test.features)).argmax(axis=1)
    table = contingency(clusters, test.label, components, len(scenes.layout.classes))
    found["many_to_one_14"] = accuracy(confusion(table, many_to_one(table)))
    return found


def keep_weights(kit: Kit, network: torch.nn.Module, name: str) -> None:
    """Save the network in float16 over the previous one, if it is small enough to copy around."""
    weights = {k: w.half() if w.is_floating_point() else w for k, w in network.state_dict().items()}
    size = sum(w.numel() * w.element_size() for w in weights.values())
    if size > WEIGHTS_BYTES:
        kit.keep("pays", weights=f"not kept: {size / 1e6:.0f} MB in float16, of 16 MB at most")
        return
    torch.save({k: w.cpu() for k, w in weights.items()}, kit.out / "weights.pt")
    kit.keep("pays", weights=f"of {name}, float16, {size / 1e6:.1f} MB")


def rest(kit: Kit) -> None:
    """Measure seconds and peak memory of stages on this machine's GPU and on its CPU."""
    from umsf_lib.data.layout import load_layout
    from umsf_lib.data.rasters import opened, write_raster
    from umsf_lib.data.stage import load_data
    from umsf_lib.data.synthetic import sheet_transform, synthesize
    from umsf_lib.run import Run

    few = "synthetic.train=2 synthetic.val=1 synthetic.test=2"
    root = synthesize(Run.open(load_config(kit.profile, overrides=few), "rest-scenes"))
    layout, name, side = load_layout("whu-opt-sar"), "NH49E024024.tif", 256 if kit.small else 4096
    for folder in ("optical", "sar", "lbl"):  # in no part of the split: it is mapped only
        source = sorted((root / folder).glob("*.tif"))[0]
        with opened(source) as file:
            pixels, crs = file.read(), file.crs
        times = -(-side // pixels.shape[1])
        large = np.tile(pixels, (1, times, times))[:, :side, :side]
        write_raster(
            root / folder / name, large, nodata=0, crs=crs, transform=sheet_transform(name)
        )
    for device in dict.fromkeys((kit.device.type, "cpu")):
        settings = f"device={device} pretrain.epochs=2 pretrain.steps_per_epoch=4"
        settings += " cluster.restarts=1 cluster.tokens=4000"  # of the teacher, which no GPU helps
        config = load_config(kit.profile, data=str(root), layout=layout.name, overrides=settings)
        run = Run.open(config, f"rest-{device}")
        measure_stages(kit, run, load_data(run), name)


def measure_stages(kit: Kit, run: Any, scenes: Any, mapped: str) -> None:
    """Keep the cost of each stage on the run's device; only scene ``mapped`` is mapped."""
    from umsf_lib.clustering.stage import cluster
    from umsf_lib.clustering.task import ClusteringTask
    from umsf_lib.evaluation.stage import evaluate, fitted_matching
    from umsf_lib.experiments.pipeline import ours
    from umsf_lib.maps.stage import write_maps
    from umsf_lib.models.stage import train_despeckler
    from umsf_lib.pretraining.stage import pretrain

    train_despeckler(run, scenes)
    pretrain(run, scenes)
    task, which = ClusteringTask.of_run(run, scenes), [scenes.index(Path(mapped).stem)]

    def maps() -> None:
        write_maps(run, task, ours(run, task), fitted_matching(run, "umsf"), which)

    work: dict[str, Callable[[], Any]] = {
        "cluster": lambda: cluster(run, task),
        "evaluate": lambda: evaluate(run, task, {"umsf": lambda: ours(run, task)}),
        "maps": maps,
    }
    costs: dict[str, Any] = {}
    for stage, make in work.items():
        make()
        entry = run.manifest["stages"][stage]
        costs[stage] = {key: entry[key] for key in KEYS if key in entry}
        kit.keep("rest", **{run.device.type: costs})


def paper(kit: Kit) -> None:
    """Run the profile's own sizes from random weights, on random scenes of WHU-OPT-SAR's size."""
    from umsf_lib.models.stage import train_despeckler
    from umsf_lib.pretraining.stage import LOG_EVERY, pretrain
    from umsf_lib.run import Run

    overrides = f"device={kit.device.type} model.weights=none despeckle.steps=10"
    overrides += f" pretrain.epochs=1 pretrain.steps_per_epoch={STEPS}"
    if kit.small:
        overrides += " views.window_px=64 views.overlap_px=16 pretrain.batch=2 despeckle.batch=2"
        overrides += " model.backbone=resnet18 model.channels=64 model.projection_hidden=64"
    run = Run.open(load_config("paper", overrides=overrides), "paper")
    scenes = random_scenes(run, *((2, 256, 256) if kit.small else (14, 5556, 3704)))
    train_despeckler(run, scenes)
    times: dict[int, float] = {}
    pretrain(run, scenes, progress=lambda step, *_: times.setdefault(step, time.monotonic()))
    last, logged = max(times), max(times) - LOG_EVERY  # a row of the log waits for the GPU
    each = (times[last] - times[logged]) / LOG_EVERY
    checkpoint = next((run.folder / "checkpoints").glob("step-*.pt")).stat().st_size
    settings, windows = load_config("paper").pretrain, 44_080  # of 80 scenes
    hours = settings.epochs * (windows // settings.batch) * each / 3600
    peak = torch.cuda.max_memory_allocated() / 1e9 if kit.device.type == "cuda" else None
    kit.keep(
        "paper",
        s_per_step=round(each, 4),
        peak_gpu_gb=peak and round(peak, 2),
        scenes_gb=round(sum(scenes.flat(r).nbytes for r in ("optical", "sar", "valid")) / 1e9, 2),
        checkpoint_gb=round(checkpoint / 1e9, 3),
        projected_hours=None if kit.small else round(hours, 1),
        windows=windows,
        epochs=settings.epochs,
        batch=run.config.pretrain.batch,
    )


def random_scenes(run: Any, count: int, height: int, width: int) -> Any:
    """Make prepared scenes of random bytes, and the stage ``data`` that a run needs."""
    from umsf_lib.data.layout import load_layout
    from umsf_lib.data.scene_set import NORMALISATION, SceneRecord, SceneSet, normalisation

    folder = Path(os.environ["UMSF_ROOT"]) / "random"
    folder.mkdir()
    layout, rng, size = load_layout("whu-opt-sar"), np.random.default_rng(0), height * width
    noise = np.frombuffer(rng.bytes(5 * size), np.uint8).reshape(5, size) | 1  # 0 is nodata
    for role, pixels in {"optical": noise[:4], "sar": noise[4:], "valid": noise[0] > 0}.items():
        np.save(folder / f"{role}.npy", np.concatenate(count * [pixels], axis=-1))
    ln = 2 * np.log(noise[4:].astype(np.float32))
    mean = {"optical": noise[:4].mean(axis=1).tolist(), "sar": ln.mean(axis=1).tolist()}
    std = {"optical": noise[:4].std(axis=1).tolist(), "sar": ln.std(axis=1).tolist()}
    names = [f"random-{number:02d}" for number in range(count)]
    records = tuple(
        SceneRecord(name, height, width, number * size, size, mean, std)
        for number, name in enumerate(names)
    )
    scenes = SceneSet(folder, layout, records, {"train": names, "val": [], "test": []}, {})

    def make() -> Sequence[str]:
        write_json(run.path(NORMALISATION), normalisation(scenes))
        return [NORMALISATION]

    run.stage("data", make, {"random": names})
    return scenes


PARTS: dict[str, Callable[[Kit], None]] = {
    part.__name__: part for part in (right, fast, pays, rest, paper)
}


def scenes(kit: Kit) -> None:
    """Make the scenes of ``pays`` while another part runs."""
    from umsf_lib.data.stage import load_data
    from umsf_lib.run import Run

    begin = time.monotonic()
    profile = "tiny" if kit.small else "standard"
    load_data(Run.open(load_config(profile, overrides=f"{SCENES} device=cpu"), "scenes"))
    took = {"scenes_s": round(time.monotonic() - begin, 1)}
    write_json(Path(os.environ["UMSF_ROOT"]) / "scenes.json", took)


def one_line(error: BaseException) -> str:
    """Describe an error in one sentence."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full ({error.filename or tempfile.gettempdir()}); free {DISK_GB} GB."
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "the GPU's memory is full; stop what else uses it (nvidia-smi lists it)."
    if isinstance(error, UmsfError):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]


def describe(device: torch.device, small: bool) -> dict[str, Any]:
    """Describe the machine and the code that the numbers belong to."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "memory_gb": round(torch.cuda.mem_get_info()[1] / 1e9, 1) if cuda else None,
        "driver": driver() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "cpu": f"{platform.machine()}, {os.cpu_count()} cores",
        "small": small,
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "git": git_id(),
        "source": source_digest(),
    }


def driver() -> str:
    """Return the version of the GPU's driver; '' if nvidia-smi does not give it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def source_digest() -> str:
    """Return a short sha256 of the library and the benchmarks, for a copy without git."""
    home, found = HERE.parents[1], hashlib.sha256()
    for folder in ("umsf_lib", "benchmarks"):
        for path in sorted((home / folder).rglob("*")):
            if path.suffix in (".py", ".sh", ".yaml"):
                found.update(str(path.relative_to(home)).encode() + path.read_bytes())
    return found.hexdigest()[:16]


def obstacle(part: str, device: torch.device, work: Path) -> str:
    """Say in one sentence why a part cannot run on this machine; '' if it can."""
    if part not in WITHOUT_RASTERIO and importlib.util.find_spec("rasterio") is None:
        return "rasterio is missing; name a folder of wheels with --wheels (see benchmarks/gpu.sh)."
    needed = 2 if device.type == "cpu" else DISK_GB
    if (free := shutil.disk_usage(work).free / 1e9) < needed:
        return f"{work} has {free:.1f} GB of free disk, {needed} are needed; set TMPDIR to another."
    if device.type == "cuda":
        memory = torch.cuda.mem_get_info(device)[0] / 1e9
        if memory < NEEDS_GB[part]:
            return f"{memory:.0f} GB of the GPU's memory are free, {NEEDS_GB[part]} are needed."
    return ""


def command_of(part: str, options: argparse.Namespace, deadline: float) -> list[str]:
    """Return the command that runs one part; ``deadline`` is a ``time.monotonic`` value.

    All processes share this clock.
    """
    command = [sys.executable, str(HERE), "--part", part, "--out", str(options.out)]
    return command + ["--deadline", f"{deadline:.1f}"] + ["--small"] * options.small


def run_part(part: str, options: argparse.Namespace, bound: float) -> str:
    """Run a part in its own process; returns its outcome in a few words."""
    begin = time.monotonic()
    process = start(command_of(part, options, begin + bound), options.out / f"{part}.log")
    try:
        status: int | None = process.wait(bound)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        stop(process)
    took = f"{time.monotonic() - begin:.0f} s"
    if status is None:
        return f"stopped after its {took}; what it had measured is kept"
    return f"done in {took}" if status == 0 else f"failed after {took} (see {part}.log)"


def start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process that can be stopped together with its child processes."""
    with log.open("w", encoding="utf-8") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process together with its child processes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_all(options: argparse.Namespace, device: torch.device) -> int:
    """Run all parts one after the other; returns 0 if all were done."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all below is tidied up
    begin, ends = time.monotonic(), []
    total = SMALL_S if options.small else TOTAL_S
    path, kit = options.out / "gpu.json", Kit(options.out, options.small, device, begin + total)
    work = Path(tempfile.mkdtemp(prefix="gpu-kit-"))
    os.environ["UMSF_ROOT"] = str(work)
    helper: subprocess.Popen[bytes] | None = None
    try:
        write_json(
            path, describe(device, options.small) | {"parts": {p: {} for p in options.parts}}
        )
        for part in options.parts:
            if "pays" in options.parts and part in ("right", "pays") and helper is None:
                helper = start(command_of("scenes", options, 0.0), options.out / "scenes.log")
            reason = obstacle(part, device, work)
            if part == "pays" and helper and not reason:
                reason = wait_for_scenes(kit, helper, work)
            bound = kit.deadline - time.monotonic()
            bound = bound if options.small else min(BOUNDS_S[part], bound)
            if reason:
                ends.append(f"not run: {reason}")
            elif bound < 10:
                ends.append("not run: no time is left.")
            else:
                print(f"{part}: at most {bound:.0f} s", flush=True)
                ends.append(run_part(part, options, bound))
            kit.keep(part, end=ends[-1])
    except OSError as error:
        sys.exit(f"gpu.sh: {one_line(error)}")
    finally:
        if helper:
            stop(helper)
        shutil.rmtree(work, ignore_errors=True)
    print(f"{path}: {time.monotonic() - begin:.0f} s in all")
    return 0 if all(end.startswith("done") for end in ends) else 1


def wait_for_scenes(kit: Kit, helper: subprocess.Popen[bytes], work: Path) -> str:
    """Wait for the scenes of ``pays``; returns why there are none, '' if there are."""
    since = time.monotonic()
    try:
        status: int | None = helper.wait(SCENES_S)
    except subprocess.TimeoutExpired:
        status = None
    if status != 0:
        return f"its scenes were not made within {SCENES_S} s (see scenes.log)."
    took = json.loads((work / "scenes.json").read_text(encoding="utf-8"))
    kit.keep("pays", **took, scenes_waited_for_s=round(time.monotonic() - since, 1))
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="small sizes on a CPU")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--part", help=argparse.SUPPRESS)  # inside the process of one part
    parser.add_argument("--deadline", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.small:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # also of a machine that has a GPU
    elif not torch.cuda.is_available():
        sys.exit(
            f"gpu.sh: torch {torch.__version__} sees no CUDA GPU; --small tries the kit on a CPU."
        )
    device = torch.device("cpu" if options.small else "cuda")
    if options.part:
        return run_one(options, device)
    asked = options.parts.split(",")
    options.parts = [part for part in asked if part in PARTS]
    for part in asked:
        if part not in PARTS:
            print(f"gpu.sh: part '{part}' is unknown; choose of {', '.join(PARTS)}.")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"gpu.sh: {options.out} cannot be made ({error.strerror}); name another --out.")
    options.out = options.out.resolve()
    status = run_all(options, device) if options.parts else 1
    return status or int(options.parts != asked)


def run_one(options: argparse.Namespace, device: torch.device) -> int:
    """Run one part, inside its own process."""
    kit = Kit(options.out, options.small, device, options.deadline)
    try:
        (PARTS | {"scenes": scenes})[options.part](kit)
    except Exception as error:
        if options.part in PARTS:
            kit.keep(options.part, error=one_line(error))
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())

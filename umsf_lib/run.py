"""The run folder: the only thing that notebooks share.

One run is one method x variant x seed. ``manifest.json`` says what made it; a stage whose inputs
are unchanged and whose files are whole is not computed again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from . import __version__
from .config import HARDWARE, Config, ConfigError, DataError, MissingStageError

if TYPE_CHECKING:  # torch takes seconds to import, and data is read and checked without it
    import torch
    from torch import Tensor

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "rasterio", "papermill")
# Stage -> what makes it, for the sentence a reader gets when it is missing.
MAKERS = {
    "data": "01_data_preparation",
    "despeckle": "02_encoders",
    "pretrain": "03_momentum_contrast_pretraining",
    "cluster": "04_fusion_and_clustering",
    "evaluate": "05_evaluation",
    "maps": "06_tsne_and_maps",
    "probe": "10_spatial_contrast",
}


# What the benchmarks of this checkout have recorded; RESULTS.md and some notebooks read it.
RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
SAMPLES = Path(__file__).resolve().parents[1] / "data" / "samples"  # two real pairs


def project_root() -> Path:
    """Folder that holds ``data/`` and ``runs/``: UMSF_ROOT, else the checkout of this package."""
    chosen = os.environ.get("UMSF_ROOT")
    return Path(chosen).resolve() if chosen else Path(__file__).resolve().parents[1]


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a temporary neighbour of ``path``, sync it, rename it into place.

    A reader sees the old file or the whole new one, never half of it, even after a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes it private
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write plain data as indented JSON, atomically."""
    text = json.dumps(value, indent=1, sort_keys=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write named arrays as a compressed ``.npz``, atomically."""
    write_atomically(path, lambda temporary: np.savez_compressed(temporary, **arrays))  # type: ignore[arg-type]


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Short sha256 of plain data, the same whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def pick_device(wanted: str) -> torch.device:
    """The device that a profile names; ``auto``: CUDA when there is one, else the CPU.

    Raises:
        ConfigError: ``cuda`` where torch sees no GPU.
    """
    import torch

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ConfigError(
            f"device is cuda, but torch {torch.__version__} sees no CUDA GPU; check the driver "
            "(nvidia-smi) and that this torch is a CUDA build, or set device=auto."
        )
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python, NumPy and torch; return an explicit CPU generator for the draws that matter."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def use_deterministic(wanted: bool) -> None:
    """Let CUDA give the same bits every time, or leave it its speed; a CPU does so anyway."""
    import torch

    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS refuses
    torch.use_deterministic_algorithms(wanted)


def versions() -> dict[str, str]:
    """Python and, of the packages that decide numbers, those that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_id() -> str:
    """Commit of the checkout, with '+' when it has changes; '' outside git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    if not shutil.which("git"):
        return ""
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def _locked(path: Path, doing: str) -> Iterator[None]:
    """Hold an operating-system lock: it goes away with the process, so it is never stale."""
    with path.open("a+") as file:
        try:
            _lock_file(file.fileno())
        except OSError as error:
            raise DataError(
                f"{path.parent} is being written by another process, so '{doing}' cannot start; "
                "wait for it or choose another run name."
            ) from error
        yield


def _lock_file(descriptor: int) -> None:
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@dataclass
class Run:
    """A run folder with its settings and manifest."""

    folder: Path
    config: Config
    manifest: dict[str, Any]

    @classmethod
    def open(cls, config: Config, name: str = "", root: Path | None = None) -> Run:
        """Open or begin the run ``name`` (default: named after profile, data and seed).

        Raises:
            ConfigError: the folder was made with other settings; the differences are listed; no
                such device.
        """
        folder, device = cls.folder_of(config, name, root), pick_device(config.device)
        plain, path = _plain(config), folder / "manifest.json"
        if path.is_file():
            found = json.loads(path.read_text())
            _refuse_older_version(folder, found.get("version", "0.1"))
            _refuse_other_settings(folder, found["config"], plain)
        else:
            found = {"run": folder.name, "version": __version__, "config": plain, "stages": {}}
            text = yaml.safe_dump(plain, sort_keys=False)
            write_atomically(folder / "config.yaml", lambda t: t.write_text(text))
        manifest = found | {"versions": versions(), "git": git_id(), "device": str(device)}
        run = cls(folder, config, manifest)
        if manifest != found:  # of several processes, the first has written it already
            run._save()
        return run

    @staticmethod
    def folder_of(config: Config, name: str = "", root: Path | None = None) -> Path:
        """Folder of a run: its name, or one made of profile, data and seed."""
        return (root or project_root() / "runs") / (name or default_name(config))

    def variant(self, name: str, keep: Sequence[str], **changes: Mapping[str, Any]) -> Run:
        """Open a run beside this one that differs in some settings only.

        Args:
            name: appended to this run's name.
            keep: finished stages that the changes leave alone; their files are copied.
            changes: section -> values, for example ``cluster={"balance": 1.0}``.

        Raises:
            MissingStageError: this run has not finished one of the stages.
        """
        config = self.config.changed(**changes)
        run = Run.open(config, f"{self.folder.name}-{name}", self.folder.parent)
        for stage in keep:
            files = self.outputs_of(stage)
            if run.is_done(stage):
                continue
            for file in files:
                run.path(file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.path(file), run.path(file))
            run.manifest["stages"][stage] = self.manifest["stages"][stage]
            run._save()
        return run

    @property
    def device(self) -> torch.device:
        """Where this machine computes."""
        return pick_device(self.config.device)

    def path(self, *parts: str) -> Path:
        """A path inside the run folder."""
        return self.folder.joinpath(*parts)

    def _save(self) -> None:
        write_json(self.path("manifest.json"), self.manifest)

    def _reload(self) -> None:
        """Stages that another notebook has finished in the meantime."""
        path = self.path("manifest.json")
        if path.is_file():
            self.manifest["stages"] = json.loads(path.read_text())["stages"]

    def stage(
        self,
        name: str,
        make: Callable[[], Sequence[str]],
        inputs: Mapping[str, Any],
    ) -> bool:
        """Run ``make`` unless the stage is done with the same inputs and its files are whole.

        Args:
            name: of the stage in the manifest.
            make: writes files into the run folder and returns their names.
            inputs: plain data that decides the result.

        Returns:
            True if it ran, False if it was up to date.
        """
        if self.is_current(name, inputs):
            return False
        with _locked(self.path(".lock"), name):
            self._reload()
            if self.manifest["stages"].pop(name, None):
                self._save()  # if this fails midway, nobody takes the old result for the new one
            with measure_cost() as cost:
                outputs = make()
            self.manifest["stages"][name] = {
                "inputs": digest(inputs),
                "outputs": {file: sha256_of(self.path(file)) for file in outputs},
                **cost,
                "git": git_id(),
            }
            self._save()
        return True

    def is_current(self, name: str, inputs: Mapping[str, Any]) -> bool:
        """Whether the stage is done with these inputs."""
        return self.is_done(name) and self.manifest["stages"][name]["inputs"] == digest(inputs)

    def is_done(self, name: str) -> bool:
        """Whether the stage finished and each of its files still has its sha256."""
        self._reload()
        entry = self.manifest["stages"].get(name)
        return entry is not None and all(
            self.path(file).is_file() and sha256_of(self.path(file)) == sha
            for file, sha in entry["outputs"].items()
        )

    def outputs_of(self, name: str) -> dict[str, str]:
        """File -> sha256 of a finished stage, to be an input of the next one.

        Raises:
            MissingStageError: the stage has not run, or a file of it is gone or damaged.
        """
        if not self.is_done(name):
            notebook = MAKERS[name]
            raise MissingStageError(
                f"Run '{self.folder.name}' has no finished stage '{name}' in {self.folder}: "
                f"run notebooks/{notebook}.ipynb first, with the same parameters."
            )
        return dict(self.manifest["stages"][name]["outputs"])


def default_name(config: Config) -> str:
    """For example ``quick-synthetic-0``."""
    data = Path(config.data).name if config.data else "synthetic"
    return f"{config.profile}-{data}-{config.seed}"


def _plain(config: Config) -> dict[str, Any]:
    """Settings as a manifest keeps them: JSON, without those of the hardware."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return {key: value for key, value in plain.items() if key not in HARDWARE}


def nameless(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that name data and layout but not where they lie, which says nothing elsewhere."""
    return {**settings, **{key: Path(settings[key]).name for key in ("data", "layout")}}


def other_settings(made: Mapping[str, Any], config: Config) -> str:
    """The ``differences`` of a run's settings and these, but for those younger than the run.

    Settings that know their data set by name only (see ``nameless``) are compared by name.
    """
    wanted = nameless(_plain(config)) if made == nameless(made) else _plain(config)
    known = _flat(made)
    return differences(known, {key: v for key, v in _flat(wanted).items() if key in known})


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What two trees of settings do not have in common: ``a.b 1 -> 2, c 3 -> None``; or ''."""
    before, now = _flat(old), _flat(new)
    changed = [k for k in sorted(before | now) if before.get(k) != now.get(k)]
    return ", ".join(f"{k} {before.get(k)!r} -> {now.get(k)!r}" for k in changed)


def _refuse_older_version(folder: Path, made_by: str) -> None:
    """Runs of 0.1 have other settings and other stages."""
    if made_by.startswith("0.1"):
        raise ConfigError(
            f"Run folder {folder} was made by umsf {made_by}, which alone can read it; this is "
            f"{__version__}: choose another run name, or check out version 0.1.0 for that run."
        )


def _refuse_other_settings(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    if listed := differences(old, new):
        raise ConfigError(
            f"Run folder {folder} was made with other settings ({listed}); "
            "choose another run name, or delete that folder to start again."
        )


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy without waiting for the device: what follows on it waits by itself.

    To a GPU through pinned memory; a copy from any other may wait for what the GPU has to do.
    """
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()  # torch keeps it until the GPU has read it
    return x.to(device, non_blocking=True)


STATUS = Path("/proc/self/status")  # of this process; Linux only
CLEAR = Path("/proc/self/clear_refs")
KEYS = ("wall_s", "peak_gb", "peak_gpu_gb")


@contextlib.contextmanager
def measure_cost() -> Iterator[dict[str, float]]:
    """Measure what happens inside.

    Yields:
        A dict that is filled at the end: ``wall_s``, seconds; ``peak_gb``, the largest resident
        memory of this process meanwhile, in GB (left out where there is no Linux to ask);
        ``peak_gpu_gb``, the most that torch's tensors held on a CUDA GPU (left out without one).
    """
    cost: dict[str, float] = {}
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")  # the high-water mark begins anew
    torch = sys.modules.get("torch")  # not imported for this
    if torch and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    yield cost
    cost["wall_s"] = round(time.perf_counter() - start, 2)
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text()):
            cost["peak_gb"] = round(int(found[1]) * 1024 / 1e9, 3)
    if torch and torch.cuda.is_initialized():
        cost["peak_gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)


def add_up(parts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Cost of work done in parts, one after the other: seconds add up, the largest peak counts.

    Args:
        parts: each as ``measured`` filled it; other keys are let alone.

    Returns:
        All three values, NaN where a part lacks one.
    """
    of = {key: [part.get(key, np.nan) for part in parts] for key in KEYS}
    return {key: float((np.sum if key == "wall_s" else np.max)(of[key])) for key in KEYS}

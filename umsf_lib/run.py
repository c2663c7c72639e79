"""The run folder, through which notebooks share results.

One run is one combination of method, variant and seed. ``manifest.json`` records what produced it.
A stage is not computed again if its inputs have not changed and its files are intact.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import errno
import functools
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
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from filelock import FileLock, Timeout

from . import __version__
from .config import (
    CONTROL,
    HARDWARE,
    Config,
    ConfigError,
    DataError,
    MissingStageError,
    WriteError,
    expanded,
    load_config,
)

if TYPE_CHECKING:  # torch takes seconds to import; reading and checking data does not need it
    import torch
    from torch import Tensor

LONGEST_NAME = 200  # of a run, in bytes of UTF-8
ODD = re.compile(rf"""[/\\:*?"<>|]|{CONTROL.pattern}""")  # no part of a run's name
MORE_SPACE = "free some space or set UMSF_ROOT to a folder on another disk"
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "rasterio", "papermill")
# Stage -> notebook that runs it, for the error message when the stage is missing.
MAKERS = {
    "data": "01_data_preparation",
    "despeckle": "02_encoders",
    "pretrain": "03_momentum_contrast_pretraining",
    "cluster": "04_fusion_and_clustering",
    "evaluate": "05_evaluation",
    "maps": "06_tsne_and_maps",
    "probe": "10_spatial_contrast",
}


CHECKOUT = Path(__file__).resolve().parents[1]
# Results that the benchmarks recorded; RESULTS.md and some notebooks read them.
RESULTS = CHECKOUT / "benchmarks" / "results"
SAMPLES = CHECKOUT / "data" / "samples"  # two real pairs


def project_root() -> Path:
    """Return the folder where ``data/`` and ``runs/`` are written: UMSF_ROOT, or the checkout."""
    return Path(os.path.realpath(expanded(os.environ.get("UMSF_ROOT") or CHECKOUT)))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the ``with`` block, which writes a file or folder, into one sentence.

    Raises:
        WriteError: the disk is full, or nothing may be written there.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, WriteError | BrokenPipeError):  # the pipe is that of the output
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WriteError(
                f"The disk of {path.parent} is full; {MORE_SPACE} ({error})."
            ) from error
        raise WriteError(
            f"{path} cannot be written ({error}); choose another place, or set UMSF_ROOT to a "
            "folder that you may write to."
        ) from error


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file through a temporary file beside it, so that it is never half-written.

    ``write`` fills the temporary file, which is then synced and renamed to ``path``. A reader sees
    the old file or the complete new one, even after a power cut.

    Raises:
        WriteError: see ``writing``.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)  # mkstemp creates it readable by the owner only
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write plain data as indented JSON, atomically."""
    text = json.dumps(value, indent=1, sort_keys=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write named arrays as a compressed ``.npz``, atomically."""
    write_atomically(path, lambda temporary: np.savez_compressed(temporary, **arrays))  # type: ignore[arg-type]


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Return a short SHA-256 of plain data (16 hex digits), independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def pick_device(wanted: str) -> torch.device:
    """Return the device that a profile names; ``auto`` is CUDA if there is a GPU, else the CPU.

    Raises:
        ConfigError: ``cuda`` is asked for, but torch sees no GPU.
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
    """Seed Python, NumPy and torch; return a seeded CPU generator for explicit draws."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def use_deterministic(wanted: bool) -> None:
    """Turn bit-identical results on CUDA on or off (off is faster); a CPU always gives them."""
    import torch

    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
    torch.use_deterministic_algorithms(wanted)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that affect results."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_id() -> str:
    """Return the commit of the checkout, with '+' if it has changes; '' outside git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    if not shutil.which("git"):
        return ""
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


@functools.cache
def code_digest(*modules: str) -> str:
    """Compute a digest of the code that a stage may run: packages and all packages they import.

    Comments, docstrings and layout do not count.

    Args:
        modules: dotted names of modules in the packages; those outside this library do not count.
    """
    top, home = str(__package__), Path(__file__).parent
    queue = [name.split(".")[1] for name in modules if name.startswith(f"{top}.")]
    seen: dict[str, str] = {}
    while queue:
        package = queue.pop()
        if package in seen:
            continue
        folder, text = home / package, ""
        paths = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
        for path in paths:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            depth = len(path.relative_to(home).parts)  # of relative imports that reach the top
            for node in ast.walk(tree):
                if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
                    node.body[0] = ast.Pass()
                if isinstance(node, ast.ImportFrom) and node.level == depth:
                    names = [(node.module or alias.name).split(".")[0] for alias in node.names]
                    there = {path.stem for path in home.iterdir()}
                    queue += [name for name in names if name in there]
            text += ast.unparse(tree)
        seen[package] = text
    return digest(seen)


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Run:
    """A run folder with its settings and manifest."""

    folder: Path
    config: Config
    manifest: dict[str, Any]

    @classmethod
    def open(
        cls, config: Config, name: str = "", root: Path | None = None, *, create: bool = True
    ) -> Run:
        """Open or create the run ``name`` (default: named after profile, data and seed).

        Raises:
            MissingStageError: there is no such run, and ``create`` is false.
            ConfigError: the folder was made with other settings (the message lists the
                differences) or by an older version, or the device does not exist.
        """
        folder = cls.folder_of(config, name, root)
        plain, path = _plain(config), folder / "manifest.json"
        there = os.path.isfile(path)  # False also where it may not be read; writing says so
        if not create and not there:
            raise MissingStageError(
                f"There is no run '{folder.name}' in {folder.parent}; make it with 'umsf map', or "
                "choose another run name."
            )
        pick_device(config.device)
        if there:
            found = _read_manifest(path)
            _refuse_other_settings(folder, found["config"], plain)
        else:
            found = {"run": folder.name, "version": __version__, "config": plain, "stages": {}}
            text = yaml.safe_dump(plain, sort_keys=False)
            write_atomically(folder / "config.yaml", lambda t: t.write_text(text, encoding="utf-8"))
            write_json(path, found)
        return cls(folder, config, found)

    @staticmethod
    def folder_of(config: Config, name: str = "", root: Path | None = None) -> Path:
        """Return the folder of a run; the default name is made of profile, data and seed.

        Raises:
            ConfigError: the name cannot be that of a folder on every system.
        """
        name = name or default_name(config)
        ends = name.startswith((".", " ")) or name.endswith((".", " "))
        if ends or ODD.search(name) or len(name.encode("utf-8")) > LONGEST_NAME:
            raise ConfigError(
                f'{name!r} cannot be the name of a run, which has no / \\ : * ? " < > | or line '
                f"break, no dot or blank at its ends, and at most {LONGEST_NAME} bytes; choose "
                "another run name."
            )
        return (root or project_root() / "runs") / name

    def variant(self, name: str, keep: Sequence[str], **changes: Mapping[str, Any]) -> Run:
        """Open a run beside this one that differs only in some settings.

        Args:
            name: appended to this run's name.
            keep: finished stages that the changes do not affect; their files are copied.
            changes: section -> values, for example ``cluster={"balance": 1.0}``.

        Raises:
            MissingStageError: this run has not finished one of the stages in ``keep``.
        """
        config = self.config.changed(**changes)
        run = Run.open(config, f"{self.folder.name}-{name}", self.folder.parent)
        for stage in keep:
            files = self.outputs_of(stage)
            if run.is_done(stage):
                there = run.manifest["stages"][stage]
                if not there.get("copied") or there["outputs"] == files:
                    continue  # made by the variant itself, or what this run has still
            for file in files:
                run.path(file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.path(file), run.path(file))
            run.manifest["stages"][stage] = self.manifest["stages"][stage] | {"copied": True}
            run._save()
        return run

    @property
    def device(self) -> torch.device:
        """Device that this run computes on."""
        return pick_device(self.config.device)

    def path(self, *parts: str) -> Path:
        """Return a path inside the run folder."""
        return self.folder.joinpath(*parts)

    def _save(self) -> None:
        write_json(self.path("manifest.json"), self.manifest)

    def _reload(self) -> None:
        """Read which stages other notebooks have finished in the meantime."""
        path = self.path("manifest.json")
        if path.is_file():
            self.manifest["stages"] = _read_manifest(path)["stages"]

    def stage(
        self,
        name: str,
        make: Callable[[], Sequence[str]],
        inputs: Mapping[str, Any],
        *,
        trains: bool = False,
        modules: Sequence[str] = (),
    ) -> bool:
        """Run ``make`` unless the stage is finished with the same inputs and its files are intact.

        A stage that was made by other code (see ``is_current``) runs again and says so.

        Args:
            name: name of the stage in the manifest.
            make: writes files into the run folder and returns their names.
            inputs: plain data that decides the result.
            trains: whether it trains for minutes or hours; such a stage is kept when only the code
                has changed.
            modules: those whose code ``make`` runs beside its own package and what this imports.

        Returns:
            True if it ran, False if it was up to date.
        """
        modules = (make.__module__, *modules)
        if self.is_current(name, inputs, *modules, trains=trains):
            return False
        code = code_digest(*modules)  # before the work, which may take long enough to edit code
        self.make(name, make, inputs, lambda: code)
        return True

    def make(
        self,
        name: str,
        make: Callable[[], Sequence[str]],
        inputs: Mapping[str, Any],
        code: Callable[[], str],
    ) -> None:
        """Run ``make`` and record the stage (see ``stage``) with the digest of its code."""
        try:
            with FileLock(self.path(".lock"), timeout=0):  # ends with the process
                self._reload()
                if self.manifest["stages"].pop(name, None):
                    self._save()  # if this fails midway, nobody takes the old result for the new
                with measure_cost() as cost:
                    outputs = make()
                self.manifest["stages"][name] = {
                    "inputs": digest(inputs),
                    "code": code(),
                    "outputs": {file: sha256_of(self.path(file)) for file in outputs},
                    **cost,
                    "versions": versions(),
                    "device": str(self.device),
                    "git": git_id(),
                }
                self._save()
        except Timeout as error:
            raise DataError(
                f"{self.folder} is in use by another process, so stage '{name}' cannot start; "
                "wait for that process or choose another run name."
            ) from error

    def is_current(
        self, name: str, inputs: Mapping[str, Any], *modules: str, trains: bool = False
    ) -> bool:
        """Return whether the stage is finished with these inputs and the code of these modules.

        A stage that ``trains`` counts as current, with a warning, when only the code has changed;
        with ``stale=fresh`` it does not, with ``stale=keep`` it does without a word.
        """
        if not self.is_done(name):
            return False
        entry = self.manifest["stages"][name]
        if entry["inputs"] != digest(inputs):
            print(f"stage '{name}' of run '{self.folder.name}' has other inputs now: made again.")
            return False
        if entry["code"] == code_digest(*modules):
            return True
        made = f"stage '{name}' of run '{self.folder.name}' was made by older code"
        made += f" (commit {entry['git']})" if entry["git"] else ""
        if not trains or self.config.stale == "fresh":
            print(f"{made}; it is made again.")
            return False
        if self.config.stale == "say":
            warnings.warn(
                f"{made} and is kept; --fresh (or the override stale=fresh) trains it again, "
                "--keep-stale (stale=keep) silences this.",
                stacklevel=3,
            )
        return True

    def is_done(self, name: str) -> bool:
        """Return whether the stage is finished and each of its files still has its SHA-256."""
        self._reload()
        entry = self.manifest["stages"].get(name)
        return entry is not None and all(
            self.path(file).is_file() and sha256_of(self.path(file)) == sha
            for file, sha in entry["outputs"].items()
        )

    def outputs_of(self, name: str) -> dict[str, str]:
        """Return file -> SHA-256 of a finished stage, as an input for the next stage.

        Raises:
            MissingStageError: the stage has not run, or one of its files is missing or damaged.
        """
        if not self.is_done(name):
            notebook = MAKERS[name]
            raise MissingStageError(
                f"Run '{self.folder.name}' has no finished stage '{name}' in {self.folder}: "
                f"run notebooks/{notebook}.ipynb first, with the same parameters."
            )
        return dict(self.manifest["stages"][name]["outputs"])


def default_name(config: Config) -> str:
    """Return the default name of a run, for example ``quick-synthetic-0``."""
    data = ODD.sub("-", Path(config.data).name) if config.data else "synthetic"
    return f"{config.profile}-{data}-{config.seed}"


def _read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a run; those before 0.3 hold other networks and other stages."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        made_by = found.get("version", "0.1")
        older = tuple(map(int, made_by.split(".")[:2])) < (0, 3)
    except (OSError, ValueError, AttributeError) as error:  # not what a run writes
        raise DataError(
            f"{path} cannot be read ({error}); choose another run name, or delete the folder to "
            "start again."
        ) from error
    if older:
        raise ConfigError(
            f"Run folder {path.parent} was made by umsf {made_by}, and {__version__} cannot read "
            f"it; choose another run name, or check out version {made_by} for that run."
        )
    return found


def _plain(config: Config) -> dict[str, Any]:
    """Return settings as a manifest stores them: plain JSON without the hardware settings."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return {key: value for key, value in plain.items() if key not in HARDWARE}


def nameless(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with only the names of data and layout; paths differ between computers."""
    return {**settings, **{key: Path(settings[key]).name for key in ("data", "layout")}}


def other_settings(made: Mapping[str, Any], config: Config) -> str:
    """Return the ``differences`` between a run's settings and a configuration.

    Settings that did not exist yet when the run was made are left out, and so is the name of the
    profile. If one of both has only the name of its data set (see ``nameless``), the data sets are
    compared by name.
    """
    wanted = _plain(config)
    if made == nameless(made) or wanted == nameless(wanted):
        made, wanted = nameless(made), nameless(wanted)
    known = {key: value for key, value in _flat(made).items() if key != "profile"}
    return differences(known, {key: v for key, v in _flat(wanted).items() if key in known})


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat


def settings_of(folder: Path) -> dict[str, Any]:
    """Return the parameters that give a run's settings again (see ``load_config``); {} if no run.

    Raises:
        ConfigError: the run was made by an older version.
    """
    path = folder / "manifest.json"
    if not os.path.isfile(path):
        return {}
    found = _read_manifest(path)
    made = found["config"]
    named = {name: made[name] for name in ("profile", "data", "layout", "seed")}
    usual = _flat(_plain(load_config(**named)))
    changed = {name: value for name, value in _flat(made).items() if usual.get(name) != value}
    pairs = (
        f"{name}={json.dumps(value, separators=(',', ':'))}" for name, value in changed.items()
    )
    return named | {"overrides": " ".join(pairs)}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return how two trees of settings differ, as ``a.b 1 -> 2, c 3 -> None``; '' if equal."""
    before, now = _flat(old), _flat(new)
    changed = [k for k in sorted(before | now) if before.get(k) != now.get(k)]
    return ", ".join(f"{k} {before.get(k)!r} -> {now.get(k)!r}" for k in changed)


def _refuse_other_settings(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    # A setting that did not exist yet when the run was made has had its default. The section
    # ``supervised`` came with its stages, which an older run cannot have.
    usual = _plain(Config(profile="")) | {"supervised": new["supervised"]}
    if listed := differences(_flat(usual) | _flat(old), new):
        raise ConfigError(
            f"Run folder {folder} was made with other settings ({listed}); "
            "choose another run name, or delete the folder to start again."
        )


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without waiting for the copy to finish.

    Later operations on the device wait for it. Copies to a GPU go through pinned memory, because a
    copy from pageable memory may wait until the GPU has finished its queued work.
    """
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()  # torch keeps it until the GPU has read it
    return x.to(device, non_blocking=True)


STATUS = Path("/proc/self/status")  # of this process; Linux only
CLEAR = Path("/proc/self/clear_refs")
KEYS = ("wall_s", "peak_gb", "peak_gpu_gb")


@contextlib.contextmanager
def measure_cost() -> Iterator[dict[str, float]]:
    """Measure the time and memory that the ``with`` block takes.

    Yields:
        A dict that is filled at the end: ``wall_s``, elapsed seconds; ``peak_gb``, the peak
        resident memory of this process in GB (Linux only); ``peak_gpu_gb``, the peak memory of
        torch tensors on the CUDA GPU in GB (only with a GPU).
    """
    cost: dict[str, float] = {}
    with contextlib.suppress(OSError):
        CLEAR.write_text("5", encoding="utf-8")  # resets the high-water mark
    torch = sys.modules.get("torch")  # not imported only for this
    if torch and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    yield cost
    cost["wall_s"] = round(time.perf_counter() - start, 2)
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text(encoding="utf-8")):
            cost["peak_gb"] = round(int(found[1]) * 1024 / 1e9, 3)
    if torch and torch.cuda.is_initialized():
        cost["peak_gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)


def add_up(parts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Add up the cost of work done in parts: the sum of seconds and the largest peaks.

    Args:
        parts: dicts as ``measure_cost`` fills them; other keys are ignored.

    Returns:
        All three values of ``KEYS``; NaN where a part lacks one.
    """
    of = {key: [part.get(key, np.nan) for part in parts] for key in KEYS}
    return {key: float((np.sum if key == "wall_s" else np.max)(of[key])) for key in KEYS}

"""Run notebooks in batch: check the parameters first, then run each one with papermill."""

from __future__ import annotations

import ast
import base64
import io
import os
import re
import sys
import time
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from .config import (
    ConfigError,
    MissingStageError,
    UmsfError,
    check_choice,
    expanded,
    load_config,
    unknown_name,
)
from .run import (
    CHECKOUT,
    Run,
    project_root,
    seed_everything,
    versions,
    write_atomically,
    writing,
)

# Parameters of all notebooks; each may add its own (see ``open_notebook``).
PARAMETERS: dict[str, type] = {
    "profile": str,
    "run": str,
    "data": str,
    "layout": str,
    "seed": int,
    "overrides": str,
}


def check_parameters(values: Mapping[str, Any], known: Mapping[str, type], where: str) -> None:
    """Refuse unknown names and wrong types, which papermill accepts.

    Raises:
        ConfigError: a parameter is unknown or has the wrong type.
    """
    for name, value in values.items():
        if name not in known:
            raise ConfigError(unknown_name(name, known, where))
        wanted = known[name]
        if type(value) is not wanted and (type(value), wanted) != (int, float):
            got, needed = f"{value!r} ({type(value).__name__})", wanted.__name__
            raise ConfigError(
                f"parameter '{name}' of {where} is {got}, but it must be {needed}; with papermill "
                f"give {'True or False' if wanted is bool else f'a plain {needed}'} after -p "
                "(-r passes text)."
            )


def injected_parameters(sources: typing.Iterable[str]) -> dict[str, Any]:
    """Read the parameters that papermill injected, from the sources of executed cells.

    papermill writes ``# Parameters`` at the top of the cell that it injects. It only warns about
    names that the notebook does not have, so the notebook checks them itself. If the cell was
    executed several times, the last execution counts.

    Raises:
        ConfigError: a value is not a literal (papermill writes NaN as a function call).
    """
    cells = [source for source in sources if source.lstrip().startswith("# Parameters")]
    found: dict[str, Any] = {}
    for node in ast.parse(cells[-1]).body if cells else ():
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            try:
                found[name] = ast.literal_eval(node.value)
            except ValueError as error:
                text = ast.unparse(node.value)
                raise ConfigError(f"parameter '{name}' is {text}; give a literal value.") from error
    return found


def open_notebook(namespace: Mapping[str, Any], *, create: bool = True, **own: type) -> Run:
    """Check a notebook's parameters, open its run and print where it runs.

    Every notebook calls this first.

    Args:
        namespace: the notebook's ``globals()``.
        create: make the run if there is none; else it must exist (see ``Run.open``).
        own: additional parameters of this notebook, name -> type.

    Raises:
        ConfigError: papermill injected an unknown parameter, or a parameter has the wrong type.
        MissingStageError: the run must exist, but does not.
    """
    known, where = PARAMETERS | own, "this notebook"
    check_parameters(injected_parameters(namespace.get("In", ())), known, where)
    values = {name: namespace[name] for name in known if name in namespace}
    check_parameters(values, known, where)
    data = values["data"]
    config = load_config(
        values["profile"],
        data=os.path.realpath(project_root() / expanded(data)) if data else "",
        layout=values["layout"],
        seed=values["seed"],
        overrides=values["overrides"],
    )
    run = Run.open(config, values["run"], create=create)
    seed_everything(config.seed)
    found = versions()
    settings = f"profile {config.profile} | seed {config.seed}"
    print(f"run {run.folder.name} | {settings} | {run.device}")
    print(" | ".join(f"{name} {found[name]}" for name in ("python", "torch", "numpy", "rasterio")))
    return run


if TYPE_CHECKING:  # imported only to run notebooks; all other commands work without it
    from nbformat import NotebookNode

NOTEBOOKS = (
    "01_data_preparation",
    "02_encoders",
    "03_momentum_contrast_pretraining",
    "04_fusion_and_clustering",
    "05_evaluation",
    "06_tsne_and_maps",
    "12_results_browser",
)
FURTHER = (
    "07_comparison",
    "08_ablations",
    "09_supervised_ceiling",
    "10_spatial_contrast",
)  # not part of the tutorial; run individually
READER = "12_results_browser"  # makes nothing, so the run must exist
CELL_TIMEOUT_S = 6 * 3600  # papermill's own default is no limit
GALLERY_BYTES = 800_000  # the largest notebook that a code host renders quickly
SHRUNK_FROM_BYTES = 60_000  # pictures larger than this are compressed
# Hides two log messages of the kernel: that its local port is not encrypted, and that it was
# interrupted to stop. Errors in a cell are still reported, as the cell's own error.
QUIET = ("--IPKernelApp.log_level=CRITICAL",)


def run_notebook(name: str, parameters: Mapping[str, Any], timeout_s: int = CELL_TIMEOUT_S) -> Path:
    """Run one notebook headless, print what it prints, save the executed copy in the run folder.

    Args:
        name: for example ``03_momentum_contrast_pretraining``, or such a name after ``solutions/``.
        parameters: values for its parameters cell; unknown names and wrong types are refused.
        timeout_s: time limit for each cell, in seconds.

    Returns:
        Path of the executed notebook.

    Raises:
        ConfigError: the name or a parameter is unknown, a parameter has the wrong type, or the
            run was made with other settings.
        MissingStageError: the notebook makes nothing, and there is no such run.
        UmsfError: a cell failed; the message is that of the cell's error.
    """
    check_choice("notebook", name.removeprefix("solutions/"), NOTEBOOKS + FURTHER)
    import papermill

    source = CHECKOUT / "notebooks" / f"{name}.ipynb"
    known = {
        key: PARAMETERS.get(key, str) for key in papermill.inspect_notebook(_unformatted(source))
    }
    check_parameters(parameters, known, f"notebooks/{name}.ipynb")
    given = {k: parameters[k] for k in ("data", "layout", "seed", "overrides") if k in parameters}
    config = load_config(parameters.get("profile", "quick"), **given)
    folder = Run.folder_of(config, parameters.get("run", ""))
    if name.endswith(READER) or (folder / "manifest.json").is_file():
        Run.open(config, folder.name, create=False)  # before a good copy is overwritten
    target = folder / "notebooks" / f"{name}.ipynb"
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    os.environ["UMSF_HEADLESS"] = "1"  # inherited by the kernel; widgets become pictures
    try:
        papermill.execute_notebook(
            _unformatted(source),
            _unformatted(target),
            parameters=dict(parameters),
            kernel_name="python3",
            cwd=os.getcwd(),  # so that a relative path means the same in both
            execution_timeout=timeout_s,
            progress_bar=False,
            stdout_file=sys.stdout,
            request_save_on_cell_execute=False,
            extra_arguments=list(QUIET),
        )
    except papermill.exceptions.PapermillExecutionError as error:
        raise UmsfError(f"{name}: {error.ename}: {error.evalue} (see {target})") from error
    return target


def _unformatted(path: Path) -> str:
    """Double the braces of a path, because papermill formats it with the parameters."""
    return re.sub("[{}]", r"\g<0>\g<0>", str(path))


def print_notebooks(names: Sequence[str], parameters: Mapping[str, Any]) -> Path:
    """Run notebooks in order, print what they print; return the path of the last executed copy."""
    for number, name in enumerate(names, start=1):
        start = time.monotonic()
        print(f"notebook {name} ({number} of {len(names)})", flush=True)
        target = run_notebook(name, parameters)
        print(f"{name:36s} {time.monotonic() - start:6.1f} s  {target}", flush=True)
    return target


def write_gallery(folder: Path) -> list[Path]:
    """Copy the executed notebooks of a run to ``gallery/``, compressed and without widget state.

    Notebooks of ``FURTHER`` are copied only if the run has them. The last figure of notebook 06 is
    also written, as ``map.jpg``, for the README.

    Args:
        folder: run folder.

    Returns:
        The files that were written.

    Raises:
        ConfigError: a copy is larger than ``GALLERY_BYTES``.
        MissingStageError: a notebook of the tutorial has not been run.
    """
    import nbformat

    written = []

    def write(name: str, content: bytes) -> None:
        written.append(project_root() / "gallery" / name)
        write_atomically(written[-1], lambda path: path.write_bytes(content))

    for name in NOTEBOOKS + FURTHER:
        path = folder / "notebooks" / f"{name}.ipynb"
        if name in FURTHER and not path.is_file():
            continue
        if not path.is_file():
            raise MissingStageError(f"{path} is missing; run `umsf tutorial` first.")
        notebook = nbformat.read(path, as_version=4)
        if name == "06_tsne_and_maps":
            outputs = [
                o.get("data", {}) for cell in notebook.cells for o in cell.get("outputs", [])
            ]
            pictures = [data["image/png"] for data in outputs if "image/png" in data]
            write("map.jpg", base64.b64decode(_encoded(pictures[-1], "JPEG")))
        text = nbformat.writes(shrunk(notebook))
        if len(text) > GALLERY_BYTES:
            raise ConfigError(
                f"gallery copy of {name} has {len(text)} bytes; the limit is {GALLERY_BYTES}."
            )
        write(f"{name}.ipynb", text.encode())
    return written


def shrunk(notebook: NotebookNode) -> NotebookNode:
    """Remove the metadata of papermill and widgets, compress large pictures and adapt links.

    A large picture becomes a JPEG or a PNG with 256 colours, whichever is smaller: a JPEG for
    imagery, a PNG for class maps and drawings.
    """
    for key in ("widgets", "papermill"):
        notebook.metadata.pop(key, None)
    for cell in notebook.cells:
        cell.source = cell.source.replace("](solutions/", "](../notebooks/solutions/")
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        for output in cell.get("outputs", []):
            png = output.get("data", {}).get("image/png")
            if png and len(png) > SHRUNK_FROM_BYTES:
                small = {f"image/{kind.lower()}": _encoded(png, kind) for kind in ("JPEG", "PNG")}
                kind = min(small, key=lambda name: len(small[name]))
                del output.data["image/png"]
                output.data[kind] = small[kind]
    return notebook


def _encoded(png: str, kind: str) -> str:
    """Convert a PNG to ``JPEG``, or to ``PNG`` with 256 colours; all in base64."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    buffer = io.BytesIO()
    small = picture if kind == "JPEG" else picture.quantize(256)
    small.save(buffer, kind, optimize=True, quality=80)  # a PNG has no quality
    return base64.b64encode(buffer.getvalue()).decode()

"""Command line: ``python -m umsf_lib COMMAND``, also installed as ``umsf``."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from . import __version__
from .config import Config, ConfigError, DataError, Stopped, UmsfError, expanded, load_config
from .progress import print_progress
from .run import Run, project_root, settings_of

# Each command imports what it needs: torch, scikit-learn and papermill take seconds to import, and
# neither the help nor ``data check`` needs them.
if TYPE_CHECKING:
    from .experiments.sweep import Sweep

SUITE_HELP = (
    "first (default), baselines, ablations, scale, land, land-ablations, supervised, labels,"
    " fusions"
)
OPTIONS = {"profile": "quick", "data": "", "layout": "", "run": "", "seed": 0, "overrides": ""}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; print errors that a user can fix as one line on stderr.

    Returns:
        Exit status: 0 on success, 2 after such an error, 128 + the signal number after a signal,
        141 if the output is a pipe that nobody reads any more.
    """
    usual = signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):  # a code page may lack letters of a path
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        options = _parser().parse_args(arguments)
        options.function(options)
        sys.stdout.flush()  # at exit nobody could say that the disk is full
    except BrokenPipeError:  # as before ``| head``; 141 is what a shell says of other commands
        with open(os.devnull, "wb") as nowhere:  # where the flush at exit goes
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return 141
    except (UmsfError, OSError) as error:
        print("umsf:", str(error).replace("\n", "\\n"), file=sys.stderr)  # one line
        return 2
    except KeyboardInterrupt as error:  # a training that stops says more: ``Stopped``
        print(f"umsf: {str(error) or 'stopped by Ctrl-C.'}", file=sys.stderr)
        return 128 + getattr(error, "number", signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, usual)
    return 0


def _terminate(number: int, frame: FrameType | None) -> None:
    """Stop as Ctrl-C does, so that no temporary files and no notebook's kernel are left."""
    raise Stopped("stopped by SIGTERM.", number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="umsf", description=__doc__)
    parser.add_argument("--version", action="version", version=f"umsf {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(function=function, **OPTIONS, stale="")
        added.add_argument("--profile", help="profile (default quick)")
        added.add_argument("--data", help="folder of scenes; default: synthetic")
        added.add_argument("--layout", help="layout name or YAML file")
        added.add_argument("--run", help="run name; default: profile-data-seed")
        added.add_argument("--seed", type=int)
        added.add_argument("--overrides", help='"section.key=value ..."')
        stale = added.add_mutually_exclusive_group()
        constant: dict[str, Any] = {"action": "store_const", "dest": "stale"}
        about_fresh = "train again what older code has trained"
        stale.add_argument("--fresh", **constant, const=" stale=fresh", help=about_fresh)
        about_keep = "keep what older code has trained, without a warning"
        stale.add_argument("--keep-stale", **constant, const=" stale=keep", help=about_keep)
        return added

    tutorial = command("tutorial", _tutorial, "run the notebooks of the tutorial headless")
    about = (
        "run one notebook headless; of a run that exists it takes profile, data, layout and seed"
    )
    one = command("notebook", _notebook, about)
    one.add_argument("name", metavar="NAME", help="as in notebooks/")
    for added in (tutorial, one):
        added.set_defaults(**dict.fromkeys(OPTIONS))  # None: not given
    command("synthesize", _synthesize, "make (or check) and prepare the scenes of a run")
    about = "momentum-contrast pretraining; resumes if interrupted; several GPUs through torchrun"
    command("pretrain", _pretrain, about)
    command("map", _map, "run all stages from data to scores and maps, without notebooks")
    about = "do all unfinished runs of a suite, then print its tables"
    sweep = command("sweep", _sweep, about)
    report = command("report", _report, "print the tables of a suite from its finished runs")
    for added in (sweep, report):
        added.add_argument("--suite", default="first", help=SUITE_HELP)
        added.add_argument("--seeds", default="0,1,2", help="comma-separated (default 0,1,2)")
        stand_in = "file with records of runs not in runs/ (default: that of RESULTS.md)"
        added.add_argument("--records", type=expanded, help=stand_in)
        how = "of clusters to classes: validation, named or test (default: the suite's)"
        added.add_argument("--matching", default="", help=how)
        about = "neighbouring test scenes that intervals draw together (default 1)"
        added.add_argument("--block", type=int, default=1, help=about)
    report.add_argument("--keep", action="store_true", help="write the runs to that file")
    command("gallery", _gallery, "copy a run's executed notebooks to gallery/")
    data = commands.add_parser("data", help="check, describe or align a folder of scenes")
    _add_data_commands(data)
    return parser


def _add_data_commands(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(function=function)
        added.add_argument("path", type=expanded, help="data folder")
        return added

    about = "report what a folder holds and all its defects; exit status 2 if there are any"
    check = command("check", _check, about)
    check.add_argument("--layout", default="", help="layout name or YAML file; default: guessed")
    about = "write a first layout for a folder, as YAML with comments: umsf data layout F > my.yaml"
    command("layout", _layout, about)
    about = "write a copy with SAR and labels resampled to the grid of their optical file"
    aligned = command("align", _align, about)
    aligned.add_argument("--layout", required=True, help="layout name or YAML file")
    aligned.add_argument("--output", type=expanded, required=True, help="new data folder")
    how = "for SAR: nearest, bilinear (default), cubic or average; labels always use nearest"
    aligned.add_argument("--resampling", default="bilinear", help=how)


def _config(options: argparse.Namespace) -> Config:
    own = expanded(options.layout)
    own_file = own.suffix in (".yaml", ".yml") and os.path.isfile(own)
    return load_config(
        options.profile,
        data=os.path.realpath(expanded(options.data)) if options.data else "",
        layout=str(own.resolve()) if own_file else options.layout,
        seed=options.seed,
        overrides=options.overrides + options.stale,
    )


def _open(options: argparse.Namespace) -> Run:
    """Open the run; say so first, since torch takes seconds to import.

    A folder or layout that is not there leaves no run, which would be in the way of the right one.
    """
    from .data.layout import load_layout
    from .data.pairing import require_folder

    config = _config(options)
    load_layout(config.layout)
    if config.data:
        require_folder(Path(config.data))
    print(f"run: {Run.folder_of(config, options.run)}; loading torch", flush=True)
    return Run.open(config, options.run)


def _again(options: argparse.Namespace) -> list[str]:
    """Return the options that were given, for the next command."""
    given = {
        name: value
        for name, usual in OPTIONS.items()
        if (value := getattr(options, name)) not in (None, usual)
    }
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def _end(what: str, folder: Path, *command: str, file: Any = None) -> None:
    """Print the last line of a command: the folder of what it made, and the next command."""
    print(f"{what}: {folder}; next: {shlex.join(command)}", file=file)


def _parameters(options: argparse.Namespace) -> dict[str, Any]:
    """Return the parameters of a notebook: as given, else those of the run, else the defaults."""
    made = settings_of(Run.folder_of(load_config("quick"), options.run)) if options.run else {}
    given = {name: value for name in OPTIONS if (value := getattr(options, name)) is not None}
    both = f"{made.get('overrides', '')} {options.overrides or ''}{options.stale}".strip()
    values = OPTIONS | made | given | {"overrides": both}
    config = _config(argparse.Namespace(**values, stale=""))
    return values | {"data": config.data, "layout": config.layout}


def _tutorial(options: argparse.Namespace) -> None:
    from .notebooks import FURTHER, NOTEBOOKS, print_notebooks

    last = print_notebooks(NOTEBOOKS, _parameters(options))
    _end("executed", last.parent, "umsf", "notebook", FURTHER[0], *_again(options))


def _notebook(options: argparse.Namespace) -> None:
    from .notebooks import FURTHER, NOTEBOOKS, print_notebooks

    executed = print_notebooks([options.name], _parameters(options))
    order = (*NOTEBOOKS, *FURTHER, NOTEBOOKS[-1])
    after = order[order.index(options.name.removeprefix("solutions/")) + 1]
    _end("executed", executed, "umsf", "notebook", after, *_again(options))


def _synthesize(options: argparse.Namespace) -> None:
    from .data.stage import load_data

    scenes = load_data(_open(options), progress=print_progress("data"))
    counts = ", ".join(f"{len(names)} {part}" for part, names in scenes.split.items())
    made = f"{len(scenes.records)} scenes ({counts}), prepared in"
    _end(made, scenes.folder, "umsf", "map", *_again(options))


def _pretrain(options: argparse.Namespace) -> None:
    from .data.stage import load_data
    from .models.stage import train_despeckler
    from .pretraining.stage import pretrain
    from .training.distributed import first_process_first, processes, rank

    with processes():
        with first_process_first():
            run = Run.open(_config(options), options.run)
            progress = print_progress("data") if rank() == 0 else None
            scenes = load_data(run, progress=progress)
            train_despeckler(run, scenes, progress=print_progress("despeckle"))
        pretrain(run, scenes, progress=print_progress("pretrain"))
        if rank() == 0:
            _end("pretrained", run.folder, "umsf", "map", *_again(options))


def _map(options: argparse.Namespace) -> None:
    run = _open(options)
    from .clustering.task import UNNAMED_CLUSTERS
    from .data.layout import load_layout
    from .experiments.pipeline import run_everything
    from .maps.stage import load_legend

    if not load_layout(run.config.layout).classes:
        count = run.config.cluster.num_clusters or UNNAMED_CLUSTERS
        other = 'for another number add --run NAME --overrides "cluster.num_clusters=N"'
        print(f"clusters: {count}, without names, as the layout has none; {other}", flush=True)
    run_everything(run, maps=True)
    if said := load_legend(run).said:
        print(f"colours: {said}")
    browser = ("umsf", "notebook", "12_results_browser", "--run", run.folder.name)
    _end("maps", run.path("maps"), *browser)


def _suite(options: argparse.Namespace) -> Sweep:
    from .experiments.records import RECORDS
    from .experiments.sweep import Sweep

    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds is '{options.seeds}'; give numbers, as in 0,1,2.") from error
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds is '{options.seeds}'; give each seed once.")
    for options.seed in seeds:
        _config(options)  # refuses what is no seed
    options.records = options.records or RECORDS
    own = {"matching": options.matching, "block": options.block}
    return Sweep(_config(options), options.suite, seeds, options.run, options.records, **own)


def _sweep(options: argparse.Namespace) -> None:
    print(f"suite {options.suite}: runs in {project_root() / 'runs'}; loading torch", flush=True)
    from .experiments.tables import print_report

    sweep = _suite(options)
    sweep.run()
    print_report(sweep)
    same = ("--suite", options.suite, "--seeds", options.seeds, *_again(options))
    _end("runs", sweep.folder, "umsf", "report", *same)


def _report(options: argparse.Namespace) -> None:
    from .experiments.tables import keep_records, print_report

    sweep = _suite(options)
    print_report(sweep)
    if options.keep:
        keep_records(sweep, options.records)
    about = {
        **dict.fromkeys(("ablations", "scale"), "08_ablations"),
        **dict.fromkeys(("supervised", "labels"), "09_supervised_ceiling"),
    }.get(options.suite, "07_comparison")
    command = ("umsf", "notebook", about, *_again(options))
    _end("runs", sweep.folder, *command, file=sys.stderr)  # the tables alone go to a file


def _check(options: argparse.Namespace) -> None:
    from .data.check import guess_layout, report, survey
    from .data.layout import load_layout

    if options.layout:
        layout, why = load_layout(options.layout), "as given"
    else:
        layout, why = guess_layout(options.path)
    print(f"Layout: {layout.name}: {why}", flush=True)
    found = survey(options.path, layout, progress=print_progress("check"))
    print(*report(found), sep="\n")
    if found.defects:
        raise DataError(f"{options.path} has {len(found.defects)} defects, listed above.")
    alone = () if layout.sar else ("--overrides", "model.sensors=optical")
    place = ("--data", str(options.path), "--layout", options.layout or layout.name)
    _end("checked", options.path, "umsf", "map", *place, *alone)


def _layout(options: argparse.Namespace) -> None:
    from .data.draft import draft_layout

    print(f"looking at the rasters of {options.path}", file=sys.stderr)
    text = draft_layout(options.path)
    print(text, end="")
    command = ("umsf", "data", "check", str(options.path), "--layout", "my.yaml")
    _end(f"{text.count('# check')} lines to check", options.path, *command, file=sys.stderr)


def _align(options: argparse.Namespace) -> None:
    from .data.align import align
    from .data.layout import load_layout

    layout, progress = load_layout(options.layout), print_progress("align")
    files = align(options.path, layout, options.output, options.resampling, progress=progress)
    for path, share in files.items():
        print(f"resampled: {path}, {share:.1%} of it holds data")
    print(f"{options.output}: {len(files)} resampled, the others copied")
    command = ("umsf", "data", "check", str(options.output), "--layout", options.layout)
    _end("aligned", options.output, *command)


def _gallery(options: argparse.Namespace) -> None:
    from .notebooks import write_gallery

    for path in write_gallery(Run.folder_of(_config(options), options.run)):
        print(path)
    _end("gallery", project_root() / "gallery", "git", "diff", "--stat", "gallery")


if __name__ == "__main__":
    sys.exit(main())

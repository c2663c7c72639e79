"""Command line: ``python -m umsf_lib COMMAND``, also installed as ``umsf``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .config import Config, ConfigError, DataError, UmsfError, load_config
from .data.align import RESAMPLINGS, align
from .data.check import guess_layout, report, survey
from .data.draft import draft_layout
from .data.layout import load_layout
from .data.stage import load_data
from .experiments.pipeline import run_everything
from .experiments.records import RECORDS
from .experiments.sweep import SUITES, Sweep
from .experiments.tables import keep_records, print_report
from .models.stage import train_despeckler
from .notebooks import FURTHER, NOTEBOOKS, print_tutorial, run_notebook, write_gallery
from .pretraining.stage import pretrain
from .run import Run
from .training.checkpoints import Stopped
from .training.distributed import first_process_first, processes, rank
from .training.loop import print_progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; print errors that a user can fix as one line on stderr.

    Returns:
        Exit status: 0 on success, 2 after such an error, 128 + the signal number after a signal.
    """
    options = _parser().parse_args(arguments)
    for flag, value in (("fresh", "fresh"), ("keep_stale", "keep")):
        if getattr(options, flag, False):
            options.overrides += f" stale={value}"
    try:
        options.function(options)
    except (UmsfError, Stopped) as error:
        print(f"umsf: {error}", file=sys.stderr)
        return 128 + error.number if isinstance(error, Stopped) else 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="umsf", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(function=function)
        added.add_argument("--profile", default="quick", help="profile (default quick)")
        added.add_argument("--data", default="", help="folder of scenes; default: synthetic")
        added.add_argument("--layout", default="", help="layout name or YAML file")
        added.add_argument("--run", default="", help="run name; default: profile-data-seed")
        added.add_argument("--seed", type=int, default=0)
        added.add_argument("--overrides", default="", help='"section.key=value ..."')
        stale = added.add_mutually_exclusive_group()
        about_fresh = "train again what older code has trained"
        stale.add_argument("--fresh", action="store_true", help=about_fresh)
        about_keep = "keep what older code has trained, without a warning"
        stale.add_argument("--keep-stale", action="store_true", help=about_keep)
        return added

    command("tutorial", _tutorial, "run the notebooks of the tutorial headless")
    one = command("notebook", _notebook, "run one notebook headless")
    one.add_argument("name", choices=NOTEBOOKS + FURTHER, metavar="NAME", help="as in notebooks/")
    command("synthesize", _synthesize, "make (or check) and prepare the scenes of a run")
    about = "momentum-contrast pretraining; resumes if interrupted; several GPUs through torchrun"
    command("pretrain", _pretrain, about)
    command("map", _map, "run all stages from data to scores and maps, without notebooks")
    about = "do all unfinished runs of a suite, then print its tables"
    sweep = command("sweep", _sweep, about)
    report = command("report", _report, "print the tables of a suite from its finished runs")
    for added in (sweep, report):
        added.add_argument("--suite", choices=SUITES, default="first", help="default first")
        added.add_argument("--seeds", default="0,1,2", help="comma-separated (default 0,1,2)")
        stand_in = "file with records of runs not in runs/ (default: that of RESULTS.md)"
        added.add_argument("--records", type=Path, default=RECORDS, help=stand_in)
    report.add_argument("--keep", action="store_true", help="write the runs to that file")
    command("gallery", _gallery, "copy a run's executed notebooks to gallery/")
    _add_data_commands(commands.add_parser("data", help="check or align a folder of scenes"))
    return parser


def _add_data_commands(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(function=function)
        added.add_argument("path", type=Path, help="data folder")
        return added

    about = "report what a folder holds and all its defects; exit status 2 if there are any"
    check = command("check", _check, about)
    check.add_argument("--layout", default="", help="layout name or YAML file; default: guessed")
    about = "write a first layout for a folder, as YAML with comments: umsf data layout F > my.yaml"
    command("layout", _layout, about)
    about = "write a copy with SAR and labels resampled to the grid of their optical file"
    aligned = command("align", _align, about)
    aligned.add_argument("--layout", required=True, help="layout name or YAML file")
    aligned.add_argument("--output", type=Path, required=True, help="new data folder")
    how = "for SAR (default bilinear); labels always use nearest"
    aligned.add_argument("--resampling", choices=RESAMPLINGS, default="bilinear", help=how)


def _config(options: argparse.Namespace) -> Config:
    return load_config(
        options.profile,
        data=str(Path(options.data).resolve()) if options.data else "",
        layout=options.layout,
        seed=options.seed,
        overrides=options.overrides,
    )


def _parameters(options: argparse.Namespace) -> dict[str, Any]:
    given = ("profile", "data", "layout", "run", "seed", "overrides")
    return {name: getattr(options, name) for name in given} | {"data": _config(options).data}


def _tutorial(options: argparse.Namespace) -> None:
    print_tutorial(_parameters(options))


def _notebook(options: argparse.Namespace) -> None:
    print(run_notebook(options.name, _parameters(options)))


def _synthesize(options: argparse.Namespace) -> None:
    run = Run.open(_config(options), options.run)
    scenes = load_data(run)
    counts = ", ".join(f"{len(names)} {part}" for part, names in scenes.split.items())
    print(f"{len(scenes.records)} scenes ({counts}), prepared in {scenes.folder}")


def _pretrain(options: argparse.Namespace) -> None:
    with processes():
        with first_process_first():
            run = Run.open(_config(options), options.run)
            scenes = load_data(run)
            train_despeckler(run, scenes, progress=print_progress("despeckle"))
        pretrain(run, scenes, progress=print_progress("pretrain"))
        if rank() == 0:
            print(f"pretrained: {run.folder}")


def _map(options: argparse.Namespace) -> None:
    run_everything(Run.open(_config(options), options.run), maps=True)


def _suite(options: argparse.Namespace) -> Sweep:
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds is '{options.seeds}'; give numbers, as in 0,1,2.") from error
    return Sweep(_config(options), options.suite, seeds, options.run, options.records)


def _sweep(options: argparse.Namespace) -> None:
    sweep = _suite(options)
    sweep.run()
    print_report(sweep)


def _report(options: argparse.Namespace) -> None:
    sweep = _suite(options)
    print_report(sweep)
    if options.keep:
        keep_records(sweep, options.records)


def _check(options: argparse.Namespace) -> None:
    if options.layout:
        layout, why = load_layout(options.layout), "as given"
    else:
        layout, why = guess_layout(options.path)
    found = survey(options.path, layout)
    print(f"Layout: {layout.name}: {why}", *report(found), sep="\n")
    if found.defects:
        raise DataError(f"{options.path} has {len(found.defects)} defects, listed above.")


def _layout(options: argparse.Namespace) -> None:
    print(f"looking at the rasters of {options.path}", file=sys.stderr)
    text = draft_layout(options.path)
    print(text, end="")
    print(f"{text.count('# check')} lines to check", file=sys.stderr)


def _align(options: argparse.Namespace) -> None:
    layout = load_layout(options.layout)
    files = align(options.path, layout, options.output, options.resampling)
    for path in files:
        print(f"resampled: {path}")
    print(f"{options.output}: {len(files)} resampled, the others copied")


def _gallery(options: argparse.Namespace) -> None:
    for path in write_gallery(Run.folder_of(_config(options), options.run)):
        print(path)


if __name__ == "__main__":
    sys.exit(main())

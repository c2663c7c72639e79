"""Records of finished runs for tables, in one file: counts per test scene, settings and costs.

The file ``records.csv.gz`` is one table. The column ``value`` is JSON, and ``kind`` says what it
holds:

- ``run``: settings, cost and git id of each stage, versions, device;
- ``matching``: for a method and protocol, name of a matching -> class of each cluster; the first
  matching is the one used for scores;
- ``scene``: number of pixels (or patches) per cluster ``K'`` and class ``K`` in one test scene.

Scores and intervals are computed from the counts.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..config import Config, DataError
from ..data.layout import load_layout
from ..evaluation.metrics import hungarian
from ..evaluation.stage import COLUMNS, identity, records
from ..run import KEYS, RESULTS, nameless, write_atomically

RECORDS = RESULTS / "records.csv.gz"  # records behind the tables in RESULTS.md
FILES = ("manifest.json", "metrics.json", "confusions.npz")  # files of an evaluated run
FIELDS = ["run", "kind", "method", "protocol", "scene", "value"]
Key = tuple[str, str]  # method, protocol


@dataclass(frozen=True)
class RunRecord:
    """The record of an evaluated run, with the counts of its test scenes."""

    name: str
    manifest: dict[str, Any]  # at least config and stages, as in the run folder
    tables: dict[Key, np.ndarray]  # counts (S, K', K) int64
    # Name -> class of each cluster (K',); the first counts. Older records have none named "named".
    matchings: dict[Key, dict[str, np.ndarray]]

    @property
    def methods(self) -> set[str]:
        """All methods that the run has scores of."""
        return {method for method, _ in self.tables}

    def dense(self, method: str, matching: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Return a method's dense tables ``(S, K', K)`` and a matching ``(K',)``.

        It is the one of this name, or by default the one that counts.
        """
        key = (method, "dense")
        return self.tables[key], self.matchings[key][matching or next(iter(self.matchings[key]))]

    def scores(self, config: Config) -> pd.DataFrame:
        """Compute a table of scores, like that of ``metrics.json``, from the counts."""
        classes, rows = load_layout(config.layout).classes, []
        for key, tables in self.tables.items():
            base = identity(self.name, config, *key)
            rows += records(base, classes, tables, self.matchings[key])
        return pd.DataFrame(rows, columns=COLUMNS).astype({"value": float})


def is_evaluated(folder: Path) -> bool:
    """Return whether a run folder has all files that a record needs."""
    return all((folder / file).is_file() for file in FILES)


def read_run(folder: Path) -> RunRecord:
    """Read the record of a run folder, which must be evaluated (see ``is_evaluated``)."""
    rows = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    fitted = {(row["method"], row["protocol"]) for row in rows if row["matching"] == "validation"}
    tables, matchings = {}, {}
    with np.load(folder / "confusions.npz") as saved:
        for name in (name for name in saved.files if name.endswith("/test")):
            method, protocol, _ = name.rsplit("/", 2)
            key, mapping = (method, protocol), saved[f"{method}/{protocol}/mapping"]
            tables[key] = saved[name]
            matchings[key] = {"validation": mapping} if key in fitted else {}
            if (named := f"{method}/{protocol}/named") in saved.files:
                matchings[key]["named"] = saved[named]
            matchings[key]["test"] = hungarian(tables[key].sum(axis=0))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return RunRecord(folder.name, manifest, tables, matchings)


def read_records(path: Path | None) -> dict[str, RunRecord]:
    """Read run name -> record from a file; empty if there is no file.

    Raises:
        DataError: the file is damaged, or is not a file of records.
    """
    if path is None or not path.exists():
        return {}
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, compression="gzip")
        if list(rows.columns) != FIELDS:
            raise ValueError(f"its columns are {', '.join(map(str, rows.columns))[:80]}")
        return _records(rows)
    except (OSError, EOFError, zlib.error, ValueError, LookupError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path} holds no records of runs, or is damaged ({reason}); restore it, or give "
            "another file with --records."
        ) from error


def _records(rows: pd.DataFrame) -> dict[str, RunRecord]:
    """Build records from the rows of a file; rows of a run are in the order of ``_rows``."""
    found: dict[str, RunRecord] = {}
    counts: dict[tuple[str, Key], list[Any]] = {}
    for name, kind, method, protocol, scene, text in rows.itertuples(index=False, name=None):
        value, key = json.loads(text), (method, protocol)
        if kind == "run":
            found[name] = RunRecord(name, value, {}, {})
        elif kind == "matching":
            found[name].matchings[key] = {of: np.array(mapping) for of, mapping in value.items()}
            counts[name, key] = []
        elif kind != "scene" or int(scene) != len(counts[name, key]):
            raise ValueError(f"{name} has a row '{kind} {scene}' out of place")
        else:
            counts[name, key].append(value)
    for (name, key), tables in counts.items():
        found[name].tables[key] = np.array(tables, dtype=np.int64)  # (S, K', K)
    return found


def write_records(path: Path, found: Mapping[str, RunRecord]) -> None:
    """Write records to one file, atomically; equal records give identical bytes."""
    rows = pd.DataFrame((row for name in sorted(found) for row in _rows(found[name])), None, FIELDS)
    text = gzip.compress(rows.to_csv(index=False, lineterminator="\n").encode(), mtime=0)
    write_atomically(path, lambda temporary: temporary.write_bytes(text))


def _rows(record: RunRecord) -> Iterator[tuple[str, ...]]:
    """Yield one row per run, matching and scene."""
    yield record.name, "run", "", "", "", _json(_portable(record.manifest))
    for key, tables in record.tables.items():
        matchings = {name: mapping.tolist() for name, mapping in record.matchings[key].items()}
        yield record.name, "matching", *key, "", _json(matchings)
        for scene, table in enumerate(tables):
            yield record.name, "scene", *key, str(scene), _json(table.tolist())


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _portable(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, costs and versions of a run, without its files and the path of its data."""

    def only(part: Mapping[str, Any], *keys: str) -> dict[str, Any]:
        return {key: part[key] for key in keys if key in part}

    stages = {name: only(stage, *KEYS, "git") for name, stage in manifest["stages"].items()}
    # Records of version 0.1 have versions and device of the whole run.
    made = only(manifest["stages"].get("evaluate", {}) | manifest, "version", "versions", "device")
    return {"config": nameless(manifest["config"]), "stages": stages, **made}

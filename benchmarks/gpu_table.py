"""The table of GPU measurements that RESULTS.md shows.

python benchmarks/gpu_table.py [benchmarks/results/gpu]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "gpu"


def table(folder: Path) -> str:
    """Write the newest measurement of each device as Markdown; ``not measured`` if there is none.

    Args:
        folder: holds ``gpu.json`` files under any names; those of ``--small`` do not count.
    """
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    devices: dict[str, dict[str, Any]] = {}
    for record in sorted((r for r in found if not r["small"]), key=lambda r: r["date"]):
        known = devices.setdefault(record["device"], {})
        for part, values in record["parts"].items():
            known.setdefault(part, {}).update(values)
    lines = [["", *devices], ["---"] * (1 + len(devices))]
    for name, show in ROWS.items():
        cells = []
        for known in devices.values():
            try:
                cells.append(show(known))
            except (KeyError, IndexError):
                cells.append("not measured")
        lines.append([name, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def pace(parts: dict[str, Any], row: str) -> str:
    """Describe a row of ``fast`` in words."""
    of = parts["fast"][row]
    found = f"{of['pairs_per_s']:.0f} pairs/s, efficiency {of['efficiency']:.2f}"
    found += f", feed {of['feed_share']:.0%}, {of['peak_memory_gb']:.0f} GB"
    return found + (f", {of['peer_ratio']:.1f} x the peer" if of["peer_ratio"] else "")


def learned(parts: dict[str, Any], tokens: str) -> str:
    """List the accuracies of the probe with 500 labels per class, by steps."""
    of = [c for c in parts["pays"]["curve"] if c["tokens"] == tokens]
    ways = [
        f"{c.get('optimizer', 'random')} {c['steps']} steps " if "steps" in c else "" for c in of
    ]
    scores = [f"{way}{c['probe_500']['acc']:.3f}" for way, c in zip(ways, of, strict=True)]
    return ", ".join(scores[:1] if tokens == "statistics" else scores)


def cost(parts: dict[str, Any], stage: str) -> str:
    """List seconds and gigabytes of a stage on the GPU, and on the machine's CPU if measured."""
    gpu, cpu = parts["rest"]["cuda"][stage], parts["rest"].get("cpu", {}).get(stage)
    found = f"{gpu['wall_s']:.1f} s, {gpu['peak_gpu_gb']:.1f} GB"
    return found + (f"; CPU {cpu['wall_s']:.1f} s, {cpu['peak_gb']:.1f} GB" if cpu else "")


# name of a row -> what it shows of a device's parts
ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "20 steps of `quick`, GPU and CPU: losses differ, float32 (float64)": lambda p: (
        f"{max(p['right']['devices_float32']):.0e} ({max(p['right']['devices_float64']):.0e})"
    ),
    "`deterministic=true`: killed and resumed gives the bits of an unbroken run": lambda p: (
        "yes" if p["right"]["resumed_equals_unbroken"] else "no"
    ),
    "default mode: losses of two runs of 60 steps differ": lambda p: (
        f"{max(p['right']['default_mode_difference'].values()):.0e}"
    ),
    "step of ResNet-50, 256 px, batch 256": lambda p: pace(p, "eager_256"),
    "the same, compiled": lambda p: pace(p, "compiled_256"),
    "batch 32": lambda p: pace(p, "eager_32"),
    "batch 32, compiled": lambda p: pace(p, "compiled_32"),
    "share of a step of batch 256 in which the GPU waits": lambda p: (
        f"{p['fast']['profile_256']['idle_s'] / p['fast']['profile_256']['span_s']:.0%}"
    ),
    "probe with 500 labels a class, `realistic` scenes: tokens of `standard`": lambda p: learned(
        p, "network"
    ),
    "the same: local statistics": lambda p: learned(p, "statistics"),
    "self-training of `quick`, 150 steps": lambda p: cost(p, "cluster"),
    "scores of two scenes": lambda p: cost(p, "evaluate"),
    "map of 4096 x 4096 px": lambda p: cost(p, "maps"),
    "`paper`: a step of batch 32": lambda p: (
        f"{p['paper']['s_per_step']:.3f} s, {p['paper']['peak_gpu_gb']:.0f} GB"
    ),
    "`paper`: 200 epochs of WHU-OPT-SAR, projected": lambda p: (
        f"{p['paper']['projected_hours']:.1f} h"
    ),
}


if __name__ == "__main__":
    print(table(Path(sys.argv[1]) if sys.argv[1:] else RESULTS), end="")

"""Size and speed of the supervised networks, at the size of our tables and as published.

    python benchmarks/supervised.py [--rounds 5]

Parameters, multiply-adds of one pair of 256 px (those of convolutions and matrix products; the
steps of a scan are not among them) and pairs per second on one thread, all networks in turns, are
written to ``benchmarks/results/supervised.json``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.pretraining import cpu_name  # noqa: E402
from umsf_lib.supervised.networks import (  # noqa: E402
    EARLY,
    NETWORKS,
    Form,
    PixelNetwork,
    supervised_network,
)

SIDE, BATCH = 256, 2
OURS = {"optical": 3, "sar": 1}  # as in OMBRIA
CONTROLS = {role: Form({role: bands}, 7) for role, bands in OURS.items()}
PUBLISHED = {
    "asanet": Form(OURS, 7, "convnext_tiny", 256),
    "amm_fusenet": Form({"optical": 13, "sar": 2}, 7, "resnet50", 256),
    "ref_net": Form({"optical": 3, "sar": 2}, 9, "resnet50", 128),
}


def images(form: Form, count: int) -> dict[str, Tensor]:
    """Draw images of all sensors."""
    return {role: torch.randn(count, bands, SIDE, SIDE) for role, bands in form.bands.items()}


def row(size: str, name: str, form: Form, network: PixelNetwork) -> dict[str, Any]:
    """Count the parameters and multiply-adds of a network."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images(form, 1))
    parameters = sum(p.numel() for p in network.parameters())
    # The counter counts a multiply-add twice.
    adds = counter.get_total_flops() / 2
    backbone = "resnet18" if name in EARLY and form.backbone == "small" else form.backbone
    found: dict[str, Any] = {"size": size, "network": name, "backbone": backbone}
    return found | {
        "parameters_m": round(parameters / 1e6, 3),
        "multiply_adds_g": round(adds / 1e9, 3),
    }


@torch.no_grad()
def seconds(network: PixelNetwork, given: dict[str, Tensor]) -> float:
    """Time one pass."""
    start = time.perf_counter()
    network(given)
    return time.perf_counter() - start


def main() -> None:
    """Measure all networks and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    plan = [("small", name, Form(OURS, 7)) for name in NETWORKS]
    plan += [("small", f"{role} alone", form) for role, form in CONTROLS.items()]
    plan += [("published", name, form) for name, form in PUBLISHED.items()]
    rows, timed = [], []
    for size, name, form in plan:
        network = supervised_network(name if name in NETWORKS else "concat", form).eval()
        rows.append(row(size, name, form, network))
        timed.append((network, images(form, BATCH)))
    took = [[seconds(*one) for one in timed] for _ in range(rounds + 1)][1:]  # the first warms up
    for found, every in zip(rows, zip(*took, strict=True), strict=True):
        found["pairs_per_second"] = round(BATCH / statistics.median(every), 2)
        print(found, flush=True)
    record = {
        "command": "python benchmarks/supervised.py",
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "cpu": cpu_name(),
        "threads": 1,
        "side_px": SIDE,
        "rows": rows,
    }
    path = ROOT / "benchmarks" / "results" / "supervised.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The parallel selective scan beside a loop over tokens: one window, four routes, one thread.

    python benchmarks/selective_scan.py [--rounds 9]

Both compute the same function and its gradients, in turns; medians and their ratio are written to
``benchmarks/results/selective_scan.json``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.pretraining import cpu_name  # noqa: E402
from umsf_lib.models.fusion.selective_scan import selective_scan  # noqa: E402

ROUTES, CHANNELS, LENGTHS = 4, 256, (256, 1024, 4096)


def token_loop(
    tokens: Tensor, step: Tensor, rate: Tensor, write: Tensor, read: Tensor, skip: Tensor
) -> Tensor:
    """Compute ``selective_scan`` token by token."""
    state, found = torch.zeros_like(step[0][..., None, :] * rate), []
    every = (x.unbind() for x in (tokens, step, write, read))
    for u, delta, b, c in zip(*every, strict=True):
        added = (delta * u)[..., None, :] * b[..., None]
        state = torch.exp(delta[..., None, :] * rate) * state + added
        found.append((state * c[..., None]).sum(dim=-2) + skip * u)
    return torch.stack(found)


def seconds(scan: Callable[..., Tensor], inputs: list[Tensor]) -> float:
    """Time one pass forward and backward."""
    start = time.perf_counter()
    scan(*inputs).square().sum().backward()
    return time.perf_counter() - start


def measure(length: int, rounds: int) -> dict[str, float]:
    """Time both in turns, after one round that does not count."""
    middle, generator = (length, 1, ROUTES), torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(*middle, CHANNELS, generator=generator),
        0.1 * torch.rand(*middle, CHANNELS, generator=generator),
        -torch.ones(ROUTES, 1, CHANNELS),
        torch.randn(*middle, 1, generator=generator),
        torch.randn(*middle, 1, generator=generator),
        torch.ones(ROUTES, CHANNELS),
    ]
    inputs = [x.requires_grad_() for x in inputs]
    both = (token_loop, selective_scan)
    pairs = [[seconds(scan, inputs) for scan in both] for _ in range(rounds + 1)][1:]
    loop, parallel = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(slow / fast for slow, fast in pairs)
    found = {"tokens": length, "loop_ms": loop, "scan_ms": parallel, "ratio": ratio}
    return {name: round(value, 2) for name, value in found.items()}


def main() -> None:
    """Measure all lengths, print and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    rows = [measure(length, rounds) for length in LENGTHS]
    print(*rows, sep="\n")
    about = {"cpu": cpu_name(), "threads": 1, "torch": torch.__version__, "rounds": rounds}
    about |= {"date": datetime.date.today().isoformat(), "routes": ROUTES, "channels": CHANNELS}
    path = ROOT / "benchmarks" / "results" / "selective_scan.json"
    path.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

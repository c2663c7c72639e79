"""Fill the tables of RESULTS.md from the records and the GPU's results.

    python benchmarks/fill_tables.py

A table lies between a mark that names its source and ``<!-- end -->``. Other text stays unchanged.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import gpu_table  # noqa: E402
from umsf_lib.__main__ import main  # noqa: E402

BLOCK = re.compile(r"(<!-- (umsf|gpu_table\.py) ?(.*?) ?-->\n\n)(.*?)(<!-- end -->)", re.DOTALL)


def made(maker: str, arguments: str) -> str:
    """Make the table that a mark asks for."""
    if maker == "gpu_table.py":
        return gpu_table.table(gpu_table.RESULTS)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.chdir(ROOT):
        if main(shlex.split(arguments)):
            sys.exit(f"'umsf {arguments}' has failed.")
    return out.getvalue().strip() + "\n"


def fill(text: str) -> str:
    """Return the text with every table made anew."""
    return BLOCK.sub(lambda m: m[1] + made(m[2], m[3]) + m[5], text)


if __name__ == "__main__":
    path = ROOT / "RESULTS.md"
    path.write_text(fill(path.read_text(encoding="utf-8")), encoding="utf-8")

#!/usr/bin/env bash
# What a GPU can tell, in one command of at most nine minutes, on a machine that has the GPU, a plain
# copy of this checkout and no network:
#
#   benchmarks/gpu.sh [--small] [--parts right,fast,pays,rest,paper] [--wheels FOLDER] [--out FOLDER]
#
# --small   the same code in small sizes on a CPU, in at most three minutes: is the kit itself right?
# --parts   some of them only, in this order (benchmarks/gpu.py says what each measures)
# --wheels  packages that the machine lacks; they go into a folder of their own
# --out     for the results (default gpu-results): gpu.json, a log of each part, the weights
#
# Needed: Python 3.11 to 3.13 (another one: PYTHON=python3.12 benchmarks/gpu.sh), torch >= 2.4 with
# torchvision, numpy, scipy, scikit-learn, pandas, matplotlib, seaborn, pyyaml, filelock, tqdm. The rest
# comes as wheels, fetched where there is a network, for the machine's Python:
#
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
#     --platform manylinux2014_x86_64 -d wheels \
#     rasterio==1.4.4 affine attrs certifi click click-plugins cligj
set -euo pipefail

home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT

options=()
while (($#)); do
  case $1 in
    --wheels)
      "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" \
        "${2:?names no folder}"/*.whl || echo "gpu.sh: the wheels in $2 cannot be installed." >&2
      shift
      ;;
    *) options+=("$1") ;;
  esac
  shift
done

export PYTHONPATH="$home:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
"$python" "$home/benchmarks/gpu.py" ${options[@]+"${options[@]}"}

#!/usr/bin/env bash
# What a GPU can tell, in one command of at most nine minutes, on a machine that has the GPU, a plain
# copy of this checkout and no network:
#
#   benchmarks/gpu.sh [--small] [--parts right,fast,pays,rest,paper] [--wheels FOLDER] [--out FOLDER]
#
# --small   the same code in small sizes on a CPU, in at most three minutes: is the kit itself right?
# --parts   some of them only, in this order (benchmarks/gpu.py says what each measures)
# --wheels  packages that the machine lacks; they go into a folder of their own
# --out     for the results (default gpu-results): gpu.json, a log of each part, and the weights where
#           they have no more than 16 MB
#
# Needed: Python 3.11 to 3.13 (another one: PYTHON=python3.12 benchmarks/gpu.sh), torch >= 2.4 with
# torchvision, numpy, scipy, scikit-learn, pandas, matplotlib, seaborn, pyyaml, filelock, tqdm. The rest
# comes as wheels, fetched where there is a network, for the machine's Python:
#
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
#     --platform manylinux2014_x86_64 -d wheels \
#     rasterio==1.4.4 affine attrs certifi click click-plugins cligj \
#     pydantic==2.14.4 pydantic-core==2.50.5 annotated-types typing-extensions typing-inspection
set -euo pipefail

wheels=(rasterio affine attrs certifi click click-plugins cligj)
wheels+=(pydantic pydantic-core annotated-types typing-extensions typing-inspection)
home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT

options=()
while (($#)); do
  if [[ $1 == --wheels ]]; then
    folder=${2:-}
    if [[ ! -d $folder ]]; then
      echo "gpu.sh: --wheels '$folder' is no folder; name the one that pip download has filled." >&2
      exit 2
    fi
    "$python" -m pip install --quiet --no-index --find-links "$folder" --no-deps --no-compile \
      --target "$site" "${wheels[@]}" ||
      echo "gpu.sh: $folder lacks a wheel for this Python, of ${wheels[*]}." >&2
    shift
  else
    options+=("$1")
  fi
  shift
done

export PYTHONPATH="$home:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
"$python" "$home/benchmarks/gpu.py" ${options[@]+"${options[@]}"} &
child=$!
trap 'kill -TERM "$child" 2>/dev/null || true' INT TERM # it tidies up after itself
status=0
wait "$child" || status=$?
while kill -0 "$child" 2>/dev/null; do wait "$child" || status=$?; done
exit "$status"

#!/usr/bin/env bash
# Set up, then run linters, type checks and tests. Arguments go to pytest: bash scripts/test.sh tests/data/test_data.py -k bomb
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup.sh" dev,docs,plots,tables,tensorboard,timm,audio,text,hf
cd "$root"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/mkdocs build --quiet --config-file docs/api/mkdocs.yml  # a warning is an error
# Two test processes with one thread each, for two cores. Results are bit-identical only for the same number of threads.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
exec .venv/bin/python -m pytest -n 2 "$@"

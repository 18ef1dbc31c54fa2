#!/usr/bin/env bash
# Set up, then lint, types and tests. Arguments go to pytest: bash scripts/test.sh tests/data/test_data.py -k bomb
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$here/scripts/setup.sh" dev,plots,tables,tensorboard,timm,audio,text,hf
cd "$here"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# One thread for each of two test processes: "same bits" holds for a number of threads, and two cores are assumed.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
exec .venv/bin/python -m pytest -n 2 "$@"

#!/usr/bin/env bash
# Train on the digits of scikit-learn, and make the picture of the report that README.md shows: docs/report.png.
#     bash scripts/report_picture.sh [PYTHON]
# Needs fmeco's Python (default .venv/bin/python) and the program chromium.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m fmeco pretrain configs/digits/pretrain.yaml --out "$work/source"
"$python" -m fmeco finetune configs/digits/finetune.yaml --from "$work/source" --out "$work/digits" --control scratch
chromium --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --hide-scrollbars \
    --user-data-dir="$work/chromium" --window-size=1100,1750 --screenshot="$work/report.png" "file://$work/digits/report.html"
"$python" -c "
import sys
from PIL import Image
Image.open(sys.argv[1]).convert('P', palette=Image.Palette.ADAPTIVE, colors=128).save('docs/report.png', optimize=True)
" "$work/report.png"

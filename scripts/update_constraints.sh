#!/usr/bin/env bash
# Update constraints.txt to the newest versions on the package index, as plain name==version pins.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check ".[dev,docs,plots,tables,tensorboard,timm,audio,text,hf]"
{
    echo "# Versions that the set-up scripts install; made by scripts/update_constraints.sh"
    # Strip local labels such as +cu132: they name a build, not a version.
    "$folder/venv/bin/python" -m pip freeze --exclude fmeco | sed -E 's/\+[A-Za-z0-9.]+$//' | grep -E '^[A-Za-z0-9._-]+==' | sort -f
} > constraints.txt

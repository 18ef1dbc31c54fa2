#!/usr/bin/env bash
# Refresh constraints.txt: the newest versions that pip finds today, as plain name==version pins.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check ".[dev,docs,plots,tables,tensorboard,timm,audio,text,hf]"
{
    echo "# Versions that the set-up scripts install; made by scripts/update_constraints.sh"
    # A local label such as +cu132 says how a wheel was built, not which version it is.
    "$folder/venv/bin/python" -m pip freeze --exclude fmeco | sed -E 's/\+[A-Za-z0-9.]+$//' | grep -E '^[A-Za-z0-9._-]+==' | sort -f
} > constraints.txt

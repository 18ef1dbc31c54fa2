#!/usr/bin/env bash
# Create .venv in the project's folder with the versions that constraints.txt pins. Does nothing if it is up to date.
#   bash scripts/setup.sh EXTRAS        for example: plots    or: dev,docs,plots,tables,tensorboard,timm,audio,text,hf
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras=$1
stamp=.venv/fmeco-setup
wanted="$extras $(cat pyproject.toml constraints.txt examples/pyproject.toml | cksum) $PWD"
installed=$(cat "$stamp" 2>/dev/null || true)
usable=
if .venv/bin/python -c '' 2>/dev/null && [ "${installed##* }" = "$PWD" ]; then usable=yes; fi  # a moved .venv does not work
# The extras for the tests include those for the demo.
if [ "$usable" ] && { [ "$installed" = "$wanted" ] || [ "$installed" = "dev,docs,plots,tables,tensorboard,timm,audio,text,hf ${wanted#* }" ]; }; then exit 0; fi
python=
for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$name
        break
    fi
done
if [ -z "$python" ]; then
    echo "fmeco needs Python 3.11 or newer, but none was found on PATH" >&2
    exit 2
fi
echo "Setting up .venv with $("$python" --version); on Linux, torch downloads about 3 GB and takes 5.5 GB on disk ..." >&2
[ "$usable" ] || "$python" -m venv --clear .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$extras]"
case ",$extras," in
    *,dev,*) .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable ./examples ;;  # for its tests
esac
echo "$wanted" > "$stamp"

#!/usr/bin/env bash
# Make .venv in the project's folder, from the pinned versions of constraints.txt. Quick when nothing changed.
#   bash scripts/setup.sh EXTRAS        for example: plots    or: dev,plots,tables,tensorboard,timm,audio,text,hf
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras=$1
stamp=.venv/fmeco-setup
wanted="$extras $(cat pyproject.toml constraints.txt examples/pyproject.toml | cksum) $PWD"
have=$(cat "$stamp" 2>/dev/null || true)
usable=
if .venv/bin/python -c '' 2>/dev/null && [ "${have##* }" = "$PWD" ]; then usable=yes; fi  # not of a folder that was moved
# What the tests need holds all that the demo needs.
if [ "$usable" ] && { [ "$have" = "$wanted" ] || [ "$have" = "dev,plots,tables,tensorboard,timm,audio,text,hf ${wanted#* }" ]; }; then exit 0; fi
python=
for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$name
        break
    fi
done
if [ -z "$python" ]; then
    echo "fmeco needs Python 3.11 or newer, and none was found" >&2
    exit 2
fi
echo "Setting up .venv with $("$python" --version); on Linux torch is a download of about 3 GB, 5.5 GB on disk ..." >&2
[ "$usable" ] || "$python" -m venv --clear .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$extras]"
case ",$extras," in
    *,dev,*) .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable ./examples ;;  # for its tests
esac
echo "$wanted" > "$stamp"

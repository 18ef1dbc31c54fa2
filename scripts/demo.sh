#!/usr/bin/env bash
# The main job on real data, from a fresh machine: pretrain on the digits 0-4, finetune on 5-9, compare with scratch.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$here/scripts/setup.sh" plots
cd "$here"
exec .venv/bin/fmeco demo "$@"

#!/usr/bin/env bash
# Set up fmeco, and run its demo: pretrain on the digits 0-4, finetune on 5-9, and compare with training from scratch.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup.sh" plots
cd "$root"
exec .venv/bin/fmeco demo "$@"

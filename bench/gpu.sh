#!/usr/bin/env bash
# Every number from a GPU into results/gpu.md, in MINUTES at most (default 10); stop it, repeat it.
#   bash bench/gpu.sh 10 --model Qwen3-0.6B-Base      also a real model's gradient by entropy
#   bash bench/gpu.sh 5 --toy --device cpu --out /tmp/gpu.md      that it works, without a GPU
set -euo pipefail
cd "$(dirname "$0")/.."
exec python bench/gpu.py --minutes "${1:-10}" "${@:2}"

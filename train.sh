#!/usr/bin/env bash
# One recipe per door:  bash train.sh NAME [more flags of fork_gpt.py]
set -euo pipefail
cd "$(dirname "$0")"
recipe=${1:-}
shift || true
case "$recipe" in
  tiny) # a laptop, minutes, no download: the whole study in the small world
    python fork_gpt.py "$@" ;;
  *)
    echo "usage: bash train.sh tiny [flags of fork_gpt.py]" >&2
    exit 2 ;;
esac

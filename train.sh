#!/usr/bin/env bash
# One recipe per door:  bash train.sh NAME [more flags of fork_gpt.py; they win over the recipe's]
#   DRY=1 bash train.sh NAME       prints the command instead of running it
#   bash data.sh                   downloads the problems into the folder data
# A model is a folder as published, next to this file; --model names another:
#   hf download Qwen/Qwen3-0.6B-Base --local-dir Qwen3-0.6B-Base
set -euo pipefail

# ---------------------------------------------------------------------- recipes

# The paper's section 5 and its released script: 512 prompts x 16 answers, 16 updates of 32 prompts,
# 85 rollouts = 1,360 updates.  Warm-up: the paper says none, its script 10; the script is followed.
paper=(
  --data data/dapo_math.jsonl --skip-bad # the run says how many lines it left out
  --template boxed --keep top --rho 0.2 --dtype bfloat16
  --steps 85 --prompts 512 --group 16 --updates 16 --oversample 3 --rounds 10
  --max-prompt 2048 --max-new 20480 --overlong 4096 --temperature 1
  --lr 1e-6 --weight-decay 0.1 --beta2 0.999 --warmup 10 --grad-clip 1
  --clip-low 0.2 --clip-high 0.28 --dual-clip 10
  # not the paper's: how often to look and to save (a snapshot is a whole copy of the weights)
  --eval-every 10 --eval-problems 64 --eval-k 4 --save-every 5 --snapshot-every 0
  --recompute # a third more compute, and 22,528-token sequences fit
)

# What one GPU of 80 GB changes, and why.  With 24 GB: --max-new 2560 --overlong 512 --microbatch 4096,
# and for 1.7B --optimizer adamw8 as well: 21.3 and 21.4 GiB (results/optimizers.md).
one_gpu=(
  --prompts 64 --updates 2 # an eighth of the prompts: time; the update of 32 prompts is the paper's
  --oversample 1.5         # draw less at once, since the rounds fill up what is missing
  --steps 300              # 600 updates, the paper has 1,360: time
  --max-new 5120 --overlong 1024 # a quarter of both: a small base model writes about 1,000 tokens
  --microbatch 16384       # tokens at a time: two of the longest sequences, or a dozen usual ones
)

# Started on every node by the same command; HOST is one of them.
nodes=(--nnodes 16 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint "${HOST:-localhost}:29500")

# What `fork_gpt.py --plan NODESxGPUS --gpu 79` says, GiB in each GPU: rollout (of which cache), update.
case "${1:-}" in
  tiny) # a laptop, minutes, no download: the whole study in the small world
    command=(python fork_gpt.py) ;;
  qwen3-0.6b) # 70.7 (62.0), 12.3: 81 rows at a time; less where less is free
    command=(python fork_gpt.py --model Qwen3-0.6B-Base "${paper[@]}" "${one_gpu[@]}"
      --out runs/qwen3-0.6b) ;;
  qwen3-1.7b) # 70.5 (47.5), 33.1: 62 rows
    command=(python fork_gpt.py --model Qwen3-1.7B-Base "${paper[@]}" "${one_gpu[@]}"
      --out runs/qwen3-1.7b) ;;
  # Of the next three also the least seconds a step, if every answer reached --max-new.
  qwen3-8b) # 8 GPUs of 80 GB: 70.7 (49.5), 31.1; 43,900 + 3,000 s
    command=(torchrun --nproc-per-node 8 fork_gpt.py --model Qwen3-8B-Base --tp 2 "${paper[@]}"
      --microbatch 22528 --rows 32 --out runs/qwen3-8b) ;;
  qwen3-14b) # 16 nodes of 8, the released script's hardware: 70.4 (55.0), 20.6; 3,500 + 480 s
    command=(torchrun "${nodes[@]}" fork_gpt.py --model Qwen3-14B-Base --tp 2 "${paper[@]}"
      --microbatch 22528 --rows 32 --out runs/qwen3-14b) ;;
  qwen3-32b) # the same: 55.3 (44.0), 21.8; 5,200 + 1,260 s.  One node would need 86.0 for the
    # update, AdamW's moments being fp32 on the GPUs; two nodes do: 45.3 (rows 16), 51.8.
    # The paper's base model of this size is not public: give yours by --model.
    command=(torchrun "${nodes[@]}" fork_gpt.py --model Qwen3-32B-Base --tp 8 "${paper[@]}"
      --microbatch 22528 --rows 64 --out runs/qwen3-32b) ;;
  *)
    echo "usage: bash train.sh tiny | qwen3-0.6b | qwen3-1.7b | qwen3-8b |" \
      "qwen3-14b | qwen3-32b [flags of fork_gpt.py]" >&2
    exit 2 ;;
esac
command+=("${@:2}")

if [ -n "${DRY:-}" ]; then
  printf '%q ' "${command[@]}"
  echo
else
  cd "$(dirname "$0")"
  exec "${command[@]}"
fi

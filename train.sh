#!/usr/bin/env bash
# One recipe per door:  bash train.sh NAME [more flags of fork_gpt.py; they win over the recipe's]
#   DRY=1 bash train.sh NAME       prints the command instead of running it
#   bash train.sh data [FOLDER]    downloads the problems (default folder: data)
# A model is a folder as published, next to this file; --model names another:
#   hf download Qwen/Qwen3-0.6B-Base --local-dir Qwen3-0.6B-Base
set -euo pipefail

# ---------------------------------------------------------------------- data

# Addresses move: HF_ENDPOINT and GITHUB_RAW name mirrors, and a file put by hand under the same name
# is taken as it is.  name, least bytes, least lines, address
hf=${HF_ENDPOINT:-https://huggingface.co}/datasets
qwen=${GITHUB_RAW:-https://raw.githubusercontent.com}/QwenLM/Qwen2.5-Math/main/evaluation/data
gsm8k=${GITHUB_RAW:-https://raw.githubusercontent.com}/openai/grade-school-math/master
# DAPO-Math-17k's own parquet (BytedTsinghua-SIA/DAPO-Math-17k, 1.79M rows) has every problem a
# hundred times and needs pyarrow; this is the same 17,398 problems, once each, as JSONL.
sets="
dapo_math     3000000 17398 $hf/zhuzilin/dapo-math-17k/resolve/main/dapo-math-17k.jsonl
aime24           6000    30 $qwen/aime24/test.jsonl
aime25           6000    30 $hf/math-ai/aime25/resolve/main/test.jsonl
amc23            6000    40 $qwen/amc23/test.jsonl
math500        100000   500 $hf/HuggingFaceH4/MATH-500/resolve/main/test.jsonl
minerva         50000   272 $qwen/minerva_math/test.jsonl
olympiadbench  150000   675 $qwen/olympiadbench/test.jsonl
gsm8k          300000  1319 $gsm8k/grade_school_math/data/test.jsonl
"

# whole FILE BYTES LINES: whether a file is there and no error page or half of one; sets size, lines
whole() {
  size=0 lines=0
  [ -f "$1" ] || return 1
  size=$(wc -c < "$1" | tr -d ' ')
  lines=$(LC_ALL=C grep -ac '^{.*}[[:space:]]*$' "$1") || true # a line cut off has no }
  [ "$size" -ge "$2" ] && [ "$lines" -ge "$3" ]
}

# fetch FILE BYTES LINES ADDRESS: the file, from where an earlier try stopped; it gets its name last
fetch() {
  local file=$1 part=$1.part
  if whole "$file" "$2" "$3"; then
    echo "$file: there already, $lines problems, $size bytes"
    return
  fi
  if ! whole "$part" "$2" "$3"; then
    local code=0 status get=(curl -fsSL --retry 3 --connect-timeout 30 -w '%{http_code}')
    status=$("${get[@]}" -C - -o "$part" "$4") || code=$?
    if [ "$code" = 33 ] || [ "$status" = 416 ]; then # the server cannot go on from there: anew
      rm -f "$part"
      code=0
      "${get[@]}" -o "$part" "$4" > /dev/null || code=$?
    fi
    if [ "$code" != 0 ]; then
      echo "$file: FAILED, curl's error $code at $4; run again to go on" >&2
      return 1
    fi
    if ! whole "$part" "$2" "$3"; then
      rm -f "$part"
      echo "$file: FAILED, only $lines problems and $size bytes at $4 (least $3 and $2)" >&2
      return 1
    fi
  fi
  mv "$part" "$file" || return 1
  echo "$file: $lines problems, $size bytes"
}

data() {
  command -v curl > /dev/null || { echo "train.sh: data needs curl" >&2; exit 1; }
  mkdir -p "$1"
  local failed=0 name bytes count address
  while read -r name bytes count address; do
    [ -z "$name" ] || fetch "$1/$name.jsonl" "$bytes" "$count" "$address" || failed=$((failed + 1))
  done <<< "$sets"
  [ "$failed" = 0 ] || { echo "train.sh: $failed files are missing" >&2; exit 1; }
  echo "to look into them: python -m tasks.maths $1/*.jsonl"
}

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

# What one GPU of 80 GB changes, and why.  With 24 GB: --rows 8 --max-new 2560 --overlong 512.
one_gpu=(
  --prompts 64 --updates 2 # an eighth of the prompts: time; the update of 32 prompts is the paper's
  --oversample 1.5         # draw less at once, since the rounds fill up what is missing
  --steps 300              # 600 updates, half of the paper's: time
  --max-new 5120 --overlong 1024 # a quarter of both: a small base model writes about 1,000 tokens
  --microbatch 16384       # tokens at a time: two of the longest sequences, or twenty usual ones
)

# Started on every node by the same command; HOST is one of them.
nodes=(--nnodes 16 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint "${HOST:-localhost}:29500")

# Weights and AdamW in fp32, gradients and a bf16 copy are 18 bytes a parameter; the cache is 115 kB a
# token for both sizes, so 0.8 GB a row of 2,048 + 5,120 tokens.
case "${1:-}" in
  data)
    data "${2:-$(dirname "$0")/data}"
    exit ;;
  tiny) # a laptop, minutes, no download: the whole study in the small world
    command=(python fork_gpt.py) ;;
  qwen3-0.6b) # 11 GB + 52 GB of cache
    command=(python fork_gpt.py --model Qwen3-0.6B-Base "${paper[@]}" "${one_gpu[@]}"
      --rows 64 --out runs/qwen3-0.6b) ;;
  qwen3-1.7b) # 31 GB + 33 GB of cache, hence fewer rows at a time
    command=(python fork_gpt.py --model Qwen3-1.7B-Base "${paper[@]}" "${one_gpu[@]}"
      --rows 40 --out runs/qwen3-1.7b) ;;
  # What `fork_gpt.py --plan NODESxGPUS --gpu 79` says of the next three, GiB in each GPU: rollout
  # (of which cache), update; and the least seconds a step if every answer reached --max-new.
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
    echo "usage: bash train.sh data [FOLDER] | tiny | qwen3-0.6b | qwen3-1.7b | qwen3-8b |" \
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

#!/usr/bin/env bash
# Downloads the problems:  bash data.sh [FOLDER]    (default: data, beside this file)
set -euo pipefail

# Addresses move: HF_ENDPOINT and GITHUB_RAW name mirrors, and a file put by hand under the same name
# is taken as it is.  name, least bytes, least lines, bytes it had when looked at, address.  No page
# states a digest of these files: one of another size is taken, and it is said.
hf=${HF_ENDPOINT:-https://huggingface.co}/datasets
qwen=${GITHUB_RAW:-https://raw.githubusercontent.com}/QwenLM/Qwen2.5-Math/main/evaluation/data
gsm8k=${GITHUB_RAW:-https://raw.githubusercontent.com}/openai/grade-school-math/master
# DAPO-Math-17k's own parquet (BytedTsinghua-SIA/DAPO-Math-17k, 1.79M rows) has every problem a
# hundred times and needs pyarrow; this is the same 17,398 problems, once each, as JSONL.
sets="
dapo_math     3000000 17398 ?       $hf/zhuzilin/dapo-math-17k/resolve/main/dapo-math-17k.jsonl
aime24           6000    30 156944  $qwen/aime24/test.jsonl
aime25           6000    30 ?       $hf/math-ai/aime25/resolve/main/test.jsonl
amc23            6000    40 27631   $qwen/amc23/test.jsonl
math500        100000   500 ?       $hf/HuggingFaceH4/MATH-500/resolve/main/test.jsonl
minerva         50000   272 247267  $qwen/minerva_math/test.jsonl
olympiadbench  150000   675 1493870 $qwen/olympiadbench/test.jsonl
gsm8k          300000  1319 ?       $gsm8k/grade_school_math/data/test.jsonl
"

# whole FILE BYTES LINES: whether a file is there and no error page or half of one; sets size, lines
whole() {
  size=0 lines=0
  [ -f "$1" ] || return 1
  size=$(wc -c < "$1" | tr -d ' ')
  lines=$(LC_ALL=C grep -ac '^{.*}[[:space:]]*$' "$1") || true # a line cut off has no }
  [ "$size" -ge "$2" ] && [ "$lines" -ge "$3" ]
}

# odd SIZE: what to say of a file that has another
odd() { [ "$1" = "?" ] || [ "$1" = "$size" ] || echo ", not the $1 it had: see what changed"; }

# fetch FILE BYTES LINES SIZE ADDRESS: the file, from where an earlier try stopped; it gets its name last
fetch() {
  local file=$1 part=$1.part
  if whole "$file" "$2" "$3"; then
    echo "$file: there already, $lines problems, $size bytes$(odd "$4")"
    return
  fi
  if ! whole "$part" "$2" "$3"; then
    local code=0 status get=(curl -fsSL --retry 3 --connect-timeout 30 -w '%{http_code}')
    status=$("${get[@]}" -C - -o "$part" "$5") || code=$?
    if [ "$code" = 33 ] || [ "$status" = 416 ]; then # the server cannot go on from there: anew
      rm -f "$part"
      code=0
      "${get[@]}" -o "$part" "$5" > /dev/null || code=$?
    fi
    if [ "$code" != 0 ]; then
      echo "$file: FAILED, curl's error $code at $5; run again to go on" >&2
      return 1
    fi
    if ! whole "$part" "$2" "$3"; then
      rm -f "$part"
      echo "$file: FAILED, only $lines problems and $size bytes at $5 (least $3 and $2)" >&2
      return 1
    fi
  fi
  mv "$part" "$file" || return 1
  echo "$file: $lines problems, $size bytes$(odd "$4")"
}

out=${1:-$(dirname "$0")/data} failed=0
command -v curl > /dev/null || { echo "data.sh: it needs curl" >&2; exit 1; }
mkdir -p "$out"
while read -r name bytes count size_then address; do
  [ -z "$name" ] || fetch "$out/$name.jsonl" "$bytes" "$count" "$size_then" "$address" ||
    failed=$((failed + 1))
done <<< "$sets"
[ "$failed" = 0 ] || { echo "data.sh: $failed files are missing" >&2; exit 1; }
echo "to look into them: python -m tasks.maths $out/*.jsonl"

"""train.sh: every recipe's flags are fork_gpt.py's and the paper's; the downloads, with a curl that
reads from a folder."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from common import ROOT, config

import fork_gpt
from infra import memory
from model import SIZES

ONE_GPU, SHARDED = ["qwen3-0.6b", "qwen3-1.7b"], ["qwen3-8b", "qwen3-14b", "qwen3-32b"]
PAPER = dict(
    template="boxed", keep="top", rho=0.2, group=16, lr=1e-6, weight_decay=0.1, beta2=0.999,
    clip_low=0.2, clip_high=0.28, dual_clip=10.0, warmup=10, grad_clip=1.0, temperature=1.0,
    max_prompt=2048, rounds=10, dtype="bfloat16", normalize="kept", entropy="current",
    pool="minibatch", verifier="", skip_bad=True,
)  # fmt: skip
# 85 x 16 = 1,360 updates, the paper's 14B run
AT_SCALE = dict(prompts=512, updates=16, oversample=3.0, max_new=20480, overlong=4096, steps=85)
COUNTS = dict(
    dapo_math=17398, aime24=30, aime25=30, amc23=40, math500=500, minerva=272,
    olympiadbench=675, gsm8k=1319,
)  # fmt: skip


def train_sh(*argv, script="train.sh", **env):
    return subprocess.run(
        ["bash", str(ROOT / script), *argv],
        env=os.environ | env, cwd="/", capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def dry(recipe, *more):
    done = train_sh(recipe, *more, DRY="1")
    assert (done.returncode, done.stderr) == (0, "")
    program, flags = done.stdout.split(" fork_gpt.py")
    return program, config(*shlex.split(flags))


# ------------------------------------------------------------------ recipes


def test_tiny_is_the_default_run():
    assert dry("tiny") == ("python", fork_gpt.Config())


@pytest.mark.parametrize("recipe", ONE_GPU + SHARDED)
def test_every_recipe_has_the_papers_numbers(recipe):
    program, c = dry(recipe)
    assert {k: getattr(c, k) for k in PAPER} == PAPER
    assert c.model.lower() == f"{recipe}-base" and c.data == "data/dapo_math.jsonl"
    assert c.prompts // c.updates == 32  # groups of one update, the paper's at any size
    assert c.out == f"runs/{recipe}" and c.recompute
    assert program.split()[0] == ("python" if recipe in ONE_GPU else "torchrun")
    if recipe in SHARDED:
        assert {k: getattr(c, k) for k in AT_SCALE} == AT_SCALE
    else:  # the penalty begins at the same share of the length
        assert c.overlong / c.max_new == AT_SCALE["overlong"] / AT_SCALE["max_new"]
        assert c.microbatch >= c.max_prompt + c.max_new


def test_flags_of_the_user_come_last_and_win():
    _, c = dry("qwen3-0.6b", "--rho", "0.5", "--model", "my folder/$x", "--rows", "8")
    assert (c.rho, c.model, c.rows, c.lr) == (0.5, "my folder/$x", 8, 1e-6)


@pytest.mark.parametrize("recipe", SHARDED)
def test_a_sharded_recipe_fits_as_its_comment_says(recipe):
    """GiB of rollout and update in each GPU of 80 GB, those of the preflight."""
    program, c = dry(recipe)
    text = (ROOT / "train.sh").read_text()
    said = re.search(rf"{recipe}\).*?: ([\d.]+) \(([\d.]+)\), ([\d.]+);", text, re.S)
    gpus = 8 * int((re.search(r"nnodes (\d+)", program) or [0, 1])[1])
    m = memory.cut(SIZES[c.model.removesuffix("-Base")], c.tp)
    parts = memory.preflight(m, c, "cuda", dp=gpus // c.tp)
    peaks = memory.peaks(parts)
    found = [peaks["rollout"], parts["KV cache"], peaks["update"]]
    assert [f"{x / memory.GIB:.1f}" for x in found] == [*said.groups()]
    assert max(peaks.values()) < 79 * memory.GIB


@pytest.mark.parametrize("recipe", ["tiny", "qwen3-1.7b"])
def test_a_recipe_runs_its_command_beside_the_code_and_keeps_its_exit_code(recipe, tmp_path):
    (tmp_path / "python").write_text('#!/bin/sh\npwd\necho "$@"\nexit 7\n')
    (tmp_path / "python").chmod(0o755)
    done = train_sh(recipe, "--seed", "5", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 7
    where, said = done.stdout.splitlines()
    assert Path(where) == ROOT and said.startswith("fork_gpt.py ") and said.endswith("--seed 5")


@pytest.mark.parametrize("argv", [[], ["qwen4"], ["--help"]])
def test_an_unknown_recipe_gets_the_list(argv):
    done = train_sh(*argv)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert all(f" {r} " in done.stderr for r in ["tiny", *ONE_GPU, *SHARDED])


# ------------------------------------------------------------------ data

CURL = """#!/usr/bin/env bash
# Serves $SERVER/NAME for "-o FOLDER/NAME.part": all of it or, with -C -, what is missing.
# In $SERVER: NAME.cut: stop after so many bytes (28); NAME.gone: 404; NAME.whole: cannot resume.
cut= resume=
while [ $# -gt 0 ]; do
  case $1 in
    -o) part=$2; shift ;;
    -C) resume=1; shift ;;
    http*) address=$1 ;;
  esac
  shift
done
name=$(basename "$part" .part)
echo "$name ${resume:-0} $address" >> "$SERVER/log"
[ -e "$SERVER/$name.gone" ] && { echo "curl: (22) 404" >&2; printf 404; exit 22; }
have=0
[ -n "$resume" ] && [ -e "$part" ] && have=$(wc -c < "$part")
[ $have -gt 0 ] && [ -e "$SERVER/$name.whole" ] && { printf 200; exit 33; }
[ $have -gt 0 ] && [ $have -ge $(wc -c < "$SERVER/$name") ] && { printf 416; exit 22; }
[ $have = 0 ] && : > "$part"
if [ -e "$SERVER/$name.cut" ]; then
  tail -c +$((have + 1)) "$SERVER/$name" | head -c "$(cat "$SERVER/$name.cut")" >> "$part"
  printf 200; exit 28
fi
tail -c +$((have + 1)) "$SERVER/$name" >> "$part"
printf 200
"""


def lines(n, size=300):
    texts = (json.dumps({"problem": f"{i}? " + "x" * size, "answer": i}) for i in range(n))
    return "".join(f"{text}\n" for text in texts)


CONTENT = {f"{name}.jsonl": lines(n) for name, n in COUNTS.items()}


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    for name, text in {**CONTENT, "curl": CURL}.items():
        (folder / name).write_text(text)
    (folder / "curl").chmod(0o755)
    return folder


def download(server, out, **env):
    path = f"{server}:{os.environ['PATH']}"
    return train_sh(str(out), script="data.sh", PATH=path, SERVER=str(server), **env)


def found(out):
    return {p.name: p.read_text() for p in out.iterdir()}


def test_data_gets_every_set_from_its_address_and_says_what(server, tmp_path):
    out = tmp_path / "new" / "data"
    done = download(server, out)
    assert (done.returncode, done.stderr) == (0, "") and found(out) == CONTENT
    for name, text in CONTENT.items():
        said = f"{out}/{name}: {text.count(chr(10))} problems, {len(text)} bytes"
        assert said in done.stdout
    assert ", not the 156944 it had: see what changed\n" in done.stdout  # AIME 2024, when looked at
    # again: nothing is fetched
    log = (server / "log").read_text()
    again = download(server, out)
    assert again.returncode == 0 and again.stdout.count("there already") == 8
    assert (server / "log").read_text() == log
    hosts = re.findall(r"https://[^/]*/", log)
    assert hosts.count("https://huggingface.co/") == 3 and len(hosts) == 8
    assert hosts.count("https://raw.githubusercontent.com/") == 5
    (server / "log").unlink()
    download(server, tmp_path / "b", HF_ENDPOINT="http://h:1", GITHUB_RAW="http://g/x")
    moved = log.replace("https://huggingface.co/", "http://h:1/")
    moved = moved.replace("https://raw.githubusercontent.com/", "http://g/x/")
    assert (server / "log").read_text() == moved


def test_what_fails_is_named_what_was_cut_off_is_resumed(server, tmp_path):
    """An error page or too little is refused; half a file must not get the final name, and the next
    try must not begin again."""
    bad = {
        "aime24.jsonl": "<html>404</html>\n" * 10000, "aime25.jsonl": lines(29, 3000),
        "amc23.jsonl": lines(40, 3000)[:-5], "math500.jsonl": lines(500, 9),
        "olympiadbench.jsonl": "",
    }  # fmt: skip
    for name, text in bad.items():
        (server / name).write_text(text)
    (server / "minerva.jsonl.gone").touch()
    (server / "gsm8k.jsonl.cut").write_text("100000")
    out = tmp_path / "data"
    done = download(server, out)
    assert done.returncode == 1 and "7 files are missing" in done.stderr
    half = CONTENT["gsm8k.jsonl"][:100000]
    good = {"dapo_math.jsonl": CONTENT["dapo_math.jsonl"], "gsm8k.jsonl.part": half}
    assert found(out) == good
    why = {name: "only" for name in bad} | {"minerva.jsonl": "curl's error 22"}
    for name, text in (why | {"gsm8k.jsonl": "curl's error 28"}).items():
        assert f"{name}: FAILED, {text}" in done.stderr
    (server / "gsm8k.jsonl.cut").unlink()
    (server / "minerva.jsonl.gone").unlink()
    for name in bad:
        (server / name).write_text(CONTENT[name])
    assert download(server, out).returncode == 0 and found(out) == CONTENT
    assert (server / "log").read_text().count("gsm8k.jsonl 1 ") == 2  # asked to go on


def test_where_going_on_is_impossible_it_begins_again(server, tmp_path):
    """A server without ranges (curl's 33), or a part longer than the file (416), failed for ever;
    stopped between the last byte and the renaming, the next try asked beyond the end."""
    out = tmp_path / "data"
    out.mkdir()
    (server / "math500.jsonl.whole").touch()
    (out / "math500.jsonl.part").write_text("{}\n" + "y" * 10)
    (out / "aime25.jsonl.part").write_text("{}\n" + "y" * 10**6)
    (out / "amc23.jsonl.part").write_text(CONTENT["amc23.jsonl"])  # it only gets its name
    assert download(server, out).returncode == 0 and found(out) == CONTENT
    assert "amc23" not in (server / "log").read_text()


def test_without_curl_it_says_so(tmp_path):
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(subprocess.check_output(["which", name], text=True).strip())
    done = train_sh(str(tmp_path / "d"), script="data.sh", PATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (1, "data.sh: it needs curl\n")
    assert not (tmp_path / "d").exists()

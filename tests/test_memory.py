"""The preflight against the memory that a step really takes, and what it says and refuses."""

import io
import json
import math
import os
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from common import PATIENCE, ROOT

import fork_gpt
from bench import memory as bench
from fork_gpt import Config
from infra import flags, memory
from infra.files import UserError
from infra.memory import GIB, kept_by_block, peaks, preflight
from model import SIZES, Block, Shape, attend, positions_of, rope

CPU = torch.device("cpu")
ENV = os.environ | bench.MALLOC | dict(PYTHONPATH=str(ROOT))
BASE = Config(oversample=1.0, updates=1, prompts=8, group=4, max_prompt=8, microbatch=512)
few = partial(replace, BASE)
WIDE = Shape(64, 2, 2, 1, 32, 128, vocab_size=32768, tie_embeddings=False)
BIG = Shape(256, 2, 4, 2, 64, 512, vocab_size=40960)
FREE = replace(BIG, tie_embeddings=False)
DEEP = Shape(384, 10, 6, 3, 64, 1536, vocab_size=2048)
THICK = Shape(64, 4, 4, 4, 128, 128, vocab_size=512)
# what takes the most there: (shape, flags); few of the prompts that are sampled are trained on
SHAPES = {
    "gradient of a wide matrix": (FREE, few(prompts=2, max_new=12, microbatch=80)),
    "gradients of a tied one": (BIG, few(prompts=2, max_new=12, microbatch=80)),
    "logits that are kept": (WIDE, few(keep="all", max_new=24)),
    "a pass without gradient": (WIDE, few(rho=0.05, max_new=24)),
    "logits that are drawn from":
        (WIDE, few(prompts=1, oversample=16.0, group=16, max_new=3, microbatch=64)),
    "deep, bf16, recompute": (DEEP, few(
        prompts=2, oversample=2.0, max_new=16, microbatch=128, dtype="bfloat16", recompute=True)),
    "large KV cache": (THICK, few(
        prompts=2, oversample=2.0, group=16, max_prompt=188, max_new=4, microbatch=2048)),
}  # fmt: skip


# ------------------------------------------------------------------ against what is really taken


def kept_by_autograd(m: Shape, dtype: torch.dtype, S: int = 64) -> int:
    """Bytes a token of the storages that a block saves for its backward pass, weights, input norm's
    scale and rotary tables aside."""
    block = Block(m).to(dtype)
    x = torch.randn(S, m.n_embd, dtype=dtype, requires_grad=True)
    cu = torch.tensor([0, S // 4, S // 2, S])
    tables = rope(positions_of(cu), m, dtype)
    own = {t.untyped_storage().data_ptr() for t in (*block.parameters(), *tables)}
    saved = {}

    def note(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own and t.shape[-1] > 1:  # 1: the norms' scales
            saved[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        block(x, *tables, lambda q, k, v: attend(q, k, v, cu, cu.diff().tolist()))
    return sum(saved.values()) / S


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("heads", ((4, 2), (2, 2), (6, 1)))
def test_what_autograd_keeps_of_a_block_is_counted_exactly(heads, dtype):
    m = Shape(96, 1, *heads, 32, 160, vocab_size=32)
    assert kept_by_block(m, dtype.itemsize, fused=False) == kept_by_autograd(m, dtype)


@pytest.fixture(scope="module")
def measured() -> dict:
    """Peak bytes of every shape by phase, and the page of bench/memory.py, in a process of their
    own: see the end of this file."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak resident memory by phase is read from Linux's /proc")
    own = dict(env=ENV, capture_output=True, text=True, timeout=PATIENCE)
    done = subprocess.run([sys.executable, __file__], **own)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", SHAPES)
def test_the_preflight_is_near_the_measured_peak(name, measured):
    """Within 8 %: what the libraries have for themselves, 5 MB or so of some 150.  It sees a second
    copy of a wide matrix or of the logits.  bf16 on a CPU has buffers of its own on top."""
    (m, c), found = SHAPES[name], measured[name]
    expected, most = peaks(preflight(m, c)), 0.15 if c.dtype == "bfloat16" else 0.08
    assert max(found["rollout"], found["update"]) > 150 * 2**20  # large beside any noise
    assert expected == {k: pytest.approx(found[k], rel=most) for k in expected}


# ------------------------------------------------------------------ the count


def test_what_outlives_both_phases_the_cache_and_the_activations_in_closed_form():
    """Recomputation keeps the blocks' inputs alone."""
    m, n = SIZES["Qwen3-0.6B"], 596_049_920
    c = Config(max_new=2048, rows=64, microbatch=8192, dtype="bfloat16")
    parts, again = (preflight(m, replace(c, recompute=x), "cuda", 256) for x in (False, True))
    sizes = {k: parts[k] for k in ("weights", "bf16 copy", "optimizer", "gradients")}
    assert sizes == {"weights": 4 * n, "bf16 copy": 2 * n, "optimizer": 8 * n, "gradients": 4 * n}
    assert preflight(m, replace(c, dtype="float32"), "cuda", 256)["bf16 copy"] == 0
    assert parts["KV cache"] == 28 * 64 * 2304 * 2 * 8 * 128 * 2
    assert parts["activations"] == 28 * 8192 * kept_by_block(m, 2, True)
    assert again["activations"] == 28 * 8192 * 1024 * 2
    assert peaks(again)["update"] < peaks(parts)["update"]
    assert peaks(again)["rollout"] == peaks(parts)["rollout"]


def test_a_decode_step_and_drawing_in_closed_form():
    """The largest of prefill, of attention's scores and their softmax, and of the logits."""
    m = Shape(64, 1, 16, 1, 4, 64, vocab_size=64)
    c = Config(rows=100, max_new=900, prompts=50, group=2)
    parts = preflight(m, c, longest=100)
    assert parts["decoding"] == 100 * 4 * (64 + 2 * 16 * 1000)
    wide = preflight(replace(m, vocab_size=10**5), c, longest=100)
    assert wide["decoding"] == 100 * 10**5 * 16
    # a block's backward pass, while the head's part of a tied matrix waits for the embedding's
    long = replace(m, n_mlp=4096)
    tied, free = (preflight(replace(long, tie_embeddings=x), c)["backward"] for x in (True, False))
    assert tied - free == 64 * 64 * 4
    sgd = preflight(m, replace(c, optimizer="sgd"), longest=100)
    assert sgd == parts | dict(optimizer=0) and parts["optimizer"] == 2 * parts["weights"]


def test_measuring_may_sample_more_at_once_than_a_step():
    """The preflight of the small world counted 384 rows, and its test split samples 512."""
    m, c = SIZES["tiny"], Config()
    few, many = (preflight(m, c, longest=10, measured=n)["KV cache"] for n in (0, 381))
    assert few == 2 * 3 * 384 * 32 * 170 * 4 and many == few * 512 // 384


# ------------------------------------------------------------------ what it says


def checked(shape: Shape, c: Config, device: torch.device, longest: int) -> str:
    """`memory.check` of a model of this shape and prompts of so many tokens."""
    model = SimpleNamespace(shape=shape, head_weight=SimpleNamespace(device=device))
    world = SimpleNamespace(encode=lambda n: range(n))
    return memory.check(model, world, dict(train=[3, longest], val=[1], test=[2]), c)[1]


def has(monkeypatch, free: float, total: float) -> None:
    monkeypatch.setattr(memory, "room", lambda device: (int(free * GIB), int(total * GIB)))


def test_a_table_by_part_and_phase_or_one_line_for_a_small_run(monkeypatch):
    has(monkeypatch, 20, 24)
    small = checked(SIZES["tiny"], Config(), CPU, 10)
    assert re.fullmatch(r"memory: 0\.\d\d GiB at most with --rows 512, of 20.0 free on cpu", small)
    m, c = SIZES["Qwen3-0.6B"], Config(max_new=1024, rows=32, dtype="bfloat16", recompute=True)
    first, *rows = checked(m, c, CPU, 300).splitlines()
    cells = {re.split("  +", row.strip())[0]: row.split()[-2:] for row in rows}
    totals = peaks(preflight(m, c, CPU, 300))
    assert cells["together"] == [f"{x / GIB:.2f}" for x in totals.values()]
    assert cells["weights"] == ["2.22", "2.22"]
    assert f" {max(totals.values()) / GIB:.2f} GiB" in first and "fit" not in first
    assert rows[0].split() == ["GiB", "rollout", "update"]
    monkeypatch.setattr(memory, "room", lambda device: None)
    assert "free" not in checked(m, c, CPU, 300)


@pytest.mark.parametrize("limit", (6, 9, 12, 20, 80))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_every_way_out_that_is_named_fits_and_half_the_change_does_not(limit, dtype):
    m, c = SIZES["Qwen3-0.6B"], Config(max_new=2048, microbatch=16384, dtype=dtype)
    limit *= GIB

    def phase(name: str, **changes) -> int:
        return memory.demand(m, c, CPU, 256, **changes)[name]

    said = memory.advice(m, c, limit, CPU, 256)
    if limit < 7 * GIB:  # weights, AdamW in 8 bit and gradients, 10 bytes each, are nearly that
        assert said.startswith("no other flag is enough")
        assert phase("update", recompute=True, microbatch=1, optimizer="adamw8") > limit
        return
    ways = said.removesuffix(" would fit").split(", or ")
    assert said.endswith(" would fit") and len(set(ways)) == len(ways) > 0
    for way in ways:
        changes = {"recompute": True} if "--recompute" in way else {}
        changes |= {k: int(v) for k, v in re.findall(r"--(rows|microbatch) (\d+)", way)}
        changes |= dict(re.findall(r"--(dtype|optimizer) (\w+)", way))
        typed = " ".join(flags.typed(changes)).replace("=", " ")
        assert sorted(typed.split()) == sorted(way.split())
        assert max(phase(k, **changes) for k in memory.PHASES) <= limit
        for name, where in (("rows", "rollout"), ("microbatch", "update")):
            if name in changes:
                assert phase(where, **changes | {name: 2 * changes[name]}) > limit


def test_what_cannot_fit_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    """What fits only when others have gone is said."""
    monkeypatch.chdir(tmp_path)
    m, c = SIZES["Qwen3-0.6B"], Config(max_new=1024, rows=64, dtype="bfloat16", recompute=True)
    has(monkeypatch, 13, 24)
    first = checked(m, c, CPU, 300).splitlines()[0]
    assert "of 13.0 free on cpu: not now; --rows " in first and first.endswith(" would fit")
    has(monkeypatch, 13, 13)
    with pytest.raises(UserError, match="it cannot fit; --rows [^\n]* would fit$"):
        checked(m, c, CPU, 300)
    has(monkeypatch, 0.001, 0.001)
    assert fork_gpt.main("--pretrain-steps 1 --device cpu --out here".split()) == 2
    (error,) = re.findall("^fork_gpt.py: .*", said := capsys.readouterr().err, re.M)
    assert "cannot fit; no other flag is enough" in error and "Traceback" not in said
    assert not Path("here").exists()


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="only Linux says so")
def test_room_is_what_linux_says_or_the_container(monkeypatch):
    monkeypatch.setattr(memory, "container", lambda folder: (math.inf, 0.0))
    free, total = memory.room(CPU)
    assert total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < free <= total
    block = torch.ones(2**26)  # 256 MiB: what this process holds already is its own
    assert memory.room(CPU)[0] > free - block.nbytes // 2
    del block
    monkeypatch.setattr(memory, "container", lambda folder: (3 * GIB, 2.5 * GIB))
    mine = memory.room(CPU)[0] - GIB / 2  # of the half that is left, and of what is its own
    assert memory.room(CPU)[1] == 3 * GIB and 0 < mine < 2 * GIB


def test_a_containers_limit_is_read_in_both_versions(tmp_path):
    """A run that fits the machine was started in a container that ends it."""
    files = {"memory.max": "4096", "memory.current": "3000", "memory.stat": "inactive_file 1000"}
    old = {
        "memory/memory.limit_in_bytes": "4096", "memory/memory.usage_in_bytes": "3000",
        "memory/memory.stat": "total_cache 5\ntotal_inactive_file 500",
    }  # fmt: skip
    for name, texts, found in (("2", files, (4096, 2000)), ("1", old, (4096, 2500))):
        for file, text in texts.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text + "\n")
        assert memory.container(tmp_path / name) == found
    (tmp_path / "2/memory.max").write_text("max\n")
    assert memory.container(tmp_path / "2") == (math.inf, 2000)
    assert memory.container(tmp_path / "none") == (math.inf, 0)


def test_the_benchmark_prints_a_table_of_a_named_size(measured):
    out = measured["page"]
    assert out.startswith("memory: ")  # it once was a tuple
    rows = [x.split("|")[1:-1] for x in out.splitlines() if x.startswith("|")]
    assert [x[0].strip() for x in rows] == ["phase", "---", "rollout", "update"]
    assert {len(x) for x in rows} == {5} and all(float(x[1]) > 0 for x in rows[2:])
    assert float(re.search(r"max \|dlogp\| (\S+)", out)[1]) < 1e-4


if __name__ == "__main__":
    argv = "--size tiny --prompts 2 --group 2 --updates 1 --max-prompt 4 --max-new 8 --device cpu"
    sys.argv[1:] = argv.split()
    # first: where large blocks have been freed, what this takes is not seen
    with redirect_stdout(io.StringIO()) as page, suppress(SystemExit):
        runpy.run_path(str(ROOT / "bench/memory.py"), run_name="__main__")
    found = {k: bench.measure(m, c, c.max_prompt, CPU) for k, (m, c) in SHAPES.items()}
    print(json.dumps(found | dict(page=page.getvalue())))

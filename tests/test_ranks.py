"""One run cut over processes is the run of one process: mask, gradient, samples, checkpoints.

The tests start `torchrun` on this very file; `work` below is what each process does.
"""

import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from common import PATIENCE, TIMING  # noqa: E402

import fork_gpt  # noqa: E402
import parallel  # noqa: E402
from fork_gpt import Config  # noqa: E402
from infra import checkpoint, files  # noqa: E402
from model import Shape, Transformer  # noqa: E402
from rollout import Rollout, Sampling, generate  # noqa: E402
from tasks.pretrain import make_optimizer  # noqa: E402

SHAPE = Shape(32, 2, 4, 2, 8, 48, vocab_size=64)
# KV heads and whether the head is the embedding; the first three meet every case of `placed`
KINDS = [(1, True), (2, False), (4, True), (1, False), (2, True), (4, False)]
SHAPES = [replace(SHAPE, n_kv_head=k, tie_embeddings=tied) for k, tied in KINDS]
BASE = Config(lr=1e-2, microbatch=60, rho=0.3)
CASES = {keep: replace(BASE, keep=keep) for keep in ("bottom", "random", "all")}
CASES["divided by all"] = replace(BASE, normalize="all", dual_clip=2.0)
CASES["nothing kept on some rank"] = replace(BASE, rho=0.01)
CASES["pool of a micro-batch"] = replace(BASE, pool="microbatch")
JOBS = [("top", shape, BASE, range(11)) for shape in SHAPES[:3]]
JOBS += [(name, SHAPE, c, range(11)) for name, c in CASES.items()]
JOBS += [("one response: all ranks but one have none", SHAPE, BASE, [10])]
SLOW = [("top", shape, BASE, range(11)) for shape in SHAPES[3:]]

# ---------------------------------------------------------------------- in every process


def init(shape: Shape, dtype: torch.dtype = torch.float64) -> Transformer:
    return Transformer(shape).init_weights(torch.Generator().manual_seed(0)).to(dtype)


KEPT, TALLY = [], fork_gpt.tally  # the numbers of the tokens that each update kept


def tally(c, h, kinds, number, N, mask):
    KEPT.append(number[mask].tolist())
    return TALLY(c, h, kinds, number, N, mask)


@cache
def samples_of(shape: Shape, n: int = 10) -> tuple[Rollout, torch.Tensor]:
    """Answers of very different lengths, the last with a third of all tokens; advantages."""
    model = init(shape)
    out = generate(model, [[1, 2, 3], [4, 5]] * (n // 2), 1, 12, 0, seed=3)
    long = generate(model, [[7, 8]], 1, 60, None, seed=3)
    return Rollout.join([out, long]), torch.linspace(-1.3, 1.7, n + 1, dtype=torch.float64)


def three_steps(model: Transformer, samples, advantages, which, c: Config) -> dict:
    """Three updates with AdamW: what was kept, loss, norm, first gradient, last parameters."""
    optimizer, ranks = make_optimizer(parallel.masters(model), c.lr, 0.1, 0.999), parallel.here()
    out = dict(kept=[], columns=[], norm=[])
    for u in range(3):
        sums = fork_gpt.update(model, samples, advantages, [*which], c, lots=u, first=u == 0)
        kept = ranks.gather(KEPT.pop())
        out["kept"].append(sorted(x for part in kept for x in part))
        out["columns"].append([*fork_gpt.columns(sums, c).values()])
        out["norm"].append(parallel.clip_gradients(model, 0.01))
        if u == 0:
            out["gradient"] = by_way_of(model, [p.grad for p in parallel.masters(model)])
        optimizer.step()
        optimizer.zero_grad()
    return out | dict(parameters=parallel.state_of(model))


@torch.no_grad()
def by_way_of(model: Transformer, parts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Whole tensors from the parts that ranks hold of them, put in the place of the weights."""
    masters = parallel.masters(model)
    kept = [p.clone() for p in masters]
    for p, part in zip(masters, parts, strict=True):
        p.copy_(part)
    out = parallel.state_of(model)
    for p, old in zip(masters, kept, strict=True):
        p.copy_(old)
    return out


def differs(a: dict, b: dict) -> float:
    """The largest difference of two dicts of tensors, each relative to its largest value."""
    return max(((a[k] - b[k]).abs().max() / b[k].abs().max()).item() for k in b)


def compare(found: dict, expected: dict) -> list[str]:
    wrong = ["kept"] if found["kept"] != expected["kept"] else []
    wrong += ["norm"] * (found["norm"] != pytest.approx(expected["norm"], rel=1e-9))
    for x, y in zip(found["columns"], expected["columns"], strict=True):  # entropies: fp32 sums
        wrong += ["columns"] * (x != pytest.approx(y, rel=1e-6, abs=1e-6))
    tensors = ("gradient", "parameters")
    return wrong + [k for k in tensors if not differs(found[k], expected[k]) < 1e-9]


def check_steps(ranks: parallel.Ranks, jobs: list[tuple], expected: list[dict]) -> list[str]:
    """Every job, cut up, against itself alone."""
    wrong = []
    for (name, shape, c, which), alone in zip(jobs, expected, strict=True):
        if c.pool == "microbatch" and ranks.dp > 1:
            continue  # its pools are cut as memory is: another layout has others
        whole = init(shape)
        samples, advantages = samples_of(shape)
        model = parallel.place_weights(whole, torch.float64)
        found = three_steps(model, samples, advantages, which, c)
        wrong += [f"{name}, {shape}: {k}" for k in compare(found, alone)]
    return wrong


def check_sampler(ranks: parallel.Ranks, alone: dict) -> list[str]:
    """Sampled by the cut model in fp32: greedy text and log-probs as alone, one text on all tp
    ranks; weights are let go of."""
    whole = init(SHAPE, torch.float32)
    torch.set_default_dtype(torch.float32)
    model = parallel.place_weights(whole, torch.float32)
    torch.set_default_dtype(torch.float64)
    wrong = []
    for how, expected in alone.items():
        got = generate(model, [[1, 2, 3], [4, 5]], 3, 20, 0, how, seed=3)
        if got.tokens.tolist() != expected.tokens.tolist():
            wrong.append(f"text at {how.temperature}")
        elif (got.logprobs - expected.logprobs).abs().max() > 1e-5:
            wrong.append(f"log-probs at {how.temperature}")
        if any(t.tolist() != got.tokens.tolist() for t in ranks.all(got.tokens, "tp")):
            wrong.append("tp ranks drew different tokens")
    if any(p.device.type != "meta" for p in model.skeleton.parameters()):
        wrong.append("gathered weights were kept")
    return wrong


def tokens_of(ranks: parallel.Ranks) -> list[str]:
    """Samples exchanged over dp come back in the order of the problems."""
    mine = [torch.full((2 + ranks.dp_rank,), float(ranks.dp_rank)), torch.tensor([True, False])]
    got = [[x.tolist() for x in parallel.gathered(t)] for t in mine]
    want = [[float(r)] * (2 + r) for r in range(ranks.dp)], [[True, False]] * ranks.dp
    return [] if tuple(got) == want else [f"gathered {got}"]


def check_checkpoints(ranks: parallel.Ranks, folder: Path, last: str, name: str) -> list[str]:
    """Go on from the checkpoint of another layout, exactly; one step; leave one of this layout."""
    whole = init(SHAPE)
    samples, advantages = samples_of(SHAPE)
    torch.nn.init.zeros_(next(whole.parameters()))  # the checkpoint says what it is
    model = parallel.place_weights(whole, torch.float64) if ranks.mesh else whole
    optimizer = make_optimizer(parallel.masters(model), 1e-2, 0.1, 0.999)
    wrong, held = [], parallel.held(model, optimizer)
    more = checkpoint.load_parts(folder / last / "000001", held) if last else dict(steps=0)
    for p in optimizer.state.values():
        p["step"].fill_(more["steps"])
    if last:
        expected = torch.load(folder / f"{last}.pt")
        moments = {k: x for k, (_, x) in held.items()}
        for k, x in expected["whole"].items():
            place = held[k][0]
            part = x[tuple(slice(a, a + n) for a, n in place)]
            wrong += [f"{k} after {last}"] * (not torch.equal(part, moments[k]))
    fork_gpt.update(model, samples, advantages, [*range(11)], BASE, lots=0, first=False)
    parallel.clip_gradients(model, 1.0)
    optimizer.step()
    steps = dict(steps=more["steps"] + 1)
    checkpoint.save_parts(folder / name, 1, held, steps, ranks.number, ranks.wait)
    everything = {}  # in one piece, for the next layout to compare with
    for kind in ("weight", "exp_avg", "exp_avg_sq"):
        parts = [x.clone() for k, (_, x) in held.items() if k.split()[0] == kind]
        everything |= {f"{kind} {k}": x for k, x in by_way_of(model, parts).items()}
    if ranks.first:
        torch.save(dict(whole=everything), folder / f"{name}.pt")
    ranks.wait()
    return wrong


def work(tps: list[int], out: Path, jobs: list[tuple]) -> None:
    """One process: everything alone, then in each layout, which go on from each other."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    fork_gpt.tally = tally
    expected = []
    for _, shape, c, which in jobs:
        samples, advantages = samples_of(shape)
        expected.append(three_steps(init(shape), samples, advantages, which, c))
    hows = Sampling(0.0), Sampling()
    model = init(SHAPE, torch.float32)
    torch.set_default_dtype(torch.float32)
    alone = {how: generate(model, [[1, 2, 3], [4, 5]], 3, 20, 0, how, seed=3) for how in hows}
    torch.set_default_dtype(torch.float64)
    rank, wrong = int(os.environ["RANK"]), []
    if rank == 0:
        wrong += check_checkpoints(parallel.here(), out, "", "alone")
    last = "alone"
    device = torch.device("cpu")
    with parallel.joined(1, device):
        for tp in tps:
            parallel.HERE = ranks = parallel.arranged(tp, device)
            ranks.wait()
            found = (
                check_steps(ranks, jobs, expected) + check_sampler(ranks, alone) + tokens_of(ranks)
            )
            name = f"dp{ranks.dp}tp{ranks.tp}"
            found += check_checkpoints(ranks, out, last, name)
            wrong += [f"{name}: {x}" for x in found]
            last = name
    files.WRITES = True
    if rank == 0:
        wrong += check_checkpoints(parallel.here(), out, last, "again alone")
    (out / f"{rank}.json").write_text(json.dumps(wrong))


if __name__ == "__main__":
    more = SLOW if sys.argv[3] == "slow" else []
    work([int(tp) for tp in sys.argv[1].split(",")], Path(sys.argv[2]), JOBS + more)

# ---------------------------------------------------------------------- the tests


def torchrun(n: int, *argv: object, cwd: Path, **more) -> subprocess.Popen:
    """`torchrun` with n processes of one thread each on this machine."""
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    module = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*module, "--nproc-per-node", str(n), *map(str, argv)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, cwd=cwd, env=env, **pipes | more)


slow = pytest.mark.slow


@pytest.mark.parametrize("n, tps, jobs", [
    (4, "2", "some"),  # dp 2 x tp 2: both ways of cutting at once
    pytest.param(2, "1,2", "slow", marks=slow), pytest.param(4, "1,2,4", "slow", marks=slow),
])  # fmt: skip
def test_every_layout_equals_one_process(n, tps, jobs, tmp_path):
    """fp64, tied and untied, 1, 2 and 4 KV heads: the same mask; loss, norm, gradient and three
    steps' parameters to 1e-9; the same samples; checkpoints that any layout continues."""
    p = torchrun(n, __file__, tps, tmp_path, jobs, cwd=tmp_path)
    out = p.communicate(timeout=PATIENCE)[0]
    assert p.returncode == 0, out
    for rank in range(n):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [], rank


FAULTS = """
import os, signal, sys
import fork_gpt, parallel, torch
from infra import watch
from tasks.countdown import Countdown

kind, rank, at = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
watch.SILENCE, whole, first, save = 8.0, fork_gpt.update, fork_gpt.step, torch.save
updates, calls, reward = 0, 0, Countdown.reward

def count(frame, what, _):
    global calls
    calls += what == "call"
    if kind == "KILL" and calls == at:
        os.kill(os.getpid(), signal.SIGKILL)

def step(*args):
    if int(os.environ["RANK"]) == rank:
        sys.setprofile(count)  # the steps, and what is between them
    return first(*args)

def update(model, *args, **more):
    global updates
    updates += 1
    if updates == at and int(os.environ["RANK"]) == rank:
        if kind == "TERM":
            os.kill(os.getpid(), signal.SIGTERM)
        if kind == "bug":
            raise RuntimeError("a bug here")
        if kind == "nan":
            parallel.masters(model)[3].data.fill_(float("nan"))
    return whole(model, *args, **more)

def grade(world, problem, text):
    if kind == "grading" and updates > at and int(os.environ["RANK"]) == rank:
        raise ZeroDivisionError("no such answer")
    return reward(world, problem, text)

def full(state, file, *args, **more):
    if kind == "disk" and int(os.environ["RANK"]) == rank and "tensors" in state:
        raise OSError(28, "No space left on device")
    save(state, file, *args, **more)

fork_gpt.update, fork_gpt.step, torch.save, Countdown.reward = update, step, full, grade
code = fork_gpt.main(sys.argv[4:])
if kind == "count" and calls:
    open("calls", "w").write(str(calls))
sys.exit(code)
"""
SMALL = "--n-numbers 2 --max-number 6 --max-value 12 --pretrain-steps 120 --prompts 4 --group 4 "
SMALL += "--max-new 24 --overlong 8 --eval-k 1 --eval-every 3 --save-every 1 --seed 5 --steps 4"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of two processes that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "faults.py").write_text(FAULTS)
    p = torchrun(2, "faults.py", "count", 1, 0, *SMALL.split(), "--out", "runs/x", cwd=folder)
    out = p.communicate(timeout=PATIENCE)[0]
    assert p.returncode == 0, out
    assert out.count("base model, test split") == 1, "one voice"
    return folder


def told(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in open(folder / "runs/x/metrics.jsonl")]
    return [{k: x for k, x in line.items() if k not in TIMING} for line in lines]


GONE = "rank {}: gave no sign of life"


@pytest.mark.parametrize(
    "kind, rank, times, says",
    [
        ("KILL", 1, 1, GONE.format(1)),
        pytest.param("KILL", 0, 10, GONE.format(0), marks=slow),
        pytest.param("KILL", 1, 10, GONE.format(1), marks=slow),
        pytest.param("bug", 1, 1, "rank 1: RuntimeError: a bug here", marks=slow),
        pytest.param("grading", 1, 1, "rank 1: ZeroDivisionError: no such answer", marks=slow),
        pytest.param("nan", 1, 1, "are not finite|: not finite", marks=slow),
        pytest.param("disk", 0, 1, "rank 0: cannot write .*No space .*; what was", marks=slow),
        pytest.param("TERM", 1, 1, "stopped; to continue: torchrun --nproc-per-no", marks=slow),
    ],
)
def test_what_ends_one_ends_all(kind, rank, times, says, whole, tmp_path):
    """Never a hang, one line that says which rank and why; the same command then ends with the
    weights and the log of a run that nothing disturbed.  It is killed at a random one of the calls
    of Python functions of a step, or of the checkpoint after it."""
    (tmp_path / "faults.py").write_text(FAULTS)
    (tmp_path / "runs").mkdir()
    for base in (whole / "runs").glob("base-*"):
        (tmp_path / "runs" / base.name).symlink_to(base)
    flags, rng = [*SMALL.split(), "--out", "runs/x"], random.Random(rank)
    a_step = int((whole / "calls").read_text()) // 4
    for _ in range(times):
        at = rng.randrange(1, a_step * 5 // 4) if kind == "KILL" else 3
        p = torchrun(2, "faults.py", kind, rank, at, *flags, cwd=tmp_path)
        out = p.communicate(timeout=PATIENCE)[0]  # a collective would wait for hours
        assert p.returncode != 0, out
        lines = [x for x in out.splitlines() if x.startswith("fork_gpt: ") or "stopped; to" in x]
        assert len(lines) == 1 and re.search(says, lines[0]), out
    if kind in ("KILL", "TERM"):
        p = torchrun(2, ROOT / "fork_gpt.py", *flags, cwd=tmp_path)
        out = p.communicate(timeout=PATIENCE)[0]
        assert p.returncode == 0, out
        a, b = (torch.load(f / "runs/x/model.pt")["weights"] for f in (whole, tmp_path))
        assert all(torch.equal(a[k], b[k]) for k in a) and told(whole) == told(tmp_path)

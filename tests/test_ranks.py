"""One step cut over processes is the step of one process: mask, loss, gradient, norm, parameters."""

import json
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import parallel  # noqa: E402
from fork_gpt import Config, update  # noqa: E402
from model import Shape, Transformer  # noqa: E402
from rollout import Rollout, generate  # noqa: E402
from tasks.pretrain import make_optimizer  # noqa: E402

SHAPE = Shape(32, 2, 4, 2, 8, 48, vocab_size=64)
SHAPES = [
    replace(SHAPE, n_kv_head=k, tie_embeddings=t) for k, t in product((1, 2, 4), (True, False))
]
BASE = Config(lr=1e-2, microbatch=60, rho=0.3)
CASES = {keep: replace(BASE, keep=keep) for keep in ("top", "bottom", "random", "all")}
CASES["all normalised"] = replace(BASE, normalize="all", dual_clip=2.0)
CASES["micro-batch pool"] = replace(BASE, pool="microbatch")


def init(shape: Shape) -> Transformer:
    return Transformer(shape).init_weights(torch.Generator().manual_seed(0)).double()


def samples_of(model: Transformer, n: int = 10) -> tuple[Rollout, torch.Tensor]:
    """Answers of very different lengths: the longest has a third of all tokens."""
    out = generate(model, [[1, 2, 3], [4, 5]] * (n // 2), 1, 12, 0, seed=3)
    long = generate(model, [[7, 8]], 1, 60, None, seed=3)
    return Rollout.join([out, long]), torch.linspace(-1.3, 1.7, n + 1, dtype=torch.float64)


def three_steps(model: Transformer, samples, advantages, which: list[int], c: Config) -> dict:
    """Three updates with AdamW: what each kept, its loss and norm; gradients, final parameters."""
    optimizer = make_optimizer(parallel.masters(model), c.lr, 0.1, 0.999)
    out = dict(kept=[], loss=[], norm=[], tau=[])
    for u in range(3):
        lots = torch.Generator().manual_seed(u)
        done = update(model, samples, advantages, which, c, lots, first=u == 0)
        ranks = parallel.here()
        kept = ranks.gather(done.number[done.mask].tolist())
        out["kept"].append(sorted(x for part in kept for x in part))
        out["loss"].append(sum(ranks.gather(done.loss)) / ranks.dp)
        out["tau"].append(done.taus)
        out["norm"].append(parallel.clip_gradients(model, 0.01))
        if u == 0:
            out["gradient"] = whole_gradients(model)
        optimizer.step()
        optimizer.zero_grad()
    return out | dict(parameters=parallel.state_of(model))


def whole_gradients(model: Transformer) -> dict[str, torch.Tensor]:
    """The gradients that the optimizer gets, of all ranks, by way of the parameters."""
    with torch.no_grad():
        kept = [p.clone() for p in parallel.masters(model)]
        for p in parallel.masters(model):
            p.copy_(p.grad)
        out = parallel.state_of(model)
        for p, old in zip(parallel.masters(model), kept, strict=True):
            p.copy_(old)
    return out


def differs(a: dict, b: dict) -> float:
    """The largest relative difference of two dicts of tensors, each by its largest value."""
    return max(((a[k] - b[k]).abs().max() / b[k].abs().max()).item() for k in b)


def compare(name: str, found: dict, expected: dict) -> list[str]:
    wrong = [k for k in ("kept",) if found[k] != expected[k]]
    for k in ("loss", "norm"):
        pairs = zip(found[k], expected[k], strict=True)
        wrong += [k] * any(abs(x - y) > 1e-9 * abs(y) for x, y in pairs)
    wrong += [k for k in ("gradient", "parameters") if not differs(found[k], expected[k]) < 1e-9]
    return [f"{name}: {k}" for k in wrong]


def work(tp: int, out: Path) -> None:
    """One process of a layout: every shape and case against itself alone."""
    torch.set_num_threads(1)
    jobs = []
    for shape, (name, c) in product(SHAPES, CASES.items()):
        if shape == SHAPES[2] or name in ("top", "random"):
            model = init(shape)
            samples, advantages = samples_of(model)
            for which in ([*range(11)], [10]):  # one response: all ranks but one have none
                expected = three_steps(init(shape), samples, advantages, which, c)
                jobs.append((f"{name}, {shape}, {len(which)}", shape, c, which, expected))
    wrong = []
    with parallel.joined(tp, torch.device("cpu")) as ranks:
        for name, shape, c, which, expected in jobs:
            whole = init(shape)
            samples, advantages = samples_of(whole)
            model = parallel.place_weights(whole, torch.float64)
            found = three_steps(model, samples, advantages, which, c)
            if c.pool == "minibatch" or ranks.dp == 1:  # the other pool depends on the cut
                wrong += compare(name, found, expected)
        (out / f"{ranks.number}.json").write_text(json.dumps(dict(wrong=wrong, jobs=len(jobs))))


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    work(int(sys.argv[1]), Path(sys.argv[2]))

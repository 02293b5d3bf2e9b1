"""What one step sends between processes, beside what the plan says, and the time it takes.

    torchrun --standalone --nproc-per-node 2 bench/parallel.py             # dp 2
    torchrun --standalone --nproc-per-node 4 bench/parallel.py --tp 2      # dp 2 x tp 2

A random model of hidden 256, 4 layers, vocabulary 4,096, fp32; 8 prompts of 5 tokens x 8 responses
of 64, one rollout and two updates, on one thread each.  Bytes are those that a process receives: of
n a gather or scatter brings (n - 1)/n of the whole, a sum twice that.  Seconds are those of gloo's
own threads, waiting for each other included.
"""

import argparse
import random
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import parallel
from fork_gpt import Config, group_advantages, update
from infra import plan
from infra.memory import cut
from model import Shape, Transformer
from tasks.ask import ask
from tasks.pretrain import make_optimizer

SHAPE = Shape(256, 4, 8, 4, 32, 768, vocab_size=4096)
C = Config(
    prompts=8, group=8, updates=2, oversample=1.0, rounds=1, max_new=64, max_prompt=5, rows=64
)  # fmt: skip
PLANNED = {  # the plan's words for what the dispatcher sees
    ("rollout", "dp", "allgather_base"): "weights, all-gather over dp",
    ("rollout", "tp", "allreduce"): "activations, all-reduce over tp",
    ("rollout", "tp", "allgather"): "logits, all-gather over tp",
    ("update", "dp", "allgather_base"): "weights, all-gather over dp",
    ("update", "dp", "reduce_scatter_base"): "gradients, reduce-scatter over dp",
    ("update", "tp", "allreduce"): "activations, all-reduce over tp",
}


class Received(TorchDispatchMode):
    """Bytes that this process receives, by phase, group and collective."""

    def __init__(self, ranks: parallel.Ranks):
        super().__init__()
        self.ranks, self.phase, self.bytes = ranks, "", Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            name = func.__name__.split(".")[0].strip("_")
            boxed = next(x for x in args if isinstance(x, torch.ScriptObject) and "Group" in str(x))
            group = dist.ProcessGroup.unbox(boxed)
            over = "tp" if group.group_name == self.ranks.mesh.get_group("tp").group_name else "dp"
            n, whole = group.size(), args[1] if name == "reduce_scatter_base" else args[0]
            size = sum(x.nbytes for x in tree_leaves(whole) if isinstance(x, torch.Tensor))
            share = (2 if name == "allreduce" else 1) * (n - 1) / n
            self.bytes[self.phase, over, name] += size * share
        return func(*args, **(kwargs or {}))


def one_step(model: Transformer, optimizer, count: Received, seed: int) -> float:
    """One rollout and two updates; its seconds."""
    start, rng = time.perf_counter(), random.Random(seed)
    tokenizer = SimpleNamespace(eos=None, decode=tuple)
    odd = SimpleNamespace(  # the reward is the share of odd ids
        tokenizer=lambda: tokenizer,
        encode=list,
        kinds=None,
        reward=lambda _, ids: sum(i % 2 for i in ids) / len(ids),
    )
    problems = [[rng.randrange(SHAPE.vocab_size) for _ in range(5)] for _ in range(C.prompts)]
    count.phase = "rollout"
    samples, _, rewards = ask(model, odd, problems, C.group, C.max_new, seed=seed, rows=C.rows)
    advantages, n = group_advantages(rewards, C.group), C.prompts * C.group
    count.phase = "update"
    for u in range(C.updates):
        which = list(range(u * n // C.updates, (u + 1) * n // C.updates))
        update(model, samples, advantages, which, C, seed, first=u == 0)
        parallel.clip_gradients(model, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tp", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(1)
    with parallel.joined(a.tp, torch.device("cpu")) as ranks:
        whole = Transformer(SHAPE).init_weights(torch.Generator().manual_seed(0))
        model = parallel.place_weights(whole, torch.float32)
        optimizer = make_optimizer(parallel.masters(model), 1e-3, 0.0, 0.999)
        count = Received(ranks)
        one_step(model, optimizer, count, 0)  # a warm-up
        with count:
            one_step(model, optimizer, count, 1)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            seconds = one_step(model, optimizer, count, 2)
        gloo = [e for e in seen.key_averages() if e.key.startswith("gloo:")]
        waited = sum(e.cpu_time_total for e in gloo) / 1e6
        c = replace(C, tp=a.tp)
        planned = plan.traffic(cut(SHAPE, a.tp), c, 1, ranks.dp)
        print(f"dp {ranks.dp} x tp {ranks.tp}: a step of {seconds:.2f} s, {waited:.2f} s in sums")
        print(f"  {'received by a process':46s}{'MiB':>10s}{'plan':>10s}")
        for key, size in sorted(count.bytes.items()):
            name = PLANNED.get(key)
            expected = planned.get((key[0], name), (0.0,))[0]
            said = f"{expected / 2**20:10.2f}" if name else f"{'-':>10s}"
            print(f"  {f'{key[0]}: {name or key[2]} ({key[1]})':46s}{size / 2**20:10.2f}{said}")


if __name__ == "__main__":
    main()

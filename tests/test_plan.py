"""The plan against a dry run: 32B on 128 GPUs with no memory behind its tensors.  Few layers say as
much as all 64 of them, which take a minute."""

import json
import os
import re
import subprocess
import sys
import weakref
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from common import PATIENCE, ROOT, config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fork_gpt
import model as network
import parallel
from infra import memory
from infra.memory import cut
from model import SIZES, Shape
from rollout import Sampling, Slots

DP, TP = 16, 8
FLAGS = "--model Qwen3-32B --data x --dtype bfloat16 --recompute --prompts 512 --group 16 --rows 32"
FLAGS += " --updates 16 --oversample 3 --rounds 10 --max-new 20480 --microbatch 22528"
PAPER = config(*FLAGS.split(), f"--tp={TP}")


class Bytes(TorchDispatchMode):
    """Counts what the tensors that are alive would take, and the collectives."""

    def __init__(self):
        super().__init__()
        self.live, self.now, self.peak, self.calls = {}, 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0].strip("_")
        if func.namespace == "c10d":
            self.calls[name] = self.calls.get(name, 0) + 1
        for x in tree_leaves((out, args)):
            if type(x).__name__ == "FakeTensor" and x.device.type != "meta":
                self.count(x.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def count(self, storage: torch.UntypedStorage) -> None:
        key, n = storage._cdata, storage.nbytes()
        if key not in self.live:
            weakref.finalize(storage, self.drop, key)
        self.now += n - self.live.get(key, 0)
        self.live[key] = n

    def drop(self, key: int) -> None:
        self.now -= self.live.pop(key)


def shape(layers: int) -> Shape:
    return replace(SIZES["Qwen3-32B"], n_layer=layers)


def dry_run(layers: int) -> dict:
    """One rank of 128: a decode step of all rows, then an update of one micro-batch."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=DP * TP)
    parallel.HERE = parallel.arranged(TP, torch.device("cpu"))
    count, resize = Bytes(), torch.UntypedStorage.resize_

    def resized(storage: torch.UntypedStorage, n: int) -> torch.UntypedStorage:
        out = resize(storage, n)  # how FSDP frees and takes: no operation shows it
        if storage._cdata in count.live:
            count.count(storage)
        count.peak = max(count.peak, count.now)
        return out

    torch.UntypedStorage.resize_ = resized
    c, found = PAPER, {}
    length, lengths = c.max_prompt + c.max_new, [c.microbatch]
    kept = int(c.rho * c.max_new)
    with FakeTensorMode(allow_non_fake_inputs=True), count:
        model = parallel.shard(shape(layers), 151_669, torch.bfloat16)
        model.recompute = True
        state = [torch.zeros_like(p) for p in model.masters for _ in (0, 1)]
        found["at rest"], count.peak, count.calls = count.now, 0, {}
        with torch.no_grad(), parallel.whole(model) as plain:
            stream = torch.zeros(c.rows, dtype=torch.long)
            slots = Slots(plain, Sampling(), 0, stream, c.rows, length, c.max_new)
            slots.n, slots.longest = c.rows, length - 1
            slots.step()
            del slots
        found["rollout"], count.peak = count.peak, 0
        found["calls of a decode step"], count.calls = count.calls, {}
        ids = torch.zeros(c.microbatch, dtype=torch.long)

        def packed(_, q, k, v):
            return network.attend(q, k, v, None, lengths)

        # the bookkeeping of lengths is by numbers, and fake tensors have none
        model.hidden = lambda tokens, _: model.backbone(tokens, ids, packed)
        logprobs, _ = model(ids, None, ids[:kept], ids[:kept])
        logprobs.sum().backward()
        found["update"], found["calls of a micro-batch"] = count.peak, count.calls
        del state
    return found


if __name__ == "__main__":
    print(json.dumps(dry_run(int(sys.argv[1]))))


@pytest.fixture(scope="module", params=[8, pytest.param(64, marks=pytest.mark.slow)])
def found(request) -> dict:
    own = dict(env=os.environ | dict(PYTHONPATH=str(ROOT)), timeout=PATIENCE)
    line = [sys.executable, __file__, str(request.param)]
    out = subprocess.run(line, **own, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-2000:]
    return json.loads(out.stdout.splitlines()[-1]) | dict(shape=shape(request.param))


def test_32b_needs_what_the_plan_says(found):
    """Every rank's peak within 15% of the table, in both phases."""
    parts = memory.preflight(cut(found["shape"], TP), PAPER, "cpu", dp=DP)
    assert found["at rest"] == pytest.approx(parts["weights"] + parts["optimizer"], rel=0.01)
    for phase, total in memory.peaks(parts).items():  # one decode step has fewer buffers
        assert found[phase] == pytest.approx(total - parts["samples"], rel=0.15), phase


def test_the_collectives_are_those_that_parallel_py_names(found):
    """Of L blocks, with activation checkpointing and a head of two chunks, computed twice."""
    L, chunks = found["shape"].n_layer, 2
    decode = dict(allgather_base=L + 1, allreduce=2 * L + 1, allgather=1)  # weights once a rollout
    assert found["calls of a decode step"] == decode
    sums = L * (2 + 1 + 2) + 1 + chunks * (2 + 2 + 1)
    batch = dict(allgather_base=2 * L + 1, allreduce=sums, reduce_scatter_base=L + 1)
    assert found["calls of a micro-batch"] == batch


@pytest.mark.parametrize("flags, says", [
    ("--plan 16x8 --tp 8", "dp 16 x tp 8"),
    ("--plan 1x8 --tp 8", "do not fit: .*; 2 x 8 GPUs would do"),
    ("--plan 1x8 --tp 8 --gpu 141", r"--rows \d+ of 22,528"),
])  # fmt: skip
def test_the_command_needs_no_weights(flags, says, capsys):
    assert fork_gpt.main(f"{flags} {FLAGS}".split()) == 0
    assert re.search(says, capsys.readouterr().out)


@pytest.mark.parametrize("flags, why", [
    ("--plan 16", "NODESxGPUS"), ("--plan 1x8 --tp 16", "--tp 16"),
    ("--plan 1x5 --tp 5", "must divide n_head"), ("--plan 1x8 --gpu 0", "--gpu 0.0"),
    ("--gpu 141", "needs --plan"),
])  # fmt: skip
def test_a_plan_that_cannot_be(flags, why, capsys):
    assert fork_gpt.main([*flags.split(), "--model", "Qwen3-32B"]) == 2
    assert why in capsys.readouterr().err

"""The preflight's prediction beside the memory that a step really takes, by phase, and its speed.

    python bench/memory.py --size Qwen3-0.6B --dtype bfloat16 --recompute \\
        --prompts 16 --max-prompt 256 --max-new 2048 --microbatch 8192

The flags are those of fork_gpt.py that shape a step.  Random weights, prompts of --max-prompt
tokens, responses that nothing ends, every other one right: `fork_gpt.step` itself, once small so
that AdamW's moments exist, then once measured.  CUDA: torch.cuda.max_memory_allocated.  CPU
(Linux): peak resident memory above what a one-layer model's step has left behind, with blocks of 64
KiB or more given back to the system when freed.
"""

import gc
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fork_gpt
from fork_gpt import Config
from infra import flags, memory, weights
from infra.files import Clock, UserError
from model import SIZES, Shape, Transformer

# glibc, before the process starts: freed blocks leave the resident memory at once
MALLOC = dict(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")


class FixedWorld:
    """Problems are prompts; every text is full length, and every other one is right."""

    eos, stops = None, {}

    def __init__(self):
        self.n_graded = 0

    def tokenizer(self) -> "FixedWorld":
        return self

    def encode(self, problem: list[int]) -> list[int]:
        return problem

    def decode(self, ids: list[int]) -> str:
        return ""

    def kinds(self, ids: list[int]) -> list[int]:
        return [-1] * len(ids)

    def reward(self, problem: list[int], text: str) -> float:
        self.n_graded += 1
        return float(self.n_graded % 2)


class Peak:
    """Bytes in use above those at its making, and their peak since the last `reset`."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.start = 0
        self.start = self.read("VmRSS")

    def reset(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def read(self, field: str = "VmHWM") -> int:
        if self.cuda:
            return torch.cuda.max_memory_allocated() - self.start
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(x.split()[1] for x in lines if x.startswith(field))) - self.start


def measure(shape: Shape, c: Config, prompt: int, device: torch.device) -> dict:
    """One step's peak bytes by phase, and its line of metrics."""
    torch.manual_seed(0)
    world, c = FixedWorld(), replace(c, data="prompts")

    def state_of(shape: Shape) -> fork_gpt.State:
        with device:
            model = Transformer(shape).init_weights()
        return fork_gpt.begin(model, [], c, Clock())

    problems = [torch.randint(0, 300, (prompt,)).tolist() for _ in range(64)]
    # the libraries load, and on a CPU compile and keep kernels for these very shapes: no tensor's
    fork_gpt.step(state_of(replace(shape, n_layer=1)), world, problems, c)
    gc.collect()
    peak = Peak(device)
    state = state_of(shape)
    small = replace(c, prompts=1, updates=1, oversample=1.0, max_new=2)
    fork_gpt.step(state, world, [p[:2] for p in problems], small)
    collect, peaks = fork_gpt.collect, {}

    def collect_and_note(*args):
        out = collect(*args)
        peaks["rollout"] = peak.read()
        peak.reset()
        return out

    fork_gpt.collect = collect_and_note
    peak.reset()
    line = fork_gpt.step(state, world, problems, c)
    fork_gpt.collect = collect
    return dict(rollout=peaks["rollout"], update=peak.read(), line=line)


def table(shape: Shape, c: Config, device: torch.device) -> str:
    """Predicted and measured GiB by phase, tokens/s, and max |dlogp|, as markdown."""
    expected = memory.peaks(memory.preflight(shape, c, device))
    found = measure(shape, c, c.max_prompt, device)
    line = found["line"]
    rows = ["| phase | predicted GiB | measured GiB | error | tokens/s |", "|---|---|---|---|---|"]
    for phase, rate in (("rollout", "rollout_tok_s"), ("update", "update_tok_s")):
        sizes = f"{expected[phase] / memory.GIB:.3f} | {found[phase] / memory.GIB:.3f}"
        error = expected[phase] / found[phase] - 1
        rows.append(f"| {phase} | {sizes} | {error:+.1%} | {line[rate]:,.0f} |")
    tokens = f"{line['sampled_tokens']:,} sampled tokens"
    return "\n".join([*rows, "", f"{tokens}, max |dlogp| {line['max_dlogp']:.2g}"])


def main() -> int:
    try:
        c = Config(**flags.parse((Config,), sys.argv[1:], "bench/memory.py", __doc__))
        device = weights.device(c.device)
        if device.type == "cpu" and any(os.environ.get(k) != v for k, v in MALLOC.items()):
            os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | MALLOC)
        torch.set_num_threads(c.threads)
        here = SimpleNamespace(shape=SIZES[c.size], head_weight=torch.empty(0, device=device))
        splits = dict(train=[[0] * c.max_prompt], val=[], test=[])
        print(memory.check(here, FixedWorld(), splits, c)[1])
    except UserError as e:
        print(f"bench/memory.py: {e}", file=sys.stderr)
        return 2
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{c.threads} CPU thread(s)"
    mode = f"{c.dtype}{', recompute' * c.recompute}"
    print(f"\n{c.size}, {mode}, {where}, torch {torch.__version__}\n")
    print(table(SIZES[c.size], c, device))
    return 0


if __name__ == "__main__":
    sys.exit(main())

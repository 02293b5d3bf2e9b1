"""What a GPU does, measured: one table after the other into results/gpu.md.

    bash bench/gpu.sh [MINUTES]     # the whole; at most ten minutes, or so many
    python bench/gpu.py decode      # one section, to the terminal

Each section is a process of its own, stopped when the minutes are over.  The file is written anew,
atomically, after each; sections that it has already of this commit and hardware are kept, so the
command can be stopped and repeated.  `--toy` takes sizes for a CPU: what comes out says only that
the script works.
"""

import argparse
import json
import math
import random
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import rollout
from fork_gpt import group_advantages, top_entropy
from infra import files, weights
from infra.memory import parameters
from model import SIZES, Transformer
from rollout import Rollout, Sampling, Slots, generate

ROOT = Path(__file__).resolve().parent.parent
# bf16 flop/s with fp32 sums, dense, by the vendor's sheet
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


def timed(work: Callable[[], object], device: torch.device, repeat: int = 3) -> float:
    """Seconds of the fastest of some runs, after one that warms up."""
    out = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        out.append(time.perf_counter() - start)
    return min(out[1:])


def random_model(size: str, device: torch.device) -> Transformer:
    """A named shape in the dtype of its use here, bf16 on a GPU, with random weights."""
    with device:
        model = Transformer(SIZES[size]).init_weights()
    return model.to(torch.bfloat16 if device.type == "cuda" else torch.float32)


def prompts_of(n: int, length: int | Callable[[], int]) -> list[list[int]]:
    size = length if callable(length) else lambda: length
    return [[random.randrange(256) for _ in range(size())] for _ in range(n)]


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def table(head: str, rows: list[str]) -> str:
    return "\n".join([row(*head.split("|")), "|" + "---|" * len(head.split("|")), *rows])


# ---------------------------------------------------------------------- the sections


def tests(a: argparse.Namespace, device: torch.device) -> str:
    """`pytest -m cuda`: attention, decoding, precision, one rank of many, on this device."""
    argv = [sys.executable, "-m", "pytest", "-q", "tests/test_device.py"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    return "```\n" + "\n".join(done.stdout.strip().splitlines()[-8:]) + "\n```"


def run(a: argparse.Namespace, device: torch.device) -> str:
    """The default run: the same accuracy as on a CPU (0.70 to 0.76)?"""
    toy = "--size micro --pretrain-steps 60 --steps 2 --prompts 4 --eval-problems 16".split()
    argv = [sys.executable, "fork_gpt.py", "--device", device.type, "--out", f"{a.work}/default"]
    subprocess.run([*argv, *(toy if a.toy else [])], cwd=ROOT, capture_output=True, check=True)
    s = json.loads(Path(ROOT, a.work, "default/summary.json").read_text())
    names = "test_accuracy_base test_accuracy arithmetic max_dlogp wall_seconds".split()
    last = json.loads(Path(ROOT, a.work, "default/metrics.jsonl").read_text().splitlines()[-1])
    return table("|".join(names), [row(*(f"{(s | last).get(k, math.nan):.4g}" for k in names))])


def memory(a: argparse.Namespace, device: torch.device) -> str:
    """Predicted and measured peak memory of a step (bench/memory.py)."""
    shape = "--prompts 16 --group 8 --max-prompt 256 --max-new 1024 --rows 128 --microbatch 8192"
    shape = "--prompts 4 --group 4 --max-prompt 16 --max-new 32" if a.toy else shape
    out = []
    for size in ("micro",) if a.toy else ("Qwen3-0.6B", "Qwen3-1.7B"):
        argv = f"bench/memory.py --size {size} --dtype bfloat16 --recompute {shape}".split()
        argv += ["--device", device.type]
        done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True)
        found = [x for x in done.stdout.splitlines() if x.startswith("|") or "dlogp" in x]
        failed = done.stderr.strip().splitlines()[-1:] if done.returncode else []
        out += [f"`python {shlex.join(argv)}`", "", *found[:4], "", *found[4:], *failed, ""]
    return "\n".join(out)


def decode(a: argparse.Namespace, device: torch.device) -> str:
    """Tokens a second of decoding, 128 tokens behind each row; the bytes that a step must read
    (weights once, the cache of every row) as a share of what a copy moves in that time."""
    big = torch.empty(2**20 if a.toy else 2**30, dtype=torch.uint8, device=device)
    other = torch.empty_like(big)
    bandwidth = 2 * len(big) / timed(lambda: other.copy_(big), device)
    steps, rows_out = (4, []) if a.toy else (32, [])
    for size in ("micro",) if a.toy else ("Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-8B"):
        model = random_model(size, device)
        m, item = model.shape, model.head_weight.element_size()
        read = parameters(m) * item - m.vocab_size * m.n_embd * item * (not m.tie_embeddings)
        for n in (1, 4) if a.toy else (1, 64, 256):
            stream = torch.arange(n, device=device)
            length = 128 + 5 * steps
            slots = Slots(model, Sampling(), None, stream, n, length, 5 * steps)
            with torch.no_grad():
                slots.admit(prompts_of(n, 128), 0, 1)
                each = timed(lambda s=slots: [s.step() for _ in range(steps)], device) / steps
            cache = 2 * m.n_layer * m.n_kv_head * m.head_dim * item * n * (128 + 2.5 * steps)
            share = (read + cache) / each / bandwidth
            cells = f"{n / each:,.0f}", f"{1e3 * each:.2f}", f"{share:.0%}"
            rows_out.append(row(size, n, *cells, theirs(model, n, steps, device)))
        del model
    head = "shape|rows|tokens/s|ms a step|share of copy bandwidth|transformers generate, tokens/s"
    return f"Copy bandwidth {bandwidth / 1e9:,.0f} GB/s.\n\n{table(head, rows_out)}"


def theirs(model: Transformer, n: int, steps: int, device: torch.device) -> str:
    """The same by transformers, of the same shape and dtype, where it is installed."""
    if not find_spec("transformers"):
        return "not installed"
    from transformers import Qwen3Config, Qwen3ForCausalLM

    values = [getattr(model.shape, f) for f in model.shape.__dataclass_fields__]
    with device:
        config = Qwen3Config(**dict(zip(weights.KEYS, values, strict=True)))
        rival = Qwen3ForCausalLM(config).to(model.head_weight.dtype).eval()
    ids = torch.tensor(prompts_of(n, 128), device=device)
    how = dict(do_sample=True, top_k=0, pad_token_id=0, eos_token_id=None)
    how |= dict(max_new_tokens=steps, min_new_tokens=steps, attention_mask=torch.ones_like(ids))
    each = timed(lambda: rival.generate(ids, **how), device, repeat=1) / steps
    return f"{n / each:,.0f}"


class Limited(Slots):
    """Slots whose requests end after `limit` (R,) tokens each."""

    limit: Tensor

    def draw(self, slots: slice, logits: Tensor) -> None:
        super().draw(slots, logits)
        request = self.request[slots]
        self.alive[slots] &= self.count[request] < self.limit[request]


def mix(a: argparse.Namespace, device: torch.device) -> str:
    """256 requests of 100 to 1,024 tokens in and as many out, at most 256 rows at a time."""
    n, low, high = (8, 4, 16) if a.toy else (256, 100, 1024)
    size = "micro" if a.toy else "Qwen3-0.6B"
    model, prompts = random_model(size, device), prompts_of(n, lambda: random.randint(low, high))
    prompts.sort(key=len)
    Limited.limit = torch.tensor([random.randint(low, high) for _ in prompts], device=device)
    plain, total, how = rollout.Slots, int(Limited.limit.sum()), dict(max_rows=256)
    rollout.Slots = Limited
    seconds = timed(lambda: generate(model, prompts, 1, high, None, **how), device, repeat=1)
    rollout.Slots = plain
    cells = size, n, f"{total:,}", f"{seconds:.1f}", f"{total / seconds:,.0f}"
    return table("shape|requests|tokens|seconds|tokens/s", [row(*cells)])


def update(a: argparse.Namespace, device: torch.device) -> str:
    """Forward and backward of one micro-batch of sequences of 1,024 tokens, a fifth of the rows
    through the vocabulary: model flops (6 a parameter and token, attention, the head's kept rows)
    against the peak of the vendor's sheet; the head's share of the seconds; log-probs of the
    sampler against the trainer's."""
    name = weights.hardware(device)
    peak = next((x for key, x in PEAKS.items() if key in name), math.nan)
    rows_out = []
    for size in ("micro",) if a.toy else ("Qwen3-0.6B", "Qwen3-1.7B"):
        model = random_model(size, device).requires_grad_()
        m = model.shape
        matrices = parameters(m) - m.vocab_size * m.n_embd * (1 + (not m.tie_embeddings))
        for tokens in (256,) if a.toy else (8192, 16384):
            length = min(1024, tokens)
            ids = torch.randint(0, 256, (tokens,), device=device)
            cu = torch.arange(0, tokens + 1, length, dtype=torch.int32, device=device)
            kept = torch.arange(0, tokens - 1, 5, device=device)
            for recompute in (False, True):
                model.recompute = recompute

                def both(part: bool, model=model, ids=ids, cu=cu, kept=kept) -> None:
                    rows = kept[:1] if part else kept
                    model(ids, cu, rows, ids[rows + 1])[0].sum().backward()
                    model.zero_grad(set_to_none=True)

                whole, body = (timed(lambda x=x: both(x), device) for x in (False, True))
                flops = (
                    6 * matrices * tokens + 6 * m.n_layer * m.n_head * m.head_dim * length * tokens
                )
                flops += 6 * m.vocab_size * m.n_embd * len(kept)
                rate, used = f"{tokens / whole:,.0f}", f"{flops / whole / peak:.0%}"
                head = f"{max(0.0, 1 - body / whole):.0%}"
                rows_out.append(
                    row(size, tokens, recompute, rate, used, head, apart(model, device))
                )
        del model
    head = "shape|tokens|recompute|tokens/s|MFU|head's share|max abs dlogp"
    return f"Peak {peak / 1e12:,.0f} Tflop/s ({name}).\n\n{table(head, rows_out)}"


def scored(model: Transformer, samples: Rollout, device: torch.device) -> tuple[Tensor, Tensor]:
    """The trainer's log-probs and entropies (n,) of all that was sampled."""
    which = range(len(samples.finished))
    return model(*samples.sequences(which, device).scored(), 1.0)


def apart(model: Transformer, device: torch.device) -> str:
    """The largest difference of log-prob between sampler and trainer, over 8 x 64 tokens."""
    samples = generate(model, prompts_of(8, 32), 1, 64, None)
    with torch.no_grad():
        logprobs, _ = scored(model, samples, device)
    return f"{(logprobs.cpu() - samples.logprobs).abs().max():.2g}"


def step(a: argparse.Namespace, device: torch.device) -> str:
    """A whole GRPO step (bench/rl_step.py), and TRL's on the same shape where it is installed."""
    out = []
    for script in ("rl_step", "trl_step"):
        if script == "trl_step" and not find_spec("trl"):
            out.append("TRL is not installed.")
            continue
        argv = [f"bench/{script}.py", "--vocab", "512" if a.toy else "32000"]
        argv += ["--device", device.type]
        done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True)
        said = done.stdout if not done.returncode else done.stderr
        out.append(f"`python {shlex.join(argv)}`: `{said.strip().splitlines()[-1]}`")
    return "\n\n".join(out)


def entropy(a: argparse.Namespace, device: torch.device) -> str:
    """The gradient of the advantages' surrogate by decile of entropy: norms, as a share of the
    whole's.  Advantages by lot: what a token's place in the ranking does to its gradient."""
    rows_out, sizes = [], ["micro" if a.toy else "Qwen3-0.6B", *filter(None, [a.model])]
    for name in sizes:
        model = weights.from_pretrained(name, device=device) if name == a.model else None
        model = model or random_model(name, device).float()
        samples = generate(model, prompts_of(4, 32), 4, 16 if a.toy else 128, None)
        rewards = torch.tensor([float(random.random() < 0.5) for _ in samples.finished])
        A = group_advantages(rewards, 4).repeat_interleave(samples.lengths()).to(device)
        h, kept, norms = samples.entropy.to(device), None, []
        for i in range(10):
            mask, _ = top_entropy(h, (i + 1) / 10)
            mine = mask if kept is None else mask & ~kept
            kept = mask
            norms.append(norm(model, samples, A * mine, device))
        every = norm(model, samples, A, device)
        rows_out.append(row(name, *(f"{x / every:.3f}" for x in norms)))
    return table("model|top tenth|" + "|".join(map(str, range(2, 10))) + "|lowest", rows_out)


def norm(model: Transformer, samples: Rollout, A: Tensor, device: torch.device) -> float:
    """Of the gradient of the mean of A log p over all sampled tokens."""
    logprobs, _ = scored(model, samples, device)
    grads = torch.autograd.grad((logprobs * A).mean(), [*model.parameters()])
    return math.sqrt(sum(g.double().square().sum().item() for g in grads))


SECTIONS = dict(tests=tests, decode=decode, mix=mix, update=update, memory=memory, entropy=entropy)
SECTIONS |= dict(step=step, run=run)

# ---------------------------------------------------------------------- the file


def about(a: argparse.Namespace) -> str:
    """What all tables have in common: they are kept while it is the same."""
    device = weights.device(a.device)
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "none"
    about = [
        weights.hardware(device),
        f"torch {torch.__version__}",
        f"Python {sys.version.split()[0]}",
    ]
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.split()
        about += [f"CUDA {torch.version.cuda}", f"driver {' '.join(driver[:1])}"]
    return ", ".join([*about, f"commit {commit}"]) + (", toy sizes" if a.toy else "")


def every(a: argparse.Namespace) -> int:
    """All sections, within the minutes."""
    end, path, head = time.time() + 60 * a.minutes, Path(a.out), f"# On a GPU\n\n{about(a)}.\n"
    old = path.read_text() if path.exists() else ""
    done = {}
    if old.startswith(head):
        done = dict(re.findall(r"\n## (\w+)\n(.*?)(?=\n## |\Z)", old, re.S))
    for name, section in SECTIONS.items():
        if name in done:
            continue
        argv = ["bench/gpu.py", name, "--device", a.device, *["--toy"] * a.toy]
        argv += ["--model", a.model] if a.model else []
        print(f"{name}: {section.__doc__.splitlines()[0]}", flush=True)
        left = end - time.time()
        try:
            if left < 5:
                raise subprocess.TimeoutExpired(argv, left)
            called = [sys.executable, *argv]
            child = subprocess.run(called, cwd=ROOT, capture_output=True, text=True, timeout=left)
        except subprocess.TimeoutExpired:
            print(f"{name}: the minutes are over; the same command goes on from here")
            return 1
        said = child.stdout.strip()
        if child.returncode:
            said = f"Failed: {(child.stderr.strip().splitlines() or ['no word'])[-1]}"
        said = f"\n{' '.join(section.__doc__.split())}\n\n`python {shlex.join(argv)}`\n\n{said}\n"
        done[name] = said
        text = head + "".join(f"\n## {k}\n{v}" for k, v in done.items())
        files.write_atomic(path, text.encode())
    print(path)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section", nargs="?", choices=[*SECTIONS], help="one; by default all")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--toy", action="store_true", help="sizes for a CPU")
    parser.add_argument("--model", default="", help="a published folder, for `entropy`")
    parser.add_argument("--out", default="results/gpu.md")
    parser.add_argument("--work", default="runs/gpu", help="where the default run goes")
    a = parser.parse_args()
    try:
        device = weights.device(a.device)
        torch.set_num_threads(1)
        torch.manual_seed(0), random.seed(0)
        if not a.section:
            return every(a)
        print(SECTIONS[a.section](a, device))
    except files.UserError as e:
        print(f"bench/gpu.py: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

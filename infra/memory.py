"""What a run will need before it starts: memory by part, the two phases, and what to change.

    python bench/memory.py --size Qwen3-0.6B        # the same table beside what was really used

A step has two phases that never overlap, and the larger one decides: the rollout holds the KV
cache, the update holds gradients and activations.  Weights and AdamW's two moments outlive both.
Every size is counted from the shapes; what is short of a megabyte (norms, angles, ids) is not.
"""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from infra.files import UserError
from model import HEAD_CHUNK, Shape, Transformer, count_parameters

BOTH = ("weights", "bf16 copy", "optimizer", "samples")
PHASES = dict(
    rollout=(*BOTH, "KV cache", "decoding"),
    update=(*BOTH, "gradients", "activations", "backward"),
)
GIB = 2**30
parameters = cache(count_parameters)


def kept_by_block(m: Shape, e: int, fused: bool) -> int:
    """Bytes a token that autograd keeps of one block, compute in `e` bytes an element.

    The norms upcast.  `fused` (CUDA) ones keep their input alone, the CPU's also the upcast and the
    normalised one, both fp32.
    """
    q, k = m.n_head * m.head_dim, m.n_kv_head * m.head_dim
    norms = 2 * m.n_embd + q + k  # inputs of the four norms: two of the stream, q's and k's
    upcast = norms * e if fused else norms * (8 if e < 4 else 2 * e)
    linears = (2 * m.n_embd + 4 * m.n_mlp) * e  # inputs of q, k, v; of gate, up; gate, silu, up, *
    packed = 1 if fused and e < 4 else 2  # outside the variable-length kernel `attend` joins runs
    attention = (q + 2 * k + packed * q) * e + 4 * m.n_head  # q, k, v, its output, log-sum-exp
    return upcast + linears + attention


def preflight(
    m: Shape,
    c,
    device: torch.device | str = "cpu",
    longest: int | None = None,
    measured: int = 0,
) -> dict[str, int]:
    """Bytes by part of a run of `c`, a `fork_gpt.Config`.  `longest` is the longest prompt in
    tokens, else `c.max_prompt`; `measured` problems are sampled `c.eval_k` times at a time.

    Responses are taken to reach `c.max_new`, the mask to keep its share of every micro-batch, and
    an update to have several micro-batches: with one, gradients come as activations go.
    """
    e, cuda = getattr(torch, c.dtype).itemsize, torch.device(device).type == "cuda"
    copied = e < 4
    n, V, D, M = parameters(m), m.vocab_size, m.n_embd, m.n_mlp
    q, k = m.n_head * m.head_dim, m.n_kv_head * m.head_dim
    length = (longest or c.max_prompt) + c.max_new
    requests = max(math.ceil(c.prompts * c.oversample) * c.group, measured * c.eval_k)
    slots = max(c.group, min(c.rows, requests))

    # rollout: the largest of prefill, of a decode step, and of drawing from its logits
    S = slots // c.group * (longest or c.max_prompt)  # prompts that are prefilled together
    copies = 2 * c.group * k  # every prompt's keys and values, once for each of its samples
    prefill = S * e * (2 * D + max(3 * M, 2 * q + 3 * k + copies))
    decode = slots * e * (V + 2 * m.n_head * length)  # the last logits; scores and their softmax
    draw = slots * V * (e + 12 + 4 * copied)  # logits (in fp32 too), log p, p, p log p

    # update: what every block keeps, and the largest of the head, of one block and of the embedding
    tokens = min(max(c.microbatch, length), math.ceil(c.prompts / c.updates) * c.group * length)
    responses = tokens * c.max_new // length
    share = dict(top=c.rho, random=c.rho, bottom=1 - c.rho, all=1.0)[c.keep]
    chunk = max(1, HEAD_CHUNK // V)
    rows, scored = min(math.ceil(share * responses), chunk), min(responses, chunk)
    block = tokens * kept_by_block(m, e, cuda)
    activations = m.n_layer * (tokens * D * e if c.recompute else block)
    matrix = V * D * e  # a gradient of the head's matrix, or of the embedding
    handed = matrix + 4 * V * D * copied  # and its fp32 version on the way to the master
    # logits, log p and their gradient; then that of the matrix beside the one of the logits
    head = max(12 * rows * V + matrix * (share * responses > chunk), 4 * rows * V + matrix)
    one = block * c.recompute + tokens * e * (2 * M + D) + D * M * (e + 4 * copied)
    if m.tie_embeddings:
        one += matrix  # the head's part waits for the embedding's
        embedding = max(3 * matrix, handed)  # its own gradient, the head's, and their sum
    else:
        head, embedding = max(head, handed), handed
    passes = 12 * scored * V - 4 * n  # without gradient, before there is any
    return {
        "weights": 4 * n,
        "bf16 copy": e * n * copied,
        "optimizer": 8 * n * (c.optimizer == "adamw"),
        "samples": requests * (16 * c.max_new + 34 * length),
        "KV cache": 2 * m.n_layer * slots * k * length * e,
        "decoding": max(prefill, decode, draw),
        "gradients": 4 * n,
        "activations": activations,
        "backward": max(head, one, embedding - activations, passes - activations),
    }


def peaks(parts: dict[str, int]) -> dict[str, int]:
    """What `preflight` counted, in bytes by phase."""
    return {phase: sum(parts[name] for name in names) for phase, names in PHASES.items()}


def room(device: torch.device) -> tuple[int, int] | None:
    """(bytes this process can have now, bytes it can ever have); None where nothing says so.  A
    container's limit counts as the machine's."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        return free, free
    if device.type != "cpu" or not Path("/proc/meminfo").exists():
        return None
    text = Path("/proc/meminfo").read_text() + Path("/proc/self/status").read_text()
    kib = {line.split(":")[0]: line.split()[1] for line in text.splitlines() if " kB" in line}
    available, total, mine = (int(kib[k]) * 1024 for k in ("MemAvailable", "MemTotal", "VmRSS"))
    limit, used = container(Path("/sys/fs/cgroup"))
    return min(available + mine, total, limit - used + mine), min(total, limit)


def container(folder: Path) -> tuple[float, float]:
    """(memory limit, memory in use that cannot be dropped) of a control group, version 2 or 1;
    (inf, 0) without one."""
    for limit, used, dropped in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            bytes_ = float((folder / limit).read_text().replace("max", "inf"))
            stat = dict(line.split() for line in open((folder / limit).parent / "memory.stat"))
            return bytes_, float((folder / used).read_text()) - float(stat[dropped])
        except (OSError, ValueError, KeyError):
            continue
    return math.inf, 0.0


def advice(m: Shape, c, limit: int, *more) -> str:
    """The flags that bring a run of `c` below `limit` bytes: for each phase the least change that
    does, in the dtype of `c` and, where that is not it, in bf16."""

    def first(phase: str, tries: list[dict]) -> list[dict]:
        fits = (x for x in tries if peaks(preflight(m, replace(c, **x), *more))[phase] <= limit)
        return [x for x in [next(fits, None)] if x is not None]

    def halves(name: str, low: int) -> list[dict]:
        start = getattr(c, name)
        return [{name: max(low, start >> i)} for i in range(1, start.bit_length())]

    ways = []
    for dtype in [{}] if c.dtype == "bfloat16" else [{}, dict(dtype="bfloat16")]:
        rows = first("rollout", [dtype | x for x in [{}, *halves("rows", c.group)]])
        budgets, recompute = halves("microbatch", 1), dict(recompute=True)
        work = first("update", [dtype])
        work = work or first("update", [dtype | x for x in budgets])
        work += first("update", [dtype | recompute | x for x in [{}, *budgets]]) * (work != [dtype])
        ways += [r | w for r in rows for w in work]
    if not ways:
        return "no other flag is enough: a smaller model or --max-new, or a larger device"
    return ", or ".join(map(flags_of, ways)) + " would fit"


def flags_of(changes: dict) -> str:
    """Changes of the config as they are typed."""
    return " ".join(f"--{k}" if v is True else f"--{k} {v}" for k, v in changes.items())


def check(model: Transformer, world, splits: dict[str, list], c) -> str:
    """The table to print before step 1, one line when all is below a GiB.  UserError when the
    device cannot hold the run."""
    m, device = model.shape, model.head_weight.device
    longest = max(len(world.encode(p)) for some in splits.values() for p in some)
    measured = max(len(splits[k][: c.eval_problems or None]) for k in ("val", "test"))
    parts = preflight(m, c, device, longest, measured)
    totals, has = peaks(parts), room(device)
    need = max(totals.values())
    text = f"memory: {need / GIB:.2f} GiB at most"
    if has:
        text += f", of {has[0] / GIB:.1f} free on {device}"
    if has and need > has[0]:
        advised = advice(m, c, has[0], device, longest, measured)
        if need > has[1]:
            raise UserError(f"{text}: it cannot fit; {advised}")
        text += f": not now; {advised}"
    if need < GIB:
        return text
    rows = [f"  {'GiB':24s}" + "".join(f"{phase:>10s}" for phase in PHASES)]
    for name, size in parts.items():
        cells = (f"{size / GIB:.2f}" if name in names else "" for names in PHASES.values())
        rows.append(f"  {name:24s}" + "".join(f"{x:>10s}" for x in cells))
    rows.append(f"  {'together':24s}" + "".join(f"{x / GIB:10.2f}" for x in totals.values()))
    return "\n".join([text, *rows])

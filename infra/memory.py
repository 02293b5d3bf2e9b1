"""What a run will need before it starts: memory by part, the two phases, and what to change.

    python bench/memory.py --size Qwen3-0.6B        # the same table beside what was really used

A step has two phases that never overlap, and the larger one decides: the rollout holds the KV
cache, the update holds gradients and activations.  Weights and AdamW's two moments outlive both.
Every size is counted from the shapes; what is short of a megabyte (norms, angles, ids) is not.
"""

import math
import os
from bisect import bisect_right
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path

import torch

from infra import flags
from infra.files import UserError
from model import HEAD_CHUNK, Shape, Transformer, count_parameters

BOTH = ("weights", "bf16 copy", "frozen base", "optimizer", "samples")
PHASES = dict(
    rollout=(*BOTH, "gathered", "KV cache", "decoding"),
    update=(*BOTH, "blocks", "gradients", "activations", "backward"),
)
GIB = 2**30
MOST = 512  # rows at a time, where memory would hold more
# bytes a parameter of an optimizer's state; AdamW8 has a byte for each of two moments
STATE = dict(adamw=8, adamw8=2, sgd=0)
parameters = cache(count_parameters)


def kept_by_block(m: Shape, e: int, fused: bool) -> int:
    """Bytes a token that autograd keeps of one block, compute in `e` bytes an element.  `fused`
    (CUDA) norms keep their input alone, the CPU's also its upcast and the normalised one in fp32.
    """
    q, k = m.n_head * m.head_dim, m.n_kv_head * m.head_dim
    norms = 2 * m.n_embd + q + k  # inputs of the four norms: two of the stream, q's and k's
    upcast = norms * e if fused else norms * (8 if e < 4 else 2 * e)
    linears = (2 * m.n_embd + 4 * m.n_mlp) * e  # inputs of q, k, v; of gate, up; gate, silu, up, *
    packed = 1 if fused and e < 4 else 2  # outside the variable-length kernel `attend` joins runs
    attention = (q + 2 * k + packed * q) * e + 4 * m.n_head  # q, k, v, its output, log-sum-exp
    return upcast + linears + attention


def cut(m: Shape, tp: int) -> Shape:
    """The shape that each of `tp` ranks holds.  UserError for what does not divide."""
    whole = dict(n_head=m.n_head, n_mlp=m.n_mlp, vocab_size=m.vocab_size)
    for name, n in whole.items():
        if n % tp:
            raise UserError(f"--tp {tp}: it must divide {name}, which is {n}")
    if m.n_kv_head % tp and tp % m.n_kv_head:
        raise UserError(f"--tp {tp}: it must divide {m.n_kv_head} KV heads, or they it")
    mine = {name: n // tp for name, n in whole.items()}
    return replace(m, n_kv_head=max(1, m.n_kv_head // tp), **mine)


def preflight(
    m: Shape,
    c,
    device: torch.device | str = "cpu",
    longest: int | None = None,
    measured: int = 0,
    dp: int = 1,
    training: bool = True,
) -> dict[str, int]:
    """Bytes by part of a run of `c`, a `fork_gpt.Config`, in each of dp x `c.tp` processes; `m` is
    the shape that each holds.  `longest` is the longest prompt in tokens, else `c.max_prompt`;
    `measured` problems are sampled `c.eval_k` times at a time; `training` or measuring alone.

    Responses are taken to reach `c.max_new`, the mask to keep its share of every micro-batch, and
    an update to have several micro-batches: with one, gradients come as activations go.
    """
    e, cuda = getattr(torch, c.dtype).itemsize, torch.device(device).type == "cuda"
    ranks = dp * c.tp > 1
    copied = e < 4 and not ranks
    n, V, D, M = parameters(m), m.vocab_size, m.n_embd, m.n_mlp
    q, k = m.n_head * m.head_dim, m.n_kv_head * m.head_dim
    length = (longest or c.max_prompt) + c.max_new
    trained = math.ceil(c.prompts * c.oversample) * c.group * training
    requests = max(trained, measured * c.eval_k)
    slots = max(c.group, min(c.rows or MOST, math.ceil(requests / dp)))
    requests = requests if training else slots * dp  # an evaluation goes slots by slots

    # rollout: the largest of prefill, of a decode step, and of drawing from its logits
    S = slots // c.group * (longest or c.max_prompt)  # prompts that are prefilled together
    copies = 2 * c.group * k  # every prompt's keys and values, once for each of its samples
    prefill = S * e * (2 * D + max(3 * M, 2 * q + 3 * k + copies))
    words = V * c.tp  # every rank draws from all logits
    decode = slots * e * (words + 2 * m.n_head * length)  # the last logits; scores, their softmax
    draw = slots * words * (e + 12 + 4 * (e < 4))  # logits (in fp32 too), log p, p, p log p

    # update: what every block keeps, and the largest of the head, of one block and of the embedding
    batch = math.ceil(c.prompts / c.updates) * c.group * length  # of all ranks
    tokens = min(max(c.microbatch, length), math.ceil(batch / dp))
    responses = tokens * c.max_new // length
    rho = max(c.rho, c.rho_end)
    share = dict(top=rho, random=rho, bottom=1 - c.rho).get(c.keep, 1.0)
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
    # a cut model gathers a block at a time, and one ahead; their gradients go out in fp32
    root = V * D * (2 - m.tie_embeddings)
    layer = (n - root) // m.n_layer
    blocks = root * e + 2 * layer * e + max(root, layer) * (e + 4) if ranks else 0
    passes = 12 * scored * V - 4 * n // dp  # without gradient, before there is any
    parts = {
        "weights": 4 * n // dp,
        "bf16 copy": e * n * copied,
        "frozen base": e * n * (c.entropy == "base"),
        "optimizer": STATE[c.optimizer] * n // dp,
        # while they are drawn; afterwards all of them are in the host's memory
        "samples": requests * (16 * c.max_new // dp + 34 * length * (not cuda)),
        "gathered": e * n * ranks,
        "blocks": blocks,
        "KV cache": 2 * m.n_layer * slots * k * length * e,
        "decoding": max(prefill, decode, draw),
        "gradients": 4 * n // dp,
        "activations": activations,
        "backward": max(head, one, embedding - activations, passes - activations),
    }
    if not training:
        sampling = ("samples", "gathered", "KV cache", "decoding")
        parts = {"weights": (4 if ranks else e) * n // dp} | {k: parts[k] for k in sampling}
    return parts


def peaks(parts: dict[str, int]) -> dict[str, int]:
    """What `preflight` counted, in bytes by phase."""
    return {p: sum(parts.get(name, 0) for name in names) for p, names in PHASES.items()}


def demand(m: Shape, c, *more, **changes) -> dict[str, int]:
    """Bytes by phase of a run of `c` with these changes."""
    return peaks(preflight(m, replace(c, **changes), *more))


def rows_that_fit(m: Shape, c, limit: float, *more) -> int:
    """The most rows at a time, at least a group, with which sampling stays below `limit` bytes."""
    rows = range(c.group, max(MOST, c.group) + 1)
    most = bisect_right(rows, limit, key=lambda r: demand(m, c, *more, rows=r)["rollout"])
    return rows[max(0, most - 1)]


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
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's processes share the machine
    free = min(available + mine * here, total, limit - used + mine * here)
    return int(free / here), int(min(total, limit) / here)


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
    does, in the dtype of `c` and, where that is not it, in bf16; else with AdamW in 8 bit."""

    def first(phase: str, tries: list[dict]) -> list[dict]:
        return [*islice((x for x in tries if demand(m, c, *more, **x)[phase] <= limit), 1)]

    def halves(name: str, low: int) -> list[dict]:
        start = getattr(c, name) or MOST  # --rows auto
        return [{}, *({name: max(low, start >> i)} for i in range(1, start.bit_length()))]

    ways, kinds = [], [{}] if c.dtype == "bfloat16" else [{}, dict(dtype="bfloat16")]
    small = [kind | dict(optimizer="adamw8") for kind in kinds] * (c.optimizer == "adamw")
    for kind in kinds + small:
        if kind in small and ways:  # it rounds: only where nothing else is enough
            break
        rows = first("rollout", [kind | x for x in halves("rows", c.group)])
        work = first("update", [kind | x for x in halves("microbatch", 1)])
        if work != [kind] and not c.recompute:
            again = kind | dict(recompute=True)
            work += first("update", [again | x for x in halves("microbatch", 1)])
        ways += [r | w for r in rows for w in work]
    if not ways:
        return "no other flag is enough: a smaller model or --max-new, or a larger device"
    said = (" ".join(flags.typed(way)).replace("=", " ") for way in ways)
    return ", or ".join(said) + " would fit"


def check(
    model: Transformer, world, splits: dict[str, list], c, dp: int = 1, training: bool = True
) -> tuple[int, str]:
    """(rows at a time, `c.rows` or what fits; the table to print before step 1, one line when all
    is below a GiB).  UserError when the device cannot hold the run."""
    m, device = model.shape, model.head_weight.device
    longest = max((len(world.encode(p)) for some in splits.values() for p in some), default=1)
    looked = [some[: c.eval_problems or None] for k, some in splits.items() if k != "train"]
    has, more = room(device), (device, longest, max(map(len, looked)), dp, training)
    rows = c.rows or rows_that_fit(m, c, 0.9 * has[0] if has else 4 * GIB, *more)
    parts = preflight(m, replace(c, rows=rows), *more)
    most = max(peaks(parts).values())
    each = f" in each of {dp * c.tp} processes" if dp * c.tp > 1 else ""
    text = f"memory: {most / GIB:.2f} GiB at most{each} with --rows {rows}"
    if has:
        text += f", of {has[0] / GIB:.1f} free on {device}"
    if has and most > has[0]:
        advised = advice(m, replace(c, rows=rows), has[0], *more)
        if most > has[1]:
            raise UserError(f"{text}: it cannot fit; {advised}")
        text += f": not now; {advised}"
    return rows, text if most < GIB else f"{text}\n{table(parts)}"


def table(parts: dict[str, int]) -> str:
    """What `preflight` counted, by part and phase, in GiB."""
    rows = [("GiB", *PHASES)]
    for name, size in ((name, size) for name, size in parts.items() if size):
        rows += [(name, *(f"{size / GIB:.2f}" * (name in PHASES[p]) for p in PHASES))]
    rows += [("together", *(f"{x / GIB:.2f}" for x in peaks(parts).values()))]
    return "\n".join(f"  {name:24s}{rollout:>10s}{update:>10s}" for name, rollout, update in rows)

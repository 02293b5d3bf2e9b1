"""What a run on many GPUs will need, on a laptop, before anything is rented.

    python fork_gpt.py --plan 16x8 --tp 8 --gpu 80 --model Qwen3-32B --dtype bfloat16 --recompute

Memory is that of `infra/memory.py`, in each process.  Traffic is what one GPU receives in a step
when every answer reaches --max-new.  The seconds are a lower bound: each part at the full speed of
`SPEED`, nothing waiting for anything; a step on real hardware takes longer.
"""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from infra import memory
from infra.files import UserError
from infra.flags import flag
from infra.memory import GIB, cut, parameters
from infra.weights import published, read_shape
from model import SIZES, Shape

# an H100-class GPU: bytes/s of its memory, bf16 flop/s; bytes/s from neighbours in a node (tp, and
# dp inside one node) and over the network (dp across nodes)
SPEED = dict(memory=3.35e12, flops=990e12, node=450e9, network=50e9)


@dataclass(frozen=True)
class Plan:
    """What --plan takes beside the flags of a run."""

    plan: str = flag("", "only say what a run needs on NODESxGPUS, such as 16x8", group="commands")
    gpu: float = flag(80.0, "GiB of each GPU", "(0, inf)", needs="plan")


def shape_of(model: str) -> Shape:
    """The shape of a published folder, or of the named size that a missing folder is called after.
    UserError when it is neither."""
    if (published(model) / "config.json").exists():
        return read_shape(published(model) / "config.json")
    name = Path(model).name.removesuffix("-Base")
    if name not in SIZES:
        raise UserError(f"--model {model}: no folder there, and no size of model.py by that name")
    return SIZES[name]


def plan(c, p: Plan) -> str:
    """The tables for `c`, a `fork_gpt.Config`.  UserError for what does not divide."""
    layout = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,2})", p.plan)
    if not layout:
        raise UserError(f"--plan {p.plan}: it must be NODESxGPUS, such as 16x8")
    nodes, gpus = int(layout[1]), int(layout[2])
    if gpus % c.tp:
        raise UserError(f"--tp {c.tp}: it must divide the {gpus} GPUs of a node")
    dp, shape = nodes * gpus // c.tp, shape_of(c.model)
    m, limit, more = cut(shape, c.tp), p.gpu * GIB, ("cuda", None, 0, dp)
    if not c.rows:
        c = replace(c, rows=memory.rows_that_fit(m, c, 0.9 * limit, *more))
    parts = memory.preflight(m, c, *more)
    need = memory.peaks(parts)
    length = c.max_prompt + c.max_new
    token = parts["KV cache"] / rows_of(c, dp) / length  # bytes of one in the cache
    spare = max(0, int((limit - need["rollout"] + parts["KV cache"]) / token))
    lines = [
        f"{c.model}: {parameters(shape) / 1e9:.2f}G parameters on {nodes} x {gpus} GPUs of "
        f"{p.gpu:g} GiB, dp {dp} x tp {c.tp}; in each:",
        memory.table(parts),
        f"  the cache takes {token / 1024:.0f} KiB a token: {spare:,} fit, "
        f"--rows {spare // length} of {length:,}",
    ]
    if max(need.values()) > limit:
        powers = (2**i for i in range(1, 11))
        fits = (k for k in powers if max(memory.demand(m, c, *more[:3], dp * k).values()) <= limit)
        enough = next((f"{nodes * k} x {gpus} GPUs would do" for k in fits), "nor do more GPUs")
        advised = memory.advice(m, c, int(limit), *more)
        lines.append(f"  {max(need.values()) / GIB:.1f} GiB do not fit: {advised}; {enough}")
    sent, wait = traffic(m, c, nodes, dp), dict.fromkeys(memory.PHASES, 0.0)
    lines.append(f"  {'received by one GPU in a step':50s}{'GiB':>12s}{'seconds':>10s}")
    for (phase, what), (size, speed) in sent.items():
        wait[phase] += size / speed
        lines.append(f"  {f'{phase}: {what}':50s}{size / GIB:12,.1f}{size / speed:10,.1f}")
    lines.append(f"  {'seconds of a step, at least':50s}{'of sums':>12s}{'in all':>10s}")
    for phase, seconds in seconds_of(m, c, dp).items():
        lines.append(f"  {phase:50s}{wait[phase]:12,.1f}{seconds + wait[phase]:10,.1f}")
    lines.append("  if every answer reached --max-new, at full speed of all hardware; not measured")
    return "\n".join(lines)


def asked(c, dp: int) -> int:
    """Responses that one dp rank samples in a step."""
    return math.ceil(math.ceil(c.prompts * c.oversample) * c.group / dp)


def rows_of(c, dp: int) -> int:
    """Responses that one dp rank samples at a time."""
    return max(c.group, min(c.rows, asked(c, dp)))


def passes(c, dp: int) -> tuple[int, int, int]:
    """(micro-batches, forward passes without gradient, tokens) of one rank in a step."""
    length = c.max_prompt + c.max_new
    tokens = math.ceil(c.prompts * c.group / dp) * length
    each = max(1, math.ceil(tokens / c.updates / max(c.microbatch, length)))
    ranked = c.entropy == "current" and c.keep in ("top", "bottom")
    silent = (c.updates - 1) * each * ranked + 1  # the pre-passes, and the check of the first
    return c.updates * each, silent, tokens


def traffic(m: Shape, c, nodes: int, dp: int) -> dict[tuple[str, str], tuple[float, float]]:
    """What one GPU receives in a step: (phase, collective) -> (bytes, bytes/s)."""
    e, n, others = 2 if c.dtype == "bfloat16" else 4, parameters(m), (dp - 1) / dp
    near, far = SPEED["node"], SPEED["network" if nodes > 1 else "node"]
    micro, silent, tokens = passes(c, dp)
    length, drawn = c.max_prompt + c.max_new, asked(c, dp) * c.max_new
    sums = 2 * m.n_layer + 1  # of activations, forward: of attention, MLP and embedding
    ring = 2 * (c.tp - 1) / c.tp * e * m.n_embd  # a ring passes a sum twice
    read = drawn + asked(c, dp) / c.group * c.max_prompt
    summed = tokens * sums * (2 + c.recompute + silent / micro)  # forward, again, and backward
    root = m.vocab_size * m.n_embd * (2 - m.tie_embeddings)  # stays from forward to backward
    gathered = (2 * micro + silent) * (n - root) + micro * root
    out = {
        ("rollout", "weights, all-gather over dp"): (c.rounds * n * e * others, far),
        ("rollout", "activations, all-reduce over tp"): (read * sums * ring, near),
        ("rollout", "logits, all-gather over tp"): (drawn * m.vocab_size * (c.tp - 1) * e, near),
        ("rollout", "samples, all-gather over dp"): (asked(c, 1) * length * 17 * others, far),
        ("update", "weights, all-gather over dp"): (gathered * e * others, far),
        ("update", "gradients, reduce-scatter over dp"): (micro * n * 4 * others, far),
        ("update", "activations, all-reduce over tp"): (summed * ring, near),
    }
    return {what: x for what, x in out.items() if x[0]}


def seconds_of(m: Shape, c, dp: int) -> dict[str, float]:
    """Seconds of one GPU's own work by phase: decoding reads the weights once a step and the cache
    once a token; training computes."""
    e, n = 2 if c.dtype == "bfloat16" else 4, parameters(m)
    length, requests = c.max_prompt + c.max_new, asked(c, dp)
    cache = 2 * m.n_layer * m.n_kv_head * m.head_dim * e
    behind = c.max_prompt + c.max_new / 2  # tokens that an average token looks back on
    steps = math.ceil(requests / rows_of(c, dp)) * c.max_new
    read = steps * n * e + requests * c.max_new * behind * cache
    micro, silent, tokens = passes(c, dp)
    flops = 2 * n + 2 * m.n_layer * m.n_head * m.head_dim * length  # of a token, forward
    times = 3 + c.recompute + silent / micro
    return dict(rollout=read / SPEED["memory"], update=tokens * flops * times / SPEED["flops"])

"""Many processes as one run: who holds what, and every sum that crosses a process border.

    torchrun --nproc-per-node 8 fork_gpt.py --model Qwen3-8B-Base --tp 2 ...

World = dp x tp processes.  The tp ranks of a dp rank are neighbours and hold one model together;
the dp ranks have the same model and different samples.

                 weights             gradients, moments        KV cache, samples
    at rest      1/(dp tp), fp32     1/(dp tp), fp32           -
    rollout      1/tp, bf16, whole   -                         own dp rank's problems, 1/tp of heads
    update       1/tp, bf16, one     one block's, then summed  own share of the mini-batch
                 block at a time     over dp to 1/(dp tp)

Sampling gathers the weights once, decodes without a word between dp ranks, and lets them go: the
policy that trains is the policy that samples, nothing is pushed anywhere.

- Data parallel is FSDP2 by block.  A micro-batch of L blocks takes 2 L + 1 all-gathers of weights
  (compute dtype) and L + 1 reduce-scatters of gradients (fp32).
- Tensor parallel is plain tensors (Shoeybi et al. 2019): attention and MLP are cut by heads and
  columns, so each needs one sum forward (`Reduce`) and one backward (`Copy`); embedding and head
  are cut by vocabulary: one sum, and a maximum and a sum forward and a sum backward.  What is
  computed again in the backward pass sums again, but for a block's last sum.  A decode step takes
  2 L + 1 all-reduces and one all-gather, of logits.  model.py does not know: hooks around it do it.
- After the rollout the dp ranks exchange their samples, and each takes a share of every mini-batch,
  the longest first to whoever has the least.
- A threshold sums counts (`largest`), a step a few numbers for the log; nothing else is sent.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from infra import checkpoint, files, weights
from infra.files import UserError
from infra.memory import cut
from infra.watch import Watch, cause, is_lost_peer
from model import Shape, Transformer, at_least_fp32

PATIENCE = timedelta(hours=3)  # of a collective; a rank that died is found by infra/watch.py

# ---------------------------------------------------------------------- who is here


@dataclass
class Ranks:
    """This process among all: its place and its groups.  Alone, every sum is its own argument."""

    dp: int = 1
    tp: int = 1
    dp_rank: int = 0
    tp_rank: int = 0
    mesh: DeviceMesh | None = None
    watch: Watch | None = None

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks: logs, draws the bar, writes what is written once."""
        return self.dp_rank == self.tp_rank == 0

    def sum(self, x: Tensor, over: str = "dp", op: dist.ReduceOp = dist.ReduceOp.SUM) -> Tensor:
        """The sum of `x` over dp or tp ranks, in place."""
        if getattr(self, over) > 1:
            dist.all_reduce(x, op, self.mesh.get_group(over))
        return x

    def all(self, x: Tensor, over: str = "dp") -> list[Tensor]:
        """What all dp or tp ranks have, tensors of one shape, in their order."""
        out = [torch.empty_like(x) for _ in range(getattr(self, over))]
        dist.all_gather(out, x.contiguous(), self.mesh.get_group(over))
        return out

    def gather(self, thing: object) -> list:
        """What every dp rank has, in their order: picklable things."""
        if self.dp == 1:
            return [thing]
        out = [None] * self.dp
        dist.all_gather_object(out, thing, self.mesh.get_group("dp"))
        return out

    def total(self, *numbers: float) -> list[float]:
        """The sums of numbers over the dp ranks."""
        if self.dp == 1:
            return list(numbers)
        x = torch.tensor(numbers, dtype=torch.float64, device=self.mesh.device_type)
        return self.sum(x).tolist()

    @property
    def number(self) -> int:
        """This process among all, from 0."""
        return self.dp_rank * self.tp + self.tp_rank

    def wait(self) -> None:
        """Until all ranks are here."""
        self.any(False)

    def any(self, flag: bool, over: str = "all") -> bool:
        """Whether any rank, or any of the tp ranks, says yes; all get the same answer, and have
        waited for it."""
        if self.mesh is None or over == "tp" and self.tp == 1:
            return flag
        x = self.sum(torch.tensor(int(flag), device=self.mesh.device_type), "tp")
        return bool(x if over == "tp" else self.sum(x))

    def doing(self, what: str) -> None:
        """Tell the others, should they come to wait."""
        if self.watch:
            self.watch.doing(what)


HERE = Ranks()


def here() -> Ranks:
    """This process's place."""
    return HERE


def arranged(tp: int, device: torch.device, watch: Watch | None = None) -> Ranks:
    """This process's place when all that have joined are dp x tp."""
    dp = dist.get_world_size() // tp
    mesh = init_device_mesh(device.type, (dp, tp), mesh_dim_names=("dp", "tp"))
    return Ranks(dp, tp, *mesh.get_coordinate(), mesh, watch)


@contextmanager
def joined(tp: int, device: torch.device) -> Iterator[Ranks]:
    """Inside, this process is one of those that torchrun started, `tp` to a model; without torchrun
    it is alone.  UserError when they cannot be arranged so.  Whatever fails in one ends all."""
    global HERE
    rank, world = (int(os.environ.get(k, n)) for k, n in (("RANK", 0), ("WORLD_SIZE", 1)))
    if world % tp:
        raise UserError(f"--tp {tp}: it must divide the {world} processes; torchrun starts more")
    if world == 1:
        yield HERE
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if rank:  # one voice, one pen; a failure has sys.__stderr__
        files.WRITES, sys.stdout, sys.stderr = False, *[open(os.devnull, "w")] * 2
    # nothing of ours writes into what a forward pass returns
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    watch = Watch(rank, world)
    try:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
        HERE = arranged(tp, device, watch)
        yield HERE
    except Exception as e:
        watch.stuck(cause(e)) if is_lost_peer(e) else watch.fail(rank, cause(e))
    finally:  # also when all have agreed to stop
        HERE = Ranks()
        watch.end()
        dist.destroy_process_group()


def microbatches(lengths: Sequence[int], which: Sequence[int], budget: int) -> list[list[int]]:
    """This dp rank's share of the samples `which`, the longest first, in parts of at most `budget`
    tokens (one longer sample stands alone); then empty ones, until every rank has as many: a pass
    forward or back is a sum over all.

    A sample goes to whoever has the fewest tokens: siblings have similar lengths, and cut in order
    one rank would hold all long answers."""
    HERE.doing(f"an update of {len(which)} samples")
    ranks, load, room = [[] for _ in range(HERE.dp)], [0] * HERE.dp, [0] * HERE.dp
    for i in sorted(which, key=lambda i: -lengths[i]):
        r = load.index(min(load))
        if lengths[i] > room[r]:
            ranks[r].append([])
            room[r] = budget
        ranks[r][-1].append(i)
        room[r] -= lengths[i]
        load[r] += lengths[i]
    mine = ranks[HERE.dp_rank]
    return mine + [[] for _ in range(max(map(len, ranks)) - len(mine))]


def attended(parts: Sequence) -> Iterator:
    """Micro-batches, with a sign of life where they take long; files.Stopped on all ranks where one
    has waited long enough to stop."""
    with files.bar("update", len(parts), " micro-batches") as bar:
        for part in parts:
            if HERE.any(files.overdue()):
                raise files.Stopped
            yield part
            bar.update()


# ---------------------------------------------------------------------- tensor parallel


class Copy(torch.autograd.Function):
    """Into a cut layer: each rank uses all of x, so x's gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return HERE.sum(grad.contiguous(), "tp")


class Reduce(torch.autograd.Function):
    """Out of a cut layer: each rank has a part of x, and x's gradient is every part's."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return HERE.sum(x.contiguous().clone(), "tp")

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


ROWS = ("q_proj", "gate_proj", "up_proj", "embed_tokens", "lm_head")  # cut by output features
COLUMNS = ("o_proj", "down_proj")  # cut by input features
KEYS = ("k_proj", "v_proj")  # by rows while there are as many KV heads as tp ranks, else whole
PARTIAL = ("q_norm", "k_norm")  # whole, but each rank's gradient is of its own heads


def cut_dim(name: str, shape: Shape) -> int | None:
    """The dimension of a parameter of which each tp rank has a part; None: each has it whole."""
    kind = name.split(".")[-2]
    rows = kind in ROWS or (kind in KEYS and shape.n_kv_head >= HERE.tp)
    return 0 if rows else 1 if kind in COLUMNS else None


def placed(name: str, full: Sequence[int], shape: Shape) -> list[tuple[int, int]]:
    """Where in a full parameter this tp rank's part stands: (start, size) of every dimension."""
    place, dim = [(0, size) for size in full], cut_dim(name, shape)
    if dim is not None:
        size = full[dim] // HERE.tp
        place[dim] = (HERE.tp_rank * size, size)
    return place


def equip(model: Transformer, shape: Shape, n_vocab: int, ranks: Ranks) -> Transformer:
    """Make a Transformer of the cut shape compute its part of the full one, by hooks alone."""
    rows = model.shape.vocab_size
    model.n_vocab = min(max(0, n_vocab - ranks.tp_rank * rows), rows)
    model.full_shape = shape
    if ranks.tp == 1:
        return model
    model.model.embed_tokens.forward = partial(embed, model.model.embed_tokens, ranks)
    model.head, model.logits = partial(head, model, ranks), partial(logits, model, ranks)
    for block in model.model.layers:
        for part in (block.self_attn, block.mlp):
            part.register_forward_pre_hook(lambda _, args: (Copy.apply(args[0]), *args[1:]))
            part.register_forward_hook(lambda _, args, out: Reduce.apply(out))
        if shape.n_kv_head < ranks.tp:  # every rank computes all KV heads and uses one
            first = ranks.tp_rank * shape.n_kv_head // ranks.tp * shape.head_dim
            for name in KEYS:
                whole = nn.Linear(shape.n_embd, shape.n_kv_head * shape.head_dim, bias=False)
                setattr(block.self_attn, name, whole)
                mine = slice(first, first + shape.head_dim)
                whole.register_forward_hook(lambda _, args, out, mine=mine: out[..., mine])
    return model


def embed(table: nn.Embedding, ranks: Ranks, tokens: Tensor) -> Tensor:
    """Vocabulary-parallel embedding: a rank looks up its own ids, the others have zeros there."""
    ids = tokens - ranks.tp_rank * table.num_embeddings
    other = (ids < 0) | (ids >= table.num_embeddings)
    out = F.embedding(ids.masked_fill(other, 0), table.weight)
    return Reduce.apply(out.masked_fill(other[..., None], 0))


def logits(model: Transformer, ranks: Ranks, h: Tensor) -> Tensor:
    """All logits (n, V), the same on every tp rank; for sampling, without gradient."""
    return torch.cat(ranks.all(Transformer.logits(model, h), "tp"), dim=-1)  # of (n, V / tp) each


def head(model: Transformer, ranks: Ranks, h: Tensor, targets: Tensor, temperature: float):
    """`Transformer.head` over a cut vocabulary: one maximum and one sum of three numbers a row."""
    mine = at_least_fp32(Transformer.logits(model, Copy.apply(h))) / temperature  # (K, V / tp)
    top = ranks.sum(mine.detach().amax(-1), "tp", dist.ReduceOp.MAX)  # (K,)
    away = mine - top[:, None]
    e = away.exp()
    at = targets - ranks.tp_rank * mine.shape[-1]
    here = (at >= 0) & (at < mine.shape[-1])
    hit = away.gather(-1, at.where(here, 0)[:, None])[:, 0] * here
    parts = torch.stack((e.sum(-1), hit, torch.linalg.vecdot(e, away).detach()))  # (3, K)
    total, target, weighted = Reduce.apply(parts)
    return target - total.log(), (total.log() - weighted / total).detach()


# ---------------------------------------------------------------------- the model, cut up


def shard(shape: Shape, n_vocab: int, dtype: torch.dtype) -> Transformer:
    """This process's part of a model of `shape`, its memory not yet filled; `dtype` computes.

    `model.regions`: of each parameter, (start, size) in every dimension of what is held here."""
    ranks, cut_shape = HERE, cut(shape, HERE.tp)
    with torch.device("meta"):
        model = equip(Transformer(cut_shape), shape, n_vocab, ranks)
        whole = equip(Transformer(cut_shape), shape, n_vocab, ranks)
        full = {name: p.shape for name, p in Transformer(shape).named_parameters()}
    half = dict(param_dtype=dtype, reduce_dtype=torch.float32) if dtype.itemsize < 4 else {}
    policy = MixedPrecisionPolicy(**half, cast_forward_inputs=False)
    for block in model.model.layers:
        fully_shard(block, mesh=ranks.mesh["dp"], mp_policy=policy)
    fully_shard(model, mesh=ranks.mesh["dp"], mp_policy=policy)
    model.to_empty(device=ranks.mesh.device_type)
    model.regions = {}
    for name, p in model.named_parameters():
        place = placed(name, full[name], shape)
        rows = -(-place[0][1] // ranks.dp)  # as FSDP cuts: all but the last have ceil(n / dp)
        start, size = place[0][0] + min(ranks.dp_rank * rows, place[0][1]), len(p.to_local())
        model.regions[name] = [(start, size), *place[1:]]
    shards = [nn.Parameter(p.to_local()) for p in model.parameters()]
    model.__dict__ |= dict(skeleton=whole, masters=shards, dtype=dtype)  # no submodules these
    return model


@contextmanager
def whole(model: Transformer) -> Iterator[Transformer]:
    """Inside, a plain Transformer with the model's weights (of this tp rank), gathered once."""
    if not isinstance(model, FSDPModule):
        yield model
        return
    units = [m for m in model.modules() if isinstance(m, FSDPModule)]  # the root is the first
    for unit in units:
        unit.unshard()
    plain, empty = model.skeleton, dict(model.skeleton.named_parameters())
    put(plain, dict(model.named_parameters()))
    try:
        yield plain
    finally:
        put(plain, empty)
        for unit in units:
            unit.reshard()


def put(model: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    """Give a model these very parameters, by name."""
    for name, p in parameters.items():
        module, _, leaf = name.rpartition(".")
        model.get_submodule(module)._parameters[leaf] = p


def masters(model: Transformer) -> list[nn.Parameter]:
    """What the optimizer moves: the parameters, or this process's shards of them."""
    return model.masters if isinstance(model, FSDPModule) else list(model.parameters())


def clip_gradients(model: Transformer, most: float) -> float:
    """Scale the gradient of `masters(model)` to a norm of at most `most`; the norm before."""
    if not isinstance(model, FSDPModule):
        return nn.utils.clip_grad_norm_(model.parameters(), most).item()
    squares = torch.zeros(2, dtype=torch.float64, device=HERE.mesh.device_type)  # whole, cut
    for (name, p), master in zip(model.named_parameters(), model.masters, strict=True):
        master.grad, p.grad = p.grad.to_local(), None
        cut = cut_dim(name, model.full_shape) is not None
        if not cut and name.split(".")[-2] in (*PARTIAL, *KEYS):
            HERE.sum(master.grad, "tp")
        squares[int(cut)] += torch.linalg.vector_norm(master.grad).double() ** 2
    HERE.sum(squares)
    HERE.sum(squares[1:], "tp")  # what is whole on every tp rank counts once
    norm = squares.sum().sqrt().item()
    if norm > most:
        torch._foreach_mul_([m.grad for m in model.masters], most / (norm + 1e-6))
    return norm


@torch.no_grad()
def full(model: Transformer, name: str) -> Tensor:
    """A whole parameter on every rank; all must ask for the same ones in the same order."""
    if not isinstance(model, FSDPModule):
        return model.get_parameter(name)
    model.reshard()  # a pass without gradient leaves the root's weights gathered
    p = model.get_parameter(name).full_tensor()
    dim = cut_dim(name, model.full_shape) if HERE.tp > 1 else None
    return p if dim is None else torch.cat(HERE.all(p, "tp"), dim)


def export(
    model: Transformer, source: str, folder: Path, generation: dict, dtype: torch.dtype
) -> None:
    """`weights.export`, by all ranks together."""
    weights.export(model, source, folder, generation, dtype, partial(full, model), HERE.first)


def state_of(model: Transformer) -> dict[str, Tensor]:
    """All weights of a small model, whole, on the CPU of every rank."""
    return {name: full(model, name).detach().cpu().clone() for name, _ in model.named_parameters()}


@torch.no_grad()
def place_weights(model: Transformer, dtype: torch.dtype) -> Transformer:
    """This process's part, computing in `dtype`, of a whole model that every rank has."""
    mine = shard(model.shape, model.n_vocab, dtype)
    for (name, p), master in zip(model.named_parameters(), mine.masters, strict=True):
        master.copy_(p[tuple(slice(a, a + n) for a, n in mine.regions[name])])
    return mine


def held(model: Transformer, optimizer: torch.optim.Optimizer) -> dict:
    """What a checkpoint has of this process: weights and moments, name -> (place in the full
    tensor, the part)."""
    out = {}
    for (name, p), master in zip(model.named_parameters(), masters(model), strict=True):
        place = model.regions[name] if HERE.mesh else weights.full_place(p.shape)
        out[f"weight {name}"] = place, master
        moments = {k: x for k, x in optimizer.state[master].items() if x.ndim}
        for moment, x in moments.items():  # AdamW8's scales have a shape of their own
            whole = place if x.shape == master.shape else [(0, n) for n in x.shape]
            out[f"{moment} {name}"] = whole, x
    return out


def save_state(folder: Path, state) -> None:
    """FOLDER/STEP by all ranks together, of a `fork_gpt.State`: see infra/checkpoint.py."""
    more = {k: x for k, x in vars(state).items() if type(x) in (int, str)}
    more["clock"] = state.clock.seconds()
    tensors = held(state.model, state.optimizer)
    checkpoint.save_parts(folder, state.step, tensors, more, HERE.number, HERE.wait)


def load_state(path: Path, state) -> None:
    """Take over what `save_state` wrote, in whatever layout.  UserError when it is damaged, or of
    another run: its texts must be the same."""
    more = checkpoint.load_parts(path, held(state.model, state.optimizer))
    for name, mine in {k: x for k, x in vars(state).items() if type(x) in (int, str)}.items():
        found = more.get(name)
        good = found == mine if type(mine) is str else type(found) is int and 0 <= found < 2**53
        if not good or name == "step" and found != int(path.name):
            raise UserError(f"{path} does not belong to this configuration: see {name}")
        setattr(state, name, found)
    spent = more.get("clock")
    good = isinstance(spent, dict) and {*spent} == {*state.clock.seconds()}
    if not good or not all(files.is_number(x) and x >= 0 for x in spent.values()):
        raise UserError(f"{path} does not belong to this configuration: see clock")
    for moments in filter(None, state.optimizer.state.values()):  # SGD has none
        moments["step"].fill_(state.n_updates)
    state.clock.add(**spent)
    copy_weights(state.model, state.policy)


def gathered(x: Tensor) -> list[Tensor]:
    """The tensors `x` (n of the rank, ...) of all dp ranks, in their order, on every one."""
    if HERE.dp == 1:
        return [x]
    sizes = HERE.gather(len(x))
    kind = torch.uint8 if x.dtype == torch.bool else x.dtype  # not every backend sends bools
    mine = torch.zeros(max(sizes), dtype=kind, device=HERE.mesh.device_type)
    mine[: len(x)] = x
    return [row[:n].to(x) for row, n in zip(HERE.all(mine), sizes, strict=True)]


# ---------------------------------------------------------------------- one process in bf16


def compute_copy(master: Transformer, dtype: torch.dtype) -> Transformer:
    """The model that samples and computes: `master` itself, or its copy in `dtype`, whose
    gradients are added to the master's in fp32, and freed, as each appears."""
    if isinstance(master, FSDPModule) or dtype == master.head_weight.dtype:
        return master
    with torch.device("meta"):
        policy = Transformer(master.shape)
    weights = {k: p.detach().to(dtype) for k, p in master.state_dict().items()}
    policy.load_state_dict(weights, assign=True)
    policy.n_vocab, policy.recompute = master.n_vocab, master.recompute

    def hand_over(target: torch.nn.Parameter, p: torch.nn.Parameter) -> None:
        grad = p.grad.to(target.dtype)
        target.grad = grad if target.grad is None else target.grad.add_(grad)
        p.grad = None

    for target, p in zip(master.parameters(), policy.parameters(), strict=True):
        p.register_post_accumulate_grad_hook(partial(hand_over, target))
    return policy


@torch.no_grad()
def copy_weights(master: Transformer, policy: Transformer) -> None:
    """Cast the master's weights into its compute copy; nothing to do where they are one."""
    if policy is not master:
        for source, target in zip(master.parameters(), policy.parameters(), strict=True):
            target.copy_(source)


# ---------------------------------------------------------------------- the k largest of all ranks


def largest(x: Tensor, k: int, index: Tensor, total: Callable) -> tuple[Tensor, Tensor]:
    """Exactly k of all ranks' `x` (n,) fp32 >= 0, the largest: (mask (n,) bool, the k-th largest).

    Of equal numbers those of the lowest `index` (n,) int64 are taken, wherever they are; `total`
    sums a tensor over the ranks.  k = 0: none, inf."""
    if k == 0:
        return torch.zeros_like(x, dtype=torch.bool), x.new_tensor(torch.inf)
    bits = x.contiguous().view(torch.int32)  # non-negative floats sort like their bits
    least = kth_largest(bits, k, total)
    above, tied = bits > least, bits == least
    left = k - int(total(above.sum()))  # ties still to take
    order = (2**31 - 1 - index).int()
    last = kth_largest(order[tied], left, total)
    mask = above | (tied & (order >= last))
    return mask, torch.tensor(least, dtype=torch.int32).view(torch.float32)


def kth_largest(bits: Tensor, k: int, total: Callable) -> int:
    """The k-th largest (k >= 1) of all ranks' `bits` (n,) int32 >= 0, by radix select.

    Three rounds count 2,048 or 1,024 bins each and sum the counts over the ranks.  Nothing is
    gathered or sorted, an empty rank is fine, and there is no limit of 2^24 values.
    """
    prefix = 0
    for shift, width in ((21, 11), (10, 11), (0, 10)):
        digit = (bits >> shift) & (2**width - 1)
        counts = total(torch.bincount(digit, minlength=2**width))
        above = counts.flip(0).cumsum(0).flip(0)  # how many have this digit or a larger one
        chosen = int((above >= k).sum()) - 1
        k -= int(above[chosen] - counts[chosen])
        bits = bits[digit == chosen]
        prefix |= chosen << shift
    return prefix

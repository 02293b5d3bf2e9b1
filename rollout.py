"""Sampling with a KV cache: tokens, and the log-probability and entropy of each as it was drawn.

    python rollout.py --model runs/base "use 8 7 3 goal 18 ;"       # a trace coloured by entropy

Every prompt is prefilled once and its keys and values are copied to its G samples.  The cache is
allocated once, one slot per row; a row that ends gives its slot to the last row at work, so these
always are slots 0..n-1, and waiting groups are admitted as soon as one fits: no row ever waits for
the slowest.

A token's random number is a function of the seed, its prompt's number, its sample and its place:
who decodes it, and beside what, changes nothing but the rounding.

What is stored is what was sampled: log-prob and entropy of exactly the distribution that the token
was drawn from, temperature applied, the end-of-text token included.  The trainer's forward is the
same `model.py`, so the two agree.

Two-temperature decoding (paper Eq. 5): T_fork where the entropy at T=1 reaches a threshold, T_other
elsewhere.
"""

import argparse
import os
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

import parallel
from infra import files, weights
from infra.files import UserError, command
from model import NEVER, Transformer, at_least_fp32, attend, entropy_of, positions_of

# decode steps between looks at which rows ended, 1 elsewhere: each look waits for the device
LOOK_EVERY = dict(cuda=16, mps=16)
GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio, SplitMix64's step from state to state


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.  `temperature` 0 is greedy.  With `threshold` (nats) set, tokens whose
    T=1 entropy reaches it are drawn at `t_fork`, the others at `temperature`.  `top_k` above 0
    draws from this many likeliest tokens, and of these `top_p` below 1 from the fewest likeliest
    that together have this probability (the nucleus)."""

    temperature: float = 1.0
    threshold: float | None = None
    t_fork: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass
class Rollout:
    """Samples as one packed stream, prompt then response, sample after sample; sample b answers
    prompt b // G.  In the memory of the host: a step may have more samples than a GPU has room for.

    tokens (S,) int64; cu_seqlens (B+1,) int32; response (S,) bool, true on sampled tokens; finished
    (B,) bool, false when cut at the limit.  Of the n sampled tokens alone: logprobs and entropy
    (n,) fp32, nats; kinds (n,) int64, what the task's grammar takes each for, -1 where none tells.
    """

    tokens: Tensor
    cu_seqlens: Tensor
    response: Tensor
    logprobs: Tensor
    entropy: Tensor
    kinds: Tensor
    finished: Tensor

    def lengths(self) -> Tensor:
        """Response tokens of every sample, (B,) int64."""
        total = F.pad(self.response.cumsum(0), (1, 0))  # (S+1,)
        return total[self.cu_seqlens.long()].diff()

    def responses(self) -> list[list[int]]:
        """The sampled ids of every sample."""
        return [r.tolist() for r in self.tokens[self.response].split(self.lengths().tolist())]

    def scored(self, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `Transformer.forward` takes to score the response tokens, or those where `mask` (n,)
        is true: tokens, cu_seqlens, rows, targets.  A token is predicted by the row before it."""
        at = self.response.nonzero()[:, 0]  # (n,)
        at = at if mask is None else at[mask]
        return self.tokens, self.cu_seqlens, at - 1, self.tokens[at]

    def sequences(
        self, which: Sequence[int], device: torch.device | str | None = None
    ) -> "Rollout":
        """The samples `which`, in that order, packed anew and moved to the device that scores; of
        none, one token that nobody sampled: something to keep step with other ranks by."""
        index, cu_seqlens = spans(self.cu_seqlens, which)  # (S',)
        tokens, response, drawn = self.tokens[index], self.response[index], self.drawn(which)
        if not len(which):
            tokens, cu_seqlens = self.tokens[:1], torch.tensor([0, 1], dtype=torch.int32)
            response = torch.tensor([False])
        about = (x[drawn] for x in (self.logprobs, self.entropy, self.kinds))
        part = (tokens, cu_seqlens, response, *about, self.finished[torch.as_tensor(which).long()])
        return Rollout(*(x.to(device or x.device) for x in part))

    def drawn(self, which: Sequence[int]) -> Tensor:
        """The numbers, among all n sampled tokens, of those of the samples `which` (n',) int64."""
        return spans(F.pad(self.lengths().cumsum(0), (1, 0)), which)[0]

    @staticmethod
    def join(parts: "Sequence[Rollout]") -> "Rollout":
        """Several rollouts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        sizes = torch.cat([p.cu_seqlens.diff() for p in parts])
        joined = {f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Rollout)}
        return Rollout(**joined | dict(cu_seqlens=F.pad(sizes.cumsum(0), (1, 0)).int()))


def spans(cu_seqlens: Tensor, which: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Where in a stream the sequences `which` stand, one after the other, and their own starts."""
    which = torch.as_tensor(which, dtype=torch.long, device=cu_seqlens.device)
    sizes = cu_seqlens.diff().long()[which]
    cu = F.pad(sizes.cumsum(0), (1, 0)).int()
    starts = cu_seqlens.long()[:-1][which].repeat_interleave(sizes)
    return starts + positions_of(cu), cu


def pack(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Lists of ids -> tokens (S,) int64 and cu_seqlens (B+1,) int32."""
    lengths = torch.tensor([0, *map(len, prompts)])
    tokens = torch.tensor([t for p in prompts for t in p], dtype=torch.long)
    return tokens.to(device), lengths.cumsum(0).int().to(device)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's output function (Steele et al. 2014): int64 -> int64, every bit of one depends
    on every bit of the other."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * factor  # a shift that brings in zeros
    return x ^ (x >> 31 & (1 << 33) - 1)


def streams(seed: int, numbers: Tensor, G: int) -> Tensor:
    """A stream of random numbers for each of G samples of the prompts of these numbers (P,) int64:
    where it begins (P * G,) int64."""
    prompt = mix(mix(torch.full_like(numbers, seed or GOLDEN)) + numbers * GOLDEN)  # mix(0) is 0
    return mix(prompt[:, None] + torch.arange(G, device=numbers.device) * GOLDEN).flatten()


def uniform(stream: Tensor, place: Tensor) -> Tensor:
    """Number `place` of each stream, both (n,) int64 -> (n,) fp64 in [0, 1), of 53 random bits; on
    MPS, which has no fp64, fp32 of 24."""
    wide, bits = (torch.float32, 24) if stream.device.type == "mps" else (torch.float64, 53)
    return (mix(stream + place * GOLDEN) >> 64 - bits & (1 << bits) - 1).to(wide) * 2.0**-bits


def pick(p: Tensor, u: Tensor) -> Tensor:
    """Inverse transform: p (n, V) >= 0, unnormalised, u (n,) fp64 in [0, 1) -> (n,) int64, v with
    probability p_v / sum(p).

    First the block of the vocabulary in which the running sum passes u, then the token in it.  The
    running sums are fp64: in fp32 a token of p 1e-8 would drown.  What has p = 0 is never picked:
    the first running sum above a goal below the total is a step up.  No wait for the device.
    """
    size = min(p.shape[-1] & -p.shape[-1], 128)  # a power of 2 that divides V
    blocks = p.unflatten(-1, (-1, size))  # (n, V / size, size)
    block, rest = passed(blocks.sum(-1), u)
    token, _ = passed(blocks[torch.arange(len(p), device=p.device), block], rest)
    return block * size + token


def passed(p: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Where the running sum of p (n, m) passes the share u (n,) of its total: the place (n,) int64,
    and the share of it (n,) that is below."""
    sums = p.to(u.dtype).cumsum(-1)  # (n, m)
    goal = torch.minimum(u * sums[:, -1], sums[:, -1].nextafter(torch.zeros_like(u)))
    place = (sums <= goal[:, None]).sum(-1)
    below = F.pad(sums, (1, 0)).gather(-1, place[:, None])[:, 0]
    return place, (goal - below) / p.gather(-1, place[:, None])[:, 0]


def sample(logits: Tensor, how: Sampling, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """logits (n, V), u (n,) fp64 uniform -> token (n,) int64, its log-prob (n,) and the entropy
    (n,), fp32, of the distribution drawn from.  At T=0 that is a point: both are 0."""
    logits = at_least_fp32(logits)
    if how.threshold is None and how.temperature == 0:
        zero = logits.new_zeros(len(logits))
        return logits.argmax(-1), zero, zero
    if how.threshold is None:
        logp = (logits / how.temperature).log_softmax(-1)
    else:
        fork = entropy_of(logits.log_softmax(-1)) >= how.threshold
        t = torch.where(fork, how.t_fork, how.temperature)[:, None]  # (n, 1)
        point = torch.full_like(logits, -torch.inf).scatter_(
            -1, logits.argmax(-1, keepdim=True), 0.0
        )
        logp = torch.where(t > 0, (logits / t.clamp(min=1e-3)).log_softmax(-1), point)
    if how.top_p < 1 or how.top_k:
        logp = nucleus(logp, how.top_p, how.top_k)
    p = logp.exp()
    token = pick(p, u)
    if how.threshold is not None:
        logp = logp.clamp(min=-1e4)  # 0 log 0 is 0, not NaN
    entropy = -torch.linalg.vecdot(p, logp)
    return token, logp.gather(-1, token[:, None])[:, 0], entropy


def nucleus(logp: Tensor, top_p: float, top_k: int = 0) -> Tensor:
    """logp (n, V) -> the log-probs (n, V) of the `top_k` likeliest tokens, if that is not 0, and of
    these the likeliest whose sum first reaches `top_p`, renormalised; NEVER elsewhere.  The
    likeliest token always stays."""
    ranked, order = logp.sort(-1, descending=True)
    if top_k:
        ranked[:, top_k:] = NEVER
        ranked = ranked.log_softmax(-1)
    before = ranked.exp().cumsum(-1) - ranked.exp()  # probability of all likelier tokens
    ranked = ranked.masked_fill((before >= top_p) & (before > 0), NEVER)
    return torch.empty_like(logp).scatter_(-1, order, ranked.log_softmax(-1))


class Slots:
    """The rows that are decoded together, each with its place in the KV cache.

    The capacity is fixed and everything is allocated once.  Slots 0..n-1 are at work: slot i serves
    request[i], whose newest token last[i] goes to position[i] of the cache, until alive[i] is
    false.  Request r's tokens are noted in row r of `tokens`, `logprobs` and `entropy`, (R,
    max_new) each; count (R,) of them are there, and finished (R,) says that the last one is one of
    `eos`.
    """

    def __init__(
        self,
        model: Transformer,
        how: Sampling,
        eos: int | Collection[int] | None,
        stream: Tensor,
        slots: int,
        length: int,
        max_new: int,
    ):
        self.model, self.how, self.stream = model, how, stream
        stops = [eos] if type(eos) is int else [*(eos or ())]
        self.eos = torch.tensor(stops, dtype=torch.long, device=model.head_weight.device)
        c, zeros, requests = model.shape, model.head_weight.new_zeros, len(stream)
        # zeros: a masked place has weight 0, and 0 times leftover NaN is NaN
        self.k = zeros(c.n_layer, slots, c.n_kv_head, length, c.head_dim)
        self.v = torch.zeros_like(self.k)
        self.request, self.last, self.position = zeros(3, slots, dtype=torch.long)
        self.alive = zeros(slots, dtype=torch.bool)
        self.tokens = zeros(requests, max_new, dtype=torch.long)
        self.logprobs, self.entropy = zeros(2, requests, max_new, dtype=torch.float32)
        self.count = zeros(requests, dtype=torch.long)
        self.finished = zeros(requests, dtype=torch.bool)
        self.n = 0  # slots at work
        self.longest = 0  # places of the cache that they use
        self.drawn = 0  # tokens so far

    def admit(self, prompts: Sequence[Sequence[int]], first: int, G: int) -> int:
        """Prefill as many prompts from number `first` on as G samples each have room for, and draw
        their first tokens.  Each prompt runs once; its keys and values go to its G slots.  Returns
        how many were admitted."""
        group = prompts[first : first + (self.alive.numel() - self.n) // G]
        if not group:
            return 0
        tokens, cu_seqlens = pack(group, self.k.device)
        positions, lengths = positions_of(cu_seqlens), [len(p) for p in group]
        place = torch.arange(len(group), device=tokens.device).repeat_interleave(cu_seqlens.diff())
        slots = self.n + place[:, None] * G + torch.arange(G, device=tokens.device)  # (S, G)

        def attend_and_store(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            copies = (x.repeat_interleave(G, 0) for x in (positions, k, v))
            self.write(layer, slots.flatten(), *copies)
            return attend(q, k, v, cu_seqlens, lengths)

        h = self.model.backbone(tokens, positions, attend_and_store)  # (S, n_embd)
        logits = self.model.logits(h[cu_seqlens[1:].long() - 1])  # (P, V)
        new = slice(self.n, self.n + len(group) * G)
        self.request[new] = torch.arange(first * G, (first + len(group)) * G, device=tokens.device)
        self.position[new] = cu_seqlens.diff().long().repeat_interleave(G)
        self.alive[new] = True
        self.n, self.longest = new.stop, max(self.longest, *lengths)
        self.draw(new, logits.repeat_interleave(G, 0))
        return len(group)

    def step(self) -> None:
        """One more token for every slot at work."""
        working = slice(0, self.n)
        self.longest = min(self.longest + 1, self.k.shape[3])
        logits = self.decode(self.last[working], self.position[working])
        self.position[working] = (self.position[working] + 1).clamp(max=self.k.shape[3] - 1)
        self.draw(working, logits)

    def decode(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The newest token of each of the first n slots, (n,) int64, at its position (n,), less
        than `longest` -> logits of the next (n, V)."""
        n, length = len(tokens), self.longest
        slots = torch.arange(n, device=tokens.device)
        visible = torch.arange(length, device=tokens.device) <= positions[:, None]  # (n, length)
        bias = torch.zeros(visible.shape, dtype=self.k.dtype, device=tokens.device)
        bias = bias.masked_fill_(~visible, -torch.inf)[:, None, None]  # (n, 1, 1, length)

        def attend_cached(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.write(layer, slots, positions, k, v)
            k, v = (x[layer, :n, :, :length] for x in (self.k, self.v))  # (n, n_kv, length, hd)
            # the query heads of one KV head side by side: nothing is repeated
            q = q.unflatten(1, (k.shape[1], -1)) * q.shape[-1] ** -0.5  # (n, n_kv, group, hd)
            scores = (q @ k.transpose(-1, -2)).add_(bias)  # (n, n_kv, group, length)
            return (scores.softmax(-1) @ v).flatten(1, 2)  # (n, n_head, hd)

        return self.model.logits(self.model.backbone(tokens, positions, attend_cached))

    def write(self, layer: int, slots: Tensor, positions: Tensor, k: Tensor, v: Tensor) -> None:
        """The cache write: k, v (N, n_kv_head, hd) to the places (slots, positions), both (N,)."""
        self.k[layer][slots, :, positions] = k
        self.v[layer][slots, :, positions] = v

    def draw(self, slots: slice, logits: Tensor) -> None:
        """Sample the next token of each of `slots` and note it; slots that ended note nothing."""
        request, alive = self.request[slots], self.alive[slots]
        u = uniform(self.stream[request], self.count[request])  # (n,)
        token, logprob, entropy = sample(logits, self.how, u)
        at = self.count[request].clamp(max=self.tokens.shape[1] - 1)
        notes = (self.tokens, token), (self.logprobs, logprob), (self.entropy, entropy)
        for store, value in notes:
            store[request, at] = torch.where(alive, value.to(store.dtype), store[request, at])
        self.count[request] += alive
        self.last[slots] = token
        self.drawn += len(token)
        ended = (token[:, None] == self.eos).any(-1)
        self.finished[request] |= alive & ended
        self.alive[slots] = alive & ~ended & (self.count[request] < self.tokens.shape[1])

    def compact(self) -> int:
        """Give the slots of rows that ended to the last rows at work; how many ended."""
        alive = self.alive[: self.n]
        kept = int(alive.sum())  # waits for the device
        ended = self.n - kept
        if ended:
            holes = (~alive[:kept]).nonzero()[:, 0]
            movers = kept + alive[kept:].nonzero()[:, 0]
            for cache in (self.k, self.v):
                cache[:, holes, :, : self.longest] = cache[:, movers, :, : self.longest]
            for state in (self.request, self.last, self.position, self.alive):
                state[holes] = state[movers]
            self.n = kept
            self.longest = int(self.position[:kept].max()) if kept else 0
        return ended

    def rollout(self, prompts: Sequence[Sequence[int]], G: int) -> Rollout:
        """What was noted, as one stream."""
        count, finished = self.count.cpu(), self.finished.cpu()
        head, head_cu = pack([p for p in prompts for _ in range(G)], count.device)
        n_prompt = head_cu.diff().long()
        cu_seqlens = F.pad((n_prompt + count).cumsum(0), (1, 0)).int()
        response = positions_of(cu_seqlens) >= n_prompt.repeat_interleave(n_prompt + count)  # (S,)
        noted = torch.arange(self.tokens.shape[1]) < count[:, None]  # (R, max_new)
        drawn, *about = (x.cpu()[noted] for x in (self.tokens, self.logprobs, self.entropy))
        tokens = torch.empty(len(response), dtype=torch.long)
        tokens[~response], tokens[response] = head, drawn
        return Rollout(tokens, cu_seqlens, response, *about, torch.full_like(drawn, -1), finished)


@torch.no_grad()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    G: int,
    max_new: int,
    eos: int | Collection[int] | None,
    how: Sampling = Sampling(),
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    max_rows: int = 512,
    progress: bool = False,
) -> Rollout:
    """G samples of every prompt, each up to `max_new` tokens or to `eos`, an id or several, at most
    `max_rows` (at least G; 0: all) decoded at once.  Seconds after a signal to stop, the rest is
    left undone; `progress` shows a bar from the beginning on.

    The random numbers of a token depend on `seed`, the number of its prompt (`numbers`, by default
    0, 1, 2...), its sample and its place alone: not on the other prompts, on `max_rows`, or on who
    decodes what, so that but for rounding the samples do not either.  Raises ValueError for an
    empty prompt or a `max_new` below 1.
    """
    if max_new < 1:
        raise ValueError(f"max_new is {max_new}: at least one token must be sampled")
    for i, p in enumerate(prompts):
        if not len(p):
            raise ValueError(f"prompt {i} has no tokens: there is nothing to condition on")
    requests, waiting = len(prompts) * G, 0
    numbers = torch.tensor(range(len(prompts)) if numbers is None else numbers, dtype=torch.long)
    length = max(map(len, prompts), default=0) + max_new
    bar, start = files.bar("rollout", requests, " rows", 0 if progress else 4), time.perf_counter()
    with parallel.whole(model) as model, bar:
        stream = streams(seed, numbers.to(model.head_weight.device), G)  # (R,)
        rows = max(G, min(max_rows or requests, requests))
        slots = Slots(model, how, eos, stream, rows, length, max_new)
        look_every = LOOK_EVERY.get(slots.k.device.type, 1)
        while slots.n or waiting < len(prompts):
            waiting += slots.admit(prompts, waiting, G)
            for _ in range(look_every):
                slots.step()
            rate = slots.drawn / (time.perf_counter() - start)
            bar.set_postfix_str(f"{rate:,.0f} tok/s", refresh=False)
            bar.update(slots.compact())
            if parallel.here().any(files.overdue(), "tp"):
                break
    return slots.rollout(prompts, G)


def colour_trace(words: Sequence[str], entropy: Sequence[float], colour: bool | None = None) -> str:
    """Words joined, each shaded by its entropy: pale below 0.1 nats, deep red above 1.  Plain text,
    with the entropy of every word above 0.5 nats in brackets, when not a terminal or with NO_COLOR
    set."""
    if colour is None:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    if not colour:
        return "".join(
            f"{w}[{h:.2f}]" if h >= 0.5 else w for w, h in zip(words, entropy, strict=True)
        )
    shades = ((0.1, 255), (0.3, 224), (0.6, 217), (1.0, 210), (float("inf"), 203))  # xterm-256
    paint = (next(c for limit, c in shades if h < limit) for h in entropy)
    return "".join(f"\x1b[38;5;16;48;5;{c}m{w}\x1b[0m" for w, c in zip(words, paint, strict=True))


def main() -> int:
    """The command line: samples of one prompt, shaded by the entropy at T=1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt", help='for the small world e.g. "use 8 7 3 goal 18 ;"')
    parser.add_argument("--model", required=True, help="folder of a run or a base model")
    parser.add_argument("--max-new", type=int, default=160, help="tokens at most")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    parser.add_argument("--threshold", type=float, help="nats; from here on --t-fork applies")
    parser.add_argument("--t-fork", type=float, default=1.0, help="temperature at forks")
    parser.add_argument("--n", type=int, default=1, help="samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    parser.add_argument("--tp", type=int, default=1, help="processes of torchrun to one model")
    a = parser.parse_args()
    for name, low in (("n", 1), ("max_new", 1), ("temperature", 0), ("t_fork", 0), ("tp", 1)):
        if not low <= getattr(a, name) < float("inf"):
            parser.error(f"--{name.replace('_', '-')} {getattr(a, name)}: at least {low}, finite")
    torch.set_num_threads(1)  # rows are few: more threads only wait for each other
    return command("rollout.py", lambda _: print_traces(a), sys.argv[1:])


def print_traces(a: argparse.Namespace) -> int:
    """Sample and print.  UserError for a prompt of no tokens and for what is no model."""
    from tasks.ask import open_model  # only the command line looks upwards

    how, device = Sampling(a.temperature, a.threshold, a.t_fork), weights.device(a.device)
    with parallel.joined(a.tp, device):
        model, tokenizer = open_model(a.model, device)
        prompt = tokenizer.encode(a.prompt)
        if not prompt:
            raise UserError("the prompt has no tokens")
        stops = tokenizer.stops.values()
        samples = generate(model, [prompt], a.n, a.max_new, stops, how, a.seed, progress=True)
        with torch.no_grad():  # shade by the entropy at T=1, whatever they were drawn at
            _, entropy = model(*samples.sequences(range(a.n), device).scored())  # (n,)
        shades = torch.zeros(len(samples.tokens))
        shades[samples.response] = entropy.cpu()
        ends = samples.cu_seqlens.tolist()
        for start, end in zip(ends[:-1], ends[1:], strict=True):
            words = [tokenizer.token(i) for i in samples.tokens[start:end].tolist()]
            print(colour_trace(words, shades[start:end].tolist()).strip())
    return 0


if __name__ == "__main__":
    sys.exit(main())

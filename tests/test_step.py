"""One step of RLVR, slowly: `fork_gpt.step` against the same in plain loops over fp64 numbers.

Read `slow_step` from top to bottom: it is the method.  Nothing is packed, cached, cut or summed by
a library.  The model is asked for one sequence at a time, autograd for the gradient of the
objective that stands there, and that is all.
"""

import math
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field, replace
from fractions import Fraction
from random import Random
from types import SimpleNamespace

import pytest
import torch
from common import TIMING, all_logits, random_model

import fork_gpt
from fork_gpt import Config
from infra.files import Clock
from model import Shape, Transformer
from tasks.countdown import KINDS

EOS, G = 0, 4


class Sums:
    """Problem n is solved by ids whose sum is n modulo 3: a third of all texts is right."""

    def tokenizer(self):
        return SimpleNamespace(eos=EOS, stops={".": EOS}, decode=self.decode)

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def encode(self, problem: int) -> list[int]:
        return [1 + problem % 3, 4 + problem % 5, *[problem % 7] * (problem % 2)]

    def reward(self, problem: int, text: str) -> float:
        return float(sum(map(int, text.split())) % 3 == problem % 3)

    def kinds(self, ids: list[int]) -> list[int]:
        return [i % 3 for i in ids]


# ---------------------------------------------------------------------- small things


@dataclass
class Sample:
    prompt: list[int]
    ids: list[int]  # the response
    old: list[float]  # log-probability of each id as it was drawn
    h: list[float]  # entropy of the distribution that it was drawn from
    advantage: float = 0.0


@dataclass
class Memory:
    """What a step leaves to the next."""

    model: Transformer
    base: Transformer  # as it was before the first step
    step: int = 0
    n_updates: int = 0
    position: int = 0  # in the endless order of problems
    moments: dict = field(default_factory=dict)  # AdamW's: name -> (m, v)


def mix(x: int) -> int:
    """SplitMix64's output function, on 64 bits."""
    x %= 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def uniform(seed: int, problem: int, sample: int, place: int) -> float:
    """The random number in [0, 1) of one token, a function of these four."""
    golden = 0x9E3779B97F4A7C15
    return draw(mix(mix(mix(seed) + problem * golden) + sample * golden), place)


def draw(stream: int, place: int) -> float:
    """Number `place` of a stream: 53 random bits."""
    return (mix(stream + place * 0x9E3779B97F4A7C15) >> 11) / 2**53


def seed_of(*names) -> int:
    return Random("/".join(map(str, names))).getrandbits(63)


def fp32(x: float) -> float:
    """What the sampler notes is rounded, and so is what the threshold compares."""
    return torch.tensor(x, dtype=torch.float64).float().item()


def log_softmax(model: Transformer, ids: list[int], T: float) -> torch.Tensor:
    """Of what follows each of `ids`: (len(ids), V)."""
    return (all_logits(model, torch.tensor(ids)) / T).log_softmax(-1)


def entropy(logp: torch.Tensor) -> float:
    return -sum(math.exp(x) * x for x in logp.tolist())


def respond(model: Transformer, prompt: list[int], c: Config, problem: int, g: int) -> Sample:
    """Response g to the problem of this number in the endless order."""
    s = Sample(prompt, [], [], [])
    while len(s.ids) < c.max_new and s.ids[-1:] != [EOS]:
        logp = log_softmax(model, prompt + s.ids, c.temperature)[-1].detach()
        u = uniform(seed_of(c.seed, "rollout"), problem, g, len(s.ids))
        token, passed = 0, math.exp(logp[0])
        while passed <= u:  # [0, 1) is cut into a piece for each token: the one in which u lies
            token += 1
            passed += math.exp(logp[token])
        s.ids.append(token)
        s.old.append(fp32(logp[token].item()))
        s.h.append(fp32(entropy(logp)))
    return s


# ---------------------------------------------------------------------- the step


def slow_step(memory: Memory, world: Sums, problems: list, c: Config) -> tuple[dict, list[dict]]:
    """The log line without what the clock decides, and each update's gradient by parameter."""
    model = memory.model

    # Sampling: groups of G responses until c.prompts of them are mixed, c.rounds times at most.
    samples, correct, rewards, mixed = [], [], [], []
    for _ in range(c.rounds):
        missing = max(0, c.prompts - len(mixed))
        for _ in range(math.ceil(missing * Fraction(str(c.oversample)))):
            epoch, i = divmod(memory.position, len(problems))
            problem = Random(f"{c.seed}/{epoch}").sample(problems, len(problems))[i]
            for g in range(G):
                s = respond(model, world.encode(problem), c, memory.position, g)
                samples.append(s)
                correct.append(world.reward(problem, world.decode(s.ids)))
                rewards.append(correct[-1])
                if c.overlong:  # the soft penalty: 0 up to max_new - overlong, 1 at max_new
                    rewards[-1] -= max(0.0, (len(s.ids) - c.max_new + c.overlong) / c.overlong)
            if 0 < sum(correct[-G:]) < G:  # by correctness: the penalty makes no group mixed
                mixed.append(len(samples) // G - 1)
            memory.position += 1
    groups = mixed[: c.prompts]

    # Advantages: z-scores inside each group, the standard deviation unbiased.
    for k in range(0, len(samples), G):
        mean = sum(rewards[k : k + G]) / G
        std = math.sqrt(sum((r - mean) ** 2 for r in rewards[k : k + G]) / (G - 1))
        for s, r in zip(samples[k : k + G], rewards[k : k + G], strict=True):
            s.advantage = (r - mean) / (std + 1e-6)

    # The share may move to c.rho_end over half of the steps.
    rho = Fraction(str(c.rho))
    if c.rho_end:
        rho += min(1, Fraction(2 * memory.step, c.steps)) * (Fraction(str(c.rho_end)) - rho)
    memory.step += 1

    # Each response token has a number, by which tokens that tie are ordered.
    number = {}
    for s in samples:
        number |= {(id(s), t): len(number) + t for t in range(len(s.ids))}

    # The updates: the groups in their order, shared out as evenly as they go.
    gradients, taus, total, n_updates = [], [], Counter(), min(c.updates, len(groups))
    for u in range(n_updates):
        start, end = (len(groups) * x // n_updates for x in (u, u + 1))
        mine = [samples[k * G + i] for k in groups[start:end] for i in range(G)]
        mine.sort(key=lambda s: -len(s.prompt + s.ids))  # the longest first, for the micro-batches
        tokens = [(s, t) for s in mine for t in range(len(s.ids))]  # N of them
        now = {id(s): log_softmax(model, s.prompt + s.ids, c.temperature) for s in mine}
        rows = [now[id(s)][len(s.prompt) - 1 + t] for s, t in tokens]  # predict the tokens

        # Micro-batches: as many samples as fit into c.microbatch tokens, one at least.
        parts, room = [], 0
        for s in mine:
            if len(s.prompt + s.ids) > room:
                parts.append([])
                room = c.microbatch
            parts[-1] += [i for i, (of, _) in enumerate(tokens) if of is s]
            room -= len(s.prompt + s.ids)

        # The entropies that rank: the policy's, which at the first update still is the sampler.
        h = [s.h[t] for s, t in tokens]
        if c.keep in ("top", "bottom") and c.entropy == "base":
            first = {id(s): log_softmax(memory.base, s.prompt + s.ids, c.temperature) for s in mine}
            h = [fp32(entropy(first[id(s)][len(s.prompt) - 1 + t])) for s, t in tokens]
        elif c.keep in ("top", "bottom") and c.entropy == "current" and u > 0:
            h = [fp32(entropy(row)) for row in rows]

        # The mask: the ceil(rho N) highest of each pool, the lowest numbers of those that tie.
        at = [number[id(s), t] for s, t in tokens]
        lots = [draw(seed_of(c.seed, "lots", memory.n_updates), n) for n in at]
        kind = [KINDS[world.kinds(s.ids)[t]] for s, t in tokens]
        by = [fp32(x) for x in lots] if c.keep == "random" else h
        kept = []
        for pool in parts if c.pool == "microbatch" else [range(len(tokens))]:
            ranked, k = sorted(pool, key=lambda i: (-by[i], at[i])), math.ceil(rho * len(pool))
            modes = dict(top=ranked[:k], random=ranked[:k], bottom=ranked[k:], all=ranked)
            kept += modes.get(c.keep, [i for i in pool if kind[i] == c.keep])
            taus.append(by[ranked[k - 1]] if c.keep in ("top", "bottom") else 0.0)

        # J = 1/N_kept  sum over the kept tokens of  min(r A, clip(r, 1 - low, 1 + high) A).
        J = 0.0 * rows[0].sum()
        for i in kept:
            s, t = tokens[i]
            r = (rows[i][s.ids[t]] - s.old[t]).clamp(-20, 20).exp()
            A, held = s.advantage, r.clamp(1 - c.clip_low, 1 + c.clip_high)
            term = torch.minimum(r * A, held * A)
            if c.dual_clip and A < 0:
                term = term.clamp(min=c.dual_clip * A)
            J = J + term / (len(kept) if c.normalize == "kept" else len(tokens))
            total["clipped"] += bool(term != r * A)

        # One optimizer step against the gradient, whose norm is c.grad_clip at most.
        names, parameters = zip(*model.named_parameters(), strict=True)
        found = dict(zip(names, torch.autograd.grad(-J, parameters), strict=True))
        norm = math.sqrt(sum((g**2).sum().item() for g in found.values()))
        lr = c.lr * min(1.0, (memory.n_updates + 1) / max(c.warmup, 1))
        memory.n_updates += 1
        for name, p in zip(names, parameters, strict=True):
            g = found[name] * min(1.0, c.grad_clip / (norm + 1e-6))
            if c.optimizer == "sgd":
                p.data -= lr * g
                continue
            m, v = memory.moments.get(name, (0.0, 0.0))
            m, v = memory.moments[name] = 0.9 * m + 0.1 * g, c.beta2 * v + (1 - c.beta2) * g**2
            p.data *= 1 - lr * c.weight_decay * (p.ndim == 2)  # matrices decay, norms do not
            m_hat, v_hat = m / (1 - 0.9**memory.n_updates), v / (1 - c.beta2**memory.n_updates)
            p.data -= lr * m_hat / (v_hat.sqrt() + 1e-8)

        # For the log.
        gradients.append(found)
        wide, k = sorted(range(len(h)), key=lambda i: (-h[i], at[i])), math.ceil(rho * len(h))
        wide = set(wide[:k] if c.keep == "top" else wide[k:])  # if the pool were the mini-batch
        total.update(loss=-J.item(), norm=norm, n=len(tokens))
        total.update(kept=len(kept), h=sum(h), h_kept=sum(h[i] for i in kept))
        total.update(shared=len(wide & set(kept)), decided=kind.count("decisions"))
        total.update(hit=sum(kind[i] == "decisions" for i in kept))
        if u == 0:  # policy and sampler are one; looked at on the longest answers
            gaps = (abs(rows[i][s.ids[t]] - s.old[t]) for i, (s, t) in enumerate(tokens))
            total["gap"] = max(gap.item() for gap in list(gaps)[: len(parts[0])])

    n, kept, lengths = total["n"], total["kept"], [len(s.ids) for s in samples]
    line = dict(
        reward=sum(rewards) / len(samples),
        accuracy=sum(correct) / len(samples),
        truncated=sum(s.ids[-1] != EOS for s in samples) / len(samples),
        length=sum(lengths) / len(samples),
        sampled_tokens=sum(lengths),
        group_pass_rate=len(mixed) * G / len(samples),
        groups=len(groups),
        loss=total["loss"] / max(n_updates, 1),
        grad_norm=total["norm"] / max(n_updates, 1),
        tau=sum(taus) / max(len(taus), 1),
        kept_fraction=kept / max(n, 1),
        entropy=total["h"] / max(n, 1),
        entropy_kept=total["h_kept"] / max(kept, 1),
        entropy_dropped=(total["h"] - total["h_kept"]) / max(n - kept, 1),
        clip_fraction=total["clipped"] / max(kept, 1),
        max_dlogp=total["gap"],
    )
    if c.pool == "microbatch" and c.keep in ("top", "bottom"):
        line["pool_overlap"] = total["shared"] / max(kept, 1)

    line["precision"] = total["hit"] / max(kept, 1)
    line["recall"] = total["hit"] / max(total["decided"], 1)

    # By kind of token, of the first 16 responses: entropy, and how far the policy has moved.
    found = []
    for s in samples[:16]:
        new = log_softmax(model, s.prompt + s.ids, c.temperature).detach()[len(s.prompt) - 1 :]
        gaps = [new[t, i].item() - s.old[t] for t, i in enumerate(s.ids)]
        kl = [math.exp(gap) - 1 - gap for gap in gaps]
        found += zip(world.kinds(s.ids), s.h, kl, strict=True)
    for i, name in enumerate(KINDS):
        mine = [(h, kl) for kind, h, kl in found if kind == i]
        line[f"entropy_{name}"] = sum(h for h, _ in mine) / max(len(mine), 1)
        line[f"kl_{name}"] = sum(kl for _, kl in mine) / len(found)
    return line, gradients


# ---------------------------------------------------------------------- the same, fast


BASE = Config(
    prompts=5, group=G, updates=1, oversample=1.3, max_new=9, microbatch=60, lr=0.02, seed=3,
)  # fmt: skip
CASES = {
    "overlong, T 0.7, three updates, warm-up": dict(
        overlong=5, temperature=0.7, updates=3, warmup=4, rho=0.28, prompts=6
    ),
    "pool microbatch": dict(pool="microbatch", updates=2, rho=0.35),
    "all, huge learning rate": dict(keep="all", lr=1.5, updates=3, dual_clip=3.0, grad_clip=0.1),
    "bottom": dict(keep="bottom", updates=2, entropy="rollout", clip_high=0.05, clip_low=0.02),
    "bottom of each micro-batch": dict(keep="bottom", pool="microbatch", updates=2, prompts=4),
    "base's entropies, a share that moves": dict(
        entropy="base", rho_end=0.6, steps=4, updates=2, temperature=0.8
    ),
    "tokens of a kind": dict(keep="decisions", updates=2, grad_clip=9.0),
    "random": dict(keep="random", updates=2, optimizer="sgd", lr=0.3, grad_clip=0.5),
    "uneven groups": dict(updates=4, prompts=6, normalize="all", beta2=0.9, weight_decay=2.0),
    "no group is mixed": dict(prompts=2, temperature=0.02, rounds=3),
}


def fast_step(state: fork_gpt.State, c: Config, monkeypatch) -> tuple[dict, list[dict]]:
    """`fork_gpt.step`, and the gradient that each update left before it was clipped."""
    gradients, update = [], fork_gpt.update

    def noted(model, *rest, **more):
        out = update(model, *rest, **more)
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
        return out

    with monkeypatch.context() as m:
        m.setattr(fork_gpt, "update", noted)
        return fork_gpt.step(state, Sums(), PROBLEMS, c), gradients


PROBLEMS = list(range(10, 24))


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_the_slow_step(case, fp64, monkeypatch):
    """Two steps of each case, so that what one leaves to the next counts."""
    c = replace(BASE, **CASES[case])
    model = random_model(Shape(16, 1, 2, 1, 8, 24, 12, rope_theta=1e4))
    state = fork_gpt.begin(deepcopy(model), PROBLEMS, replace(c, dtype="float64"), Clock())
    memory = Memory(model, deepcopy(model))
    for n in (1, 2):
        line, gradients = fast_step(state, c, monkeypatch)
        want, expected = slow_step(memory, Sums(), PROBLEMS, c)
        print(case, n, want)
        # nothing here adds up more than a few hundred numbers: fp64 leaves ten digits of them
        assert len(gradients) == len(expected)
        for g, e in zip(gradients, expected, strict=True):
            for name in e:
                torch.testing.assert_close(g[name], e[name], rtol=1e-9, atol=1e-12)
        for name, p in memory.model.named_parameters():
            other = state.model.get_parameter(name)
            torch.testing.assert_close(other, p, rtol=1e-9, atol=1e-11)
        # entropies and log-probs are noted in fp32 and summed there, 2^-24 each time
        assert line.pop("step") == state.step == n
        assert all(line.pop(name) >= 0 for name in TIMING)
        assert line == pytest.approx(want, rel=1e-6, abs=1e-9)
        assert (state.n_updates, state.position) == (memory.n_updates, memory.position)


def test_the_clocks_columns(monkeypatch):
    """Tokens per second of the rollout and of the updates, each over its own time."""
    c, ticks, cpu = replace(BASE, updates=2), iter((100.0, 110.0, 130.0)), iter((5.0, 12.0))
    model = random_model(Shape(16, 1, 2, 1, 8, 24, 12, rope_theta=1e4))
    state = fork_gpt.begin(model, PROBLEMS, c, Clock())
    clock = SimpleNamespace(perf_counter=lambda: next(ticks), process_time=lambda: next(cpu))
    monkeypatch.setattr(fork_gpt, "time", clock)
    update, sums = fork_gpt.update, Counter()
    monkeypatch.setattr(fork_gpt, "update", lambda *a, **k: sums.update(x := update(*a, **k)) or x)
    line = fork_gpt.step(state, Sums(), PROBLEMS, c)
    assert (line["seconds"], line["cpu_seconds"]) == (30, 7)
    assert line["rollout_tok_s"] == line["sampled_tokens"] / 10
    assert line["update_tok_s"] == sums["tokens"] / 20 > 0

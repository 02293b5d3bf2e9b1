"""Every figure of the paper, and two that it lacks, as numbers: from a run to RUN/data/*.json.

    python -m study runs/x          # where the entropy is, which tokens fork, what RLVR changed
    python -m study runs/x --all    # and decoding, gradients, causes: about ten CPU-minutes more

`fork_gpt.py` ends with the first; `study/report.py` draws what is there.  A section is a small pure
function from tensors to numbers and one that collects its tensors from the models: `distribution`
and `tokens` (paper section 3), `traces`, `two_temperature` (Eq. 5), `during` (section 4), `anatomy`
of the gradient of Eq. 6, `decomposition` of the outcome's variance over tokens, `values` of the
traces' tokens and their alternatives, what was `learned`, `sparsity` of the update.  One that
cannot be made is {"missing": why}.  Entropies are nats, shares 0..1, intervals 95%.
"""

import copy
import json
import math
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from fork_gpt import Config, configure, group_advantages, mixed, top_entropy
from infra import files, flags, weights
from infra.files import UserError
from infra.flags import flag
from model import NEVER, Transformer, at_least_fp32, entropy_of
from rollout import Rollout, Sampling
from study.stats import deciles, shares
from tasks import ask
from tasks.ask import World, measure, seed_of
from tasks.countdown import KINDS, Countdown
from tasks.tokenizer import Tokenizer

# the paper's grid, and where a small model still makes sense
TEMPERATURES = (0.0, 0.05, 0.3, 0.6, 1.0, 1.1, 1.2, 1.3, 1.5, 2.0, 3.0, 5.0)
RHOS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
COLUMNS = "step accuracy reward length truncated entropy entropy_kept entropy_dropped tau".split()
COLUMNS += ["grad_norm", "kept_fraction"]  # of metrics.jsonl
LONGEST = 400  # response tokens of a trace that the page shows
COORDINATES = 2**24  # of a gradient, at most, that the anatomy keeps
LARGEST = 10  # tokens that a robust agreement of halves leaves out
PLAUSIBLE = 0.001  # alternatives of less probability have no value measured


def histogram(entropy: Tensor, highest: float, bins: int = 50) -> dict[str, list]:
    """entropy (n,) nats -> counts of `bins` equal bins from 0 to `highest`, and their edges."""
    h = entropy.cpu().double().clamp(0, highest).numpy()
    counts, edges = np.histogram(h, bins, (0.0, max(highest, 1e-6)))
    return dict(edges=edges.tolist(), counts=counts.tolist())


def overlap(a: Tensor, b: Tensor) -> float:
    """The share of mask `a` that mask `b` has too; both (n,) bool with equally many true."""
    return (a & b).sum().item() / max(a.sum().item(), 1)


def change_by_bin(base: Tensor, final: Tensor, bins: int = 20) -> list[dict[str, float]]:
    """Entropies (n,) of the same tokens under two models -> their means in each 1/`bins` of the
    tokens by base entropy.  Bounds are percentiles of the base entropy; where they tie, bins merge.
    """
    x, y = (e.cpu().double().numpy() for e in (base, final))
    edges = np.unique(np.percentile(x, np.linspace(0, 100, bins + 1)))
    last = max(len(edges) - 2, 0)  # of one value alone there is one bin
    where = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, last)
    out = []
    for i in np.unique(where):
        mine = where == i
        b, f = float(x[mine].mean()), float(y[mine].mean())
        bounds = dict(low=float(edges[i]), high=float(edges[min(i + 1, len(edges) - 1)]))
        out.append(bounds | dict(base=b, final=f, change=f - b, n=int(mine.sum())))
    return out


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()  # in fp32 millions of squares add up to a cosine of 1.0001
    return (a @ b / (a.norm() * b.norm()).clamp(min=1e-30)).item()


def compare_gradients(halves: Tensor, full: Tensor) -> dict[str, float]:
    """halves (2, P), the gradient of each half of the groups, and the full gradient (P,) -> norm of
    their sum, its cosine with the full one, and the cosine of the halves (1: signal, 0: noise)."""
    mine = halves.double().sum(0)
    return dict(norm=mine.norm().item(), cosine=cosine(mine, full), split_half=cosine(*halves))


def unchanged(base: dict[str, Tensor], final: dict[str, Tensor], decay: float) -> dict:
    """The share of parameters equal in both after rounding to bf16: of all, and by layer; and the
    same where weight decay alone, which multiplies matrices by `decay`, is taken out of the change
    (`beyond`) or is all there is (`decayed`)."""
    layers = {}  # name -> (equal, equal to the decayed base, decayed base equal to the base, all)
    for name, p in base.items():
        words, q = name.split("."), final[name].to(p.device)  # model.layers.7.mlp.up_proj.weight
        layer = " ".join(words[1:3]) if "layers" in words else words[-2]
        shrunk = p * decay if p.ndim == 2 else p
        pairs = ((p, q), (shrunk, q), (p, shrunk))
        counts = [(x.bfloat16() == y.bfloat16()).sum().item() for x, y in pairs]
        layers[layer] = layers.get(layer, 0) + np.array([*counts, p.numel()])

    def row(counts: np.ndarray) -> dict:
        shares = (counts[:3] / counts[3]).tolist()
        return dict(zip(("unchanged", "beyond", "decayed"), shares, strict=True))

    rows = [dict(name=k, n=int(counts[3])) | row(counts) for k, counts in layers.items()]
    return dict(dtype="bfloat16", decay=decay) | row(sum(layers.values())) | dict(layers=rows)


def places(words: Sequence[str]) -> list[str]:
    """What each word of a Countdown response, filler left out, is there for."""
    tried = ["first operand", "operator", "second operand", "=", "result"]
    out, since, before = [], 9, ""
    for word in (w.strip() for w in words):
        if since < 5:
            name = tried[since]
        elif before == "no":
            name = "after no"
        elif word in ("yes", "no"):
            name = "yes or no"
        else:
            name = "answer" if "answer" in out or before == "answer" else "rest"
        out.append(name)
        since, before = 0 if word == "try" else since + 1, word
    return out


# ---------------------------------------------------------------------- from models to tensors


class Missing(Exception):
    """A section that this run cannot have: one sentence why, and what makes it."""


@dataclass(frozen=True)
class Flags:
    """What `python -m study RUN` takes beside the run's folder; `--help` is this list."""

    all: bool = flag(False, "also the sections that take minutes")
    device: str = flag("auto", "where to run; auto takes the best there is", "auto cuda mps cpu")
    seed: int = flag(0, "of what is sampled anew", "[0, 1e18)")
    problems: int = flag(96, "problems of during, two_temperature and anatomy", "[1, inf)")
    k: int = flag(4, "samples per problem and temperature", "[1, inf)")
    percentile: float = flag(80.0, "of entropies: threshold of two_temperature", "[0, 100]")
    threshold: float = flag(0.3, "nats: its other threshold", "[0, inf)")
    responses: int = flag(120, "responses that decomposition continues from each token", "[1, inf)")
    continuations: int = flag(16, "K: continuations of a lot; there are two", "[1, inf)")


@dataclass
class Run:
    """A run as the sections see it.  `model` holds the weights of one step at a time, and no longer
    those it came with; `looks` are `measure`'s findings on the test split, "base" and "final";
    `states` says where the weights of each kept step are, 0 the base, the last one final: its
    snapshots and, for an ended run, a copy of those that `model` came with."""

    folder: Path
    c: Config
    world: World
    splits: dict[str, list]
    model: Transformer | None
    looks: dict[str, tuple[dict, Rollout]] = field(default_factory=dict)
    states: dict[int, Path | dict[str, Tensor]] = field(default_factory=dict)
    cpu_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.model is None:  # the run was cut over processes that are gone
            dtype = getattr(torch, self.c.dtype)
            self.model, _ = ask.open_model(self.folder, weights.device(self.c.device), dtype=dtype)
        self.states = self.states or states_of(self.folder, self.c.steps, self.model)

    def weights_of(self, step: int) -> dict[str, Tensor]:
        state = self.states[step]
        if isinstance(state, dict):
            return state
        found = weights.load(state).get("weights")
        if not weights.are_finite(found):
            raise UserError(f"{state}: no finite weights; delete it to go on without it")
        return found

    def at(self, which: str | int) -> Transformer:
        """The model of a step, or the "base" or "final" one.  Missing, UserError."""
        step = which if isinstance(which, int) else self.step_of(which)
        try:
            self.model.load_state_dict(self.weights_of(step))
        except (KeyError, RuntimeError) as e:
            why = f"the weights of step {step} do not fit: {str(e).splitlines()[0]}"
            raise UserError(f"{self.folder}: {why}") from None
        return self.model

    def step_of(self, which: str) -> int:
        step = 0 if which == "base" else max(self.states, default=0)
        if step not in self.states:
            raise Missing(f"the base model was not kept: python -m study {self.folder} finds it")
        if which == "final" and step == 0:
            raise Missing(f"nothing is trained yet: python fork_gpt.py --resume {self.folder}")
        return step

    def problems(self) -> list:
        """The test problems that are looked at."""
        if not self.splits["test"]:
            raise Missing("no test problems: run with --holdout above 0")
        return self.splits["test"][: self.c.eval_problems or None]

    def look(self, which: str) -> tuple[dict, Rollout]:
        """What `measure` finds on the test split, as `fork_gpt.py` does; sampled once."""
        if which not in self.looks:
            problems, model = self.problems(), self.at(which)
            self.looks[which] = measure(model, self.world, problems, self.c, progress=True)
        return self.looks[which]


def states_of(folder: Path, step: int, model: Transformer) -> dict[int, Path | dict]:
    """Where the weights of a run's steps are: its snapshots, and a copy of those that `model` holds
    as those of `step`, unless a snapshot has them."""
    kept = folder / "snapshots"
    paths = kept.iterdir() if kept.exists() else ()  # glob would pass over a folder it may not read
    found = {int(p.stem): p for p in paths if p.suffix == ".pt" and p.stem.isdecimal()}
    if step not in found:
        found[step] = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
    return found


@torch.no_grad()
def alternatives(
    model: Transformer, samples: Rollout, n: int = 5, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Teacher-forced, for each response token: its probability (N,), the entropy (N,), the `n`
    likeliest tokens' probabilities and ids, (N, n) each, of p = softmax(logits.float() / T), and
    the norm (N,) of its log-prob's gradient by the logits, onehot - p."""
    weight, out = model.head_weight[: model.n_vocab], []
    whole = samples.sequences(range(len(samples.finished)), weight.device)
    tokens, cu_seqlens, rows, targets = whole.scored()
    h = model.hidden(tokens, cu_seqlens)[rows]  # (N, n_embd)
    for x, y in zip(h.split(256), targets.split(256), strict=True):
        logp = (at_least_fp32(F.linear(x, weight)) / temperature).log_softmax(-1)  # (256, V)
        best = logp.topk(min(n, len(weight)))
        mine = logp.gather(-1, y[:, None])  # (256, 1)
        others = logp.exp().scatter(-1, y[:, None], mine.expm1()).norm(dim=-1)  # p - onehot
        out.append((mine[:, 0].exp(), entropy_of(logp), best.values.exp(), best.indices, others))
    return tuple(torch.cat(x).cpu() for x in zip(*out, strict=True))


def gradients(
    model: Transformer, samples: Rollout, weights: Tensor, G: int, T: float = 1.0
) -> Tensor:
    """The gradient of sum(w log p) / n over the n response tokens for each w of `weights` (M, n),
    separately for the even and the odd groups of G samples: (M, 2, P) fp32.

    At the first update after a rollout r = 1, so w = A is the gradient of Eq. 6, and w = A on a
    mask its part, here divided by all n tokens whatever the mask, that parts may be added.  Of more
    than COORDINATES parameters every so-manyth is kept, and norms scaled up."""
    parameters = list(model.parameters())
    every = -(-sum(p.numel() for p in parameters) // COORDINATES) | 1  # odd: meets every column
    size = sum(len(range(0, p.numel(), every)) for p in parameters)
    out, end = torch.zeros(len(weights), 2, size), 0
    for g in tqdm(range(len(samples.finished) // G), desc="anatomy", unit="group", leave=False):
        s = samples.sequences(range(g * G, (g + 1) * G), model.head_weight.device)
        logprobs, _ = model(*s.scored(), T)  # (K,)
        start, end = end, end + len(logprobs)
        for m, w in enumerate(weights[:, start:end].to(logprobs)):
            if w.any():
                loss = (w * logprobs).sum() * (math.sqrt(every) / weights.shape[1])
                grads = torch.autograd.grad(loss, parameters, retain_graph=True)
                out[m, g % 2] += torch.cat([x.flatten()[::every].float().cpu() for x in grads])
    return out


def forbid(model: Transformer, ids: Sequence[int]) -> Transformer:
    """The same model, by which these tokens are never drawn."""
    other, index = copy.copy(model), torch.tensor(list(ids), device=model.head_weight.device)
    other.logits = lambda h: Transformer.logits(model, h).index_fill(-1, index, NEVER)
    return other


class Spliced:
    """`model`, but `other` draws the token after each token `after`: what the sampler asks of a
    model, with the layers of both."""

    def __init__(self, model: Transformer, other: Transformer, after: int):
        self.model, self.other, self.after = model, other, after
        self.shape = replace(model.shape, n_layer=2 * model.shape.n_layer)
        self.head_weight = model.head_weight

    def backbone(self, tokens: Tensor, positions: Tensor, attend: Callable) -> Tensor:
        n = self.model.shape.n_layer
        a = self.model.backbone(tokens, positions, attend)
        b = self.other.backbone(tokens, positions, lambda i, *qkv: attend(n + i, *qkv))
        return torch.cat((a, b, (tokens == self.after)[:, None].to(a)), 1)  # (S, 2 n_embd + 1)

    def logits(self, h: Tensor) -> Tensor:
        d = self.model.shape.n_embd
        a, b = self.model.logits(h[:, :d]), self.other.logits(h[:, d : 2 * d])
        return torch.where(h[:, -1:] > 0, b, a)


def trace(model: Transformer, one: Rollout, tokenizer: Tokenizer, pool: Tensor) -> list[dict]:
    """One sample's response tokens: text, entropy, its rank `q` (the share of the entropies `pool`
    that are higher), probability, five likeliest alternatives."""
    pool, h = pool.cpu().sort().values, one.entropy.cpu()
    q = (1 - torch.searchsorted(pool, h, right=True) / len(pool)).tolist()
    columns = [x.tolist() for x in alternatives(model, one)[:4]]
    out = []
    for token, rank, p, h, best, ids in zip(one.responses()[0], q, *columns, strict=True):
        alt = [[tokenizer.token(i), float(f"{x:.3g}")] for x, i in zip(best, ids, strict=True)]
        about = dict(h=round(h, 4), q=round(rank, 4), p=float(f"{p:.3g}"), alt=alt)
        out.append(dict(t=tokenizer.token(token)) | about)
    return out


def continued(
    run: Run, problems: list, starts: list[list[int]], seed: int
) -> list[tuple[list[int], float]]:
    """One continuation of each beginning of a response to its end, at most `max_new` tokens in all:
    (the ids that were added, the reward); a beginning that has ended is graded as it is."""
    c, world, tokenizer = run.c, run.world, run.world.tokenizer()
    texts = map(tokenizer.decode, starts)
    out = [([], world.reward(p, text)) for p, text in zip(problems, texts, strict=True)]
    ends = tokenizer.stops.values()
    going = [i for i, s in enumerate(starts) if {*s[-1:]}.isdisjoint(ends) and len(s) < c.max_new]
    if going:
        begun, asked = ([x[i] for i in going] for x in (starts, problems))
        sampled = dict(how=Sampling(c.temperature), seed=seed, rows=c.rows, starts=begun)
        samples, _, rewards = ask.ask(run.model, world, asked, 1, c.max_new, **sampled)
        for i, ids, reward in zip(going, samples.responses(), rewards.tolist(), strict=True):
            out[i] = ids[: c.max_new - len(starts[i])], reward
    return out


def values(
    run: Run, problems: list, responses: list[list[int]], K: int, seed: int
) -> list[np.ndarray]:
    """P(right) after 0, 1, .. all tokens of each response, (2, L + 1): means over K continuations
    of two independent lots; after its end both are its reward.

    A continuation whose next token is the response's is one from there, too, and is kept; the
    others are drawn anew.  So lots only change where the policy had a choice."""
    tokenizer = run.world.tokenizer()
    V = [np.zeros((2, len(ids) + 1)) for ids in responses]
    pools = [[None] * (2 * K) for _ in responses]  # the continuations of each from token t on
    for t in range(max(map(len, responses)) + 1):
        there = [b for b, ids in enumerate(responses) if t < len(ids)]
        anew = [(b, i) for b in there for i in range(2 * K) if not pools[b][i]]
        starts = [responses[b][:t] for b, _ in anew]
        found = continued(run, [problems[b] for b, _ in anew], starts, seed_of(seed, t))
        for (b, i), one in zip(anew, found, strict=True):
            pools[b][i] = one
        for b in there:
            V[b][:, t] = np.reshape([reward for _, reward in pools[b]], (2, K)).mean(1)
            following = responses[b][t]
            pools[b] = [(x[1:], r) if x[:1] == [following] else None for x, r in pools[b]]
    for v, problem, ids in zip(V, problems, responses, strict=True):
        v[:, -1] = run.world.reward(problem, tokenizer.decode(ids))
    return V


# ---------------------------------------------------------------------- the sections


def run_section(run: Run, f: Flags) -> dict:
    """What was run, and where."""
    c = run.c
    changed = [x.name for x in fields(c) if getattr(c, x.name) != x.default]
    given = {x: getattr(c, x) for x in changed} | dict(out=run.folder)
    small = f"Countdown: {c.n_numbers} numbers up to {c.max_number}, operations {c.ops}, values up "
    summary, spent = run.folder / "summary.json", run.cpu_seconds
    if spent is None and summary.exists():
        spent = files.read_json(summary).get("cpu_seconds")
    settings = {k: getattr(c, k) for k in ("dtype", "seed", "keep", "rho", "steps")}
    settings |= dict(model=c.model or c.size, k=c.eval_k, cpu_seconds=spent)
    settings |= dict(name=run.folder.resolve().name, torch=torch.__version__)
    return settings | dict(
        command=f"python fork_gpt.py {shlex.join(flags.typed(given))}",
        n_params=sum(p.numel() for p in run.model.parameters()),
        hardware=weights.hardware(run.model.head_weight.device),
        world=c.data or f"{small}to {c.max_value}",
        n_test=len(run.splits["test"][: c.eval_problems or None]),
    )


def log_of(folder: Path, steps: int | None = None) -> list[dict]:
    """The steps in RUN/metrics.jsonl, all or so many; without a file, none.  UserError for another
    line."""
    lines = files.read_log(path := folder / "metrics.jsonl", steps)
    for n, line in enumerate(lines, 1):
        if lacks := {*COLUMNS, "groups"} - line.keys():
            raise UserError(f"{path}, line {n}: no {min(lacks)}; put it back, or start anew")
    return lines


def training(run: Run, f: Flags) -> dict:
    """The columns of metrics.jsonl, and the measurements on the validation split."""
    lines = log_of(run.folder)
    if not lines:
        raise Missing(f"no step was logged: python fork_gpt.py --resume {run.folder}")
    looks = [x for x in lines if "val_accuracy" in x]
    val = dict(val_step=[x["step"] for x in looks], val_accuracy=[x["val_accuracy"] for x in looks])
    return {k: [x[k] for x in lines] for k in COLUMNS} | val


def distributions(run: Run, f: Flags) -> dict:
    """Part 1: where the entropy is, before and after."""
    looks = {which: run.look(which) for which in ("base", "final")}
    highest = max(samples.entropy.max().item() for _, samples in looks.values())
    out = {}
    for which, (found, samples) in looks.items():
        h, own = samples.entropy, dict(n_tokens=len(samples.entropy), dtype=run.c.dtype)
        out[which] = found | ask.distribution(h) | own | dict(histogram=histogram(h, highest))
    return out


def forking_tokens(run: Run, f: Flags) -> dict:
    """Part 2: the hundred tokens of highest and of lowest mean entropy.  Floor: 100 draws as in the
    paper, fewer where fewer than 10^5 tokens were sampled."""
    looks = {which: run.look(which)[1] for which in ("base", "final")}
    floor = min(100, *(int(s.response.sum()) // 1000 for s in looks.values()))
    out, tokenizer = dict(floor=floor), run.world.tokenizer()
    for which, s in looks.items():
        ranked = ask.entropy_by_token(s.tokens[s.response], s.entropy, floor)
        rows = [dict(token=tokenizer.token(i), entropy=h, count=n) for i, h, n in ranked]
        out[which] = dict(highest=rows[:100], lowest=rows[::-1][:100])
    return out


def chosen(run: Run) -> list[int]:
    """Six test problems by lot, always the same; the first leads the page."""
    n = len(run.problems())
    return Random("traces").sample(range(n), min(6, n))


def traces(run: Run, f: Flags) -> list:
    """Part 3: base and final model on six problems, by lot, token by token."""
    problems, k, tokenizer = run.problems(), run.c.eval_k, run.world.tokenizer()
    out = [dict(problem=tokenizer.decode(run.world.encode(problems[i]))) for i in chosen(run)]
    for which in ("base", "final"):
        (_, samples), model = run.look(which), run.at(which)
        for i, record in zip(chosen(run), out, strict=True):
            one = samples.sequences([i * k])
            tokens, ids = trace(model, one, tokenizer, samples.entropy), one.responses()[0]
            right = run.world.reward(problems[i], tokenizer.decode(ids)) > 0
            head = dict(correct=right, finished=bool(one.finished[0]), length=len(tokens))
            record[which] = head | dict(tokens=tokens[:LONGEST])
    return out


def during(run: Run, f: Flags) -> dict:
    """Part 5: the final model's responses re-scored by every kept step; the 20% are of all."""
    steps = sorted(run.states)
    if len(steps) < 2:
        raise Missing("fewer than two kept steps: run with --snapshot-every 9")
    _, samples = run.look("final")
    n = min(f.problems * run.c.eval_k, len(samples.finished))
    samples = samples.sequences(range(n))
    h = [ask.rescore(run.at(step), samples) for step in steps]  # of (n,) each
    top = [top_entropy(x, 0.2)[0] for x in h]
    found = [ask.distribution(x) for x in h]
    ends = [[top_entropy(x, r)[0] for x in (h[0], h[-1])] for r in RHOS]
    return dict(
        steps=steps,
        overlap_base=[overlap(x, top[0]) for x in top],
        overlap_final=[overlap(x, top[-1]) for x in top],
        rho=0.2,
        by_rho=[dict(rho=r, overlap=overlap(*x)) for r, x in zip(RHOS, ends, strict=True)],
        n_tokens=len(h[0]),
        percentiles={f"p{p}": [d[f"p{p}"] for d in found] for p in ask.PERCENTILES},
        mean=[d["mean"] for d in found],
        bins=change_by_bin(h[0], h[-1]),
    )


def sparsity(run: Run, f: Flags) -> dict:
    """Part 9: how many parameters RLVR left as they were, and weight decay alone would have."""
    c = run.c
    steps = sum(min(c.updates, line["groups"]) for line in log_of(run.folder))
    decay = (1 - c.lr * c.weight_decay) ** steps if c.optimizer == "adamw" else 1.0
    states = (run.weights_of(run.step_of(which)) for which in ("base", "final"))
    return unchanged(*states, decay)


def two_temperature(run: Run, f: Flags) -> dict:
    """Part 4: the paper's grid; forks at t and the rest at 1, and the reverse; forks from the
    percentile of the entropies on, and from the threshold on.  A small world's byte tokens, which
    no trace has, are not drawn."""
    _, samples = run.look("final")
    model, problems = run.at("final"), run.problems()[: f.problems]
    model = forbid(model, range(256)) if run.world.tokenizer().words else model
    found = float(np.percentile(samples.entropy.cpu().numpy(), f.percentile))
    kinds = [(f"percentile {f.percentile:g}", found), (f"{f.threshold:g} nats", f.threshold)]
    out = [dict(threshold=x, threshold_kind=kind, fork=[], rest=[]) for kind, x in kinds]
    for one, t in tqdm([*product(out, TEMPERATURES)], desc="two_temperature", leave=False):
        for which, (rest, fork) in dict(fork=(1.0, t), rest=(t, 1.0)).items():
            how = Sampling(rest, one["threshold"], t_fork=fork)
            found, _ = measure(model, run.world, problems, replace(run.c, eval_k=f.k), how)
            low, high = found.pop("interval")
            one[which].append(dict(t=t, low=low, high=high) | found)
    return dict(k=f.k, n_problems=len(problems), model="final", other=out[1]) | out[0]


def learned(run: Run, f: Flags) -> dict:
    """Part 6: what RLVR taught: base; base that may not stop; base that chooses as the final model
    after a "no"; the reverse; final.  `first`: the first attempt was right."""
    if not isinstance(run.world, Countdown):
        raise Missing("only the small world's words tell giving up from searching")
    world, problems, tokenizer = run.world, run.problems(), run.world.tokenizer()
    base, final = (copy.deepcopy(run.at(which)) for which in ("base", "final"))
    stop, no = tokenizer.encode("stop")[0], tokenizer.encode("no")[0]
    ways = {
        "base": base,
        "base, never stops": forbid(base, [stop]),
        "base, after a no as trained": Spliced(base, final, no),
        "trained, after a no as base": Spliced(final, base, no),
        "trained": final,
    }
    rows = []
    for name, model in ways.items():
        found, samples = measure(model, world, problems, run.c, progress=True)
        texts = [tokenizer.decode(r) for r in samples.responses()]
        again = [p for p in problems for _ in range(run.c.eval_k)]
        pairs = zip(again, texts, strict=True)
        first = [world.reward(p, x) * ("no" not in x.split()) for p, x in pairs]
        low, high = found.pop("interval")
        rows.append(dict(name=name, low=low, high=high, first=float(np.mean(first))) | found)
    return dict(bars=rows, n_problems=len(problems), k=run.c.eval_k)


def anatomy(run: Run, f: Flags) -> dict:
    """Part 7: the policy gradient of the base and of the final model, by mask and by entropy
    decile.  The top 20% are the two highest deciles."""
    return dict(models=[anatomy_of(run, which, f) for which in ("base", "final")])


def anatomy_of(run: Run, which: str, f: Flags) -> dict:
    """One model's, on training problems, of groups with right and wrong answers.

    `robust`: the agreement of the halves without the LARGEST tokens of the mask, by the norm of
    their gradient by the logits.  `down`: the cosine of what is left then with "every sampled token
    down".  `noise`: the mask's share of sum A^2 |gradient by the logits|^2, the noise's energy."""
    c, model = run.c, run.at(which)
    problems, seed = run.splits["train"][: f.problems], seed_of(f.seed, "anatomy")
    sampled = dict(how=Sampling(c.temperature), seed=seed, rows=c.rows, progress=True)
    samples, _, rewards = ask.ask(model, run.world, problems, c.group, c.max_new, **sampled)
    groups = mixed(rewards, c.group).nonzero()[:, 0]
    if len(groups) < 2:
        raise Missing("fewer than two groups with right and wrong answers: raise --problems")
    of = (groups[:, None] * c.group + torch.arange(c.group)).flatten()
    samples, advantages = samples.sequences(of), group_advantages(rewards[of], c.group)
    A, entropy = advantages.repeat_interleave(samples.lengths().cpu()), samples.entropy.cpu()
    parts = [samples.sequences([b]) for b in range(len(of))]
    size = A.abs() * torch.cat([alternatives(model, s, 1, c.temperature)[-1] for s in parts])
    decile = deciles(entropy)
    lots = torch.rand(entropy.shape, generator=torch.Generator().manual_seed(f.seed))
    masks = {f"decile {d + 1}": decile == d for d in range(10)}
    masks |= {"top 20%": decile >= 8, "random 20%": top_entropy(lots, 0.2)[0]}
    masks |= {"bottom 80%": decile < 8, "all": decile >= 0}
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    largest = {}  # of each mask the tokens that its robust version leaves out
    for name, m in masks.items():
        at = (size * m - 1.0 * ~m).topk(min(LARGEST, int(m.sum()))).indices
        largest[name] = torch.zeros_like(m).index_fill(0, at, True)
    bottom = masks["bottom 80%"] & ~largest["bottom 80%"]
    weights = [A * m for m in (*masks.values(), *largest.values())]
    weights += [-1.0 * bottom, (A - A.mean()) * bottom]
    found = gradients(model, samples, torch.stack(weights), c.group, c.temperature)
    n, rows = len(masks), []
    for i, (name, mask) in enumerate(masks.items()):
        left = found[i] - found[n + i]
        row = compare_gradients(found[i], found[n - 1].sum(0))
        row |= dict(robust=cosine(*left), down=cosine(left.double().sum(0), found[-2].sum(0)))
        noise = (size[mask].square().sum() / size.square().sum().clamp(min=1e-30)).item()
        rows.append(dict(name=name, entropy=entropy[mask].mean().item(), noise=noise) | row)
    about = dict(model=which, n_tokens=len(entropy), n_groups=len(groups), largest=LARGEST)
    about |= dict(mean_advantage=A.mean().item())
    about |= dict(centred=compare_gradients(found[-1], found[-2].sum(0)))
    cut = [r | dict(decile=int(r["name"][7:])) for r in rows if r["name"][:6] == "decile"]
    return about | dict(arms=[r for r in rows if r["name"][:6] != "decile"], deciles=cut)


def decomposition(run: Run, f: Flags) -> dict:
    """Part 8: where the outcome is decided, in the base's and in the final model's responses.

    With V_t = P(right | the first t tokens) under the policy, the sum over the tokens of
    E[(V_t - V_t-1)^2] is Var(R), exactly: the differences are a martingale's.  The product of two
    estimates of a difference from independent lots of continuations has its square as its mean."""
    return {which: decomposition_of(run, which, f) for which in ("base", "final")}


def decomposition_of(run: Run, which: str, f: Flags) -> dict:
    """The section's tables for one model, `base` or `final`."""
    _, samples = run.look(which)
    run.at(which)  # whose policy continues
    k, problems = run.c.eval_k, run.problems()[: f.responses]
    samples = samples.sequences([i * k for i in range(len(problems))])
    tokenizer, cluster, names, words = run.world.tokenizer(), [], [], []
    seed = seed_of(f.seed, "decomposition", which)
    V = values(run, problems, samples.responses(), f.continuations, seed)  # (2, L + 1) each
    products = [np.diff(v[0]) * np.diff(v[1]) for v in V]
    within = [v[:, 0].mean() - v[0, 0] * v[1, 0] for v in V]  # without bias: V0 (1 - V0)
    for problem, ids in zip(problems, samples.responses(), strict=True):
        cluster += [repr(run.world.cluster(problem))] * len(ids)
        said = [tokenizer.token(x).strip() for x in ids]
        words += said
        names += named(run.world, ids, said)
    x, entropy, cluster = np.concatenate(products), samples.entropy.cpu(), np.array(cluster)
    about = dict(n_tokens=len(x), n_responses=len(problems), K=f.continuations)
    about |= dict(variance=float(np.mean(within)), explained=float(x.sum() / len(problems)))
    return about | decomposition_table(x, entropy, cluster, names, words)


def named(world: World, ids: list[int], words: list[str]) -> list[str]:
    """What each token of a response is there for; mathematics has no names."""
    if not isinstance(world, Countdown):
        return ["token"] * len(ids)
    filler = [k == KINDS.index("filler") for k in world.kinds(ids)]
    rest = iter(places([w for w, skip in zip(words, filler, strict=True) if not skip]))
    return ["filler" if skip else next(rest) for skip in filler]


def decomposition_table(
    x: np.ndarray, entropy: Tensor, cluster: np.ndarray, names: list[str], words: list[str]
) -> dict:
    """Of each token (N,) the unbiased estimate of its squared difference, its entropy, its cluster,
    what it is there for and its word -> the shares of the sum by decile of entropy, by name, by
    word, and of the tokens of highest entropy."""
    if not x.sum():
        raise Missing("every continuation ended alike: nothing is decided anywhere")
    h = entropy.double().numpy()

    def rows(labels: Sequence) -> list[dict]:
        kinds, out = sorted(set(labels)), []
        group = np.array([kinds.index(label) for label in labels])
        found = shares(x, group, cluster, len(kinds))
        for i, kind in enumerate(kinds):
            mine = group == i
            about = dict(name=kind, n=int(mine.sum()), entropy=float(h[mine].mean()))
            about |= dict(zip(("share", "low", "high"), map(float, found[:, i]), strict=True))
            out.append(about | dict(each=float(x[mine].mean())))
        return out

    def by_share(labels: Sequence) -> list[dict]:
        return sorted(rows(labels), key=lambda r: -r["share"])

    rank = np.empty(len(x), dtype=int)
    rank[np.argsort(-h, kind="stable")] = np.arange(len(x)) * 100 // len(x)  # percent from the top
    share, low, high = shares(x, rank, cluster, 100, cumulate=True)
    often = [w for w, n in Counter(words).most_common(40) if n >= 10]
    return dict(
        deciles=[r | dict(decile=r["name"] + 1) for r in rows(deciles(entropy).tolist())],
        kinds=by_share(names),
        words=[r for r in by_share(words) if r["name"] in often],
        cumulative=dict(share=share.tolist(), low=low.tolist(), high=high.tolist()),
        top20=[float(v[19]) for v in (share, low, high)],
        percent_for_90=int((share >= 0.9).argmax()) + 1,
    )


def token_values(run: Run, f: Flags) -> list:
    """Of each token of `traces`: P(right) before the first and after each (`v`), and after each of
    its likeliest alternatives in its place (`alt`, None for the least plausible)."""
    problems, k, out = run.problems(), run.c.eval_k, [{} for _ in chosen(run)]
    for which in ("base", "final"):
        (_, samples), model = run.look(which), run.at(which)
        parts = [samples.sequences([i * k]) for i in chosen(run)]
        said = [one.responses()[0] for one in parts]
        asked, seed = [problems[i] for i in chosen(run)], seed_of(f.seed, "values", which)
        V = values(run, asked, said, f.continuations, seed)
        for one, ids, problem, v, record in zip(parts, said, asked, V, out, strict=True):
            v, (p, best) = v.mean(0), (x.tolist() for x in alternatives(model, one)[2:4])
            at = [(t, j) for t in range(len(ids)) for j in range(len(p[t])) if p[t][j] >= PLAUSIBLE]
            starts = [ids[:t] + [best[t][j]] for t, j in at for _ in range(f.continuations)]
            again = [problem] * len(starts)
            found = continued(run, again, starts, seed_of(seed, "alternatives", *ids))
            mean = np.reshape([reward for _, reward in found], (-1, f.continuations)).mean(1)
            alt = [[None] * len(p[t]) for t in range(len(ids))]
            for (t, j), x in zip(at, mean.tolist(), strict=True):
                alt[t][j] = round(x if best[t][j] != ids[t] else float(v[t + 1]), 4)
            record[which] = dict(v=v[: LONGEST + 1].round(4).tolist(), alt=alt[:LONGEST])
    return out


# ---------------------------------------------------------------------- the whole


QUICK = dict(run=run_section, training=training, distribution=distributions)
QUICK |= dict(tokens=forking_tokens, traces=traces, during=during, sparsity=sparsity)
SLOW = dict(two_temperature=two_temperature, learned=learned, anatomy=anatomy)
SLOW |= dict(decomposition=decomposition, values=token_values)


def study(run: Run, f: Flags = Flags()) -> Path:
    """Write every section as RUN/data/SECTION.json and return that folder.  `run.model` does not
    keep its weights.  A section that was not asked for, or cannot be made, says so: no figure of an
    earlier model stays."""
    folder = run.folder / "data"
    for name, make in tqdm((QUICK | SLOW).items(), desc="study", unit="section"):
        try:
            if name in SLOW and not f.all:
                raise Missing(f"takes minutes: python -m study {run.folder} --all")
            record = make(run, f)
        except Missing as e:
            record = dict(missing=str(e))
        text = json.dumps(record, allow_nan=False, ensure_ascii=False)
        files.write_atomic(folder / f"{name}.json", text.encode())
    return folder


def summarise(run: Run) -> dict:
    """What was found on the test split at first and at last, None where nothing was measured, and
    the share of tokens kept in the steps that learned."""
    c, looks, lines = run.c, run.looks, log_of(run.folder)
    last = lines[-1]
    kept = [line["kept_fraction"] for line in lines if line["groups"]]
    before, after = (looks[which][0] if which in looks else {} for which in ("base", "final"))
    return dict(
        test_accuracy_base=before.get("accuracy"),
        test_accuracy_base_interval=before.get("interval"),
        test_accuracy=after.get("accuracy"),
        test_accuracy_interval=after.get("interval"),
        val_accuracy=last.get("val_accuracy"),
        val_interval=(last["val_low"], last["val_high"]) if "val_low" in last else None,
        arithmetic_base=before.get("arithmetic"),
        arithmetic=after.get("arithmetic"),
        length=after.get("length"),
        truncated=after.get("truncated"),
        kept_fraction=sum(kept) / max(len(kept), 1),
        test_problems=len(looks["final"][1].finished) // c.eval_k if looks else 0,
        seed=c.seed,
        keep=c.keep,
        rho=c.rho,
    )


def finish(run: Run, clock: files.Clock) -> dict:
    """The end of a run: its summary, and its page; returns the summary."""
    from study import report

    summary = summarise(run) | clock.seconds()
    run.cpu_seconds = summary["cpu_seconds"]
    study(run)
    print(f"the whole story: {report.write(run.folder)}\n")
    files.write_json(run.folder / "summary.json", summary)  # last: a run with one is done
    print("  ".join(f"{k} {v:.4g}" for k, v in summary.items() if isinstance(v, float)))
    return summary


def open_run(folder: Path, device: str) -> Run:
    """A run's folder, ended or not, as a Run.  UserError when there is none."""
    c = configure(files.read_config(folder, Config))
    torch.set_num_threads(c.threads)
    ended = (folder / "model.pt").exists() or (folder / "model").exists()
    on = weights.device(device)

    def task(c: Config) -> tuple:
        model, world, splits, _ = ask.open_task(c, on, lambda: False)
        return model.to(getattr(torch, c.dtype)), world, splits

    model, world, splits = task(replace(c, model=str(folder)) if ended else c)
    states = states_of(folder, c.steps if ended else 0, model)
    if 0 not in states:  # no snapshots were kept: the base is where the run took it from
        states[0] = task(c)[0].state_dict()
    return Run(folder, c, world, splits, model, states=states)


def main(argv: list[str]) -> int:
    """The command line; sections that were done before a mistake or Ctrl-C are kept."""
    from study import report

    folder = argv[0] if argv and not argv[0].startswith("-") else None
    f = flags.take(Flags, flags.parse((Flags,), argv[bool(folder) :], "-m study RUN", __doc__))
    if folder is None:
        raise UserError("name the run's folder first: python -m study runs/x")
    run = open_run(Path(folder), f.device)
    study(run, f)
    print(report.write(run.folder))
    return 0

"""Every figure of the paper, and two that it lacks, as numbers: from a run to RUN/data/*.json.

    python -m study runs/x          # where the entropy is, which tokens fork, what RLVR changed
    python -m study runs/x --all    # and decoding, gradients, causes: about three CPU-minutes more

`fork_gpt.py` ends with the first; `study/report.py` draws what is there.  A section is a small pure
function from tensors to numbers and one that collects its tensors from the models: `distribution`
and `tokens` (paper section 3), `traces`, `two_temperature` (Eq. 5), `during` (section 4), `anatomy`
of the gradient of Eq. 6, `causal` test of forks, `sparsity` of the update.  One that cannot be made
is {"missing": why}.  Entropies are nats, shares 0..1, intervals 95%.
"""

import json
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from fork_gpt import Config, configure, group_advantages, mixed, top_entropy
from infra import files, flags, weights
from infra.files import UserError
from infra.flags import flag
from model import Transformer, at_least_fp32, entropy_of
from rollout import Rollout, Sampling
from tasks.ask import (
    PERCENTILES,
    World,
    ask,
    distribution,
    entropy_by_token,
    measure,
    open_task,
    seed_of,
)
from tasks.countdown import Countdown
from tasks.tokenizer import Tokenizer

TEMPERATURES = (0.0, 0.05, 0.3, 0.6, 1.0, 2.0, 3.0, 5.0)  # the paper's grid
LONGEST = 400  # response tokens of a trace that the page shows
COORDINATES = 2**24  # of a gradient, at most, that the anatomy keeps


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


def deciles(x: Tensor) -> Tensor:
    """x (n,) -> (n,) int64, 0 for the lowest tenth to 9 for the highest, ties by position."""
    x = x.cpu()
    rank = torch.empty(len(x), dtype=torch.long)
    rank[x.argsort(stable=True)] = torch.arange(len(x))
    return rank * 10 // max(len(x), 1)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation of two (n,), ties at their mean rank; 0 where one of them is constant."""

    def ranks(values: np.ndarray) -> np.ndarray:
        _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (counts.cumsum() - (counts - 1) / 2)[index]

    a, b = (r - r.mean() for r in (ranks(x), ranks(y)))
    return float(a @ b / max(math.sqrt((a @ a) * (b @ b)), 1e-12))


def clustered(
    statistic: Callable[[np.ndarray], float], cluster: np.ndarray, resamples: int = 500
) -> tuple[float, float]:
    """95% bootstrap interval of `statistic(indices)`, drawing whole clusters: tokens of one
    response share its luck.  cluster (n,) ints; fixed seed."""
    members = [np.flatnonzero(cluster == c) for c in np.unique(cluster)]
    draws = np.random.default_rng(0).integers(0, len(members), (resamples, len(members)))
    values = [statistic(np.concatenate([members[i] for i in draw])) for draw in draws]
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def compare_gradients(halves: Tensor, full: Tensor) -> dict[str, float]:
    """halves (2, P), the gradient of each half of the groups, and the full gradient (P,) -> norm of
    their sum, its cosine with the full one, and the cosine of the halves (1: signal, 0: noise)."""

    def cosine(a: Tensor, b: Tensor) -> float:
        return (a @ b / (a.norm() * b.norm()).clamp(min=1e-30)).item()

    # in fp32 millions of squares add up to a cosine of 1.0001
    halves, full = halves.double(), full.double()
    mine = halves.sum(0)
    return dict(norm=mine.norm().item(), cosine=cosine(mine, full), split_half=cosine(*halves))


def unchanged(base: dict[str, Tensor], final: dict[str, Tensor]) -> dict:
    """The share of parameters equal in both after rounding to bf16: of all, and by layer."""
    layers = {}  # name -> [equal, all]
    for name, p in base.items():
        words = name.split(".")  # model.layers.7.mlp.up_proj.weight, model.norm.weight
        layer = " ".join(words[1:3]) if "layers" in words else words[-2]
        counts = layers.setdefault(layer, [0, 0])
        counts[0] += (p.bfloat16() == final[name].to(p.device).bfloat16()).sum().item()
        counts[1] += p.numel()
    same, n = (sum(x) for x in zip(*layers.values(), strict=True))
    rows = [dict(name=k, unchanged=a / b, n=b) for k, (a, b) in layers.items()]
    return dict(dtype="bfloat16", unchanged=same / n, layers=rows)


def steps_of(words: Sequence[str], by_try: bool) -> list[tuple[int, int]]:
    """(start, end) of every step of a response: from a "try" to the next, else line by line."""
    begins = (lambda i: words[i].strip() == "try") if by_try else (lambda i: "\n" in words[i - 1])
    starts = [i for i in range(len(words)) if i == 0 or begins(i)]
    return list(zip(starts, [*starts[1:], len(words)], strict=True))


# ---------------------------------------------------------------------- from models to tensors


class Missing(Exception):
    """A section that this run cannot have: one sentence why, and what makes it."""


@dataclass(frozen=True)
class Flags:
    """What `python -m study RUN` takes beside the run's folder; `--help` is this list."""

    all: bool = flag(False, "also two_temperature, anatomy and causal, which take minutes")
    device: str = flag("auto", "where to run; auto takes the best there is", "auto cuda mps cpu")
    seed: int = flag(0, "of what is sampled anew", "[0, 1e18)")
    problems: int = flag(96, "problems of during, two_temperature and anatomy", "[1, inf)")
    k: int = flag(4, "samples per problem and temperature", "[1, inf)")
    percentile: float = flag(80.0, "of entropies: threshold of two_temperature", "[0, 100]")
    threshold: float = flag(-1.0, "the same in nats; below 0 the percentile counts", "(-inf, inf)")
    responses: int = flag(24, "responses whose tokens causal forces to be others", "[1, inf)")
    positions: int = flag(2000, "tokens of them, equally many per entropy decile", "[1, inf)")
    continuations: int = flag(8, "K: continuations from each, three times", "[1, inf)")


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
    model: Transformer
    looks: dict[str, tuple[dict, Rollout]] = field(default_factory=dict)
    states: dict[int, Path | dict[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.states = self.states or states_of(self.folder, self.c.steps, self.model)

    def weights_of(self, step: int) -> dict[str, Tensor]:
        state = self.states[step]
        return state if isinstance(state, dict) else weights.load(state)["weights"]

    def at(self, which: str | int) -> Transformer:
        """The model of a step, or the "base" or "final" one.  Missing, UserError."""
        step = which if isinstance(which, int) else self.step_of(which)
        try:
            self.model.load_state_dict(self.weights_of(step))
        except (KeyError, RuntimeError) as e:
            why = str(e).splitlines()[0]
            raise UserError(
                f"{self.folder}: the weights of step {step} do not fit: {why}"
            ) from None
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
    found = {int(p.stem): p for p in (folder / "snapshots").glob("*.pt") if p.stem.isdigit()}
    if step not in found:
        found[step] = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
    return found


@torch.no_grad()
def rescore(model: Transformer, samples: Rollout, temperature: float = 1.0) -> Tensor:
    """The entropies (n,) fp32 of all response tokens under `model`, teacher-forced."""
    n = len(samples.finished)
    device = model.head_weight.device
    parts = (samples.sequences(range(i, min(i + 16, n)), device) for i in range(0, n, 16))
    return torch.cat([model(*p.scored(), temperature)[1] for p in parts]).cpu()


@torch.no_grad()
def alternatives(
    model: Transformer, samples: Rollout, n: int = 5, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Teacher-forced, for each response token: its probability (N,), the entropy (N,) and the `n`
    likeliest tokens' probabilities and ids, (N, n) each, of softmax(logits.float() / T)."""
    weight, out = model.head_weight[: model.n_vocab], []
    whole = samples.sequences(range(len(samples.finished)), weight.device)
    tokens, cu_seqlens, rows, targets = whole.scored()
    h = model.hidden(tokens, cu_seqlens)[rows]  # (N, n_embd)
    for x, y in zip(h.split(256), targets.split(256), strict=True):
        logp = (at_least_fp32(F.linear(x, weight)) / temperature).log_softmax(-1)  # (256, V)
        best = logp.topk(min(n, len(weight)))
        mine = logp.gather(-1, y[:, None])[:, 0].exp()
        out.append((mine, entropy_of(logp), best.values.exp(), best.indices))
    return tuple(torch.cat(x).cpu() for x in zip(*out, strict=True))


def gradients(
    model: Transformer, samples: Rollout, advantages: Tensor, masks: Tensor, G: int, T: float = 1.0
) -> Tensor:
    """The gradient of sum(A log p) / n over the response tokens of each of `masks` (M, n) bool,
    separately for the even and the odd groups: (M, 2, P) fp32.

    At the first update after a rollout r = 1, so this is the gradient of Eq. 6, here divided by all
    n tokens whatever the mask, that parts may be added.  advantages (B,), G samples a group.  Of
    more than COORDINATES parameters every so-manyth is kept, and norms scaled up."""
    parameters = list(model.parameters())
    every = -(-sum(p.numel() for p in parameters) // COORDINATES) | 1  # odd: meets every column
    size = sum(len(range(0, p.numel(), every)) for p in parameters)
    out, end = torch.zeros(len(masks), 2, size), 0
    for g in tqdm(range(len(advantages) // G), desc="anatomy", unit="group", leave=False):
        which = list(range(g * G, (g + 1) * G))
        s = samples.sequences(which, model.head_weight.device)
        logprobs, _ = model(*s.scored(), T)  # (K,)
        terms = logprobs * advantages[which].to(logprobs).repeat_interleave(s.lengths())
        start, end = end, end + len(terms)
        for m, mask in enumerate(masks[:, start:end].to(terms.device)):
            if mask.any():
                loss = terms[mask].sum() * (math.sqrt(every) / masks.shape[1])
                grads = torch.autograd.grad(loss, parameters, retain_graph=True)
                out[m, g % 2] += torch.cat([x.flatten()[::every].float().cpu() for x in grads])
    return out


def trace(model: Transformer, one: Rollout, tokenizer: Tokenizer) -> list[dict]:
    """One sample's response tokens: text, entropy, probability, five likeliest alternatives."""
    columns = [x.tolist() for x in alternatives(model, one)]
    out = []
    for token, p, h, best, ids in zip(one.responses()[0], *columns, strict=True):
        alt = [[tokenizer.token(i), float(f"{q:.3g}")] for q, i in zip(best, ids, strict=True)]
        out.append(dict(t=tokenizer.token(token), h=round(h, 4), p=float(f"{p:.3g}"), alt=alt))
    return out


def continued(run: Run, problem: Any, starts: list[list[int]], K: int, seed: int) -> np.ndarray:
    """Rewards (len(starts), K) of K continuations of each beginning of a response to its end, at
    most `max_new` tokens in all; one that has ended already is graded as it is."""
    c, tokenizer = run.c, run.world.tokenizer()
    out = np.zeros((len(starts), K))
    going = [i for i, s in enumerate(starts) if s[-1] != tokenizer.eos and len(s) < c.max_new]
    for i in set(range(len(starts))) - set(going):
        out[i] = run.world.reward(problem, tokenizer.decode(starts[i]))
    if going:
        begun, again = [starts[i] for i in going], [problem] * len(going)
        _, _, rewards = ask(
            run.model, run.world, again, K, c.max_new, seed=seed, rows=c.rows, starts=begun
        )
        out[going] = rewards.view(-1, K).numpy()
    return out


# ---------------------------------------------------------------------- the sections


def run_section(run: Run, f: Flags) -> dict:
    """What was run, and where."""
    c = run.c
    changed = [x.name for x in fields(c) if getattr(c, x.name) != x.default]
    given = {x: getattr(c, x) for x in changed} | dict(out=run.folder)
    small = f"Countdown: {c.n_numbers} numbers up to {c.max_number}, operations {c.ops}, values up "
    summary = run.folder / "summary.json"
    settings = {k: getattr(c, k) for k in ("dtype", "seed", "keep", "rho", "steps")}
    return settings | dict(
        name=run.folder.resolve().name,
        command=f"python fork_gpt.py {shlex.join(flags.typed(given))}",
        model=c.model or c.size,
        n_params=sum(p.numel() for p in run.model.parameters()),
        torch=torch.__version__,
        hardware=weights.hardware(run.model.head_weight.device),
        world=c.data or f"{small}to {c.max_value}",
        n_test=len(run.splits["test"][: c.eval_problems or None]),
        k=c.eval_k,
        cpu_seconds=json.loads(summary.read_text())["cpu_seconds"] if summary.exists() else None,
    )


def whole_lines(path: Path) -> list[str]:
    """The whole lines of a text file; none where there is no file."""
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()  # a killed run may leave half a line


def training(run: Run, f: Flags) -> dict:
    """The columns of metrics.jsonl, and the measurements on the validation split."""
    lines = [json.loads(line) for line in whole_lines(run.folder / "metrics.jsonl")]
    if not lines:
        raise Missing(f"no step was logged: python fork_gpt.py --resume {run.folder}")
    keys = "step accuracy reward length truncated entropy entropy_kept entropy_dropped tau "
    columns = {k: [x[k] for x in lines] for k in (keys + "grad_norm kept_fraction").split()}
    measured = [x for x in lines if "val_accuracy" in x]
    return columns | dict(
        val_step=[x["step"] for x in measured], val_accuracy=[x["val_accuracy"] for x in measured]
    )


def distributions(run: Run, f: Flags) -> dict:
    """Part 1: where the entropy is, before and after."""
    looks = {which: run.look(which) for which in ("base", "final")}
    pools = {which: samples.entropy for which, (_, samples) in looks.items()}
    highest = max(h.max().item() for h in pools.values())
    return {
        which: dict(n_tokens=len(h), dtype=run.c.dtype, histogram=histogram(h, highest))
        | looks[which][0]
        | distribution(h)
        for which, h in pools.items()
    }


def forking_tokens(run: Run, f: Flags) -> dict:
    """Part 2: the hundred tokens of highest and of lowest mean entropy.  Floor: 100 draws as in the
    paper, fewer where fewer than 10^5 tokens were sampled."""
    looks = {which: run.look(which)[1] for which in ("base", "final")}
    floor = min(100, *(int(s.response.sum()) // 1000 for s in looks.values()))
    out, tokenizer = dict(floor=floor), run.world.tokenizer()
    for which, s in looks.items():
        ranked = entropy_by_token(s.tokens[s.response], s.entropy, floor)
        rows = [dict(token=tokenizer.token(i), entropy=h, count=n) for i, h, n in ranked]
        out[which] = dict(highest=rows[:100], lowest=rows[::-1][:100])
    return out


def traces(run: Run, f: Flags) -> list:
    """Part 3: base and final model on six problems, half of which the base got right if there are
    as many; each response token with its five likeliest alternatives."""
    looks = {which: run.look(which)[1] for which in ("base", "final")}
    problems, k, tokenizer = run.problems(), run.c.eval_k, run.world.tokenizer()
    right = {}  # of the first response to each problem
    for which, s in looks.items():
        texts = map(tokenizer.decode, s.responses()[::k])
        right[which] = [run.world.reward(p, t) > 0 for p, t in zip(problems, texts, strict=True)]
    good, bad = ([i for i, x in enumerate(right["base"]) if x == want] for want in (True, False))
    bad = bad[: max(3, 6 - len(good))]
    chosen = sorted(bad + good[: 6 - len(bad)])
    out = [dict(problem=tokenizer.decode(run.world.encode(problems[i]))) for i in chosen]
    for which, s in looks.items():
        model = run.at(which)
        for i, record in zip(chosen, out, strict=True):
            one = s.sequences([i * k])
            tokens = trace(model, one, tokenizer)
            head = dict(correct=right[which][i], finished=bool(one.finished[0]), length=len(tokens))
            record[which] = head | dict(tokens=tokens[:LONGEST])
    return out


def during(run: Run, f: Flags) -> dict:
    """Part 5: the final model's responses re-scored by every kept step.  The 20% are taken of all
    tokens at once."""
    steps = sorted(run.states)
    if len(steps) < 2:
        raise Missing("fewer than two kept steps: run with --snapshot-every 9")
    _, samples = run.look("final")
    n = min(f.problems * run.c.eval_k, len(samples.finished))
    samples = samples.sequences(range(n))
    h = [rescore(run.at(step), samples) for step in steps]  # of (n,) each
    top = [top_entropy(x, 0.2)[0] for x in h]
    found = [distribution(x) for x in h]
    return dict(
        steps=steps,
        overlap_base=[overlap(x, top[0]) for x in top],
        overlap_final=[overlap(x, top[-1]) for x in top],
        rho=0.2,
        n_tokens=len(h[0]),
        percentiles={f"p{p}": [d[f"p{p}"] for d in found] for p in PERCENTILES},
        mean=[d["mean"] for d in found],
        bins=change_by_bin(h[0], h[-1]),
    )


def sparsity(run: Run, f: Flags) -> dict:
    """Part 9: how many parameters RLVR left as they were, at bf16 resolution."""
    return unchanged(*(run.weights_of(run.step_of(which)) for which in ("base", "final")))


def two_temperature(run: Run, f: Flags) -> dict:
    """Part 4: the paper's grid; forks at t and the rest at 1, and the reverse."""
    _, samples = run.look("final")
    model, problems = run.at("final"), run.problems()[: f.problems]
    c = replace(run.c, eval_k=f.k)
    absolute = f.threshold >= 0
    entropy = samples.entropy.cpu().numpy()
    threshold = f.threshold if absolute else float(np.percentile(entropy, f.percentile))
    out = dict(fork=[], rest=[])
    with tqdm(total=2 * len(TEMPERATURES), desc="two_temperature", leave=False) as bar:
        for t in TEMPERATURES:
            for which, how in (
                ("fork", Sampling(1.0, threshold, t_fork=t)),
                ("rest", Sampling(t, threshold, t_fork=1.0)),
            ):
                found, _ = measure(model, run.world, problems, c, how)
                low, high = found.pop("interval")
                found.pop("arithmetic")
                out[which].append(dict(t=t, low=low, high=high) | found)
                bar.update()
    kind = "absolute" if absolute else f"percentile {f.percentile:g}"
    settings = dict(threshold=threshold, threshold_kind=kind, k=f.k, n_problems=len(problems))
    return settings | dict(model="final") | out


def anatomy(run: Run, f: Flags) -> dict:
    """Part 7: the base model's first policy gradient, by mask and by entropy decile.  The top 20%
    are the two highest deciles.  Groups with right and wrong answers, on training problems."""
    c, model = run.c, run.at("base")
    problems, how = run.splits["train"][: f.problems], Sampling(c.temperature)
    seed = seed_of(f.seed, "anatomy")
    samples, _, rewards = ask(
        model, run.world, problems, c.group, c.max_new, how, seed, rows=c.rows, progress=True
    )
    groups = mixed(rewards, c.group).nonzero()[:, 0]
    if len(groups) < 2:
        raise Missing("fewer than two groups with right and wrong answers: raise --problems")
    which = (groups[:, None] * c.group + torch.arange(c.group)).flatten()
    samples, advantages = samples.sequences(which), group_advantages(rewards[which], c.group)
    entropy = samples.entropy.cpu()
    decile = deciles(entropy)
    lots = torch.rand(entropy.shape, generator=torch.Generator().manual_seed(f.seed))
    masks = torch.stack([*(decile == d for d in range(10)), top_entropy(lots, 0.2)[0]])
    parts = gradients(model, samples, advantages, masks, c.group, c.temperature)
    full = parts[:10].sum((0, 1))
    arms = {
        "top 20%": parts[8:10].sum(0),
        "random 20%": parts[10],
        "bottom 80%": parts[:8].sum(0),
        "all": parts[:10].sum(0),
    }
    rows = [
        dict(decile=d + 1, entropy=entropy[masks[d]].mean().item())
        | compare_gradients(parts[d], full)
        for d in range(10)
        if masks[d].any()
    ]
    return dict(
        n_tokens=len(entropy),
        n_groups=len(groups),
        arms=[dict(name=name) | compare_gradients(x, full) for name, x in arms.items()],
        deciles=rows,
        model="base",
    )


def causal(run: Run, f: Flags) -> dict:
    """Part 8: from tokens of the final model's responses, K continuations with the token kept and K
    with the likeliest other token forced in its place; the difference in success.

    `noise` is the same difference between two lots of K with the token kept: what a position
    without any effect shows; `weighted` the mean of the effect times the chance `p_forced` that
    the model takes the forced token by itself.  A step's effect is the sum over its measured
    tokens.  Intervals resample whole responses."""
    _, samples = run.look("final")
    model, tokenizer, k = run.at("final"), run.world.tokenizer(), run.c.eval_k
    if model.n_vocab < 2:
        raise Missing("a vocabulary of one token has no alternative to force")
    problems = run.problems()[: f.responses]
    samples = samples.sequences([i * k for i in range(len(problems))])
    found = [alternatives(model, samples.sequences([b]), n=2) for b in range(len(problems))]
    entropy = torch.cat([x[1] for x in found])  # (n,)
    decile = deciles(entropy)
    lots = torch.rand(len(entropy), generator=torch.Generator().manual_seed(f.seed))
    measured = torch.zeros(len(entropy), dtype=torch.bool)
    for d in range(10):  # all of them, or equally many of each decile
        mine = (decile == d).nonzero()[:, 0]
        measured[mine[lots[mine].argsort()[: max(1, f.positions // 10)]]] = True
    rows, tries, end = [], [], 0
    for b, ids in enumerate(tqdm(samples.responses(), desc="causal", leave=False)):
        _, h, p, best = found[b]
        start, end = end, end + len(ids)
        at = measured[start:end].nonzero()[:, 0].tolist()
        if not at:
            continue
        other = [int(best[i, 0] == ids[i]) for i in at]  # the likeliest, or the one after it
        as_is = [ids[: i + 1] for i in at]
        swapped = [ids[:i] + [int(best[i, j])] for i, j in zip(at, other, strict=True)]
        K, seeds = f.continuations, (seed_of(f.seed, "causal", b, lot) for lot in (0, 1))
        kept = continued(run, problems[b], as_is, 2 * K, next(seeds))
        forced = continued(run, problems[b], swapped, K, next(seeds))
        first, again = kept.reshape(len(at), 2, -1).mean(-1).T  # (positions,) each
        p_forced = [float(p[i, j]) for i, j in zip(at, other, strict=True)]
        columns = [decile[start:end][at], h[at], first, again, forced.mean(1), p_forced]
        rows.append(np.stack([np.asarray(x, float) for x in (*columns, [b] * len(at))], 1))
        effect = dict(zip(at, np.abs(first - forced.mean(1)).tolist(), strict=True))
        words = [tokenizer.token(i) for i in ids]
        for i, j in steps_of(words, isinstance(run.world, Countdown)):
            total = sum(effect.get(x, 0.0) for x in range(i, j))
            text = "".join(words[i:j]).strip()[:200]
            tries.append(dict(text=text, effect=total, entropy=h[i:j].mean().item()))
    table = causal_table(np.concatenate(rows))
    tries = sorted(tries, key=lambda t: -t["effect"])[:20]
    return dict(K=f.continuations) | table | dict(tries=tries, model="final")


def causal_table(rows: np.ndarray) -> dict:
    """rows (n, 7): decile 0..9, entropy, success with the token kept, the same again, with another
    forced, that one's probability, response -> means by decile, and how entropy correlates with the
    absolute difference.  Missing when every continuation ended alike."""
    decile, entropy, kept, again, forced, p_forced, response = rows.T
    if len(np.unique(rows[:, 2:5])) == 1:
        raise Missing("every continuation was right, or every one was wrong: nothing to explain")
    effect = np.abs(kept - forced)
    columns = dict(entropy=entropy, kept=kept, forced=forced, effect=effect)
    columns |= dict(noise=np.abs(kept - again), p_forced=p_forced, weighted=p_forced * effect)
    out = []
    for d in np.unique(decile):
        mine = decile == d
        low, high = clustered(lambda i, e=effect[mine]: e[i].mean(), response[mine])
        means = {name: float(x[mine].mean()) for name, x in columns.items()}
        out.append(dict(decile=int(d) + 1, low=low, high=high, n=int(mine.sum())) | means)
    low, high = clustered(lambda i: spearman(entropy[i], effect[i]), response)
    correlation = spearman(entropy, effect)
    return dict(n_positions=len(rows), deciles=out, correlation=correlation, low=low, high=high)


# ---------------------------------------------------------------------- the whole


QUICK = dict(run=run_section, training=training, distribution=distributions)
QUICK |= dict(tokens=forking_tokens, traces=traces, during=during, sparsity=sparsity)
SLOW = dict(two_temperature=two_temperature, anatomy=anatomy, causal=causal)


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
    c, looks = run.c, run.looks
    lines = [json.loads(line) for line in open(run.folder / "metrics.jsonl")]
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
    files.write_json(run.folder / "summary.json", summary)
    study(run)
    print(f"the whole story: {report.write(run.folder)}\n")
    print("  ".join(f"{k} {v:.4g}" for k, v in summary.items() if isinstance(v, float)))
    return summary


def open_run(folder: Path, device: str) -> Run:
    """A run's folder, ended or not, as a Run.  UserError when there is none."""
    c = configure(files.read_config(folder, Config))
    torch.set_num_threads(c.threads)
    ended = (folder / "model.pt").exists() or (folder / "model").exists()
    on = weights.device(device)

    def task(c: Config) -> tuple:
        model, world, splits, _ = open_task(c, on, lambda: False)
        return model.to(getattr(torch, c.dtype)), world, splits

    model, world, splits = task(replace(c, model=str(folder)) if ended else c)
    states = states_of(folder, c.steps if ended else 0, model)
    if 0 not in states:  # no snapshots were kept: the base is where the run took it from
        states[0] = task(c)[0].state_dict()
    return Run(folder, c, world, splits, model, states=states)


def start(argv: list[str]) -> int:
    """The command line."""
    from study import report

    folder = argv[0] if argv and not argv[0].startswith("-") else None
    f = flags.take(Flags, flags.parse((Flags,), argv[bool(folder) :], "-m study RUN", __doc__))
    if folder is None:
        raise UserError("name the run's folder first: python -m study runs/x")
    run = open_run(Path(folder), f.device)
    study(run, f)
    print(report.write(run.folder))
    return 0


def main(argv: list[str]) -> int:
    """0, 2 after one line about a mistake, 130 when stopped; sections that were done are kept."""
    return files.command("-m study", start, argv)

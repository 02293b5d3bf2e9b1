"""When does a fifth suffice?  The experiment of results/README.md, one resumable command.

    python -m study.grid                 # what is not done yet of the plan, run by run
    python -m study.grid --plan          # how many runs are done of each part, their CPU-hours
    python -m study.grid --table RUN     # what is done as RUN/data/wording.json, on RUN's page

The world is Countdown with one try: a wrong answer ends the response, so a rollout is cheap and no
arm can learn "do not give up".  Filler words of a set share and entropy make it like text.  Each
run is `fork_gpt.train` on a small base model; arms differ by flags, and share base model, order of
problems and random numbers.  A run's score is its accuracy on validation, mean of the looks at
three quarters and at the end of its steps; an arm is judged at the learning rate of the best mean
score.  Several processes may run this command at once: a lock keeps each run to one.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fork_gpt
import parallel
from fork_gpt import Config, top_entropy
from infra import checkpoint, files
from infra.files import UserError
from study import findings, report
from study.stats import difference, pooled, spearman
from tasks.ask import distribution, measure, open_task
from tasks.countdown import KINDS, Countdown
from tasks.pretrain import Pretrain, base_model

OUT = Path("runs/grid")
ENTROPY_COLUMNS = [f"entropy_{kind}" for kind in KINDS]
SHARES, ENTROPIES = (0.2, 0.4), (0.1, 0.33, 0.69, 1.8)
TEXT = (0.25, 0.67)  # half its tokens are below .01 nats and p80 is .67, as in the paper's model
WORLDS = [(0.0, 0.69), *((s, h) for s in SHARES for h in ENTROPIES), TEXT]
CORE = [(0.4, 0.69), (0.0, 0.69), (0.4, 0.33), TEXT, (0.4, 1.8)]
WORDY, SGD = [(0.4, 0.69), TEXT], [(0.4, 0.33), TEXT]
ARMS = dict(
    all={},
    top=dict(keep="top"),
    random=dict(keep="random"),
    decisions=dict(keep="decisions"),
    filler=dict(keep="filler"),
    anneal=dict(keep="top", rho_end=1.0),
    base=dict(keep="top", entropy="base"),
    double={},  # twice the prompts
)
# learning rates of AdamW; of SGD the lengths of its steps, which the clip makes all equal
RATES = dict(adamw=(2e-4, 4e-4, 1e-4, 8e-4), sgd=(0.01, 0.02, 0.04, 0.08, 0.16))
MIDDLE = dict(adamw=RATES["adamw"][:2], sgd=(0.08,))
CLIP = 1e-4  # below every gradient's norm
PAIR, OTHERS = ("all", "top"), ("decisions", "anneal", "base", "double")


@dataclass(frozen=True)
class Run:
    """One run of the experiment."""

    share: float
    entropy: float
    prompts: int
    group: int
    arm: str
    rate: float
    optimizer: str = "adamw"
    base: int = 0
    seed: int = 0
    steps: int = 200

    def folder(self) -> Path:
        return OUT / "-".join(map(str, asdict(self).values()))

    def done(self) -> bool:
        return (self.folder() / "summary.json").exists()

    def summary(self) -> dict:
        return files.read_json(self.folder() / "summary.json")

    def config(self) -> Config:
        """The run as the loop takes it."""
        own = dict(keep="all") | ARMS[self.arm] | world_of(self.share, self.entropy)
        own |= {k: getattr(self, k) for k in ("seed", "group", "optimizer", "steps")}
        own |= dict(out=str(self.folder()), prompts=self.prompts * (1 + (self.arm == "double")))
        own |= dict(model=str(base_of(self.share, self.entropy, self.base)), device="cpu")
        own |= dict(updates=1, rounds=1, max_new=64, save_every=50, snapshot_every=0)
        own |= dict(eval_every=3 * self.steps // 4)
        if self.optimizer == "sgd":
            return Config(lr=self.rate / CLIP, grad_clip=CLIP, **own)
        return Config(lr=self.rate, grad_clip=1.0, **own)


def world_of(share: float, entropy: float) -> dict:
    return dict(attempts=1, filler_share=share, filler_entropy=entropy)


@cache
def base_of(share: float, entropy: float, seed: int) -> Path:
    """The base model's folder: pretrained with filler that any later entropy knows the words of,
    then fine-tuned in its own world."""
    root = Pretrain(size="micro", steps=2400, skill=0.5, seed=seed)
    start, _ = base_model(root, Countdown(**world_of(share, 1.8)))
    fine = replace(root, steps=300, lr=2e-3, start=str(start))
    return base_model(fine, Countdown(**world_of(share, entropy)))[0]


# ---------------------------------------------------------------------- the plan


def screening(worlds: Sequence, arms: Sequence[str], optimizer: str = "adamw") -> Iterator[Run]:
    """One base, one seed, the learning rates from four."""
    for rate, world, arm in product(RATES[optimizer], worlds, arms):
        yield Run(*world, 8, 8, arm, rate, optimizer)


def deciding(
    seeds: Sequence[int], worlds: Sequence, arms: Sequence[str], optimizer: str = "adamw"
) -> Iterator[Run]:
    """Three bases, each arm at the learning rate that the screening chose for it."""
    for seed, world, base, arm in product(seeds, worlds, range(3), arms):
        if rate := best_rate(*world, 8, 8, arm, optimizer):
            yield Run(*world, 8, 8, arm, rate, optimizer, base, seed)


def batches(worlds: Sequence) -> Iterator[Run]:
    """Screening of a smaller and a larger batch; the larger has half the steps, of four times the
    responses."""
    for world, arm in product(worlds, PAIR):
        yield from (Run(*world, 4, 4, arm, r) for r in RATES["adamw"])
        yield from (Run(*world, 32, 8, arm, r, steps=100) for r in RATES["adamw"][1::2])


def fixed(
    seeds: Sequence[int], worlds: Sequence, arms: Sequence[str], optimizer: str = "adamw"
) -> Iterator[Run]:
    """Three bases at the rates in the middle, whatever one run of the screening chose."""
    for seed, world, base, arm in product(seeds, worlds, range(3), arms):
        for rate in MIDDLE[optimizer]:
            yield Run(*world, 8, 8, arm, rate, optimizer, base, seed)


# in order of worth: stopped anywhere, what is done answers the questions up to there
PLAN = {
    "rates of all and top": lambda: screening(CORE, PAIR),
    "all and top, seeds 0 and 1": lambda: deciding((0, 1), CORE, PAIR),
    "top in wordy worlds at other rates": lambda: fixed((0, 1), WORDY, ("top",)),
    "the other arms in text": lambda: fixed((0,), [TEXT], OTHERS),
    "the oracle elsewhere": lambda: fixed((0,), CORE[1:3], ("decisions",)),
    "rates of SGD": lambda: screening(SGD, (*PAIR, "decisions"), "sgd"),
    "SGD, seeds 0 and 1": lambda: deciding((0, 1), SGD, (*PAIR, "decisions"), "sgd"),
    "SGD at a length before the best": lambda: fixed((0, 1), SGD, PAIR, "sgd"),
    "annealed and frozen masks elsewhere": lambda: fixed((0,), CORE[::4], ("anneal", "base")),
    "all and top, seeds 2 and 3": lambda: deciding((2, 3), CORE, PAIR),
    "random": lambda: deciding((0,), CORE, ("random",)),
    "filler only": lambda: deciding((0,), CORE[2:], ("filler",)),
    "other batches": lambda: batches(CORE),
    "rates in the other worlds": lambda: screening([w for w in WORLDS if w not in CORE], PAIR),
    "the other arms in text, seed 1": lambda: fixed((1,), [TEXT], OTHERS),
    "SGD, seeds 2 and 3": lambda: deciding((2, 3), SGD, (*PAIR, "decisions"), "sgd"),
    "rates of the other arms": lambda: screening(CORE, OTHERS),
    "the other arms, seeds 0 and 1": lambda: deciding((0, 1), CORE, OTHERS),
    "the other arms, seeds 2 and 3": lambda: deciding((2, 3), CORE, OTHERS),
    "other batches in the other worlds": lambda: batches([w for w in WORLDS if w not in CORE]),
}


def best_rate(share: float, entropy: float, P: int, G: int, arm: str, optimizer: str) -> float:
    """The learning rate with the best score in the screening; a control, which was not screened,
    takes that of top.  0 while it is not over."""
    arm = "top" if arm in ("random", "filler") else arm
    tried = [Run(share, entropy, P, G, arm, r, optimizer) for r in RATES[optimizer]]
    return max(tried, key=lambda r: r.summary()["score"]).rate if all(map(Run.done, tried)) else 0.0


# ---------------------------------------------------------------------- the runs


def make(run: Any, stop: Callable[[], bool], split: str = "test") -> bool:
    """Make the run, or go on with it, and measure it on `split`; False where another process is at
    it."""
    folder = run.folder()
    try:
        files.lock(folder)
    except UserError:
        return False
    if run.done():
        files.unlock(folder)
        return True
    c, clock = run.config(), files.Clock()
    model, world, splits, _ = open_task(c, torch.device("cpu"), stop)
    state = fork_gpt.begin(model, splits["train"], c, clock)
    log = files.Log(folder, False, False)
    if found := checkpoint.found(folder / "checkpoints"):
        parallel.load_state(found[-1], state)
    log.begin(state.step, c.steps, f"rlvr {c.keep}")
    fork_gpt.train(state, world, splits, c, log, stop)
    found, _ = measure(state.policy, world, splits[split], c)
    lines = [json.loads(x) for x in open(folder / "metrics.jsonl")]
    summary = asdict(run) | digest(lines) | dict(
        {split: found["accuracy"]}, arithmetic=found["arithmetic"], truncated=found["truncated"]
    )  # fmt: skip
    files.write_json(folder / "summary.json", summary | clock.seconds())
    shutil.rmtree(folder / "checkpoints")
    files.unlock(folder)  # hundreds held at once are more than some systems allow
    return True


def digest(lines: list[dict]) -> dict:
    """A run's log -> its score, its looks at validation, what it sampled by quarters of its steps,
    and the columns by kind of token at first and at last (means of a tenth of the steps) and in
    all."""
    looks = [x["val_accuracy"] for x in lines if "val_accuracy" in x]
    n = len(lines)

    def mean(key: str, a: float = 0, b: float = 1) -> float:
        return float(np.mean([x[key] for x in lines[int(a * n) : max(int(b * n), 1)]]))

    out = dict(score=float(np.mean(looks[-2:])), looks=looks)
    out["quarters"] = [mean("accuracy", q / 4, q / 4 + 0.25) for q in range(4)]
    for key in ("precision", "recall", *ENTROPY_COLUMNS):
        out[key] = [mean(key, 0, 0.1), mean(key, 0.9), mean(key)]
    kl = {k: mean(f"kl_{k}") for k in KINDS}
    return out | dict(kl=kl, grad_norm=mean("grad_norm"), clipped=mean("clip_fraction"))


# ---------------------------------------------------------------------- what was found


def look(share: float, entropy: float, seed: int) -> dict:
    """A base model before any training: accuracy on validation, what kinds its tokens are and how
    uncertain, the percentiles that the paper reports, and what the top 20% would keep: recall and
    precision of decisions, `held` of the outcome's variance (with its interval; no grammar is
    needed), and all but `nu` of the noise's energy, the sum of 1 - sum p^2."""
    path = OUT / f"base-{share}-{entropy}-{seed}.json"
    if path.exists():
        return files.read_json(path)
    c = Config(model=str(base_of(share, entropy, seed)), **world_of(share, entropy), device="cpu")
    model, world, splits, _ = open_task(c, torch.device("cpu"), lambda: False)
    found, samples = measure(model, world, splits["val"], c)
    kinds = torch.tensor(world.kinds(samples.tokens.tolist()))[samples.response]
    h, decided = samples.entropy, kinds == KINDS.index("decisions")
    top, tau = top_entropy(h, 0.2)
    parts = (samples.sequences([b]) for b in range(len(samples.finished)))
    energy = torch.cat([findings.alternatives(model, s, 1)[-1] for s in parts]).square()
    record = dict(share=share, entropy=entropy, base=seed, accuracy=found["accuracy"], tau=tau)
    d = distribution(h)
    record |= {"arithmetic": found["arithmetic"], "p50": d["p50"], "p80": d["p80"]}
    record |= {"below_0.01": d["below_0.01"], "nu": (energy[~top].sum() / energy.sum()).item()}
    record["recall"] = (top & decided).sum().item() / decided.sum().item()
    record["precision"] = (top & decided).sum().item() / top.sum().item()
    for i, name in enumerate(KINDS):
        mine = kinds == i
        record[name] = dict(share=mine.float().mean().item())
        record[name] |= dict(entropy=h[mine].mean().item()) if mine.any() else {}
    run = findings.Run(OUT, c, world, splits, model, states={0: model.state_dict()})
    flags = findings.Flags(responses=200, continuations=8)
    record["held"] = findings.decomposition_of(run, "base", flags)["top20"]
    files.write_json(path, record)
    return record


def at_best_rate(runs: list[dict]) -> list[dict]:
    """Of an arm's summaries those at one learning rate: that of the best mean score on validation
    among the rates that most runs were made at."""
    rates = {}
    for s in runs:
        rates.setdefault(s["rate"], []).append(s)
    most = max(map(len, rates.values()))
    full = [same for same in rates.values() if len(same) == most]
    return max(full, key=lambda same: np.mean([s["score"] for s in same]))


def finished() -> list[dict]:
    """The summaries of all runs that are done."""
    return [files.read_json(path) for path in sorted(OUT.glob("*/summary.json"))]


def cells() -> list[dict]:
    """Each cell (a world, a batch, an optimizer): what its base is like; of every arm the best
    score of the screening, and of its runs at its best rate the accuracies on test, the columns by
    kind, and the difference from `all` and from `top`."""
    names, found, out = "share entropy prompts group optimizer".split(), {}, []
    for s in finished():
        cell = found.setdefault(tuple(s[k] for k in names), {})
        cell.setdefault(s["arm"], []).append(s)
    for cell, arms in found.items():
        first = {a: [s["score"] for s in x if s["base"] == s["seed"] == 0] for a, x in arms.items()}
        best = {a: max(scores) for a, scores in first.items() if scores}
        mine = {a: at_best_rate(arms[a]) for a in best}
        test = {a: [s["test"] for s in x] for a, x in mine.items()}
        sd, df = pooled([*test.values()])
        row = dict(zip(names, cell, strict=True))
        row |= dict(sd=sd if df else None, df=df, arms={}, base=[look(*cell[:2], 0)])
        for a, x in mine.items():
            row["arms"][a] = arm = dict(score=best[a], rate=x[0]["rate"], test=test[a])
            for k in ("precision", "recall", *ENTROPY_COLUMNS):
                arm[k] = np.mean([s[k] for s in x], 0).tolist()  # at first, at last, in all
            for k in ("arithmetic", "truncated", "grad_norm"):
                arm[k] = float(np.mean([s[k] for s in x]))
            arm["kl"] = {kind: float(np.mean([s["kl"][kind] for s in x])) for kind in KINDS}
            for other in ({"all", "top"} & mine.keys()) - {a}:
                arm[f"score_minus_{other}"] = best[a] - best[other]
                arm[f"minus_{other}"] = difference(test[a], test[other], sd, df)
        out.append(row)
    return out


def correlation(cells: list[dict]) -> dict:
    """Recall on the base against top minus all over the screened cells of AdamW: rank correlation,
    and with each world left out; null of fewer than three, or of equal ones."""

    def rank(pairs: list[tuple]) -> float | None:
        x, y = ([p[i] for p in pairs] for i in (1, 2))
        return spearman(x, y) if min(len({*x}), len({*y})) > 2 else None

    cells = [c for c in cells if c["optimizer"] == "adamw" and {"top", "all"} <= c["arms"].keys()]
    pairs = []
    for c in cells:
        gap = c["arms"]["top"]["score_minus_all"]
        pairs.append((f"{c['share']:g} {c['entropy']:g}", c["base"][0]["recall"], gap))
    left = {w: rank([p for p in pairs if p[0] != w]) for w in dict.fromkeys(p[0] for p in pairs)}
    return dict(rank=rank(pairs), left_out=left, n=len(pairs))


def main(argv: list[str]) -> int:
    """The command line."""
    torch.set_num_threads(1)  # a part of the bases' names
    stop = files.stop_on_signal()
    if argv[:1] == ["--table"] and len(argv) == 2:
        record = dict(cells=(found := cells()), correlation=correlation(found))
        files.write_json(Path(argv[1]) / "data" / "wording.json", record)
        lines = "".join(json.dumps(s) + "\n" for s in finished())
        files.write_atomic(OUT / "runs.jsonl", lines.encode())
        print(report.write(Path(argv[1])))
    elif argv == ["--plan"]:
        for name, part in PLAN.items():
            runs = list(part())
            done = [r.summary()["cpu_seconds"] for r in runs if r.done()]
            print(f"{name}: {len(done)} of {len(runs)}, {sum(done) / 3600:.2f} CPU-hours")
    elif argv:
        raise UserError("python -m study.grid takes --plan, --table RUN or nothing")
    while not argv:
        runs = (run for part in PLAN.values() for run in part() if not run.done())
        left = [make(run, stop) for run in runs if not stop()]
        if stop():
            raise KeyboardInterrupt
        if not left:
            break
        if not any(left):
            time.sleep(5)  # others are at the last ones
    return 0


if __name__ == "__main__":
    sys.exit(files.command("-m study.grid", main, sys.argv[1:]))

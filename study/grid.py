"""When does a fifth suffice?  The experiment of results/README.md, one resumable command.

    python -m study.grid                 # what is not done yet of the plan, run by run
    python -m study.grid --plan          # how many runs are done of each part, their CPU-hours
    python -m study.grid --table         # results/grid.json and grid.jsonl from what is done

The world is Countdown with one try: a wrong answer ends the response, so a rollout is cheap and no
arm can learn "do not give up".  Filler words of a set share and entropy make it like text.  Each
run is `fork_gpt.train` on a small base model; arms differ by flags, and share base model, order of
problems and random numbers.  A run's score is its accuracy on validation, mean of the looks at
three quarters and at the end of its steps; an arm's learning rate is the one of the best score in
the screening.  Several processes may run this command at once: a lock keeps each run to one.
"""

import fcntl
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

import fork_gpt
from fork_gpt import Config
from infra import files
from infra.files import UserError
from tasks.ask import measure, open_task
from tasks.countdown import KINDS, Countdown
from tasks.pretrain import Pretrain, base_model, folder_of

OUT = Path("runs/grid")
SHARES, ENTROPIES = (0.2, 0.4), (0.1, 0.33, 0.69, 1.8)
TEXT = (0.25, 0.67)  # half its tokens are below .01 nats and p80 is .67, as in the paper's model
WORLDS = [(0.0, 0.69), *((s, h) for s in SHARES for h in ENTROPIES), TEXT]
SGD = [(0.4, 0.33), (0.4, 0.69), TEXT]
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
RATES = dict(adamw=(1e-4, 2e-4, 4e-4, 8e-4), sgd=(0.01, 0.02, 0.04, 0.08))
CLIP = 1e-4  # below every gradient's norm
SIX = "all top decisions anneal base double".split()
DECIDING = [
    ((0.4, 0.69, 8, 8), "adamw", [*SIX, "random", "filler"]),
    ((0.0, 0.69, 8, 8), "adamw", [*SIX, "random"]),
    ((0.4, 0.33, 8, 8), "adamw", [*SIX, "random", "filler"]),
    ((*TEXT, 8, 8), "adamw", [*SIX, "random", "filler"]),
    ((0.4, 1.8, 8, 8), "adamw", [*SIX, "random", "filler"]),
    ((*TEXT, 8, 8), "sgd", ["all", "top", "decisions"]),
    ((0.4, 0.33, 8, 8), "sgd", ["all", "top", "decisions"]),
    ((0.4, 0.33, 4, 4), "adamw", ["all", "top", "double"]),
]


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
        own = dict(keep="all") | ARMS[self.arm]
        sgd = self.optimizer == "sgd"
        lr, clip = (self.rate / CLIP, CLIP) if sgd else (self.rate, 1.0)
        return Config(
            **own,
            out=str(self.folder()),
            model=str(base_of(self.share, self.entropy, self.base)),
            **world_of(self.share, self.entropy),
            seed=self.seed,
            device="cpu",
            prompts=self.prompts * (1 + (self.arm == "double")),
            group=self.group,
            optimizer=self.optimizer,
            lr=lr,
            grad_clip=clip,
            steps=self.steps,
            updates=1,
            rounds=1,
            max_new=64,
            save_every=50,
            eval_every=self.steps // 4,
            snapshot_every=0,
        )


def world_of(share: float, entropy: float) -> dict:
    return dict(attempts=1, filler_share=share, filler_entropy=entropy)


@cache
def base_of(share: float, entropy: float, seed: int) -> Path:
    """The base model's folder: pretrained with filler that any later entropy knows the words of,
    then fine-tuned in its own world."""
    root = Pretrain(size="micro", steps=2400, skill=0.5, seed=seed)
    world = Countdown(**world_of(share, 1.8))
    if not (folder_of(root, world) / "model.pt").exists():
        base_model(root, world)
    fine = replace(root, steps=300, lr=2e-3, start=str(folder_of(root, world)))
    world = replace(world, filler_entropy=entropy)
    if not (folder_of(fine, world) / "model.pt").exists():
        base_model(fine, world)
    return folder_of(fine, world)


# ---------------------------------------------------------------------- the plan


def screening() -> Iterator[Run]:
    """One base, one seed, learning rates from four: every world, the middle batch first."""
    for world in WORLDS:
        for arm in ("all", "top", "decisions"):
            yield from (Run(*world, 8, 8, arm, r) for r in RATES["adamw"])
    for world in WORLDS:
        for arm in ("anneal", "base", "double"):
            yield from (Run(*world, 8, 8, arm, r) for r in RATES["adamw"][1:])
    for world in SGD:
        for arm in ("all", "top", "decisions"):
            yield from (Run(*world, 8, 8, arm, r, "sgd") for r in RATES["sgd"])
    for world in WORLDS:
        for arm in ("all", "top"):
            yield from (Run(*world, 4, 4, arm, r) for r in RATES["adamw"])
    for world in WORLDS:
        for arm in ("all", "top"):  # half the steps, for four times the responses
            yield from (Run(*world, 32, 8, arm, r, steps=100) for r in RATES["adamw"][2:])


def deciding() -> Iterator[Run]:
    """Three bases, four seeds, each arm at the learning rate that the screening chose for it; two
    controls with one seed a base."""
    for (*world, P, G), optimizer, arms in DECIDING:
        for base, seed in ((b, s) for s in range(4) for b in range(3)):
            for arm in arms:
                if arm not in ("random", "filler") or seed == 0:
                    yield Run(*world, P, G, arm, chosen(*world, P, G, arm, optimizer), optimizer,
                              base, seed)  # fmt: skip


def chosen(share: float, entropy: float, P: int, G: int, arm: str, optimizer: str) -> float:
    """The learning rate with the best score among the screening's; a control takes that of top, an
    arm of a batch that was not screened that of the middle batch."""
    rates = RATES[optimizer]
    tried = [Run(share, entropy, p, g, a, r, optimizer) for p, g, a in
             ((P, G, arm), (8, 8, arm), (8, 8, "top")) for r in rates]  # fmt: skip
    groups = [[r for r in tried[i : i + len(rates)] if r.done()] for i in range(0, 12, len(rates))]
    found = next((g for g in groups if g), None)
    if not found:
        raise UserError(f"no learning rate was screened for {tried[0].folder().name}")
    return max(found, key=lambda r: r.summary()["score"]).rate


# ---------------------------------------------------------------------- the runs


def work(run: Run, stop: Callable[[], bool]) -> None:
    """Make the run, or go on with it, unless another process is at it."""
    folder = run.folder()
    folder.mkdir(parents=True, exist_ok=True)
    with open(OUT / f".{folder.name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if run.done():
            return
        c, clock = run.config(), files.Clock()
        model, world, splits, _ = open_task(c, torch.device("cpu"), stop)
        state = fork_gpt.begin(model, splits["train"], c, clock)
        checkpoint, log = folder / "checkpoint.pt", files.Log(folder, False, False)
        if checkpoint.exists():
            state.load(checkpoint)
        log.cut(state.step)
        fork_gpt.train(state, world, splits, c, log, stop)
        found, _ = measure(state.policy, world, splits["test"], replace(c, eval_k=8))
        lines = [json.loads(x) for x in open(folder / "metrics.jsonl")]
        summary = asdict(run) | summarise(lines) | dict(
            test=found["accuracy"], arithmetic=found["arithmetic"], truncated=found["truncated"]
        )  # fmt: skip
        files.write_json(folder / "summary.json", summary | clock.seconds())
        checkpoint.unlink(missing_ok=True)


def summarise(lines: list[dict]) -> dict:
    """A run's log -> its score, its looks at validation, what it sampled by quarters of its steps,
    and the columns by kind of token at first and at last (means of a tenth of the steps) and in
    all."""
    looks = [x["val_accuracy"] for x in lines if "val_accuracy" in x]
    n = len(lines)

    def mean(key: str, a: float = 0, b: float = 1) -> float:
        return float(np.mean([x[key] for x in lines[int(a * n) : max(int(b * n), 1)]]))

    out = dict(score=float(np.mean(looks[-2:])), looks=looks)
    out["quarters"] = [mean("accuracy", q / 4, q / 4 + 0.25) for q in range(4)]
    for key in ("precision", "recall", *(f"entropy_{k}" for k in KINDS)):
        out[key] = [mean(key, 0, 0.1), mean(key, 0.9), mean(key)]
    kl = {k: mean(f"kl_{k}") for k in KINDS}
    return out | dict(kl=kl, grad_norm=mean("grad_norm"), clipped=mean("clip_fraction"))


def main(argv: list[str]) -> int:
    """The command line."""
    torch.set_num_threads(1)  # a part of the bases' names
    if argv not in ([], ["--plan"], ["--table"]):
        raise UserError("python -m study.grid takes --plan, --table or nothing")
    stop = files.stop_on_signal()
    for part in (screening, deciding):
        for run in part():
            if not run.done():
                work(run, stop)
            if stop():
                raise KeyboardInterrupt
        while not all(run.done() for run in part()):  # another process is at the last ones
            time.sleep(5)
    return 0


if __name__ == "__main__":
    sys.exit(files.command("-m study.grid", main, sys.argv[1:]))

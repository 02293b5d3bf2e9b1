"""The search for the default run: which base, which settings, in 200 CPU-seconds?

    python bench/default_run.py              # what is not done yet of SETTINGS
    python bench/default_run.py --table      # the table of results/README.md, from what is done

Each setting changes the recipe of the base model and the flags of the run; it is judged on
*validation* alone, and by the CPU-seconds of pretraining and training together, beside those of
`now` on the same machine.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fork_gpt import Config
from infra import files
from study.grid import make
from tasks.ask import countdown_of
from tasks.pretrain import Pretrain, base_model

OUT = Path("runs/search")
SETTINGS = {  # name -> changes of the recipe (all but `now` "micro"), changes of the flags
    "now": (dict(size="tiny"), dict(steps=54, lr=1.5e-4)),
    "micro": ({}, dict(lr=1.5e-4)),
    "micro skill 0.9": (dict(skill=0.9), dict(lr=1.5e-4)),
    "micro lr 3e-4": ({}, {}),
    "micro stop 0.1 lr 3e-4": (dict(p_stop=0.1), {}),
    "micro skill 0.9 stop 0.1 lr 3e-4": (dict(skill=0.9, p_stop=0.1), {}),
    "micro stop 0.1 192 tokens lr 3e-4": (dict(p_stop=0.1), dict(max_new=192)),
    # pretraining and steps cut to a run of 0.93 times the seconds of `now`
    "2,400 of pretraining, 72 steps": (dict(p_stop=0.1, steps=2400), dict(max_new=192, steps=72)),
    "... of 24 prompts, 96 steps": (
        dict(p_stop=0.1, steps=2400),
        dict(max_new=192, steps=96, prompts=24),
    ),
    "... stop 0.05": (dict(p_stop=0.05, steps=2400), dict(max_new=192, steps=72)),
    "... 224 tokens, 64 steps": (dict(p_stop=0.1, steps=2400), dict(max_new=224, steps=64)),
    "... skill 0.5": (dict(p_stop=0.1, steps=2400, skill=0.5), dict(max_new=192, steps=72)),
}
BEST = "micro stop 0.1 192 tokens lr 3e-4"  # is made from three bases


@dataclass(frozen=True)
class Setting:
    name: str
    base: int
    seed: int

    def recipe(self) -> Pretrain:
        return Pretrain(**dict(size="micro") | SETTINGS[self.name][0], seed=self.base)

    def folder(self) -> Path:
        return OUT / f"{re.sub('[^a-z0-9.-]+', '_', self.name)}-{self.base}-{self.seed}"

    def done(self) -> bool:
        return (self.folder() / "summary.json").exists()

    def config(self) -> Config:
        flags = dict(steps=80, lr=3e-4, snapshot_every=0, device="cpu") | SETTINGS[self.name][1]
        base, _ = base_model(self.recipe(), countdown_of(Config(**flags)))
        every = flags["steps"] // 2
        where = dict(model=str(base), out=str(self.folder()), seed=self.seed, eval_every=every)
        return Config(**where, **flags)

    def seconds(self) -> tuple[float, float]:
        """CPU-seconds of pretraining and of the run."""
        base = files.read_json(Path(self.config().model) / "config.json")["cpu_seconds"]
        return base, files.read_json(self.folder() / "summary.json")["cpu_seconds"]


def table(runs: list[Setting]) -> str:
    """A line a setting: validation of each run, their mean, CPU-seconds."""
    lines = [
        "| setting | val of each base-seed | mean | truncated | arithmetic | CPU-s: base, run |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    for name in SETTINGS:
        mine = [r for r in runs if r.name == name and r.done()]
        found = [files.read_json(r.folder() / "summary.json") for r in mine]
        if not found:
            continue
        val, cut, right = ([f[k] for f in found] for k in ("val", "truncated", "arithmetic"))
        base, run = (sum(x) / len(mine) for x in zip(*(r.seconds() for r in mine), strict=True))
        mean = [f"{sum(x) / len(x):.3f}" for x in (val, cut, right)]
        each = " ".join(f"{v:.3f}" for v in val)
        lines.append(f"| {name} | {each} | {' | '.join(mean)} | {base:.0f}, {run:.0f} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    torch.set_num_threads(1)
    stop = files.stop_on_signal()
    runs = [Setting(name, 0, 0) for name in SETTINGS]
    runs += [Setting(name, base, 0) for name in ("now", BEST) for base in (1, 2)]
    for run in runs if not argv else []:
        if not run.done():
            make(run, stop, "val")
        if stop():
            raise KeyboardInterrupt
    print(table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(files.command("bench/default_run.py", main, sys.argv[1:]))

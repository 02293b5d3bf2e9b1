"""The comparison that the paper makes, with the error bars and controls that it lacks.

    python fork_gpt.py --arms top,all,random,bottom --seeds 3
    python fork_gpt.py --arms "all,top rho=0.1,top pool=microbatch,bottom optimizer=sgd lr=0.05"

An arm is a word of --keep and, after spaces, field=value pairs of its own (`OWN`); every other flag
holds for all arms, so they share base model, steps, problems in their order, and seeds (--seed and
those after it).  Each arm and seed is an ordinary run, OUT/ARM-seedS, with its log beside it, in a
process of its own, or in --procs that torchrun starts; --jobs of them at a time.  The same command
again skips what is finished, its study included, and resumes, bit for bit, what was stopped.

It leaves OUT/data/comparison.json, OUT/comparison.md and a page, OUT/report.html, that tells the
comparison and all else of the first arm's first run.  CPU-seconds are those of the training steps.
"""

import math
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from fork_gpt import Config, claim_folder, configure
from infra import files, flags, weights
from infra.files import UserError
from infra.flags import flag
from study import report
from study.findings import log_of
from study.stats import MARGIN, difference, pooled, student
from tasks import pretrain
from tasks.ask import countdown_of, recipe_of

PROGRAM = Path(__file__).resolve().parent.parent / "fork_gpt.py"
# what an arm may set; anything else would make it another task, base model or amount of training
OWN = (
    "rho entropy pool normalize updates temperature overlong clip_low clip_high dual_clip "
    "rho_end optimizer lr warmup weight_decay beta2 grad_clip microbatch"
).split()
# the paper's means of six benchmarks in %, one run each of Qwen3 8B / 14B / 32B Base
PAPER = {"all": "53.71 / 61.40 / 66.59", "top": "54.23 / 64.39 / 70.69", "bottom": "curve: drops"}
HEAD = "arm|test accuracy|each run|minus all||length|truncated|arithmetic|CPU-seconds|the paper"
NUMBERS = "test_accuracy test_accuracy_base test_problems length truncated"  # of a summary.json
NOTES = """
Intervals are 95%: Student's t, the standard deviation pooled over arms, bases and seeds (of one run, and of the base: over
problems); "equal": the whole interval is within 2 points of 0.
The paper: accuracy in %, mean of six benchmarks, one run each of Qwen3 8B / 14B / 32B Base; mean length 4022 / 4752 /
5849 tokens (all), 5508 / 7628 / 7227 (top 20%); bottom 80% is a curve, 8B only; it has no random control.
"""  # noqa: E501


@dataclass(frozen=True)
class Comparison:
    """What --arms takes beside the flags of a run."""

    arms: str = flag("", "compare these: words of --keep, each with FIELD=VALUE")
    seeds: int = flag(3, "seeds of each arm, from --seed on", "[1, inf)", needs="arms")
    bases: int = flag(1, "base models, from --base-seed on", "[1, inf)", needs="arms")
    jobs: int = flag(0, "runs at a time; 0: one a core", "[0, inf)", needs="arms")
    procs: int = flag(1, "processes of torchrun that share a run", "[1, inf)", needs="arms")


@dataclass(frozen=True)
class Job:
    """An arm with one base and seed: its config and its command line."""

    arm: str
    config: Config
    argv: tuple[str, ...]
    procs: int = 1

    def path(self, name: str = "") -> Path:
        return Path(self.config.out) / name

    def done(self) -> bool:
        return self.path("summary.json").exists()


def flags_of(arm: str) -> dict:
    """ "top rho=0.1" -> its flags by field name.  UserError for what no arm may set."""
    keep, *pairs = arm.split() or [""]
    for pair in pairs:
        name, equals, _ = pair.partition("=")
        if not equals or name not in OWN:
            rule = f"is not field=value with one of {', '.join(OWN)}"
            raise UserError(f"{pair!r} {rule}")
    argv = [f"--keep={keep}", *(f"--{pair.replace('_', '-')}" for pair in pairs)]
    return flags.parse((Config,), argv, "fork_gpt.py", "")


def jobs_of(a: Comparison, given: dict) -> tuple[Path, int, list[Job]]:
    """(OUT, processes at a time, jobs, seed by seed).  UserError for a mistake in any arm, before
    anything runs."""
    if "keep" in given or "resume" in given:
        raise UserError("--arms names what is kept and resumes by itself: drop --keep and --resume")
    shared, arms = configure(given), {}
    if a.bases > 1 and shared.model:
        raise UserError("--bases makes its own base models: drop --model")
    if shared.data and not shared.holdout:
        raise UserError("--holdout 0 leaves no test split to compare the arms on")
    for text in (" ".join(arm.split()) for arm in a.arms.split(",")):
        if text in arms:
            raise UserError(f"--arms {a.arms}: {text!r} stands there twice")
        try:
            arms[text] = flags.readable(Config, given, own := flags_of(text)) | own
            configure(arms[text])
        except UserError as e:
            raise UserError(f"--arms {text!r}: {e}") from None
    names = {text: re.sub("[^A-Za-z0-9.]+", "-", text) for text in arms}
    out, jobs = Path(shared.out or f"runs/arms-{'-'.join(names.values())}"), []
    for base, seed in ((b, s) for b in range(a.bases) for s in range(a.seeds)):
        for text, mine in arms.items():
            own = dict(base_seed=shared.base_seed + base) if a.bases > 1 else {}
            mine = mine | own | dict(seed=shared.seed + seed)
            mine["out"] = f"{out / names[text]}-base{shared.base_seed + base}-seed{mine['seed']}"
            jobs.append(Job(text, configure(mine), tuple(flags.typed(mine)), a.procs))
            claim_folder(jobs[-1].config, write=False)  # refuses another command's folder
    # an accelerator has room for one run, a core for one thread
    cores = os.cpu_count() if weights.device(shared.device).type == "cpu" else 1
    return out, a.jobs or max(1, (cores or 1) // (shared.threads * a.procs)), jobs


# ---------------------------------------------------------------------- the runs


def run_all(runs: list[Job], jobs: int, out: Path, stop: Callable[[], bool]) -> list[Job]:
    """Run those that are not done, `jobs` at a time; returns those that failed, after a line about
    each.  `stop()` makes every child save and end, and raises KeyboardInterrupt."""
    waiting, running, failed = [r for r in runs if not r.done()], {}, []
    steps = sum(r.config.steps for r in runs)  # a bar of steps forecasts the minutes early
    bar = tqdm(total=steps, initial=sum(len(logged(r)) for r in runs), desc="arms", unit="step")
    lock = files.lock(out)  # children inherit it: it is held until the last of them has ended
    with bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run = waiting.pop(0)
                    running[run] = launch(run, lock)
                time.sleep(0.3)
                for run in [r for r in running if running[r].poll() is not None]:
                    code = running.pop(run).returncode
                    if code:
                        failed.append(run)
                        bar.write(failure(run, code), file=sys.stderr)
                bar.set_postfix_str(", ".join(progress(run) for run in running), refresh=False)
                bar.update(sum(len(logged(r)) for r in runs) - bar.n)
                if stop():
                    raise KeyboardInterrupt
        finally:  # SIGTERM ends a child that does not listen yet; any other saves first
            for child in running.values():
                child.terminate()
            for child in running.values():
                child.wait()
    return failed


def launch(run: Job, lock: int) -> subprocess.Popen:
    """The run's process, new or resumed, in a session that the terminal's Ctrl-C does not reach."""
    argv = ("--resume", run.path()) if run.path("config.json").exists() else run.argv
    with open(f"{run.path()}.log", "a") as log:
        to = dict(stdout=log, stderr=log, start_new_session=True, pass_fds=[lock])
        many = f"-m torch.distributed.run --standalone --nproc-per-node {run.procs}".split()
        program = [sys.executable, *(many if run.procs > 1 else []), PROGRAM]
        return subprocess.Popen([*program, *argv], **to)


def failure(run: Job, code: int) -> str:
    """One line about a child that failed: its exit status, its last words, its log."""
    log = Path(f"{run.path()}.log")
    words = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    words = [line for line in words if line.startswith(PROGRAM.name)] or words  # torchrun says more
    how = f"exit status {code}" if code > 0 else f"signal {-code}"
    return f"{run.path().name} failed ({how}): {''.join(words[-1:])}; see {log}"


def logged(run: Job) -> list[bytes]:
    """The whole lines of a run's metrics."""
    path = run.path("metrics.jsonl")
    return path.read_bytes().split(b"\n")[:-1][: run.config.steps] if path.exists() else []


def progress(run: Job) -> str:
    """How far a run is."""
    lines = logged(run)
    reward = re.search(rb'"reward": (-?[0-9]+[.][0-9]+)', b"".join(lines[-1:]))
    last = f" reward {float(reward[1]):.2f}" if reward else ""
    return f"{run.path().name} {len(lines)}/{run.config.steps}{last}"


# ---------------------------------------------------------------------- the numbers


def curve(logs: list[list[dict]]) -> dict[str, list]:
    """The metrics of one arm, a list of lines a run -> training accuracy at each step, the mean and
    each run's, and the mean CPU-seconds spent up to there."""
    runs = np.array([[line["accuracy"] for line in log] for log in logs])
    spent = np.cumsum([[line["cpu_seconds"] for line in log] for log in logs], axis=1).mean(0)
    found = dict(cpu_seconds=spent.tolist(), accuracy=runs.mean(0).tolist())
    found |= dict(runs=runs.round(4).tolist())
    return dict(step=[line["step"] for line in logs[0]]) | found


def results(summaries: list[dict], cpu_seconds: float, sd: float, df: int) -> dict:
    """The summaries of one arm, one a run -> its results on the test split."""
    each = [s["test_accuracy"] for s in summaries]
    accuracy, half = float(np.mean(each)), student(df) * sd / math.sqrt(len(each)) if df else 0.0
    low, high = accuracy - half, accuracy + half
    if not df:
        low, high = summaries[0]["test_accuracy_interval"]
    found = dict(accuracy=accuracy, low=max(0.0, low), high=min(1.0, high), per_seed=each)
    for key in ("arithmetic", "length", "truncated"):
        known = [s[key] for s in summaries if s[key] is not None]  # mathematics has no arithmetic
        found[key] = float(np.mean(known)) if known else None
    return found | dict(cpu_seconds=cpu_seconds)


def compare(runs: list[Job]) -> dict:
    """The finished runs as comparison.json has them; each arm also has its `difference` from the
    arm "all" where there is one."""
    arms, found = [], {}
    for run in runs:
        s = files.read_json(path := run.path("summary.json"))
        if odd := [k for k in NUMBERS.split() if not files.is_number(s.get(k))]:
            raise UserError(f"{path}: no number {odd[0]}; delete it and the command makes it again")
        found.setdefault(run.arm, []).append((run, s))
    accuracy = {text: [s["test_accuracy"] for _, s in mine] for text, mine in found.items()}
    sd, df = pooled(list(accuracy.values()))
    for text, mine in found.items():
        (jobs, summaries), c = zip(*mine, strict=True), mine[0][0].config
        drawn = curve([log_of(job.path(), job.config.steps) for job in jobs])
        others = " ".join(pair for pair in text.split()[1:] if not pair.startswith("rho="))
        arm = dict(name=text, keep=c.keep, rho=c.rho, flags=others, curve=drawn)
        arm |= {k: [getattr(job.config, k) for job in jobs] for k in ("base_seed", "seed")}
        arm |= dict(test=results(summaries, drawn["cpu_seconds"][-1], sd, df))
        if text != "all" and "all" in found:
            arm |= dict(difference=difference(accuracy[text], accuracy["all"], sd, df))
        arms.append(arm)
    bases = {run.config.base_seed: s for mine in found.values() for run, s in mine}
    base = [s["test_accuracy_base"] for s in bases.values()]
    interval = summaries[0]["test_accuracy_base_interval"] if len(base) == 1 else None
    base = dict(accuracy=float(np.mean(base)), per_base=base, interval=interval)
    about = dict(n_problems=summaries[0]["test_problems"], k=c.eval_k, sd=sd if df else None, df=df)
    return dict(base=base, margin=MARGIN) | about | dict(arms=arms)


def comparison_table(record: dict) -> str:
    """comparison.json as the text of comparison.md."""
    rows = [HEAD.split("|")]
    for arm in record["arms"]:
        t, d = arm["test"], arm.get("difference")
        minus = f"{d['mean']:+.3f}" if d else ""
        minus += f" [{d['low']:+.3f}, {d['high']:+.3f}]" if d and d["low"] is not None else ""
        plain = not arm["flags"] and (arm["rho"] == 0.2 or arm["keep"] == "all")
        true = "" if t["arithmetic"] is None else f"{t['arithmetic']:.3f}"
        row = [arm["name"], f"{t['accuracy']:.3f} [{t['low']:.3f}, {t['high']:.3f}]"]
        row += [" ".join(f"{x:.3f}" for x in t["per_seed"]), minus, d["verdict"] if d else ""]
        row += [f"{t['length']:.1f}", f"{t['truncated']:.3f}", true, f"{t['cpu_seconds']:.0f}"]
        rows.append([*row, PAPER.get(arm["keep"], "none") if plain else "none"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * w for w in widths])
    text = [" | ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)) for row in rows]
    each = " ".join(f"{x:.3f}" for x in record["base"]["per_base"])
    first = f"Base model {each}; {record['n_problems']} test problems, {record['k']} samples each."
    return first + "\n\n" + "".join(f"| {line} |\n" for line in text) + NOTES


def main(a: Comparison, given: dict, argv: list[str]) -> int:
    """`fork_gpt.py --arms`: 0, or 2 when a run failed."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("--arms starts its runs itself: without torchrun, with --procs N")
    out, at_a_time, jobs = jobs_of(a, given)
    stop, c = files.stop_on_signal(), jobs[0].config
    if not (c.model or all(job.done() for job in jobs)):
        torch.set_num_threads(c.threads)  # a part of the base model's name
        for recipe in dict.fromkeys(recipe_of(job.config) for job in jobs):
            pretrain.base_model(recipe, countdown_of(c), stop)
    failed = run_all(jobs, at_a_time, out, stop)
    if finished := [job for job in jobs if job.done()]:
        record = compare(finished)
        for path in finished[0].path("data").glob("*.json"):  # the page's other sections
            files.write_atomic(out / "data" / path.name, path.read_bytes())
        files.write_json(out / "data" / "comparison.json", record)
        files.write_atomic(out / "comparison.md", comparison_table(record).encode())
        print(f"\n{comparison_table(record)}\n{report.write(out)}")
    if failed:
        again = f"python fork_gpt.py {shlex.join(argv)}"
        print(f"{len(failed)} of {len(jobs)} runs failed; to try again: {again}", file=sys.stderr)
    return 2 if failed else 0

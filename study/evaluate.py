"""How good a model is: k samples of every problem, graded, each kept.

    python fork_gpt.py --eval --model runs/x --data aime24.jsonl,amc23.jsonl --k 32
    python fork_gpt.py --eval --model runs/x --k 16        # the small world's test problems

Of one problem with n = k responses, c of them right:

    avg@k        c / n: the chance that one response is right; the paper's accuracy (avg@16)
    pass@j       1 - C(n-c, j) / C(n, j): the chance that at least one of j is right, without bias
                 for j <= k (Chen et al. 2021); pass@1 is avg@k
    maj@k        1 if the answer that most responses give, in whatever spelling, is right.  Of
                 equally frequent answers the first seen is taken; none has no vote
    length       mean response tokens, the end-of-text token included
    truncated    share of responses cut at --max-new
    arithmetic   small world: true share of the statements "a op b = c" (problems with any)

The table has the mean over a set's problems and, in brackets, its 95% bootstrap interval over
problems (in the small world over sets of numbers, which problems share): it is about the choice of
problems and says nothing of other training seeds.  A set of one problem has none.  `average` is the
mean of the sets, each weighing the same.

OUT/SET.jsonl has a line for every response, OUT/results.json and OUT/results.md the table.  A
response's random numbers depend on --seed, the set and the place of its problem alone, so an
evaluation that was stopped or killed goes on by the same command, bit for bit: the batches that are
whole on disk are kept, the others are sampled again.
"""

import hashlib
import json
import math
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from operator import eq
from pathlib import Path

import torch
from tqdm import tqdm

import parallel
from fork_gpt import Config
from infra import files, flags, memory, weights
from infra.files import UserError
from infra.flags import flag
from model import Transformer
from rollout import Sampling
from tasks.ask import World, ask, digest, fitting, interval, open_world, seed_of
from tasks.maths import read_sets

# the flags of a run that an evaluation reads; what the run's config.json says is their default
ANYWHERE = "model out seed device tp threads dtype rows max_new temperature".split()
MATHS = "data template system verifier max_prompt skip_bad".split()
SMALL = "n_numbers max_number max_value ops attempts filler_share filler_entropy".split()
INHERITED = ["dtype", "max_new", "template", "system", "verifier", *SMALL]


@dataclass(frozen=True)
class Evaluation:
    """What --eval takes beside the flags of the model, its problems and the machine."""

    eval: bool = flag(False, "measure a model: avg@k, pass@k, maj@k")
    k: int = flag(16, "responses to each problem", "[1, inf)", needs="eval")
    top_k: int = flag(0, "draw from so many likeliest tokens; 0: all", "[0, inf)", needs="eval")
    top_p: float = flag(1.0, "draw from the likeliest tokens of this total", "(0, 1]", needs="eval")
    limit: int = flag(0, "problems of each set at most; 0 is all", "[0, inf)", needs="eval")
    split: str = flag("test", "problems of the small world", "val test", needs="eval")


# ---------------------------------------------------------------------- what the numbers mean


def pass_at(n: int, c: int, j: int) -> float:
    """1 - C(n-c, j) / C(n, j): the chance that j of n responses, c of them right, hold a right one.

    1 <= j <= n.  Exact integers, one division: correctly rounded whatever n is."""
    return (math.comb(n, j) - math.comb(n - c, j)) / math.comb(n, j)


def majority(answers: list[str | None], grades: list[float], same: Callable = eq) -> float:
    """The grade of the most frequent answer, the first seen of those that tie; None has no vote,
    and `same` says which two are one.

    Responses are exchangeable, so "first seen" is a fair draw among ties.  0 without any answer."""
    votes = {}  # number of an answer's first response -> its votes, in the order of first sight
    for i, a in enumerate(answers):
        if a is not None:
            first = next((j for j in votes if same(answers[j], a)), i)
            votes[first] = votes.get(first, 0) + 1
    return grades[max(votes, key=votes.get)] if votes else 0.0


def score(records: list[dict], world: World) -> dict[str, float | None]:
    """All responses to one problem, in order -> its value of every metric, None where it has
    none."""
    n, grades = len(records), [r["grade"] for r in records]
    said, c = [r["answer"] for r in records], round(sum(grades))
    js = sorted({2**i for i in range(n.bit_length())} | {n})  # 1, 2, 4, .. and n
    out = {f"avg@{n}": c / n, f"maj@{n}": majority(said, grades, world.same)}
    out |= {f"pass@{j}": pass_at(n, c, j) for j in js}
    out["length"] = sum(r["tokens"] for r in records) / n
    out["truncated"] = sum(not r["finished"] for r in records) / n
    true = [ok for r in records for ok in world.statements(r["text"])]
    return out | dict(arithmetic=sum(true) / len(true) if true else None)


def summarise(scores: list[dict], clusters: list) -> dict[str, dict]:
    """Scores of a set's problems, and what each shares with others -> of each metric the `mean` and
    its 95% `interval`, None for fewer than two clusters.  A metric that no problem has is left
    out."""
    out = {}
    for metric in scores[0] if scores else ():
        have = [(s[metric], of) for s, of in zip(scores, clusters, strict=True)]
        if have := [pair for pair in have if pair[0] is not None]:
            x, of = zip(*have, strict=True)
            both = interval(x, of) if len(set(of)) > 1 else None
            out[metric] = dict(mean=sum(x) / len(x), interval=both)
    return out


def set_table(sets: dict[str, dict]) -> str:
    """A markdown table, aligned: a row for every count and metric, a column for every set."""

    def cell(metric: str, found: dict | None) -> str:
        if found is None:
            return "-"
        form = "{:,.1f}" if metric == "length" else "{:.3f}"
        interval = ", ".join(form.format(x) for x in found["interval"] or ())
        return form.format(found["mean"]) + (f" [{interval}]" if interval else "")

    metrics = list(dict.fromkeys(m for s in sets.values() for m in s["metrics"]))
    rows = [["", *sets], ["---"] * (1 + len(sets))]
    rows += [[n, *(str(s.get(n, "")) for s in sets.values())] for n in ("problems", "too long")]
    rows += [[m, *(cell(m, s["metrics"].get(m)) for s in sets.values())] for m in metrics]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[x.ljust(w) for x, w in zip(row, widths, strict=True)] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


# ---------------------------------------------------------------------- sampling, and going on


def sample_batch(
    model: Transformer, world: World, name: str, first: int, part: list, c: Config, e: Evaluation
) -> list[dict]:
    """k responses to each problem of `part`, which stand from place `first` on in set `name`: a
    record each, problem after problem."""
    # no more than --rows at once, even of one problem: its k responses in equal groups of G
    G = max(g for g in range(1, min(e.k, c.rows) + 1) if e.k % g == 0)
    repeated = [p for p in part for _ in range(e.k // G)]
    numbers = range(first * (e.k // G), (first + len(part)) * (e.k // G))
    how = Sampling(c.temperature, top_p=e.top_p, top_k=e.top_k)
    seed = seed_of(c.seed, name)
    samples, texts, rewards = ask(model, world, repeated, G, c.max_new, how, seed, numbers, c.rows)
    columns = (texts, rewards.tolist(), samples.lengths().tolist(), samples.finished.tolist())
    records = []
    for i, (text, grade, tokens, finished) in enumerate(zip(*columns, strict=True)):
        p = part[i // e.k]
        question, gold = world.asked(p)
        place = dict(problem=first + i // e.k, sample=i % e.k, name=world.name(p))
        place |= dict(question=question, gold=gold, text=text, tokens=tokens, finished=finished)
        records.append(place | dict(answer=world.answer(p, text), grade=grade))
    return records


def scores_on_disk(path: Path, n: int, per: int, world: World, k: int) -> list[dict]:
    """Scores of the first problems of `path` whose batches of `per` (the set has `n` problems) are
    whole; the file is cut after them.  One problem is in memory at a time."""
    scores, group, size, whole = [], [], 0, (0, 0)
    with open(path, "a+b") as f:
        f.seek(0)
        for line in f:
            size += len(line)
            here = dict(problem=len(scores), sample=len(group))
            try:
                group.append(files.parse_json(line))
                if not here.items() <= group[-1].items() or line[-1:] != b"\n":
                    break
                if len(group) == k:
                    scores.append(score(group, world))
                    group = []
            except (ValueError, KeyError, TypeError, AttributeError):
                break  # what a kill left: this batch is sampled again
            if not group and (len(scores) % per == 0 or len(scores) == n):
                whole = len(scores), size
        f.truncate(whole[1])
    return scores[: whole[0]]


def evaluate_set(
    model: Transformer,
    world: World,
    path: Path,
    problems: list,
    c: Config,
    e: Evaluation,
    stop: Callable[[], bool],
) -> list[dict]:
    """The scores of one set's problems; appends to `path` what is not there yet, a batch at a time.
    KeyboardInterrupt, between batches, when `stop()`."""
    per = max(1, c.rows // e.k)
    scores = scores_on_disk(path, len(problems), per, world, e.k)
    tokens, start = 0, time.perf_counter()
    bar = tqdm(total=len(problems), initial=len(scores), desc=path.stem, unit="problem")
    with bar, open(path if files.WRITES else os.devnull, "ab") as f:
        while len(scores) < len(problems):
            if parallel.here().any(stop()):
                raise KeyboardInterrupt
            part = problems[len(scores) : len(scores) + per]
            records = sample_batch(model, world, path.stem, len(scores), part, c, e)
            f.write(b"".join(json.dumps(r).encode() + b"\n" for r in records))
            f.flush()
            if files.WRITES:
                os.fsync(f.fileno())
            groups = (records[i : i + e.k] for i in range(0, len(records), e.k))
            scores += [score(group, world) for group in groups]
            tokens += sum(r["tokens"] for r in records)
            right = sum(s[f"avg@{e.k}"] for s in scores) / len(scores)
            rate = tokens / (time.perf_counter() - start)
            bar.set_postfix_str(f"avg@{e.k} {right:.3f}, {rate:,.0f} tok/s", refresh=False)
            bar.update(len(part))
    return scores


# ---------------------------------------------------------------------- the command


def open_sets(c: Config, e: Evaluation) -> tuple[Transformer, World, dict[str, list], dict]:
    """(model, world, the problems of every set, how many of each set were too long)."""
    sets, dropped = read_sets(c.data, c.skip_bad), {}
    model, world = open_world(c, weights.device(c.device), getattr(torch, c.dtype))
    if not c.data:
        sets = {f"countdown-{e.split}": world.splits()[e.split]}
    for name, problems in sets.items():
        fit = fitting(world, problems, c.max_prompt)
        sets[name], dropped[name] = fit[: e.limit or None], len(problems) - len(fit)
    return model, world, sets, dropped


def run(c: Config, e: Evaluation, command: str, stop: Callable[[], bool]) -> None:
    """The whole evaluation; prints and writes the table, and in it `command`."""
    model, world, sets, dropped = open_sets(c, e)
    folder = Path(c.out or f"runs/eval-{Path(c.model).resolve().name}-{'-'.join(sets)}-k{e.k}")
    device = weights.device(c.device)
    # the same paths may come to hold a model trained further, or other problems
    norm = parallel.full(model, "model.norm.weight").contiguous().view(torch.uint8).cpu().numpy()
    asked = replace(c, group=1, eval_k=e.k, eval_problems=0)
    rows, table = memory.check(model, world, sets, asked, parallel.here().dp, training=False)
    if not c.rows and (folder / "config.json").exists():  # they may decide how samples are numbered
        found = files.read_json(folder / "config.json").get("rows")
        rows = found if type(found) is int and found > 0 else rows
    c = replace(c, rows=min(parallel.here().gather(rows)))
    print(table)
    mine = {k: getattr(c, k) for k in (*ANYWHERE, *MATHS, *SMALL) if k not in ("out", "tp")}
    mine |= asdict(e) | dict(weights=hashlib.sha256(norm).hexdigest()[:16])
    mine |= dict(problems=digest([*sets.items()], c), device=str(device))
    for write in (False, True):  # refused where other files are: one may be the data itself
        files.claim(folder, mine, write)
    parallel.here().wait()  # for the folder
    print(f"results in {folder}; responses of at most {c.max_new:,} tokens")
    found = {}
    for name, problems in sets.items():
        scores = evaluate_set(model, world, folder / f"{name}.jsonl", problems, c, e, stop)
        counts = {"problems": len(problems), "too long": dropped[name]}
        found[name] = counts | dict(metrics=summarise(scores, [*map(world.cluster, problems)]))
    means = [s["metrics"] for s in found.values() if s["metrics"]]
    if len(sets) > 1 and means:
        mean = {m: sum(x[m]["mean"] for x in means) / len(means) for m in means[0]}
        found["average"] = dict(metrics={m: dict(mean=x, interval=None) for m, x in mean.items()})
    facts = dict(command=command, model=c.model, seed=c.seed, torch=torch.__version__)
    facts["hardware"] = f"{weights.hardware(device)}; {c.dtype}, threads {c.threads}"
    files.write_json(folder / "results.json", dict(sets=found) | facts)
    text = set_table(found) + "\n\nIn brackets: 95% bootstrap interval over problems.\n"
    page = f"# Evaluation of {c.model}\n\n{text}\n"
    page += "".join(f"- {k}: `{v}`\n" for k, v in facts.items())
    files.write_atomic(folder / "results.md", page.encode())
    print(f"\n{text}Everything is in {folder}")


def configure(e: Evaluation, given: dict) -> Config:
    """The flags that were given -> what to evaluate; UserError for one that is not read, or out of
    range."""
    read = ANYWHERE + ["data"] + (MATHS if given.get("data") else SMALL)
    if unread := [k for k in given if k not in read]:
        whose = "--eval does not read it" + ", or not without --data" * (unread[0] in MATHS)
        whose += ", or not with --data" * (unread[0] in SMALL)
        raise UserError(f"{flags.option(unread[0])} would be ignored: {whose}")
    path = Path(given.get("model", "")) / "config.json"
    run = files.read_json(path) if path.exists() else {}
    if "model_type" in run:  # a published model's; it says a dtype as well
        run = {}
    inherited = {k: run[k] for k in INHERITED if k in run and k in read}
    c = Config(**flags.defaults(Config, bool(given.get("data"))) | inherited | given)
    flags.check(c)
    flags.check_rules(c, [("model", bool(c.model), "given: the folder to evaluate")])
    greedy = ("k", e.k == 1 or c.temperature > 0, "1 at temperature 0: greedy responses are equal")
    flags.check_rules(e, [greedy])
    return c


def main(e: Evaluation, given: dict, argv: list[str]) -> int:
    """`fork_gpt.py --eval`.  UserError for a mistake of the user's."""
    c, stop = configure(e, given), files.stop_on_signal()
    torch.set_num_threads(c.threads)
    with parallel.joined(c.tp, weights.device(c.device)):
        run(c, e, f"python fork_gpt.py {shlex.join(argv)}", stop)
    return 0

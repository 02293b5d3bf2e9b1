"""Asking a model: open it and its task, draw problems, sample responses, grade them, describe them.

`ask` is the one place where prompts become graded responses, for training, measuring, evaluating
and the study alike.  `open_task` is the one place where flags become a model and problems.
"""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import parallel
from infra import files, weights
from infra.files import UserError
from infra.weights import check_room, from_pretrained, load_model, published, read_shape, save_model
from model import Transformer
from rollout import Rollout, Sampling, colour_trace, generate
from tasks import maths, pretrain
from tasks.countdown import KINDS, Countdown
from tasks.maths import Maths, template_of
from tasks.tokenizer import Tokenizer, qwen_tokenizer, word_tokenizer

World = Countdown | Maths
SPLITS = ("train", "val", "test")
PERCENTILES = (5, 25, 50, 75, 80, 85, 90, 95, 99)


def draw(problems: Sequence, seed: int, position: int, n: int) -> list:
    """`n` problems from `position` on in an endless order, a fresh permutation every epoch."""
    out = []
    while len(out) < n:
        epoch, i = divmod(position + len(out), len(problems))
        order = Random(f"{seed}/{epoch}").sample(problems, len(problems))
        out += order[i : i + n - len(out)]
    return out


def seed_of(*names: object) -> int:
    """A seed of its own for each purpose: a function of its names alone."""
    return Random("/".join(map(str, names))).getrandbits(63)


def ask(
    model: Transformer,
    world: World,
    problems: Sequence,
    k: int,
    max_new: int,
    how: Sampling = Sampling(),
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    rows: int = 512,
    starts: Sequence[list[int]] | None = None,
    progress: bool = False,
) -> tuple[Rollout, list[str], Tensor]:
    """k responses to each problem: the samples, their texts, their rewards (B,) fp32, 1 or 0.
    `seed` and the problems' `numbers` decide the random numbers, as in `generate`; `starts` are
    ids with which each problem's responses begin, a part of the text and of `max_new`.  UserError
    where the model has no probabilities; files.Stopped, on all ranks, when one waited to stop."""
    ranks, tokenizer = parallel.here(), world.tokenizer()
    ranks.doing(f"sampling {k} responses to {len(problems)} problems")
    starts = starts or [[]] * len(problems)
    room = max_new - min(map(len, starts))
    mine = range(ranks.dp_rank, len(problems), ranks.dp)  # each dp rank asks every dp-th problem
    prompts = [world.encode(problems[i]) + starts[i] for i in mine]
    numbers = [i if numbers is None else numbers[i] for i in mine]
    stops = tokenizer.stops.values()
    samples = generate(model, prompts, k, room, stops, how, seed, numbers, rows, progress)
    if ranks.any(files.overdue()):
        raise files.Stopped
    if not (samples.logprobs.isfinite().all() and samples.entropy.isfinite().all()):
        raise UserError("the model's probabilities are not finite: damaged weights, or a high --lr")
    if world.kinds:
        kinds = torch.tensor(world.kinds(samples.tokens.tolist()), dtype=torch.long)
        samples.kinds = kinds[samples.response]  # of a rank without problems, none
    texts, rewards = [], []
    for i, ids in enumerate(samples.responses()):
        problem = mine[i // k]
        texts.append(tokenizer.decode((starts[problem] + ids)[:max_new]))
        rewards.append(world.reward(problems[problem], texts[-1]))
    return exchange(samples, texts, torch.tensor(rewards), len(problems), k)


def exchange(
    samples: Rollout, texts: list[str], rewards: Tensor, n: int, k: int
) -> tuple[Rollout, list[str], Tensor]:
    """What every dp rank asked, put together on each in the order of the n problems."""
    ranks = parallel.here()
    if ranks.dp == 1:
        return samples, texts, rewards
    sizes = parallel.gathered(samples.cu_seqlens.diff())
    fields = dict(cu_seqlens=[F.pad(x.cumsum(0), (1, 0)).int() for x in sizes])
    for name in ("tokens", "response", "logprobs", "entropy", "kinds", "finished"):
        fields[name] = parallel.gathered(getattr(samples, name))
    parts = [{name: x[r] for name, x in fields.items()} for r in range(ranks.dp)]
    asked = [i for r in range(ranks.dp) for i in range(r, n, ranks.dp)]  # in the order of the parts
    order = [j * k + g for j in torch.tensor(asked).argsort().tolist() for g in range(k)]
    pairs = ranks.gather([*zip(texts, rewards.tolist(), strict=True)])
    said = [pair for part in pairs for pair in part]
    texts, rewards = zip(*(said[i] for i in order), strict=True)
    joined = Rollout.join([Rollout(**part) for part in parts])
    return joined.sequences(order), list(texts), torch.tensor(rewards)


def measure(
    model: Transformer,
    world: World,
    problems: Sequence,
    c: Any,
    how: Sampling = Sampling(),
    progress: bool = False,
) -> tuple[dict, Rollout]:
    """`c.eval_k` samples of each of the first `c.eval_problems`, by default at T=1, always with the
    same random numbers: accuracy with its 95% interval over clusters of problems, mean length,
    truncated share, in the small world the share of true statements; the samples."""
    problems, k = problems[: c.eval_problems or None], c.eval_k
    seed = seed_of("measure")
    more = dict(rows=c.rows, progress=progress)
    samples, texts, rewards = ask(model, world, problems, k, c.max_new, how, seed, **more)
    found = dict(
        accuracy=float(rewards.double().mean()),
        interval=interval(rewards.double().view(-1, k).mean(1), map(world.cluster, problems)),
        length=samples.lengths().float().mean().item(),
        truncated=1 - samples.finished.float().mean().item(),
    )
    if isinstance(world, Countdown):
        statements = [ok for text in texts for ok in world.statements(text)]
        found["arithmetic"] = sum(statements) / max(len(statements), 1)
    return found, samples


def validate(model: Transformer, world: World, splits: dict[str, list], c: Any) -> dict[str, float]:
    """The log's columns about the sets of --eval-data, or else about the held-out "val"."""
    out = {}
    for name in [k for k in splits if k not in SPLITS] or ["val"] * bool(splits["val"]):
        found, _ = measure(model, world, splits[name], c)
        found["low"], found["high"] = found.pop("interval")
        out |= {f"{name}_{k}": v for k, v in found.items()}
    return out


def remark(line: dict, c: Any) -> str:
    """Of a step that had nothing to learn from, by its line of metrics, why, and what to do."""
    if line["groups"]:
        return ""
    why = "each prompt's answers were all right or all wrong: more --prompts, or --group"
    if line["accuracy"] == 1:
        why = "all answers were right: take harder problems"
    elif line["accuracy"] == 0 and line["truncated"] > 0.9:
        why = f"all answers were cut: raise --max-new {c.max_new}, or check the --template"
    elif line["accuracy"] == 0:
        why = "all answers were wrong: check the --template, or take easier problems"
    return f"no group was mixed, nothing to learn from: {why}"


# ---------------------------------------------------------------------- what was sampled, in words


def interval(values: Sequence[float], clusters: Iterable[Hashable]) -> tuple[float, float]:
    """95% bootstrap interval of the mean of one value per problem, percentile method, fixed seed;
    whole clusters are drawn: problems about the same numbers share their luck."""
    number = {}
    of = [number.setdefault(c, len(number)) for c in clusters]
    sums, sizes = np.bincount(of, np.asarray(values, dtype=np.float64)), np.bincount(of)
    draws = np.random.default_rng(0).integers(0, len(sums), (2000, len(sums)))
    low, high = np.percentile(sums[draws].sum(1) / sizes[draws].sum(1), (2.5, 97.5))
    return float(low), float(high)


def distribution(entropy: Tensor) -> dict[str, float]:
    """entropy (n,) nats of sampled tokens -> percentiles "p5".."p99", `mean`, `below_0.01` (share
    of tokens, paper: 0.5064) and `top20_share` (share of all entropy that the ceil(n / 5) highest
    hold).  Raises ValueError on an empty pool."""
    if not len(entropy):
        raise ValueError("no sampled tokens: there is no entropy to describe")
    h = np.sort(entropy.cpu().double().numpy())[::-1]
    out = {f"p{p}": float(np.percentile(h, p)) for p in PERCENTILES} | dict(mean=float(h.mean()))
    share = h[: -(-len(h) // 5)].sum() / max(h.sum(), 1e-12)
    return out | {"below_0.01": float((h < 0.01).mean()), "top20_share": float(share)}


@torch.no_grad()
def rescore(model: Transformer, samples: Rollout, temperature: float = 1.0) -> Tensor:
    """The entropies (n,) fp32 of all response tokens under `model`, teacher-forced."""
    n, device = len(samples.finished), model.head_weight.device
    parts = (samples.sequences(range(i, min(i + 16, n)), device) for i in range(0, n, 16))
    return torch.cat([model(*p.scored(), temperature)[1] for p in parts]).cpu()


@torch.no_grad()
def by_kind(model: Transformer, samples: Rollout, T: float) -> dict[str, float]:
    """Of the first 16 samples, by kind of token: the mean entropy noted of them, nats; and
    how far `model` has moved from the policy that drew them, KL(old, new) from one draw
    each (r - 1 - log r), nats a response token of any kind: the parts add up."""
    some = samples.sequences(range(min(16, len(samples.finished))), model.head_weight.device)
    log_ratio = model(*some.scored(), T)[0] - some.logprobs
    kl, out = log_ratio.expm1() - log_ratio, {}
    for i, name in enumerate(KINDS):
        mine = some.kinds == i
        out[f"entropy_{name}"] = some.entropy[mine].sum().item() / max(int(mine.sum()), 1)
        out[f"kl_{name}"] = kl[mine].sum().item() / len(kl)
    return out


def entropy_by_token(tokens: Tensor, entropy: Tensor, floor: int) -> list[tuple[int, float, int]]:
    """tokens (n,) int64, entropy (n,) nats -> (token id, mean entropy where it was drawn, how
    often), the most forking first, without those drawn `floor` times or fewer (paper: 100 of 10^6).
    """
    ids, inverse, counts = torch.unique(tokens, return_inverse=True, return_counts=True)
    total = torch.zeros(len(ids), dtype=torch.float64)
    total.scatter_add_(0, inverse.cpu(), entropy.cpu().double())
    rows = zip(ids.tolist(), (total / counts.cpu()).tolist(), counts.tolist(), strict=True)
    return sorted((r for r in rows if r[2] > floor), key=lambda r: -r[1])


def describe(
    title: str, found: dict, samples: Rollout, tokenizer: Tokenizer, floor: int = 100
) -> str:
    """The table that a reader sees: what `measure` found, where the entropy is, the ten most and
    least forking tokens (drawn more than `floor` times), and the first sample coloured."""
    d = distribution(samples.entropy)
    words = entropy_by_token(samples.tokens[samples.response], samples.entropy, floor)
    words = [f"{tokenizer.token(i).strip()} {h:.3f}" for i, h, _ in words]
    low, high = found["interval"]
    one = samples.sequences([0])
    shades = torch.zeros(len(one.tokens))
    shades[one.response.cpu()] = one.entropy.cpu()
    trace = colour_trace([tokenizer.token(i) for i in one.tokens.tolist()], shades.tolist())
    nats = f"mean {d['mean']:.3f} nats over {len(samples.entropy):,} tokens; percentiles "
    nats += "  ".join(f"{p} {d[p]:.3f}" for p in ("p50", "p80", "p90", "p99"))
    top = f"the top 20% hold {d['top20_share']:.0%} of all entropy"
    lines = {
        "accuracy": f"{found['accuracy']:.3f}  95% interval [{low:.3f}, {high:.3f}]",
        "arithmetic": f"{found.get('arithmetic', 0):.3f} of its statements are true",
        "length": f"{found['length']:.1f} tokens, {found['truncated']:.0%} are cut off",
        "entropy": nats,
        "concentration": f"{d['below_0.01']:.0%} of tokens below 0.01 nats; {top}",
        "most forking": "  ".join(words[:10]),
        "least forking": "  ".join(words[::-1][:10]),
        "a trace": trace.strip(),
    }
    if "arithmetic" not in found:
        del lines["arithmetic"]
    return "\n  ".join([title, *(f"{name:15s} {text}" for name, text in lines.items())])


def show(
    which: str, model: Transformer, world: World, problems: list, c: Any, keep: Path | None = None
) -> dict[str, tuple[dict, Rollout]]:
    """Measure the "base" or the "final" model on test problems, if there are any, and print the
    table: {which: (what was found, samples)}.  What is in the file `keep` is not measured again."""
    if not problems:
        return {}
    asked = repr((c.eval_k, problems[: c.eval_problems or None]))
    kept = weights.load(keep) if keep and keep.exists() else {}
    if kept.get("asked") == asked:
        try:
            found, samples = kept["found"], Rollout(**kept["samples"])
            print(f"{which} model, test split: accuracy {found['accuracy']:.3f}, as measured")
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{keep} is another version's; delete it to measure again") from None
        return {which: (found, samples)}
    found, samples = measure(model, world, problems, c, progress=True)
    if keep:
        on_cpu = {k: x.cpu() for k, x in vars(samples).items()}
        weights.save(keep, dict(asked=asked, found=found, samples=on_cpu))
    name = "base model" if which == "base" else f"after RLVR, --keep {c.keep} --rho {c.rho:g}"
    print(f"\n{describe(f'{name}, test split', found, samples, world.tokenizer())}", flush=True)
    return {which: (found, samples)}


# ---------------------------------------------------------------------- from flags to problems


def folder_of(c: Any) -> Path:
    """Where a run is: --out, or a name that says model, data, mask and seed."""
    data = "+".join(map(maths.set_name, c.data.split(",")))[:60]
    task = f"{Path(c.model).resolve().name}-{data}-" if c.data else ""
    return Path(c.out or f"runs/{task}{c.keep}-rho{c.rho:g}-seed{c.seed}")


def digest(problems: list, c: Any) -> str:
    """Of what a run is trained on: the problems as they are put, a template's file included."""
    put = repr((problems, template_of(c.template, c.system)) if c.data else problems)
    return hashlib.sha256(put.encode()).hexdigest()[:16]


def countdown_of(c: Any) -> Countdown:
    """The small world of a config."""
    keys = "n_numbers max_number ops max_value attempts filler_share filler_entropy".split()
    return Countdown(**{k: getattr(c, k) for k in keys})


def recipe_of(c: Any) -> pretrain.Pretrain:
    """How the base model of a config's small world is made."""
    return pretrain.Pretrain(size=c.size, steps=c.pretrain_steps, seed=c.base_seed)


def open_model(
    folder: str | Path,
    device: str | torch.device = "cpu",
    eos: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Transformer, Tokenizer]:
    """The model, in `dtype`, and the tokenizer of a published Qwen3 folder, a run of ours, or a
    small-world base; among several ranks this one's part of it, fp32 that computes in `dtype`.
    `eos` names the special token that ends a text.  UserError for what is malformed."""
    folder, ranks = published(folder), parallel.here()
    if (folder / "model.pt").exists():
        model, words = load_model(folder, "cpu" if ranks.mesh else device)
        tokenizer, rows = word_tokenizer(words), model.shape.vocab_size
        if tokenizer.n_vocab != rows:
            raise UserError(f"{folder}/model.pt: {tokenizer.n_vocab} words for {rows} rows")
        return parallel.place_weights(model, dtype) if ranks.mesh else model.to(dtype), tokenizer
    if (folder / "metrics.jsonl").exists():
        raise UserError(f"{folder} is a run that has not ended: fork_gpt.py --resume {folder}")
    if not folder.exists():
        hub = str(folder) if "/" in str(folder) else f"Qwen/{folder}"
        get = f"; if it is one of Hugging Face's: hf download {hub} --local-dir {folder.name}"
        raise UserError(f"{folder}: no such folder" + get * (hub.count("/") == 1))
    if not (folder / "config.json").exists():
        raise UserError(f"{folder}: no model there: neither model.pt nor a published config.json")
    rows = read_shape(folder / "config.json").vocab_size  # first: the tokenizer may be no Qwen3's
    tokenizer = qwen_tokenizer(folder, eos)
    if tokenizer.n_vocab > rows:
        raise UserError(f"{folder}: {tokenizer.n_vocab} tokens, but the model has {rows} rows")
    build = partial(parallel.shard, n_vocab=tokenizer.n_vocab, dtype=dtype)
    model = from_pretrained(folder, dtype, device, build if ranks.mesh else None)
    if not ranks.mesh:
        model.n_vocab = tokenizer.n_vocab
    return model, tokenizer


def open_world(
    c: Any, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Transformer, World]:
    """The model that --model names and its world.  UserError where the two do not fit."""
    if not c.data and not (Path(c.model) / "model.pt").exists():
        raise UserError(f"{c.model}: no model of the small world there; others need --data FILE")
    eos = template_of(c.template).eos if c.data else None
    model, tokenizer = open_model(c.model, device, eos, dtype)
    if not c.data:
        world = countdown_of(c)
        if tokenizer.words != world.tokenizer().words:
            raise UserError(f"{c.model} speaks of another world; give its --ops and --max-value")
        return model, world
    if tokenizer.words:
        raise UserError(f"{c.model} is a model of the small world: it cannot read --data")
    check_room(c.model, c.max_prompt + c.max_new)
    return model, Maths(tokenizer, c.template, c.verifier, c.system)


def fitting(world: Maths, problems: Sequence, max_prompt: int) -> list:
    """The problems whose prompts have at most `max_prompt` tokens."""
    return [p for p in problems if len(world.encode(p)) <= max_prompt]


def open_task(
    c: Any, device: torch.device, stop: Callable[[], bool]
) -> tuple[Transformer, World, dict[str, list], dict[str, float]]:
    """fp32 model, world, its problems by split, seconds spent on the model earlier.  UserError."""
    earlier = dict(cpu_seconds=0.0, wall_seconds=0.0)
    dtype = getattr(torch, c.dtype) if parallel.here().mesh else torch.float32
    if not c.data:
        world = countdown_of(c)
        splits = world.splits()
        if not all(splits.values()):
            raise UserError("this world has too few problems; raise --max-number, or change --ops")
        if not c.model:
            folder, earlier = pretrain.base_model(recipe_of(c), world, stop)
            c = replace(c, model=str(folder))
        return *open_world(c, device, dtype), splits, earlier
    problems, counts = maths.read_problems(c.data.split(","), c.skip_bad)
    measured = maths.read_sets(c.eval_data, c.skip_bad)
    model, world = open_world(c, device, dtype)
    fit = fitting(world, problems, c.max_prompt)
    counts |= {"too long": len(problems) - len(fit)}
    counts |= {"right only as spelled": sum(maths.only_text(p.answer) for p in fit)}
    print(f"{c.data}: {maths.told(counts)}; python -m tasks.maths {c.data} says more")
    splits = maths.split_by_hash(fit, c.holdout)
    if measured:  # instead of held-out problems; none of them is trained on
        measured = {name: fitting(world, some, c.max_prompt) for name, some in measured.items()}
        test = [p for some in measured.values() for p in some]
        apart = {maths.normal(p.question) for p in test}
        train = [p for p in fit if maths.normal(p.question) not in apart]
        print(f"{len(fit) - len(train)} problems of --data are in --eval-data: not trained on")
        splits = dict(train=train, val=[], test=test) | measured
    if not splits["train"]:
        raise UserError(f"{c.data}: no problem left to train on; see the counts above")
    return model, world, splits, earlier


def save_result(folder: Path, model: Transformer, world: World, c: Any) -> None:
    """FOLDER/model, like the published folder that it came from; or a small world's model.pt."""
    if c.data:
        ends = world.generation(c.temperature)
        parallel.export(model, c.model, folder / "model", ends, getattr(torch, c.dtype))
    else:
        save_model(folder, model.full_shape, world.tokenizer().words, parallel.state_of(model))

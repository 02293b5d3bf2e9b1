"""GRPO/DAPO on the forking tokens alone, after "Beyond the 80/20 Rule" (arXiv 2506.01939).

    python fork_gpt.py                   # the whole study in the small world, on any machine
    python fork_gpt.py --keep all        # the full-gradient baseline, everything else equal
    python fork_gpt.py --model Qwen3-0.6B-Base --data dapo_math.jsonl
    python fork_gpt.py --eval --model runs/x --data aime24.jsonl    # avg@k, pass@k, maj@k
    python fork_gpt.py --arms top,all,random,bottom --seeds 3       # the comparison
    python fork_gpt.py --resume runs/x   # continue a stopped run, bit for bit

One step: sample problems -> rollout -> reward -> group advantages -> for each mini-batch:
entropies, threshold, mask, clipped surrogate on the kept tokens only -> AdamW -> one log line.

    J = 1/N_kept  sum over kept tokens of  min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)

(paper v2, Eq. 6), r the ratio of the policy to the sampler and A the group advantage.

Where the sources disagree, this is what we do:
- The denominator is the number of *kept* tokens of the optimizer step (paper v2 and its code);
  `--normalize all` divides by all response tokens (v1, TRL).
- The entropy is the current policy's, at the sampling temperature; the threshold is taken over the
  whole mini-batch; `--entropy rollout` and `--pool microbatch` (the released code) differ.
- Exactly ceil(rho N) tokens are kept: `>= quantile` would keep everything when entropies tie.
- Advantages are z-scored with the unbiased std and 1e-6 added to it, the overlong penalty being
  inside the reward; a group is kept or dropped by correctness, before that penalty (DAPO).
- No KL term and no entropy bonus, as in the paper.

Master weights, gradients and AdamW are fp32, log-probs and entropies too; `--dtype bfloat16`
samples and computes with a bf16 copy, cast anew after every optimizer step.
"""

import copy
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import parallel
from infra import checkpoint, files, flags, memory, weights
from infra.files import UserError
from infra.flags import flag
from infra.plan import Plan, plan
from model import Transformer
from rollout import Rollout, Sampling, uniform
from tasks import ask as asking
from tasks.ask import World, ask, draw, open_task, seed_of, show
from tasks.countdown import KINDS
from tasks.maths import FORMS
from tasks.pretrain import make_optimizer

NAMES, PART = " ".join(KINDS), "keep top bottom random"  # who takes a share of the tokens


@dataclass(frozen=True)
class Config:
    """Everything a run depends on; `--help` is this list."""

    out: str = flag("", "run folder; its default says model, data, mask, seed", group="run")
    resume: str = flag("", "go on with the run in this folder; flags marked * may be given anew")
    seed: int = flag(0, "of the sampler, the data order and the random mask", "[0, 1e18)")
    device: str = flag("auto", "where to run", "auto cuda mps cpu", free=True)
    tp: int = flag(1, "processes of torchrun that hold one model", "[1, inf)", free=True)
    threads: int = flag(1, "CPU threads; one is the fastest per CPU-second", "[1, inf)", free=True)
    dtype: str = flag("float32", "of the compute", "float32 bfloat16", maths="bfloat16")
    recompute: bool = flag(False, "activation checkpointing: slower, less memory", free=True)
    rows: int = flag(0, "responses sampled at a time; auto: what fits", "auto [1, inf)", free=True)
    microbatch: int = flag(2048, "tokens at a time", "[1, inf)", maths=16384, free="pool minibatch")
    model: str = flag("", "published Qwen3 folder to train, or a small-world run", group="model")
    data: str = flag("", "mathematics problems, JSON or parquet, by commas", needs="model")
    eval_data: str = flag("", "measured instead of held-out problems", needs="data", free=True)
    template: str = flag("boxed", "how they are put", " ".join(FORMS), needs="data")
    system: str = flag("", "system prompt of a chat template", needs="data")
    verifier: str = flag("", "how answers are read", "auto boxed answer dapo", needs="data")
    max_prompt: int = flag(2048, "tokens; longer problems are dropped", "[1, inf)", needs="data")
    holdout: float = flag(0.02, "share for validation, and for test", "[0, 0.5]", needs="data")
    skip_bad: bool = flag(False, "leave out malformed lines instead of stopping", needs="data")
    keep: str = flag("top", "whose gradient counts", "top bottom random all " + NAMES, group="mask")
    rho: float = flag(0.2, "share of top, random; bottom has the rest", "(0, 1]", needs=PART)
    rho_end: float = flag(0.0, "rho moves there over half the steps; 0: not", "[0, 1]", needs=PART)
    entropy: str = flag("current", "whose rank", "current rollout base", needs="keep top bottom")
    pool: str = flag("minibatch", "that a share is taken of", "minibatch microbatch", needs=PART)
    normalize: str = flag("kept", "the loss is divided by this count of tokens", "kept all")
    steps: int = flag(54, "rollouts", "[1, inf)", maths=300, free="rho_end 0.0", group="step")
    prompts: int = flag(32, "groups trained on per rollout", "[1, inf)", maths=64)
    group: int = flag(8, "responses per prompt", "[2, inf)", maths=16)
    updates: int = flag(4, "optimizer steps per rollout", "[1, inf)", maths=2)
    oversample: float = flag(1.5, "problems drawn per group still missing, each round", "[1, inf)")
    rounds: int = flag(2, "rounds of dynamic sampling at most", "[1, inf)", maths=10)
    max_new: int = flag(160, "response tokens at most", "[1, inf)", maths=20480)
    overlong: int = flag(0, "last tokens with a soft penalty; 0: off", "[0, inf)", maths=4096)
    temperature: float = flag(1.0, "of samples, log-probs and entropies alike", "[0, inf)")
    clip_low: float = flag(0.2, "lower clip of the ratio", "(0, 1)")
    clip_high: float = flag(0.28, "upper clip of the ratio", "(0, inf)")
    dual_clip: float = flag(0.0, "ratio at most where A < 0; 0: off", "[0, inf)", maths=10.0)
    optimizer: str = flag("adamw", "adamw8: 6 bytes a parameter less", "adamw adamw8 sgd")
    lr: float = flag(1.5e-4, "after the warm-up; sgd takes 0.05", "[0, inf)", maths=1e-6)
    warmup: int = flag(0, "optimizer steps of linear warm-up", "[0, inf)", maths=10)
    weight_decay: float = flag(0.1, "on matrices", "[0, inf)", needs="optimizer adamw adamw8")
    beta2: float = flag(0.999, "AdamW's; beta1 is 0.9", "[0, 1)", needs="optimizer adamw adamw8")
    grad_clip: float = flag(1.0, "gradient norm at most", "[0, inf)")
    size: str = flag("tiny", "base model, a name of model.py", group="world", needs="no model")
    pretrain_steps: int = flag(3200, "of the base model", "[1, inf)", needs="no model")
    base_seed: int = flag(0, "of the base model", "[0, 1e18)", needs="no model")
    n_numbers: int = flag(3, "numbers of a Countdown problem", "[2, 6]", needs="no data")
    max_number: int = flag(12, "largest number given", "[1, inf)", needs="no data")
    max_value: int = flag(30, "largest value on the way, and goal", "[1, inf)", needs="no data")
    ops: str = flag("+-*", "operations, some of +-*/", needs="no data")
    attempts: int = flag(6, "failures after which a base trace stops", "[1, inf)", needs="no data")
    filler_share: float = flag(0.0, "share of filler words", "[0, 0.57]", needs="no data")
    filler_entropy: float = flag(0.69, "nats of each", "(0, 2.07]", needs="filler_share")
    save_every: int = flag(1, "steps to a checkpoint", "[1, inf)", group="measuring", free=True)
    eval_every: int = flag(30, "steps to a look; 0: never", "[0, inf)", maths=20, free=True)
    eval_k: int = flag(4, "samples per problem when measuring", "[1, inf)", free=True)
    eval_problems: int = flag(0, "problems at most; 0: all", "[0, inf)", maths=64, free=True)
    snapshot_every: int = flag(9, "steps to kept weights; 0: never", "[0, inf)", maths=0, free=True)
    wandb: bool = flag(False, "log to Weights & Biases as well, where it is installed", free=True)
    tensorboard: bool = flag(False, "log to TensorBoard as well, where it is installed", free=True)


# ---------------------------------------------------------------------- the mask


def top_entropy(
    entropy: Tensor, rho: float, number: Tensor | None = None, N: int | None = None
) -> tuple[Tensor, float]:
    """entropy (n,) nats -> (mask (n,) bool, tau): the k = ceil(rho N) highest of the N tokens of
    all ranks, or of these n; tau is the k-th highest, in fp32.

    Exactly k are kept: of the tokens that tie with tau those of the lowest `number` (n,), by
    default their position.  An empty pool has an empty mask and tau = inf.
    """
    number = torch.arange(len(entropy), device=entropy.device) if number is None else number
    total, N = (parallel.here().sum, N) if N is not None else (lambda x: x, len(entropy))
    k = max(1, math.ceil(round(rho * N, 6))) if N else 0  # 0.07 * 100 is 7.000000000000001
    # a certain token's H may come out as -1e-9 or -0.0, whose bits would sort above every number
    mask, tau = parallel.largest(entropy.float().clamp(min=0) + 0.0, k, number, total)
    return mask, float(tau)


def keep_mask(
    c: Config, entropy: Tensor, kinds: Tensor, number: Tensor, N: int | None, lots: int
) -> tuple[Tensor, float]:
    """Which of the pool's response tokens carry the gradient: (mask (n,) bool, tau in nats, 0 where
    no threshold decides).  `kinds` (n,) of KINDS, `lots` a seed; the rest as in `top_entropy`.

    top: the ceil(rho N) of highest entropy; bottom: all the others (the paper's "bottom 80%");
    random: ceil(rho N) by lot, the control that the paper lacks; all: everything, plain DAPO; a
    kind: the tokens that the small world's grammar takes for it.
    """
    if c.keep == "all":
        return torch.ones_like(entropy, dtype=torch.bool), 0.0
    if c.keep in KINDS:
        return kinds == KINDS.index(c.keep), 0.0
    if c.keep == "random":  # a token's lot is the same wherever it is computed
        lot = uniform(torch.full_like(number, lots), number)
        return top_entropy(lot, c.rho, number, N)[0], 0.0
    mask, tau = top_entropy(entropy, c.rho, number, N)
    return (mask if c.keep == "top" else ~mask), tau


# ---------------------------------------------------------------------- the objective


def group_advantages(rewards: Tensor, G: int) -> Tensor:
    """rewards (P * G,), group after group -> advantages: (R - mean) / (std + 1e-6), unbiased std,
    per group."""
    groups = rewards.view(-1, G)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + 1e-6)).flatten()


def overlong_penalty(lengths: Tensor, max_new: int, overlong: int) -> Tensor:
    """0 up to max_new - overlong tokens, then linearly down to -1 at max_new (DAPO Eq. 13)."""
    if not overlong:
        return torch.zeros(lengths.shape)
    return ((max_new - overlong - lengths) / overlong).clamp(-1, 0)


def surrogate(logprobs: Tensor, old: Tensor, A: Tensor, c: Config) -> tuple[Tensor, Tensor]:
    """(K,) each -> (terms min(r A, clip(r) A), whether the clip decided).  r = exp(logprobs - old).

    With `dual_clip` c the term of a negative advantage is at least c A (Ye et al. 2020, the
    released script)."""
    ratio = (logprobs - old).clamp(-20, 20).exp()  # far outside any clip, and still finite
    free, held = ratio * A, ratio.clamp(1 - c.clip_low, 1 + c.clip_high) * A
    terms = torch.minimum(free, held)
    if c.dual_clip:
        terms = torch.where(A < 0, torch.maximum(terms, c.dual_clip * A), terms)
    return terms, terms != free


# ---------------------------------------------------------------------- the update


def update(
    model: Transformer,
    samples: Rollout,
    advantages: Tensor,
    which: list[int],
    c: Config,
    lots: int,
    first: bool,
) -> Counter:
    """Add the gradient of -J over the mini-batch, the samples `which`, to `model`'s; the caller
    clips it and steps.  Returns what the log adds up.  advantages (B,), one a sample; `lots` seeds
    the random mask; `first`: the policy has not moved since it drew the samples.
    """
    ranks, device = parallel.here(), next(model.parameters()).device
    parts = parallel.microbatches(samples.cu_seqlens.diff().tolist(), which, c.microbatch)
    packed = [samples.sequences(part, device) for part in parts]
    # The current policy's entropies.  The policy of the first update is the sampler, which noted
    # them; after that it has moved, and one pass without gradient finds them.
    if first or c.entropy != "current" or c.keep not in ("top", "bottom"):
        entropies = [p.entropy for p in packed]
    else:
        with torch.no_grad():
            entropies = [model(*p.scored(), c.temperature)[1] for p in parallel.attended(packed)]
    if not all(h.isfinite().all() for h in entropies):
        raise UserError("the policy's entropies are not finite; start again with a lower --lr")
    # One threshold for the whole mini-batch, on all ranks: a threshold for each micro-batch would
    # depend on how memory happens to cut the batch.
    numbers = [samples.drawn(part).to(device) for part in parts]
    pools = [*zip(entropies, [p.kinds for p in packed], numbers, strict=True)]
    entropy, kinds, number = (torch.cat(x) for x in zip(*pools, strict=True))  # (n,) each
    N = int(samples.lengths()[which].sum())
    scope = [(*x, None) for x in pools] if c.pool == "microbatch" else [(entropy, kinds, number, N)]
    masks, taus = zip(*(keep_mask(c, *x, lots) for x in scope), strict=True)
    mask = torch.cat(masks)  # (n,)
    # A count over the mini-batch, not means of micro-batch means: every kept token weighs the same.
    counted = mask if c.normalize == "kept" else torch.ones_like(mask)
    denominator = max(int(ranks.sum(counted.sum())), 1) / ranks.dp  # FSDP averages over dp ranks
    loss, clipped, dlogp = 0.0, 0, []
    if first:  # policy and sampler are one: on its longest answers, each token's, they must agree
        with torch.no_grad():
            again, _ = model(*packed[0].scored(), c.temperature)
        dlogp = (again - packed[0].logprobs).abs().tolist()
    work = [*zip(parts, packed, mask.split([len(h) for h in entropies]), strict=True)]
    for part, p, m in parallel.attended(work):
        # Only kept rows meet the vocabulary: the logits are the largest tensor of the step.
        logprobs, _ = model(*p.scored(m), c.temperature)  # (K,)
        A = advantages[part].to(device).repeat_interleave(p.lengths()[: len(part)])[m]  # (K,)
        terms, decided = surrogate(logprobs, p.logprobs[m], A, c)  # (K,)
        objective = terms.sum() / denominator
        (-objective).backward()
        loss -= objective.item()
        clipped += int(decided.sum())
    sums = tally(c, entropy, kinds, number, N, mask)
    found = [tau for tau in taus if tau < math.inf]  # of pools with any token
    sums.update(loss=loss, clipped=clipped, tau=sum(found), pools=len(found), updates=1)
    sums.update(max_dlogp=max(ranks.gather(max(dlogp, default=0.0))) / ranks.dp, N=N)
    return sums


def tally(c: Config, h: Tensor, kinds: Tensor, number: Tensor, N: int, mask: Tensor) -> Counter:
    """Counts and entropies (n,) of a mini-batch and of what was kept of it."""
    decision, whole = kinds == KINDS.index("decisions"), mask
    if c.pool == "microbatch" and c.keep in ("top", "bottom"):
        whole, _ = keep_mask(c, h, kinds, number, N, 0)
    out = dict(tokens=mask | True, kept=mask, dropped=~mask, shared=whole & mask)
    out |= dict(decisions=decision, hits=decision & mask, h=h, h_kept=h[mask], h_dropped=h[~mask])
    return Counter({k: x.sum().item() for k, x in out.items()})


def columns(sums: Counter, c: Config) -> dict[str, float]:
    """What the updates of a step, on all ranks, tell the log; 0 without updates."""
    sums = Counter(dict(zip(sums, parallel.here().total(*sums.values()), strict=True)))

    def mean(what: str, count: str) -> float:
        return sums[what] / max(sums[count], 1)

    out = {k: mean(k, "updates") for k in ("loss", "grad_norm")} | dict(tau=mean("tau", "pools"))
    out |= dict(kept_fraction=mean("kept", "tokens"), max_dlogp=sums["max_dlogp"])
    out |= dict(entropy=mean("h", "tokens"), entropy_kept=mean("h_kept", "kept"))
    out |= dict(entropy_dropped=mean("h_dropped", "dropped"), clip_fraction=mean("clipped", "kept"))
    if c.pool == "microbatch" and c.keep in ("top", "bottom"):
        out["pool_overlap"] = mean("shared", "kept")
    if not c.data:  # of what was kept, decisions; of the decisions, kept
        out |= dict(precision=mean("hits", "kept"), recall=mean("hits", "decisions"))
    return out


# ---------------------------------------------------------------------- one step


@dataclass
class State:
    """What a resumed run needs beside its config; random numbers follow from seed and counters."""

    model: Transformer
    policy: Transformer  # samples and computes: the model itself in fp32, else its bf16 copy
    optimizer: torch.optim.Optimizer
    base: Transformer | None  # frozen, where its entropies rank
    clock: files.Clock
    problems: str  # hash of those trained on: `position` means nothing among others
    step: int = 0
    n_updates: int = 0
    position: int = 0  # in the endless order of problems


def mixed(correct: Tensor, G: int) -> Tensor:
    """correct (P * G,) -> which groups have right and wrong answers, hence an advantage, (P,)."""
    right = correct.view(-1, G).sum(1)
    return (right > 0) & (right < G)


def collect(
    state: State, world: World, problems: list, c: Config
) -> tuple[Rollout, Tensor, list[int], dict]:
    """Dynamic sampling: all samples, their advantages (B,), the numbers of at most `c.prompts`
    mixed groups, and the metrics of everything sampled.  Advances the data position of `state`.

    What is there after `c.rounds` rounds is trained on, whether the batch got full or not.
    """
    rounds, correct, G = [], torch.zeros(0), c.group
    how, seed = Sampling(c.temperature), seed_of(c.seed, "rollout")
    for _ in range(c.rounds):
        missing = c.prompts - int(mixed(correct, G).sum())
        if missing <= 0:
            break
        drawn = draw(problems, c.seed, state.position, math.ceil(missing * c.oversample))
        at = range(state.position, state.position + len(drawn))
        state.position += len(drawn)
        samples, _, graded = ask(state.policy, world, drawn, G, c.max_new, how, seed, at, c.rows)
        rounds.append(samples)
        correct = torch.cat((correct, graded))  # (P * G,)
    samples = Rollout.join(rounds)
    lengths, ended, n = samples.lengths(), samples.finished.float(), len(correct) // G
    rewards = correct + overlong_penalty(lengths, c.max_new, c.overlong)
    advantages = group_advantages(rewards, G)
    groups = mixed(correct, G).nonzero()[:, 0].tolist()  # whatever the penalty
    metrics = dict(reward=rewards.mean().item(), accuracy=correct.mean().item())
    metrics |= dict(truncated=(1 - ended).mean().item(), length=lengths.float().mean().item())
    metrics |= dict(sampled_tokens=int(lengths.sum()), group_pass_rate=len(groups) / n)
    return samples, advantages, groups[: c.prompts], metrics


def step(state: State, world: World, problems: list, c: Config) -> dict:
    """One rollout and its optimizer updates; returns the line of metrics."""
    clock, cpu = time.perf_counter(), time.process_time()
    samples, advantages, groups, metrics = collect(state, world, problems, c)
    sampled, sums, ranked = time.perf_counter(), Counter(), samples
    if state.base:
        ranked = replace(samples, entropy=asking.rescore(state.base, samples, c.temperature))
    if c.rho_end:
        half = min(1.0, 2 * state.step / c.steps)
        c = replace(c, rho=c.rho + half * (c.rho_end - c.rho))
    n = min(c.updates, len(groups))  # 0 when no group was mixed: nothing to learn from
    for u in range(n):
        mine = groups[u * len(groups) // n : (u + 1) * len(groups) // n]
        which = [g * c.group + i for g in mine for i in range(c.group)]
        lots = seed_of(c.seed, "lots", state.n_updates)
        one = update(state.policy, ranked, advantages, which, c, lots, first=u == 0)
        one["grad_norm"] = norm = parallel.clip_gradients(state.model, c.grad_clip)
        if not math.isfinite(one["loss"] + norm):
            where = f"step {state.step + 1}, update {u + 1}: loss {one['loss']}, gradient {norm}"
            raise UserError(f"{where}: not finite; start again with a lower --lr")
        for group in state.optimizer.param_groups:
            group["lr"] = c.lr * min(1.0, (state.n_updates + 1) / max(c.warmup, 1))
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        parallel.copy_weights(state.model, state.policy)
        state.n_updates += 1
        sums.update(one)
    state.step += 1
    trained = time.perf_counter()
    metrics |= dict(groups=len(groups)) | columns(sums, c)
    if not c.data:
        metrics |= asking.by_kind(state.policy, samples, c.temperature)
    metrics["rollout_tok_s"] = metrics["sampled_tokens"] / (sampled - clock)
    metrics["update_tok_s"] = sums["N"] / (trained - sampled)
    metrics |= dict(seconds=trained - clock, cpu_seconds=time.process_time() - cpu)
    return dict(step=state.step) | metrics


# ---------------------------------------------------------------------- the run


def train(
    state: State, world: World, splits: dict, c: Config, log: files.Log, stop: Callable[[], bool]
) -> None:
    """Steps up to `c.steps`, a line of metrics each, and a checkpoint every `c.save_every`; when
    `stop()` it saves and raises KeyboardInterrupt."""
    with log:
        while state.step < c.steps:
            line = step(state, world, splits["train"], c)
            last = state.step == c.steps
            if c.eval_every and (last or state.step % c.eval_every == 0):
                line |= asking.validate(state.policy, world, splits, c)
            log.write(line, asking.remark(line, c))
            if c.snapshot_every and state.step % c.snapshot_every == 0:
                weights.save_snapshot(log.folder, state.step, parallel.state_of(state.policy))
            stopping = parallel.here().any(stop())
            if stopping or last or state.step % c.save_every == 0:
                log.sync()  # before the checkpoint: it must not be ahead of the log
                parallel.save_state(log.folder / "checkpoints", state)
            if stopping:
                raise KeyboardInterrupt


def run(c: Config, stop: Callable[[], bool]) -> dict:
    """The whole study: a base model, what it does, RLVR, what that changed; its summary."""
    clock = files.Clock(of_process=True)
    torch.set_num_threads(c.threads)
    with parallel.joined(c.tp, weights.device(c.device)) as ranks:
        folder = claim_folder(c, write=False)  # refuse early; what cannot open leaves nothing
        if summary := checkpoint.done(folder, c.steps):
            return summary
        model, world, splits, earlier = open_task(c, weights.device(c.device), stop)
        rows, table = memory.check(model, world, splits, c, ranks.dp)
        c = replace(c, rows=min(ranks.gather(rows)))
        print(f"{flags.taken(c)}\n{table}")
        log = files.Log(folder, c.wandb, c.tensorboard)
        claim_folder(c)
        print(f"run folder {folder}: " + str({k: len(p) for k, p in splits.items()}) + " problems")
        state = begin(model, splits["train"], c, clock)
        looks = show("base", state.policy, world, splits["test"], c, folder / "base.pt")
        if found := checkpoint.found(folder / "checkpoints"):
            parallel.load_state(found[-1], state)
        else:
            clock.add(**earlier)
            if c.snapshot_every:
                weights.save_snapshot(folder, 0, parallel.state_of(state.policy))
        log.begin(state.step, c.steps, f"rlvr {c.keep}")
        train(state, world, splits, c, log, stop)
        asking.save_result(folder, model, world, c)
        looks |= show("final", state.policy, world, splits["test"], c)
    if not ranks.first:
        return {}
    from study import findings  # what was done, in numbers and pictures; the loop needs none of it

    policy = None if ranks.mesh else state.policy  # what was cut up is gone with its processes
    return findings.finish(findings.Run(folder, c, world, splits, policy, looks), clock)


def claim_folder(c: Config, write: bool = True) -> Path:
    """The run's folder, its config noted there or compared with the one that is."""
    folder = asking.folder_of(c)
    mine = {k: v for k, v in asdict(c).items() if k not in ("out", "resume")}
    files.claim(folder, mine, write, flags.free(c) if c.resume else {"rows"})
    return folder


def begin(model: Transformer, problems: list, c: Config, clock: files.Clock) -> State:
    """Everything as it is before the first step."""
    policy = parallel.compute_copy(model, getattr(torch, c.dtype))
    policy.recompute = c.recompute
    optimizer = make_optimizer(parallel.masters(model), c.lr, c.weight_decay, c.beta2, c.optimizer)
    if c.entropy == "base" and parallel.here().mesh:
        raise UserError("--entropy base needs a second whole model: one process alone has it")
    base = copy.deepcopy(policy) if c.entropy == "base" else None
    return State(model, policy, optimizer, base, clock, asking.digest(problems, c))


def configure(given: dict) -> Config:
    """Flags by field name -> Config; UserError for a value that no run can have."""
    c = flags.filled(Config, given)
    if not {"overlong", "resume"} & given.keys():  # the paper's is a fifth of its --max-new
        c = replace(c, overlong=min(c.overlong, c.max_new // 5))
    if not c.data:
        asking.countdown_of(c), asking.recipe_of(c)  # refuse what cannot be
    rules = [
        ("temperature", c.temperature >= 0.01, "at least 0.01: greedy answers are all the same"),
        ("rho", c.rho < 1 or c.keep != "bottom", "below 1 with --keep bottom: nothing is left"),
        ("overlong", c.overlong <= c.max_new, "at most --max-new"),
        ("dual_clip", c.dual_clip == 0 or c.dual_clip > 1, "0 or above 1"),
    ]
    flags.check_rules(c, rules)
    return c


def start(argv: list[str]) -> int:
    """The command line: one run, or with --eval or --arms the study's own commands."""
    from study import arms, evaluate  # they stand above the loop and import it

    kinds = (Config, Plan, evaluate.Evaluation, arms.Comparison)
    given = flags.parse(kinds, argv, "fork_gpt.py", __doc__.partition("One step:")[0])
    planned, evaluation, comparison = (flags.take(kind, given) for kind in kinds[1:])
    if planned.plan:
        print(plan(configure(given), planned))
        return 0
    if evaluation.eval:
        return evaluate.main(evaluation, given, argv)
    if comparison.arms:
        return arms.main(comparison, given, argv)
    run(configure(given), files.stop_on_signal())
    return 0


main = partial(files.command, "fork_gpt.py", start)  # exit status: see there

if __name__ == "__main__":
    from fork_gpt import main as module_main  # study/ imports that module: not a second copy of it

    sys.exit(module_main(sys.argv[1:]))

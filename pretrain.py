"""Makes the small world's base model from search traces: nanoGPT's loop on one packed stream.

    python pretrain.py                     # trains the default base and caches it below runs/

The traces solve training problems only, most of them by random tries, so that the model learns
*how* to search and to calculate, and chooses badly.  RLVR then teaches it where to go.
"""

import hashlib
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import parallel
from model import SIZES, Transformer
from rollout import pack
from tasks import Countdown, Problem
from tokenizer import Tokenizer


@dataclass(frozen=True)
class Pretrain:
    """The base model's recipe; it names the cached base, so a changed recipe is a new base."""

    size: str = "tiny"  # a name in model.SIZES
    steps: int = 1600  # optimizer steps
    batch: int = 16  # traces a step; larger batches learn less in the same time
    lr: float = 4e-3  # peak learning rate, AdamW
    warmup: int = 50  # steps of linear warm-up, then cosine to 0
    skill: float = 0.4  # share of traces that prefer moves which keep the goal reachable
    attempts: int = 6  # finished tries a trace makes at most
    p_stop: float = 0.3  # chance to give up after a failed try
    seed: int = 0


def make_model(size: str, tokenizer: Tokenizer) -> Transformer:
    """The small world's model of a named size, uninitialised."""
    return Transformer(replace(SIZES[size], vocab_size=tokenizer.n_vocab))


def make_optimizer(
    model: Transformer, lr: float, weight_decay: float, beta2: float
) -> torch.optim.AdamW:
    """AdamW, beta1 0.9, that decays the matrices and not the norms."""
    matrices, norms = (
        [p for p in model.parameters() if (p.ndim == 2) == two] for two in (True, False)
    )
    groups = [
        dict(params=matrices, weight_decay=weight_decay),
        dict(params=norms, weight_decay=0.0),
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, beta2), fused=True)


def pretrain(
    recipe: Pretrain,
    world: Countdown,
    checkpoint: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Transformer, float]:
    """Train a base model from nothing: (model, CPU seconds).  The same recipe gives the same
    weights, bit for bit.

    With `checkpoint` it saves there every 200 steps and continues from what it finds.  When
    `stop()` it saves and raises KeyboardInterrupt.
    """
    tokenizer, problems = world.tokenizer(), world.splits()["train"]
    model = make_model(recipe.size, tokenizer).init_weights(
        torch.Generator().manual_seed(recipe.seed)
    )
    optimizer = make_optimizer(model, recipe.lr, weight_decay=0.1, beta2=0.95)
    first, cpu = 0, time.process_time()
    if checkpoint and checkpoint.exists():
        saved = parallel.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first, cpu = saved["step"], cpu - saved["cpu_seconds"]
    bar = tqdm(
        range(first, recipe.steps), initial=first, total=recipe.steps, desc="pretrain", unit="step"
    )
    with bar:
        for step in bar:
            if checkpoint and (stop() or (step > first and step % 200 == 0)):
                state = dict(step=step, cpu_seconds=time.process_time() - cpu)
                parallel.save(
                    checkpoint,
                    state | dict(model=model.state_dict(), optimizer=optimizer.state_dict()),
                )
                if stop():
                    raise KeyboardInterrupt
            tokens, cu_seqlens, rows = batch_of_traces(recipe, world, tokenizer, problems, step)
            logprobs, _ = model(tokens, cu_seqlens, rows, tokens[rows + 1])
            loss = -logprobs.mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:  # linear warm-up, then cosine to 0
                group["lr"] = (
                    recipe.lr
                    * min(1.0, (step + 1) / recipe.warmup)
                    * 0.5
                    * (1 + math.cos(math.pi * step / recipe.steps))
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}", tokens=len(tokens))
    return model, time.process_time() - cpu


def batch_of_traces(
    recipe: Pretrain, world: Countdown, tokenizer: Tokenizer, problems: list[Problem], step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Step `step`'s traces, packed: tokens (S,), cu_seqlens (B+1,) and the rows (K,) whose next
    token is learned: the trace, not the prompt, which is noise."""
    rng = random.Random(f"{recipe.seed}/{step}")
    texts, rows, end = [], [], 0
    for problem in rng.choices(problems, k=recipe.batch):
        trace = world.trace(problem, rng, recipe.skill, recipe.attempts, recipe.p_stop)
        n_prompt = len(tokenizer.encode(problem.prompt))
        texts.append(tokenizer.encode(f"{problem.prompt} {trace}"))
        rows += range(end + n_prompt - 1, end + len(texts[-1]) - 1)
        end += len(texts[-1])
    return *pack(texts, torch.device("cpu")), torch.tensor(rows)


def base_model(
    recipe: Pretrain, world: Countdown, stop: Callable[[], bool] = lambda: False
) -> tuple[Transformer, float]:
    """The cached base of this recipe and world, trained first if there is none, and the CPU seconds
    that other processes spent on it."""
    made_from = json.dumps([asdict(recipe), asdict(world)])
    digest = hashlib.sha256(made_from.encode()).hexdigest()[:8]
    folder, clock = Path("runs") / f"base-{recipe.size}-{digest}", time.process_time()
    if not (folder / "model.pt").exists():
        model, cpu = pretrain(recipe, world, folder / "pretrain.pt", stop)
        record = dict(recipe=asdict(recipe), world=asdict(world), cpu_seconds=cpu)
        parallel.write_json(folder / "config.json", record)
        parallel.save_model(folder, model, world.tokenizer().words)
        (folder / "pretrain.pt").unlink(missing_ok=True)
    print(f"base model {folder}")
    model, _ = parallel.load_model(folder)
    cpu = json.loads((folder / "config.json").read_text())["cpu_seconds"]
    return model, max(0.0, cpu - (time.process_time() - clock))


if __name__ == "__main__":
    torch.set_num_threads(1)
    base_model(Pretrain(), Countdown())

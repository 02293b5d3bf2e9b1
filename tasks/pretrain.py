"""Makes the small world's base model from search traces: nanoGPT's loop on one packed stream.

    python -m tasks.pretrain        # trains the default base and caches it below runs/

Many of the traces try at random and give up early: the model learns how to search, and does it
badly.  RLVR teaches it where to go.
"""

import hashlib
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

import parallel
from infra import files, weights
from infra.adam8 import AdamW8
from infra.files import UserError
from model import SIZES, Transformer
from rollout import pack
from tasks.countdown import Countdown


@dataclass(frozen=True)
class Pretrain:
    """The base model's recipe; it names the cached base, so a changed recipe is a new base."""

    size: str = "tiny"  # a name in model.SIZES
    steps: int = 3200  # optimizer steps
    batch: int = 16  # traces a step; larger batches learn less in the same time
    lr: float = 4e-3  # peak learning rate of AdamW; 50 steps of warm-up, then cosine to 0
    skill: float = 0.7  # share of traces that prefer moves which keep the goal reachable
    p_stop: float = 0.35  # chance to give up after a failed try
    seed: int = 0
    start: str = ""  # folder of a base that it goes on from; new words get new rows

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise UserError(f"--size {self.size!r}: it must be one of {', '.join(SIZES)}")


def make_optimizer(
    parameters: Sequence, lr: float, weight_decay: float, beta2: float, name: str = "adamw"
) -> torch.optim.Optimizer:
    """AdamW, beta1 0.9, that decays the matrices and not the norms; "adamw8", the same with moments
    of a byte; or "sgd", p -= lr g alone: at the lr that it needs, decay would erase the weights."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr)
    matrices, norms = ([p for p in parameters if (p.ndim == 2) == two] for two in (True, False))
    groups = [dict(params=matrices, weight_decay=weight_decay), dict(params=norms, weight_decay=0)]
    if name == "adamw8":
        if parallel.here().mesh:
            raise UserError("--optimizer adamw8 is for one process; on several, each has its part")
        return AdamW8(groups, lr, (0.9, beta2))
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, beta2), fused=True)
    for p in parameters:  # as its first step would: what a checkpoint fills must be there
        moments = dict(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        optimizer.state[p] = moments | dict(step=torch.zeros((), device=p.device))
    return optimizer


def batch_of_traces(recipe: Pretrain, world: Countdown, problems: list, step: int) -> tuple:
    """Step `step`'s traces, packed, and the rows (K,) whose next token is learned: the trace's."""
    rng, tokenizer = random.Random(f"{recipe.seed}/{step}"), world.tokenizer()
    wording = random.Random(f"{recipe.seed}/{step}/wording")  # the decisions are any world's
    texts, rows, end = [], [], 0
    for problem in rng.choices(problems, k=recipe.batch):
        trace = world.trace(problem, rng, recipe.skill, world.attempts, recipe.p_stop)
        first = end + len(tokenizer.encode(problem.prompt))
        texts.append(tokenizer.encode(f"{problem.prompt} {world.worded(trace, wording)}"))
        end += len(texts[-1])
        rows += range(first - 1, end - 1)
    return *pack(texts, torch.device("cpu")), torch.tensor(rows)


def pretrain(
    recipe: Pretrain, world: Countdown, checkpoint: Path, stop: Callable[[], bool]
) -> tuple[Transformer, dict]:
    """(model, seconds).  Saves and resumes at `checkpoint`; `stop()` saves, KeyboardInterrupt."""
    problems, n_vocab = world.splits()["train"], world.tokenizer().n_vocab
    model = Transformer(replace(SIZES[recipe.size], vocab_size=n_vocab))
    model.init_weights(torch.Generator().manual_seed(recipe.seed))
    if recipe.start:
        mine = model.state_dict()
        for name, p in weights.load_model(recipe.start)[0].state_dict().items():
            n = min(len(p), len(mine[name]))
            mine[name][:n] = p[:n]
    optimizer = make_optimizer([*model.parameters()], recipe.lr, weight_decay=0.1, beta2=0.95)
    first, clock = 0, files.Clock()

    def states(step: int) -> dict:
        both = dict(model=model.state_dict(), optimizer=optimizer.state_dict())
        return both | dict(step=step, seconds=clock.seconds())

    if checkpoint.exists():
        saved = weights.load(checkpoint)
        same = weights.structure(saved) == weights.structure(states(0))
        if not same or not 0 <= saved["step"] < recipe.steps:
            raise UserError(f"{checkpoint} is of another model; delete it to start again")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first, clock = saved["step"], clock.add(**saved["seconds"])
    with tqdm(total=recipe.steps, initial=first, desc="pretrain", unit="step") as bar:
        for step in range(first, recipe.steps):
            stopping = stop()
            if stopping or (step > first and step % 200 == 0):
                weights.save(checkpoint, states(step))
            if stopping:
                raise KeyboardInterrupt
            tokens, cu_seqlens, rows = batch_of_traces(recipe, world, problems, step)
            logprobs, _ = model(tokens, cu_seqlens, rows, tokens[rows + 1])
            loss = -logprobs.mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            cosine = 0.5 + 0.5 * math.cos(math.pi * step / recipe.steps)
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * cosine * min(1.0, (step + 1) / 50)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            bar.update()
    return model, clock.seconds()


def base_model(
    recipe: Pretrain, world: Countdown, stop: Callable[[], bool] = lambda: False
) -> tuple[Path, dict]:
    """The folder of the cached base, trained if there is none yet (the first rank does it), and the
    seconds that earlier processes took."""
    made_by = [asdict(recipe), asdict(world), torch.__version__, torch.get_num_threads()]
    digest = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:8]
    folder, here = Path("runs") / f"base-{recipe.size}-{digest}", files.Clock()
    stopped = False
    if parallel.here().first:
        files.lock(folder, wait=True)  # whoever waited finds it made
        try:
            if not (folder / "model.pt").exists():
                model, spent = pretrain(recipe, world, folder / "pretrain.pt", stop)
                files.write_json(folder / "config.json", dict(recipe=asdict(recipe)) | spent)
                words = world.tokenizer().words
                weights.save_model(folder, model.shape, words, model.state_dict())
                (folder / "pretrain.pt").unlink(missing_ok=True)
        except KeyboardInterrupt:
            stopped = True
        finally:
            files.unlock(folder)
    if parallel.here().any(stopped):
        raise KeyboardInterrupt
    print(f"base model {folder}")
    record, earlier = files.read_json(folder / "config.json"), {}
    for k, seconds in here.seconds().items():
        if not isinstance(record.get(k), (int, float)):
            raise UserError(f"{folder}/config.json: no {k}; delete the folder to make it anew")
        earlier[k] = max(0.0, record[k] - seconds)
    return folder, earlier


if __name__ == "__main__":
    torch.set_num_threads(1)
    base_model(Pretrain(), Countdown())

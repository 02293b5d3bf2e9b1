"""One whole GRPO step of a random-init model on a fixed shape, in CPU-seconds: rollout and update.

    python bench/rl_step.py --vocab 4096          # one JSON line, median of 5 after a warm-up

8 prompts x 8 responses, prompts of 5 tokens, exactly 64 new tokens each, hidden 256, 4 layers, 8
query and 4 KV heads of 32, MLP 768, tied embeddings, fp32, rho 0.2, one thread.  The step is the
library's own: `generate`, advantages, `update` (recorded entropies, mask, select-before-vocabulary
head), clipping, AdamW.
"""

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fork_gpt import Config, group_advantages, update
from model import Shape, Transformer
from rollout import generate
from tasks.pretrain import make_optimizer

PROMPTS, GROUP, NEW = 8, 8, 64


def one_step(model: Transformer, optimizer, c: Config, rng: random.Random, seed: int) -> dict:
    """Seconds and CPU-seconds of rollout and update."""
    marks = [(time.perf_counter(), time.process_time())]
    vocab = model.shape.vocab_size
    prompts = [[rng.randrange(vocab) for _ in range(5)] for _ in range(PROMPTS)]
    samples = generate(model, prompts, GROUP, NEW, None, seed=seed)
    texts = samples.responses()
    odd = [sum(i % 2 for i in ids) / len(ids) for ids in texts]
    marks.append((time.perf_counter(), time.process_time()))
    which = list(range(PROMPTS * GROUP))
    wait = torch.cuda.synchronize if model.head_weight.is_cuda else lambda: None
    advantages = group_advantages(torch.tensor(odd), GROUP)
    update(model, samples, advantages, which, c, seed, first=True)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    wait()
    marks.append((time.perf_counter(), time.process_time()))
    (w0, c0), (w1, c1), (w2, c2) = marks
    return dict(rollout_s=w1 - w0, update_s=w2 - w1, cpu_rollout_s=c1 - c0, cpu_update_s=c2 - c1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeat", type=int, default=5)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    with torch.device(a.device):
        model = Transformer(Shape(256, 4, 8, 4, 32, 768, vocab_size=a.vocab)).init_weights()
    optimizer = make_optimizer([*model.parameters()], 1e-3, weight_decay=0.0, beta2=0.999)
    c = Config(rho=0.2)
    rng = random.Random(0)
    runs = [one_step(model, optimizer, c, rng, seed) for seed in range(a.repeat + 1)][1:]
    out = {k: round(statistics.median(r[k] for r in runs), 4) for k in runs[0]}
    both = [r["cpu_rollout_s"] + r["cpu_update_s"] for r in runs]
    shape = dict(vocab=a.vocab, threads=a.threads, torch=torch.__version__)
    shape |= dict(tokens=PROMPTS * GROUP * NEW)
    print(json.dumps(shape | out | dict(cpu_step_s=round(statistics.median(both), 4))))


if __name__ == "__main__":
    main()

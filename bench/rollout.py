"""Useful sampled tokens per CPU-second, beside transformers' `generate` on the same weights.

    pip install -r requirements-dev.txt && python bench/rollout.py

The same prompts (64 rows) go to both in turn, three times; one JSON line per length law.  *equal*:
every row runs to 128 tokens.  *geometric*: lengths drawn beforehand (mean about 34, at most 128);
useful tokens are those up to a row's end.  Hidden 256, 4 layers, vocabulary 4,096, fp32, one
thread.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model import Shape, Transformer
from rollout import Slots, generate

ROWS, PROMPT, NEW, VOCAB, EOS = 64, 16, 128, 4096, 0


def geometric_lengths(generator: torch.Generator) -> torch.Tensor:
    """(ROWS,) lengths, geometric of mean about 34, at most NEW."""
    u = torch.rand(ROWS, generator=generator)
    return (1 + (u.log() / torch.tensor(1 - 1 / 36).log()).floor()).clamp(max=NEW).long()


def force(logits: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Make token n follow by n - 1, all the way to end-of-text 0: a prompt that ends in n gets n
    tokens, while everything is computed and sampled as ever."""
    return logits.scatter(-1, (last - 1)[:, None].clamp(min=0), 60.0)


def ours(model: Transformer, prompts: list[list[int]]) -> int:
    """Sample every prompt once; the number of useful tokens."""
    draw, ends = Slots.draw, torch.tensor([p[-1] for p in prompts])

    def forced(slots: Slots, which: slice, logits: torch.Tensor) -> None:
        request = slots.request[which]
        new = slots.count[request] == 0
        draw(slots, which, force(logits, torch.where(new, ends[request], slots.last[which])))

    Slots.draw = forced
    try:
        return int(generate(model, prompts, 1, NEW, [EOS]).lengths().sum())
    finally:
        Slots.draw = draw


def theirs(model, prompts: list[list[int]]) -> int:
    """The same by transformers; it keeps finished rows until the slowest one ends."""
    ids = torch.tensor(prompts)
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=True, top_k=0,
        logits_processor=[lambda ids, scores: force(scores, ids[:, -1])],
    )[:, PROMPT:]  # fmt: skip
    ends = (out == EOS).int()
    return int((ends.cumsum(1) - ends == 0).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    a = parser.parse_args()
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    mine = Transformer(Shape(256, 4, 8, 4, 32, 768, vocab_size=VOCAB)).init_weights()
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=256, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, intermediate_size=768, tie_word_embeddings=True,
    )  # fmt: skip
    other = Qwen3ForCausalLM(config).eval()
    other.load_state_dict(mine.state_dict(), strict=False)
    other.generation_config.pad_token_id = other.generation_config.eos_token_id = EOS
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(NEW + 1, VOCAB, (ROWS, PROMPT), generator=generator)
    laws = dict(equal=torch.full((ROWS,), NEW), geometric=geometric_lengths(generator))
    for name, lengths in laws.items():
        prompts[:, -1] = lengths
        rates = dict(fork_gpt=[], transformers=[])
        for i in range(a.repeat + 1):
            for who, f, model in (("fork_gpt", ours, mine), ("transformers", theirs, other)):
                clock = time.process_time()
                tokens = f(model, prompts.tolist())
                assert tokens == int(lengths.sum()), (who, tokens, int(lengths.sum()))
                if i:  # the first is a warm-up
                    rates[who].append(tokens / (time.process_time() - clock))
        out = {f"{k}_tok_per_cpu_s": round(statistics.median(v)) for k, v in rates.items()}
        ratio = [a / b for a, b in zip(rates["fork_gpt"], rates["transformers"], strict=True)]
        shape = dict(lengths=name, mean=round(lengths.float().mean().item(), 1))
        print(json.dumps(shape | out | dict(ratio=round(statistics.median(ratio), 2))), flush=True)


if __name__ == "__main__":
    main()

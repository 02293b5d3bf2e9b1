"""What several test files need."""

import builtins
import io
import os
import signal
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F

from fork_gpt import Config, configure
from infra import flags, weights
from model import Shape, Transformer

ROOT = Path(__file__).resolve().parent.parent
THREADS = int(os.environ.get("TEST_THREADS", 1))
# seconds that a process may take: the slowest here needs 10 on two old cores, so only a hang does
PATIENCE = 600
LENGTHS = [7, 1, 12, 5, 5, 3]  # of a stream: odd ones, a single token, equal neighbours
# columns of a log line that the clock decides
TIMING = ("seconds", "cpu_seconds", "rollout_tok_s", "update_tok_s")
# a base that searches badly, and a world small enough to learn something in seconds
SMALL = (
    "--n-numbers 2 --max-number 9 --max-value 18 --pretrain-steps 120 --prompts 4 --group 4 "
    "--max-new 24 --overlong 8 --eval-k 2 --eval-every 3 --save-every 2 --seed 5 --device cpu"
).split()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def config(*argv: str) -> Config:
    """The config of a command line."""
    return configure(flags.parse((Config,), argv, "fork_gpt.py", ""))


def random_model(shape: Shape, seed: int = 0) -> Transformer:
    """Its norms are not 1, so that a forgotten one shows."""
    model = Transformer(shape).init_weights(generator := seeded(seed))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model


def tiny(tied: bool = True, n_kv_head: int = 2, head_dim: int = 16, seed: int = 0) -> Transformer:
    """48 / 4 = 12 is the head_dim that a wrong model would assume."""
    return random_model(Shape(48, 2, 4, n_kv_head, head_dim, 80, 67, tied, rope_theta=1e4), seed)


def stream(lengths: list[int] = LENGTHS, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens, packed: (S,) and (B+1,)."""
    cu_seqlens = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()
    return torch.randint(67, (sum(lengths),), generator=seeded(seed)), cu_seqlens


def all_logits(model: Transformer, tokens: torch.Tensor, cu_seqlens=None) -> torch.Tensor:
    """(S, V), of one sequence or of a packed stream."""
    cu_seqlens = torch.tensor([0, len(tokens)]) if cu_seqlens is None else cu_seqlens
    return model.logits(model.hidden(tokens, cu_seqlens))


def peer_config(c: Shape, **more):
    """transformers' config of a model of ours."""
    from transformers import Qwen3Config  # it takes seconds to load

    return Qwen3Config(
        vocab_size=c.vocab_size, hidden_size=c.n_embd, intermediate_size=c.n_mlp,
        num_hidden_layers=c.n_layer, num_attention_heads=c.n_head, head_dim=c.head_dim,
        num_key_value_heads=c.n_kv_head, rms_norm_eps=c.norm_eps, **more,
        tie_word_embeddings=c.tie_embeddings, attn_implementation="eager",
        rope_parameters=dict(rope_type="default", rope_theta=c.rope_theta),
    )  # fmt: skip


def peer(ours: Transformer):
    """transformers' model with the same weights, copied by equal names."""
    from transformers import Qwen3ForCausalLM

    theirs = Qwen3ForCausalLM(peer_config(ours.shape)).eval()
    odd = theirs.load_state_dict(ours.state_dict(), strict=False)
    tied = ["lm_head.weight"] * ours.shape.tie_embeddings  # has two names there
    assert (odd.missing_keys, odd.unexpected_keys) == (tied, [])
    return theirs


def rounding(size: float, steps: int) -> float:
    """What fp32 may be off by where numbers of `size` are rounded `steps` times, each time by 2^-24
    of themselves at most.  A forgotten or misplaced operation is off by thousands of these."""
    return size * steps * 2.0**-24


def save_small(folder, model: Transformer, words) -> None:
    """A model of the small world, as a run leaves it."""
    weights.save_model(folder, model.shape, words, model.state_dict())


def die_at(kind: str, n: int) -> Counter:
    """From now on this process counts its file events by kind, and kills itself at the n-th of
    `kind`: before it, or half way through a write."""
    count, whole = Counter(), open

    def event(here: str, half=lambda: None) -> None:
        count[here] += 1
        if here == kind and count[here] == n:
            half()
            os.kill(os.getpid(), signal.SIGKILL)

    class Torn(io.BufferedWriter):
        def write(self, data) -> int:
            data = bytes(data)
            event("write", lambda: (io.BufferedWriter.write(self, data[::2]), self.flush()))
            return super().write(data)

    def opened(file, mode="r", *rest, **more):
        if mode[0] not in "wa":
            return whole(file, mode, *rest, **more)
        event("open")
        out = Torn(io.FileIO(file, mode[0]))
        return out if "b" in mode else io.TextIOWrapper(out)

    builtins.open = opened
    same = dict(replace="rename", rename="rename", unlink="remove", rmdir="remove")
    for name in ("fsync", "mkdir", *same):
        real, what = getattr(os, name), same.get(name, name)
        call = lambda *a, real=real, what=what, **kw: (event(what), real(*a, **kw))[1]  # noqa: E731
        setattr(os, name, call)
    return count

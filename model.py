"""The transformer in one file: the Qwen3 architecture, dense sizes from 0.3M to 32B parameters.

    python model.py                      # the named sizes and their parameter counts

Pre-norm RMSNorm, per-head QK-norm before rotary embeddings (split halves), grouped-query attention
with an explicit `head_dim`, SwiGLU, no biases, tied or untied embeddings.  Parameter names are
those of the published checkpoints.

There is no padding anywhere.  A batch is one packed stream `tokens` (S,) with `cu_seqlens` (B+1,):
sequence b is tokens[cu_seqlens[b]:cu_seqlens[b+1]].  Training, scoring, prefill and decoding all
run `Transformer.backbone`; they differ only in the attention function that they hand to it.

Select before the vocabulary: the logits are the largest tensor of RLVR (S x V), and the
forking-token objective (paper Eq. 6) needs a fifth of their rows.  So `forward` takes the rows that
matter and applies the head to nothing else.

Folders of weights are read and written by `infra/weights.py`.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

HEAD_CHUNK = 2**26  # logits of a head call: 256 MiB in fp32, and about three times that at its peak
NEVER = -1e30  # a logit whose probability is 0 at any temperature; 0 log 0 stays 0, not NaN


@dataclass(frozen=True)
class Shape:
    """`head_dim` is its own number: Qwen3-0.6B is 1024 wide with 16 heads of 128."""

    n_embd: int
    n_layer: int
    n_head: int
    n_kv_head: int
    head_dim: int
    n_mlp: int
    vocab_size: int = 151_936
    tie_embeddings: bool = True
    rope_theta: float = 1e6
    norm_eps: float = 1e-6


SIZES = {
    # the small world's: a laptop core trains them in minutes; the vocabulary is the world's
    "micro": Shape(96, 2, 3, 1, 32, 256, vocab_size=305, rope_theta=1e4),
    "tiny": Shape(96, 3, 3, 1, 32, 256, vocab_size=305, rope_theta=1e4),
    "mini": Shape(128, 4, 4, 2, 32, 384, vocab_size=305, rope_theta=1e4),
    "small": Shape(192, 4, 6, 2, 32, 576, vocab_size=305, rope_theta=1e4),
    # the published ones
    "Qwen3-0.6B": Shape(1024, 28, 16, 8, 128, 3072),
    "Qwen3-1.7B": Shape(2048, 28, 16, 8, 128, 6144),
    "Qwen3-4B": Shape(2560, 36, 32, 8, 128, 9728),
    "Qwen3-8B": Shape(4096, 36, 32, 8, 128, 12288, tie_embeddings=False),
    "Qwen3-14B": Shape(5120, 40, 40, 8, 128, 17408, tie_embeddings=False),
    "Qwen3-32B": Shape(5120, 64, 64, 8, 128, 25600, tie_embeddings=False),
}


def at_least_fp32(x: Tensor) -> Tensor:
    """Half precision becomes fp32 (bf16 entropies quantise the ranking); fp64, used by the tests,
    stays."""
    return x if x.dtype == torch.float64 else x.float()


def positions_of(cu_seqlens: Tensor) -> Tensor:
    """(B+1,) starts to (S,) int64: each token's place in its own sequence, counted from 0."""
    lengths = cu_seqlens.diff().long()
    starts = cu_seqlens[:-1].long().repeat_interleave(lengths)  # (S,)
    return torch.arange(len(starts), device=starts.device) - starts


def rope(positions: Tensor, shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of every position's angles, (S, 1, head_dim / 2), computed in fp32 and cast once:
    fp32 tables would promote q and k silently."""
    half = shape.head_dim // 2
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    powers = torch.arange(half, dtype=wide, device=positions.device) / half
    angles = positions[:, None].to(wide) * shape.rope_theta**-powers  # (S, hd/2)
    return angles.cos()[:, None].to(dtype), angles.sin()[:, None].to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (S, heads, head_dim): the two *halves* are the coordinates, not
    neighbouring pairs."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)


@cache
def _varlen() -> Callable:
    """torch's variable-length flash attention, causal; `enable_gqa` exists (and is required) only
    from 2.13 on."""
    from torch.nn.attention.varlen import varlen_attn

    gqa = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    return partial(varlen_attn, window_size=(-1, 0), **gqa)


def attend(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, lengths: list[int]) -> Tensor:
    """Causal attention inside every sequence of a packed stream.

    q (S, n_head, hd), k and v (S, n_kv_head, hd) -> (S, n_head, hd).  CUDA half precision runs one
    kernel over the stream; everywhere else each run of equally long neighbours is one batched call,
    so sort sequences by length.
    """
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
        cu, longest = cu_seqlens.int(), max(lengths)
        return _varlen()(q, k, v, cu, cu, longest, longest)
    runs = [(length, len(list(same))) for length, same in groupby(lengths)]
    sizes = [length * n for length, n in runs]
    out = []
    for (length, n), *qkv in zip(runs, q.split(sizes), k.split(sizes), v.split(sizes), strict=True):
        # (n, heads, length, hd) each
        q_, k_, v_ = (x.unflatten(0, (n, length)).transpose(1, 2) for x in qkv)
        o = F.scaled_dot_product_attention(q_, k_, v_, is_causal=True, enable_gqa=True)
        out.append(o.transpose(1, 2).flatten(0, 1))  # (n * length, n_head, hd)
    return torch.cat(out)


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, c: Shape):
        super().__init__()
        self.head_dim = c.head_dim
        self.q_proj = nn.Linear(c.n_embd, c.n_head * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.n_embd, c.n_kv_head * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.n_embd, c.n_kv_head * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.n_head * c.head_dim, c.n_embd, bias=False)
        self.q_norm = RMSNorm(c.head_dim, c.norm_eps)
        self.k_norm = RMSNorm(c.head_dim, c.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Callable) -> Tensor:
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))  # (S, n_head, hd)
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))  # (S, n_kv_head, hd)
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))  # (S, n_kv_head, hd)
        q = rotate(self.q_norm(q), cos, sin)
        k = rotate(self.k_norm(k), cos, sin)
        return self.o_proj(attend(q, k, v).flatten(-2))  # (S, n_embd)


class MLP(nn.Module):
    def __init__(self, c: Shape):
        super().__init__()
        self.gate_proj = nn.Linear(c.n_embd, c.n_mlp, bias=False)
        self.up_proj = nn.Linear(c.n_embd, c.n_mlp, bias=False)
        self.down_proj = nn.Linear(c.n_mlp, c.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c: Shape):
        super().__init__()
        self.input_layernorm = RMSNorm(c.n_embd, c.norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.n_embd, c.norm_eps)
        self.mlp = MLP(c)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Callable) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """Qwen3.  A tied model has no `lm_head` at all.

    `n_vocab`: ids from here on are padding of the matrices, no token's; no distribution gives them
    a chance.  `recompute`: activation checkpointing, each block keeps its input alone and runs a
    second time in the backward pass.
    """

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = self.full_shape = shape  # a part of a model, cut over ranks, keeps both
        self.n_vocab = shape.vocab_size
        self.recompute = False
        self.model = nn.ModuleDict(
            dict(
                embed_tokens=nn.Embedding(shape.vocab_size, shape.n_embd),
                layers=nn.ModuleList(Block(shape) for _ in range(shape.n_layer)),
                norm=RMSNorm(shape.n_embd, shape.norm_eps),
            )
        )
        if not shape.tie_embeddings:
            self.lm_head = nn.Linear(shape.n_embd, shape.vocab_size, bias=False)

    def init_weights(self, generator: torch.Generator | None = None) -> "Transformer":
        """Normal(0, 1/sqrt(n_embd)), the two projections into the residual stream smaller by sqrt(2
        n_layer); norms 1.

        A fixed 0.02 is that of a 2,500-wide model: at width 96 it costs the small world a percent
        of arithmetic.
        """
        for name, p in self.named_parameters():
            if p.ndim == 2:
                into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
                shrink = math.sqrt(2 * self.shape.n_layer) if into_stream else 1.0
                std = self.shape.n_embd**-0.5 / shrink
                nn.init.normal_(p, 0.0, std, generator=generator)
        return self

    @property
    def head_weight(self) -> Tensor:
        """(V, n_embd): the output matrix, which tied models share with the embedding."""
        return self.model.embed_tokens.weight if self.shape.tie_embeddings else self.lm_head.weight

    def backbone(self, tokens: Tensor, positions: Tensor, attend: Callable) -> Tensor:
        """tokens and positions (S,) -> last hidden states (S, n_embd), normed.

        `attend(layer, q, k, v)` is all that differs between a packed forward and a decode step.
        """
        x = self.model.embed_tokens(tokens)  # (S, n_embd)
        cos, sin = rope(positions, self.shape, x.dtype)  # (S, 1, hd/2)
        for i, block in enumerate(self.model.layers):
            if self.recompute and torch.is_grad_enabled():
                block = partial(checkpoint, block, use_reentrant=False)
            x = block(x, cos, sin, partial(attend, i))
        return self.model.norm(x)

    def hidden(self, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Packed stream (S,) -> (S, n_embd)."""
        lengths = cu_seqlens.diff().tolist()  # once, not in every layer: it waits for the device

        def attend_packed(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend(q, k, v, cu_seqlens, lengths)

        return self.backbone(tokens, positions_of(cu_seqlens), attend_packed)

    def logits(self, h: Tensor) -> Tensor:
        """Hidden states (K, n_embd) -> (K, V) in the model's dtype."""
        logits = F.linear(h, self.head_weight)  # (K, V)
        if self.n_vocab < self.shape.vocab_size:
            logits[:, self.n_vocab :] = NEVER
        return logits

    def head(self, h: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """h (K, n_embd), targets (K,) -> log-probs (K,) and entropies (K,) in nats, both fp32.

        H = -sum_v p_v log p_v with p = softmax(h W^T / temperature), paper Eq. 1; only the
        log-probs carry gradient.
        """
        logp = (at_least_fp32(self.logits(h)) / temperature).log_softmax(-1)  # (K, V)
        return logp.gather(-1, targets[:, None])[:, 0], entropy_of(logp.detach())

    def forward(
        self,
        tokens: Tensor,
        cu_seqlens: Tensor,
        rows: Tensor,
        targets: Tensor,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of `targets` and entropies at the selected rows only.

        tokens (S,), cu_seqlens (B+1,); rows (K,) int64 are positions in the stream whose *next*
        token is the target (K,).  Both results are (K,) fp32, of softmax(logits.float() /
        temperature); entropies are in nats and carry no gradient.  Under `torch.no_grad()` with
        the rows of all response tokens this is the entropy pre-pass.
        """
        h = self.hidden(tokens, cu_seqlens)[rows]  # (K, n_embd)
        size = max(1, HEAD_CHUNK // self.shape.vocab_size)
        if len(h) <= size:
            return self.head(h, targets, temperature)
        # several chunks: each computes its logits again in the backward pass and keeps none
        head = self.head
        if torch.is_grad_enabled():
            head = partial(checkpoint, self.head, use_reentrant=False)
        pairs = zip(h.split(size), targets.split(size), strict=True)
        logprobs, entropy = zip(*(head(x, y, temperature) for x, y in pairs), strict=True)
        return torch.cat(logprobs), torch.cat(entropy)


def entropy_of(logp: Tensor) -> Tensor:
    """Log-probabilities (..., V) -> entropy (...) in nats."""
    return -torch.linalg.vecdot(logp.exp(), logp)


def count_parameters(shape: Shape) -> int:
    """Number of parameters, counted on the meta device: nothing is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in Transformer(shape).parameters())


if __name__ == "__main__":
    for name, shape in SIZES.items():
        print(f"{name:12s} {count_parameters(shape) / 1e6:10.1f}M  {shape}")

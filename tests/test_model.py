"""The transformer: equal to transformers' Qwen3, and its selected rows equal to the naive head."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from common import LENGTHS, all_logits, peer, peer_config, rounding, seeded, stream, tiny
from torch.testing import assert_close
from transformers import Qwen3ForCausalLM

import model
from model import SIZES, Shape, Transformer, count_parameters, entropy_of, positions_of, rope

HEADS = [(1, 16), (2, 16), (4, 16), (2, 12), (4, 8)]  # n_kv_head, head_dim
# logits of these models are below 8, and some forty operations lead there
FP32 = rounding(8, 40)
ROWS = torch.arange(sum(LENGTHS))
# those whose next token is in the same sequence
NEXT = ROWS[~torch.isin(ROWS + 1, torch.tensor(LENGTHS).cumsum(0))]


# ------------------------------------------------------------------ against transformers


@pytest.mark.parametrize("n_kv_head, head_dim", HEADS)
@pytest.mark.parametrize("tied", (True, False))
def test_logits_and_gradients_equal_transformers(tied, n_kv_head, head_dim):
    ours = tiny(tied, n_kv_head, head_dim)
    theirs = peer(ours)
    tokens, cu_seqlens = stream()
    expected = [theirs(x[None]).logits[0] for x in tokens.split(LENGTHS)]
    assert_close(all_logits(ours, tokens, cu_seqlens), torch.cat(expected), rtol=0, atol=FP32)

    (-ours(tokens, cu_seqlens, NEXT, tokens[NEXT + 1])[0].sum()).backward()
    parts = zip(expected, tokens.split(LENGTHS), strict=True)
    sum(F.cross_entropy(x[:-1], y[1:], reduction="sum") for x, y in parts).backward()
    for name, p in theirs.named_parameters():
        error = (ours.get_parameter(name).grad - p.grad).norm() / p.grad.norm()
        assert error < rounding(1, 160), (name, float(error))  # and as many on the way back


PUBLISHED = {
    "Qwen3-0.6B": 596_049_920, "Qwen3-1.7B": 1_720_574_976, "Qwen3-4B": 4_022_468_096,
    "Qwen3-8B": 8_190_735_360, "Qwen3-14B": 14_768_307_200, "Qwen3-32B": 32_762_123_264,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_the_published_number_of_parameters(name):
    assert count_parameters(SIZES[name]) == PUBLISHED[name]
    assert SIZES[name].rope_theta == 1e6 and SIZES[name].norm_eps == 1e-6
    with torch.device("meta"):
        theirs = Qwen3ForCausalLM(peer_config(SIZES[name]))
        ours = Transformer(SIZES[name])
    shapes = {n: p.shape for n, p in theirs.named_parameters()}
    assert {n: p.shape for n, p in ours.named_parameters()} == shapes


# ------------------------------------------------------------------ packing


def test_positions_start_at_0_in_every_sequence():
    cu_seqlens = torch.tensor([0, 3, 4, 4, 6], dtype=torch.int32)
    assert positions_of(cu_seqlens).tolist() == [0, 1, 2, 0, 0, 1]


@pytest.mark.parametrize("lengths", (LENGTHS, [4, 4, 4], [1], [9, 1, 1, 2]))
def test_packed_equals_each_sequence_alone(lengths):
    """In fp64: batched products sum in another order, which in fp32 is 4e-6 at the worst."""
    ours = tiny().double()
    tokens, cu_seqlens = stream(lengths)
    alone = [all_logits(ours, x) for x in tokens.split(lengths)]
    assert_close(all_logits(ours, tokens, cu_seqlens), torch.cat(alone), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16))
def test_angles_are_right_far_from_the_start(dtype):
    """Computed in bf16, whose 8 bits hold no 5,001, they are off by 1.8 at position 5,000."""
    positions = torch.tensor([0, 1, 2, 5000, 5001, 40_000])
    cos, sin = rope(positions, SIZES["Qwen3-0.6B"], dtype)
    power = [1e6 ** (-i / 64) for i in range(64)]
    angles = torch.tensor([[n * x for x in power] for n in positions.tolist()], dtype=torch.float64)
    # the cast at the end, and of fp32 the rounding of an angle up to 40,000
    rounded = torch.finfo(dtype).eps / 2 + (4e4 * 2**-24 * 2 if dtype != torch.float64 else 1e-11)
    assert cos.dtype == sin.dtype == dtype and cos.shape == (6, 1, 64)
    assert_close(cos[:, 0].double(), angles.cos(), rtol=0, atol=rounded)
    assert_close(sin[:, 0].double(), angles.sin(), rtol=0, atol=rounded)


def test_initial_weights_have_the_stated_scale_and_follow_the_seed():
    shape = Shape(64, 2, 4, 2, 32, 128, 301, tie_embeddings=False)
    one, two, three = (Transformer(shape).init_weights(seeded(s)) for s in (0, 0, 1))
    for name, p in one.named_parameters():
        assert torch.equal(p, two.get_parameter(name))
        if p.ndim == 1:
            assert torch.equal(p, torch.ones_like(p))
            continue
        assert not torch.equal(p, three.get_parameter(name))
        into_stream = "o_proj" in name or "down_proj" in name
        expected = 64**-0.5 / (4**0.5 if into_stream else 1)
        # 8,192 draws or more: the sample's deviation is off by 1% on average
        assert float(p.detach().std()) == pytest.approx(expected, rel=0.06)


# ------------------------------------------------------------------ selected rows


def naive(ours: Transformer, tokens, cu_seqlens, rows, targets, temperature):
    """All logits, then the selection: what `forward` must equal."""
    logp = (all_logits(ours, tokens, cu_seqlens) / temperature).log_softmax(-1)[rows]
    return logp[torch.arange(len(rows)), targets], -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("chunk, sizes", [
    (2**26, [6]), (67 * 3, [3, 3]), (67 * 5 - 1, [4, 2]), (1, [1] * 6)
])  # fmt: skip
@pytest.mark.parametrize("tied", (True, False))
@pytest.mark.parametrize("temperature", (1.0, 0.7))
def test_selected_rows_equal_the_naive_head_in_fp64(tied, temperature, chunk, sizes, monkeypatch):
    """Also where the head goes over them a chunk at a time, once more in the backward pass."""
    ours, found = tiny(tied).double(), []
    monkeypatch.setattr(model, "HEAD_CHUNK", chunk)
    head, ours.head = ours.head, lambda h, *rest: found.append(len(h)) or head(h, *rest)
    tokens, cu_seqlens = stream()
    rows = NEXT[torch.tensor([20, 3, 4, 11, 3, 0])]  # any order, one of them twice
    targets = (tokens[rows + 1] + torch.tensor([0, 0, 1, 2, 5, 0])) % 67
    weights = torch.randn(len(rows), dtype=torch.double, generator=seeded(2))
    arguments = (tokens, cu_seqlens, rows, targets, temperature)

    def gradient(logprobs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad((logprobs * weights).sum(), [*ours.parameters()])

    naive_logprobs, naive_entropy = naive(ours, *arguments)
    with torch.no_grad():  # the entropy pre-pass
        assert_close(ours(*arguments)[1], naive_entropy, rtol=0, atol=1e-12)
    logprobs, entropy = ours(*arguments)
    assert found == sizes * 2 and not entropy.requires_grad
    assert_close((logprobs, entropy), (naive_logprobs, naive_entropy), rtol=0, atol=1e-12)
    assert_close(gradient(logprobs), gradient(naive_logprobs), rtol=0, atol=1e-12)
    assert len(found) == len(sizes) * (3 if len(sizes) > 1 else 2)  # recomputed, not kept
    # the two temperatures are told apart by this test
    assert (naive(ours, *arguments[:-1], 0.8)[0] - logprobs).abs().max() > 1e-3


def test_no_selected_row_gives_no_values():
    ours = tiny()
    tokens, cu_seqlens = stream()
    none = torch.empty(0, dtype=torch.long)
    logprobs, entropy = ours(tokens, cu_seqlens, none, none)
    assert logprobs.tolist() == [] and entropy.tolist() == []
    logprobs.sum().backward()
    assert not any(p.grad.any() for p in ours.parameters())


def of_logits(logits: torch.Tensor, targets: list[int], temperature: float = 1.0):
    """`head` where the hidden states are the logits."""
    same = SimpleNamespace(logits=lambda h: h)
    return Transformer.head(same, logits, torch.tensor(targets), temperature)


@pytest.mark.parametrize("temperature", (1.0, 0.7))
def test_entropy_closed_forms(temperature):
    uniform, two = torch.full((50,), 3.0), torch.full((50,), -200.0)
    two[4], two[9] = math.log(0.3) * temperature, math.log(0.7) * temperature
    logprobs, entropy = of_logits(torch.stack((uniform, two)), [0, 9], temperature)
    two_point = -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    assert_close(entropy, torch.tensor([math.log(50), two_point]), rtol=0, atol=FP32)
    assert_close(logprobs, torch.tensor([-math.log(50), math.log(0.7)]), rtol=0, atol=FP32)


def test_a_certain_token_has_entropy_0_not_nan():
    """0 log 0: probabilities that underflow to 0 while their logarithm is huge."""
    logprobs, entropy = of_logits(torch.tensor([[0.0, -1e4, -3e38], [3e4, 0.0, 0.0]]), [0, 0])
    assert entropy.tolist() == [0.0, 0.0] and logprobs.tolist() == [0.0, 0.0]
    assert float(entropy_of(torch.tensor([0.0, -1e30]))) == 0.0


def test_bf16_weights_give_fp32_logprobs_and_entropies():
    """bf16 entropies tie by the hundred, and the ranking that the method lives on is lost."""
    ours = tiny().bfloat16()
    tokens, cu_seqlens = stream()
    targets = tokens[NEXT + 1]
    for temperature in (1.0, 0.7):
        logprobs, entropy = ours(tokens, cu_seqlens, NEXT, targets, temperature)
        assert logprobs.dtype == entropy.dtype == torch.float32
        # of the same rows: another shape may be another kernel, and another last bit of 8
        logits = ours.logits(ours.hidden(tokens, cu_seqlens)[NEXT])
        assert logits.dtype == torch.bfloat16  # nothing on the way was promoted silently
        logp = (logits.float() / temperature).log_softmax(-1)
        assert_close(logprobs, logp[torch.arange(len(NEXT)), targets], rtol=0, atol=FP32)
        assert_close(entropy, -(logp.exp() * logp).sum(-1), rtol=0, atol=FP32)
        assert len(entropy.unique()) == len(NEXT)
        assert len(entropy.bfloat16().unique()) < len(NEXT)  # what rounding would have done

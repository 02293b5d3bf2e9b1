"""Precision and what surrounds it: the bf16 compute copy, recomputation, padding ids, and resuming
to the last bit."""

from dataclasses import replace

import pytest
import torch
from common import TIMING, all_logits, config, rounding, seeded, stream, tiny
from torch.testing import assert_close

import fork_gpt
import parallel
from bench.memory import FixedWorld
from infra.files import Clock
from model import Block, Shape, Transformer
from parallel import compute_copy, copy_weights
from rollout import Sampling, generate
from tasks.pretrain import make_optimizer

N_VOCAB = 4100
SHAPE = Shape(64, 2, 4, 2, 16, 128, vocab_size=4224)
PROMPTS = [[5, 6, 7], [4099] * 9, [1, 2]]


def padded(tied: bool = True) -> Transformer:
    """A random model with Qwen's kind of padding rows; they are so large that half the tokens would
    be padding, were it not excluded."""
    model = Transformer(replace(SHAPE, tie_embeddings=tied)).init_weights(seeded())
    model.n_vocab = N_VOCAB
    with torch.no_grad():
        model.head_weight[N_VOCAB:] *= 40
    return model


# ------------------------------------------------------------------ sampler = trainer


@pytest.mark.parametrize("temperature", (1.0, 0.7))
@pytest.mark.parametrize("tied", (True, False))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_the_samplers_logprobs_and_entropies_are_the_trainers(dtype, tied, temperature):
    model = compute_copy(padded(tied), dtype)
    samples = generate(model, PROMPTS, 4, 48, None, Sampling(temperature))
    assert samples.tokens.max() < N_VOCAB  # no padding: the copy knows it too
    with torch.no_grad():
        logprobs, entropy = model(*samples.scored(), temperature)
    assert logprobs.dtype == entropy.dtype == torch.float32
    # logits are below 6.  In bf16 each of some 20 tensors on the way may round to a neighbour, 2^-8
    # of it, up or down, since a row alone is summed in another order than in its stream
    size = 6 / temperature
    bound = rounding(size, 60) if dtype == torch.float32 else 2 * size * 20**0.5 * 2**-8
    assert_close(logprobs, samples.logprobs, rtol=0, atol=bound)
    assert_close(entropy, samples.entropy, rtol=0, atol=bound)
    if dtype == torch.bfloat16:
        assert (logprobs - samples.logprobs).abs().max() > 1e-4  # it is bf16


def test_padding_rows_take_no_part_in_the_distribution():
    model, (tokens, cu) = padded().double(), stream()
    rows = torch.arange(20)
    logp, entropy = model(tokens, cu, rows, tokens[rows + 1], 0.7)
    expected = (all_logits(model, tokens, cu)[:20, :N_VOCAB] / 0.7).log_softmax(-1)
    wanted = expected.gather(-1, tokens[rows + 1][:, None])[:, 0]
    assert_close(logp, wanted, rtol=0, atol=1e-12)
    assert_close(entropy, -(expected.exp() * expected).sum(-1), rtol=0, atol=1e-12)
    logp.sum().backward()
    assert not model.head_weight.grad[N_VOCAB:].any() and tokens.max() < N_VOCAB
    model.n_vocab = SHAPE.vocab_size  # without the bound they would have most of it
    wide = generate(model, PROMPTS, 4, 24, None, Sampling())
    assert (wide.tokens >= N_VOCAB).sum() > 20


# ------------------------------------------------------------------ the bf16 compute copy


def loss_of(model: Transformer, seed: int) -> torch.Tensor:
    tokens, cu = stream(seed=seed)
    rows = torch.arange(0, len(tokens) - 1, 3)
    return model(tokens, cu, rows, tokens[rows + 1])[0].sum()


@pytest.mark.parametrize("tied", (True, False))
def test_gradients_are_summed_in_fp32(tied):
    """Summed in bf16, whose 8 bits hold no 64 + 1/4, most of the later ones would be lost."""
    master = tiny(tied)
    policy = compute_copy(master, torch.bfloat16)
    alone = tiny(tied).to(torch.bfloat16)  # the same weights, torch's own gradients
    sums = {k: torch.zeros_like(p) for k, p in master.named_parameters()}
    for seed in range(8):
        loss_of(policy, seed).backward()
        assert all(p.grad is None for p in policy.parameters())  # handed over, and freed
        alone.zero_grad()
        loss_of(alone, seed).backward()
        for name, p in alone.named_parameters():
            assert p.grad.dtype == torch.bfloat16
            sums[name] += p.grad.float()
    for name, p in master.named_parameters():
        assert p.grad.dtype == torch.float32 and p.grad.any()
        assert torch.equal(p.grad, sums[name]), name  # to the last bit


@pytest.mark.parametrize("tied", (True, False))
def test_the_copy_follows_the_master(tied):
    """Which stays in fp32: a bf16 weight of 1 stays 1 when 0.001 is added, however often."""
    master = tiny(tied)
    policy = compute_copy(master, torch.bfloat16)
    optimizer = make_optimizer([*master.parameters()], 1e-2, 0.1, 0.999)
    policy.recompute = True
    assert compute_copy(master, torch.float32) is master  # which needs none
    ids = [id(p) for p in policy.parameters()]
    for seed in range(3):
        before = [p.clone() for p in policy.parameters()]
        loss_of(policy, seed).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        copy_weights(master, policy)
        for p, q, old in zip(master.parameters(), policy.parameters(), before, strict=True):
            assert p.dtype == torch.float32 and q.dtype == torch.bfloat16
            assert torch.equal(q, p.detach().bfloat16()) and not torch.equal(q, old)
    assert ids == [id(p) for p in policy.parameters()]  # the hooks live on these
    assert len(ids) == len(list(master.parameters())) and tied == (not hasattr(policy, "lm_head"))


# ------------------------------------------------------------------ recomputation


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_recomputation_changes_no_bit_of_the_gradient_and_keeps_less(dtype):
    kept, grads = [], []
    for recompute in (False, True):
        model = tiny().to(dtype)
        model.recompute, seen = recompute, {}

        def note(t: torch.Tensor, seen: dict = seen) -> torch.Tensor:
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            loss = loss_of(model, 0)
        loss.backward()
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept.append(sum(n for at, n in seen.items() if at not in weights))
        grads.append({k: p.grad for k, p in model.named_parameters()})
    assert kept[1] < kept[0] / 2
    for name, grad in grads[0].items():
        assert grad.any() and torch.equal(grad, grads[1][name]), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_computes_recomputes_but_neither_samples_nor_scores_so(dtype, monkeypatch):
    """Once a flag that changed only the memory table."""
    blocks, forward = [], Block.forward
    monkeypatch.setattr(Block, "forward", lambda *a: blocks.append(0) or forward(*a))
    policy = fork_gpt.begin(tiny(), [], config("--recompute", "--dtype", dtype), Clock()).policy
    loss_of(policy, 0).backward()
    assert len(blocks) == 2 * 2  # blocks of the model, each once more
    with torch.no_grad():
        loss_of(policy, 0)
    assert len(blocks) == 3 * 2
    generate(policy, [[1, 2]], 1, 3, None)
    assert len(blocks) == (3 + 3) * 2  # the prompt, and two of the tokens


# ------------------------------------------------------------------ resuming


@pytest.mark.parametrize("tied", (True, False))
def test_a_bf16_run_resumes_bit_for_bit(tied, tmp_path):
    """The checkpoint holds the fp32 master: rounded to bf16, or without the copy, the next step
    would differ."""
    c = fork_gpt.Config(
        dtype="bfloat16", recompute=True, prompts=4, group=4, updates=2, max_new=8, oversample=1.0,
        lr=1e-3, microbatch=64,
    )  # fmt: skip
    problems = [torch.randint(0, 60, (3,), generator=seeded(i)).tolist() for i in range(12)]
    straight = fork_gpt.begin(tiny(tied), problems, c, Clock())
    for _ in range(2):
        fork_gpt.step(straight, FixedWorld(), problems, c)
    parallel.save_state(tmp_path, straight)
    other = tiny(tied, seed=7)  # everything is another than it should be
    resumed = fork_gpt.begin(other, problems, c, Clock())
    parallel.load_state(tmp_path / "000002", resumed)
    lines = []
    for state in (straight, resumed):
        line = fork_gpt.step(state, FixedWorld(), problems, c)
        lines.append({k: v for k, v in line.items() if k not in TIMING})
    assert lines[0] == lines[1] and lines[0]["step"] == 3 and lines[0]["grad_norm"] > 0
    for kind in ("model", "policy"):
        a, b = (getattr(s, kind).state_dict() for s in (straight, resumed))
        assert all(torch.equal(a[k], b[k]) for k in a)
    rounded = straight.model.head_weight.detach().bfloat16().float()
    assert not torch.equal(straight.model.head_weight, rounded)
    a, b = (s.optimizer.state_dict()["state"] for s in (straight, resumed))
    assert all(torch.equal(a[i][k], b[i][k]) for i in a for k in a[i])

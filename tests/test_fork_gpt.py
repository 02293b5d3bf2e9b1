"""The mask, the objective and one optimizer step, against closed forms and slow obvious
versions."""

import math
import random
from dataclasses import replace

import pytest
import torch
from test_model import all_logits

import fork_gpt
from fork_gpt import Config, group_advantages, keep_mask, surrogate, top_entropy, update
from infra.files import UserError
from model import Shape, Transformer
from parallel import kth_largest
from rollout import Rollout, generate
from tasks.ask import draw

# ---------------------------------------------------------------------------------- the mask

TEN = [0.8, 0.0, 0.5, 1.0, 0.3, 0.2, 0.9, 0.1, 0.7, 0.4]


@pytest.mark.parametrize(
    "rho, kept, tau",
    [(0.1, {3}, 1.0), (0.2, {3, 6}, 0.9), (0.5, {0, 2, 3, 6, 8}, 0.5), (1.0, set(range(10)), 0.0)],
)
def test_kept_set_by_hand(rho, kept, tau):
    mask, got = top_entropy(torch.tensor(TEN), rho)
    assert set(mask.nonzero()[:, 0].tolist()) == kept
    assert got == pytest.approx(tau)


def test_ties_keep_exactly_k_first_in_position():
    """`>= quantile` keeps everything when entropies tie, as a confident small model's do."""
    h = torch.full((1000,), 0.25)
    h[::10] = torch.linspace(0, 1, 100)
    for rho in (0.1, 0.2, 0.5, 0.77, 1.0):
        mask, tau = top_entropy(h, rho)
        order = sorted(range(1000), key=lambda i: (-h[i].item(), i))
        k = math.ceil(round(rho * 1000, 6))
        assert mask.nonzero()[:, 0].tolist() == sorted(order[:k])
        assert tau == h[order[k - 1]].item()


def test_one_token_and_empty_pool():
    assert top_entropy(torch.tensor([0.0]), 0.2)[0].tolist() == [True]
    mask, tau = top_entropy(torch.zeros(0), 0.2)
    assert mask.tolist() == [] and tau == math.inf


def test_rounding_keeps_ceil_of_the_decimal_product():
    """0.1 * 30 is 3.0000000000000004 in floats: a bare ceil keeps 4."""
    assert top_entropy(torch.rand(30), 0.1)[0].sum() == 3
    assert top_entropy(torch.rand(31), 0.1)[0].sum() == 4


def test_negative_rounding_is_the_least_entropy():
    """A certain token's H can come out as -1e-9 or -0.0, whose float bits sort above every
    number."""
    mask, tau = top_entropy(torch.tensor([-1e-9, 0.5, -0.0, 0.4, 0.3]), 0.4)
    assert mask.tolist() == [False, True, False, True, False] and tau == pytest.approx(0.4)


def test_threshold_equals_a_sort():
    torch.manual_seed(0)
    for i in range(200):
        x = torch.rand(random.Random(i).randint(1, 500)) * 10.0 ** random.Random(-i).randint(-30, 3)
        k = random.Random(i + 1).randint(1, len(x))
        assert kth_largest(x, k) == x.sort(descending=True).values[k - 1]
    x = torch.rand(100_000).log().neg()
    ordered = x.sort(descending=True).values
    for k in (1, 2, 777, 20_000, 99_999, 100_000):
        assert kth_largest(x, k) == ordered[k - 1]


def test_threshold_of_2_to_the_25_values():
    """torch.quantile raises above 2^24 values; a long-answer batch has more tokens."""
    x = torch.arange(2**25, dtype=torch.float32).flip(0)  # neighbours above 2^24 tie in fp32
    k = math.ceil(0.2 * 2**25)
    mask, tau = top_entropy(x, 0.2)
    assert int(mask.sum()) == k and tau == x.topk(k).values[-1]


def test_keep_modes():
    h = torch.tensor(TEN)
    top, _ = keep_mask(Config(keep="top"), h, None)
    bottom, tau = keep_mask(Config(keep="bottom"), h, None)
    assert (top ^ bottom).all() and bottom.sum() == 8 and tau == pytest.approx(0.9)
    assert keep_mask(Config(keep="all"), h, None)[0].all()
    generator = torch.Generator().manual_seed(0)
    counts = sum(keep_mask(Config(keep="random"), h, generator)[0].int() for _ in range(2000))
    assert counts.sum() == 4000
    # 10 binomials of mean 400, sd 17.9: five sd is passed by chance once in 10^5 runs of this test
    assert ((counts - 400).abs() < 90).all()


# ---------------------------------------------------------------------------------- the objective


def test_advantages_by_hand():
    """(R - mean) / (std + 1e-6), the std unbiased: [1, 0, 0, 0] has mean 1/4 and std 1/2."""
    a = group_advantages(torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1]), 4)
    expected = [1.5, -0.5, -0.5, -0.5, *[0.75**0.5] * 2, *[-(0.75**0.5)] * 2, 0, 0, 0, 0]
    assert torch.allclose(a, torch.tensor(expected), atol=1e-5)


def test_overlong_penalty_by_hand():
    lengths = torch.tensor([10, 80, 85, 90, 100])
    assert fork_gpt.overlong_penalty(lengths, 100, 20).tolist() == [0, 0, -0.25, -0.5, -1]
    assert fork_gpt.overlong_penalty(lengths, 100, 0).tolist() == [0] * 5


@pytest.mark.parametrize(
    "ratio, advantage, term, clipped",
    [
        (1.0, 2.0, 2.0, False),
        (1.5, 2.0, 2.56, True),  # 1.28 * 2
        (1.5, -2.0, -3.0, False),  # a worse action got likelier: the pessimistic bound is free
        (0.5, 2.0, 1.0, False),
        (0.5, -2.0, -1.6, True),  # 0.8 * -2
        (1.27, 1.0, 1.27, False),
        (0.81, -1.0, -0.81, False),
    ],
)
def test_clip_by_hand(ratio, advantage, term, clipped):
    old = torch.tensor([-1.0])
    terms, was = surrogate(old + math.log(ratio), old, torch.tensor([advantage]), Config())
    assert terms.item() == pytest.approx(term, rel=1e-6) and was.item() == clipped


def test_dual_clip_bounds_only_negative_advantages():
    old, new = torch.tensor([-5.0, -5.0]), torch.tensor([-1.0, -1.0])  # ratio e^4 = 54.6
    terms, _ = surrogate(new, old, torch.tensor([-1.0, 1.0]), Config(dual_clip=10.0))
    assert terms.tolist() == pytest.approx([-10.0, 1.28])


# ---------------------------------------------------------------------------------- one step


def tiny(vocab: int = 37, seed: int = 0) -> Transformer:
    shape = Shape(16, 2, 4, 2, 8, 24, vocab_size=vocab)
    model = Transformer(shape).init_weights(torch.Generator().manual_seed(seed)).double()
    return model


def batch_of(model: Transformer, seed: int = 0) -> tuple[Rollout, torch.Tensor]:
    """Samples and advantages; the sampler differs a little from the model: ratios are not 1."""
    generator = torch.Generator().manual_seed(seed)
    # one sample a prompt: the first tokens of a group share a distribution, and would tie
    prompts = [[1, 2, 3], [4, 5], [6], [7, 8], [9, 10, 11, 12], [13]]
    samples = generate(model, prompts, 1, 17, 0, generator=generator)
    samples.logprobs = samples.logprobs.double()
    noise = torch.randn(len(samples.logprobs), generator=generator, dtype=torch.float64)
    samples.logprobs += 0.3 * noise
    advantages = torch.randn(len(samples.finished), generator=generator, dtype=torch.float64)
    return samples, advantages


def updated(model: Transformer, batch: tuple, c: Config, first: bool) -> fork_gpt.Updated:
    """One update on the whole batch."""
    return update(model, *batch, list(range(len(batch[1]))), c, None, first)


CASES = [
    dict(),
    dict(keep="bottom"),
    dict(keep="all"),
    dict(normalize="all"),
    dict(rho=0.5, temperature=0.7),
    dict(dual_clip=1.2),
]


@pytest.mark.parametrize("flags", CASES, ids=str)
def test_gradient_is_that_of_a_naive_masked_full_logits_loss(flags):
    """Select-before-the-vocabulary changes nothing: fp64, 1e-9."""
    model = tiny()
    batch = batch_of(model)
    c = replace(Config(), microbatch=10**6, **flags)
    done = updated(model, batch, c, first=False)
    got = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()

    s, advantages = batch
    terms, entropies = [], []
    for b in range(len(s.finished)):  # sequence by sequence, all logits, prompt positions too
        a, e = s.cu_seqlens[b].item(), s.cu_seqlens[b + 1].item()
        ids = s.tokens[a:e]
        logits = all_logits(model, ids, torch.tensor([0, e - a])) / c.temperature
        p = logits.softmax(-1)
        for t in range(1, e - a):
            if not s.response[a + t]:
                continue
            row = p[t - 1]
            entropies.append(-(row * row.log()).sum().item())
            ratio = (row[ids[t]].log() - s.logprobs[len(terms)]).exp()
            adv = advantages[b]
            term = torch.min(ratio * adv, ratio.clamp(0.8, 1.28) * adv)
            if c.dual_clip and adv < 0:
                term = torch.max(term, c.dual_clip * adv)
            terms.append(term)
    n, k = len(terms), math.ceil(c.rho * len(terms) - 1e-9)
    order = sorted(range(n), key=lambda i: -entropies[i])
    kept = dict(top=order[:k], bottom=order[k:], all=order)[c.keep]
    loss = -sum(terms[i] for i in kept) / (len(kept) if c.normalize == "kept" else n)
    loss.backward()
    # the mini-batch is cut from its longest sample on
    assert int(done.mask.sum()) == len(done.old) == len(kept) and len(done.mask) == n
    assert done.loss == pytest.approx(loss.item(), rel=1e-9)
    for name, p in model.named_parameters():
        assert torch.allclose(got[name], p.grad, rtol=1e-9, atol=1e-11), name


@pytest.mark.parametrize("pool_entropy", ["current", "rollout"])
def test_gradient_does_not_depend_on_how_the_batch_is_cut(pool_entropy):
    """Means of micro-batch means differ with unequal lengths: one global count as denominator."""
    model = tiny()
    batch = batch_of(model)
    grads = []
    for budget in (1, 60, 10**6):  # each sequence alone, about three together, all
        c = replace(Config(), microbatch=budget, entropy=pool_entropy)
        model.zero_grad()
        updated(model, batch, c, first=False)
        grads.append([p.grad.clone() for p in model.parameters()])
    cut = batch[0].microbatches
    assert len(cut(range(6), 1)) == 6 and 1 < len(cut(range(6), 60)) < 6
    for other in grads[1:]:
        for a, b in zip(grads[0], other, strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_unselected_tokens_do_not_touch_the_loss():
    """The mask is on: a flag read from the wrong place was silently plain DAPO in the first
    release."""
    model = tiny()
    batch = batch_of(model)
    c = replace(Config(), microbatch=10**6, entropy="rollout")
    s = batch[0]
    mask, _ = top_entropy(s.entropy, c.rho)
    loss = updated(model, batch, c, first=False).loss
    grads = [p.grad.clone() for p in model.parameters()]

    def loss_with(changed):
        model.zero_grad()
        before = s.logprobs.clone()
        s.logprobs[changed] -= 2.0  # their ratios, and so their terms, change a lot
        out = updated(model, batch, c, first=False).loss
        s.logprobs.copy_(before)
        return out, [p.grad.clone() for p in model.parameters()]

    assert len(s.entropy.unique()) == len(mask)
    same, same_grads = loss_with(~mask)
    assert same == loss
    assert all(torch.equal(a, b) for a, b in zip(grads, same_grads, strict=True))
    other, _ = loss_with(mask.nonzero()[:1, 0])
    assert other != loss


def test_prompt_tokens_are_never_kept_and_end_of_text_may_be():
    """Padding or prompt positions counted in tau shift it; a dropped end-of-text is never
    learned."""
    model = tiny(vocab=5)
    generator = torch.Generator().manual_seed(3)
    samples = generate(model, [[1, 2, 3]] * 4, 4, 12, 0, generator=generator)
    assert samples.finished.any()
    samples.logprobs = samples.logprobs.double()
    ends = samples.cu_seqlens[1:].long() - 1
    assert samples.response[ends].all() and (samples.tokens[ends][samples.finished] == 0).all()
    seen = []
    forward = model.forward

    def spy(tokens, cu_seqlens, rows, targets, temperature):
        seen.append((tokens[rows + 1], targets, rows, cu_seqlens))
        return forward(tokens, cu_seqlens, rows, targets, temperature)

    model.forward = spy
    c = replace(Config(), keep="all", microbatch=10**6)
    updated(model, (samples, torch.ones(16, dtype=torch.float64)), c, first=True)
    tokens, targets, rows, cu = seen[0]
    assert torch.equal(tokens, targets)
    assert len(rows) == samples.lengths().sum() and (targets == 0).sum() >= samples.finished.sum()
    place = rows - cu.long()[torch.bucketize(rows, cu[1:].long(), right=True)]
    assert place.min() == 2  # the first response token is predicted by the prompt's last token


def test_first_update_trusts_the_sampler_and_later_ones_look_again():
    model = tiny()
    batch = batch_of(model)
    c = replace(Config(), microbatch=10**6)
    h = top_entropy(batch[0].entropy, c.rho)[1]
    assert updated(model, batch, c, first=True).tau == h
    batch[0].entropy.mul_(0.5)  # a stale record
    assert updated(model, batch, c, first=True).tau == pytest.approx(h / 2)
    assert updated(model, batch, c, first=False).tau == pytest.approx(h, rel=1e-5)
    stale = replace(c, entropy="rollout")
    assert updated(model, batch, stale, first=False).tau == pytest.approx(h / 2)


def test_pool_microbatch_takes_its_share_of_each_part():
    model = tiny()
    batch = batch_of(model)
    c = replace(Config(), microbatch=1, pool="microbatch", entropy="rollout")
    kept = updated(model, batch, c, first=True).mask.sum()
    assert kept == sum(math.ceil(round(0.2 * n, 6)) for n in batch[0].lengths().tolist())


def test_problems_come_in_epochs_from_their_position():
    problems = list(range(10))
    whole = draw(problems, 3, 0, 35)
    assert sorted(whole[:10]) == sorted(whole[10:20]) == problems and whole[:10] != whole[10:20]
    assert draw(problems, 3, 17, 9) == whole[17:26]
    assert draw(problems, 4, 0, 10) != whole[:10]


class Scripted:
    """A world whose reward is scripted: problem g has g right answers of G."""

    def __init__(self):
        self.calls = {}

    def tokenizer(self):
        from types import SimpleNamespace

        return SimpleNamespace(decode=str, eos=0)

    def encode(self, problem):
        return [1, 2]

    def reward(self, problem, text):
        self.calls[problem] = self.calls.get(problem, 0) + 1
        return float(self.calls[problem] <= problem.right)


@pytest.mark.parametrize("rights, groups, rounds", [([2, 0, 4, 1], 4, 2), ([0, 4], 0, 3)])
def test_dynamic_sampling_refills_is_bounded_and_never_raises(monkeypatch, rights, groups, rounds):
    """DAPO's and verl's loops raise or hang when they cannot fill a batch."""
    model, world = tiny().float(), Scripted()
    seen = []

    class P:
        def __init__(self, right):
            self.right = right

    def drawn(problems, seed, position, n):
        seen.append(n)
        return [P(rights[(position + i) % len(rights)]) for i in range(n)]

    monkeypatch.setattr(fork_gpt, "draw", drawn)
    c = replace(Config(), prompts=4, group=4, rounds=rounds, oversample=1.0, max_new=3)
    state = fork_gpt.State(model, model, None, torch.Generator(), None, "")
    samples, advantages, got, metrics = fork_gpt.collect(state, world, [], c)
    if groups:
        # round 1 draws 4, two are mixed; round 2 draws the 2 missing, one is mixed
        assert seen == [4, 2] and len(got) == 3 and state.position == 6
        assert metrics["group_pass_rate"] == pytest.approx(3 / 6)
        assert metrics["accuracy"] == pytest.approx((2 + 0 + 4 + 1 + 2 + 0) / 24)
    else:
        assert seen == [4] * rounds and got == [] and metrics["group_pass_rate"] == 0
    assert len(samples.finished) == len(advantages) == 4 * sum(seen)
    for g in got:
        assert advantages[4 * g : 4 * g + 4].mean().abs() < 1e-6 < advantages[4 * g].abs()


# ---------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--reho", "0.2"], ["--reho", "--help"]),
        (["--rho", "0"], ["--rho 0.0", "(0, 1]"]),
        (["--rho", "1.5"], ["--rho 1.5", "(0, 1]"]),
        (["--rho", "nan"], ["--rho nan", "(0, 1]"]),
        (["--keep", "most"], ["--keep", "top"]),
        (["--keep", "bottom", "--rho", "1"], ["--rho 1.0", "bottom"]),
        (["--steps", "many"], ["--steps", "many"]),
        (["--oversample", "inf"], ["--oversample inf"]),
        (["--seed", str(2**64)], ["--seed", "1e18"]),
        (["--beta2", "1.5"], ["--beta2 1.5"]),
        (["--ops", "++"], ["--ops '++'"]),
        (["--holdout", "0.1"], ["--holdout", "ignored", "--data"]),
        (["--size", "mini", "--model", "runs/x"], ["--size", "ignored"]),
        (["--size", "huge"], ["--size 'huge'", "tiny"]),
        (["--group", "1"], ["--group 1", "2"]),
        (["--lr", "nan"], ["--lr nan"]),
        (["--resume", "runs/none"], ["runs/none", "config.json"]),
        (["--resume", "runs/none", "--lr", "1"], ["--resume", "--lr"]),
    ],
)
def test_a_wrong_flag_is_one_clear_line(argv, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert fork_gpt.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and all(w in captured.err for w in words), captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_world_without_problems_or_a_missing_device_is_one_clear_line(
    capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    assert fork_gpt.main(["--max-number", "1"]) == 2
    assert "too few problems" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fork_gpt.main(["--device", "cuda"]) == 2
    assert "--device cuda" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_smallest_share_is_one_token():
    """A share that rounds to no token asked the radix select for the 0-th largest."""
    assert top_entropy(torch.tensor(TEN), 1e-9)[0].nonzero().tolist() == [[3]]


def test_entropies_that_are_not_finite_are_refused_before_anything_is_learned():
    """A NaN's bits sort above every number, or crash the select, depending on its sign."""
    model = tiny()
    batch = batch_of(model)
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    for first in (True, False):
        if first:
            batch[0].entropy[-1] = math.nan
        with pytest.raises(UserError, match="not finite.*--lr"):
            updated(model, batch, replace(Config(), microbatch=10**6), first=first)
        assert all(p.grad is None for p in model.parameters())


def test_a_folder_of_another_config_is_refused(tmp_path):
    c = replace(Config(), out=str(tmp_path / "r"))
    fork_gpt.claim_folder(c)
    fork_gpt.claim_folder(c)
    (tmp_path / "r/metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="--lr 0.00015 there, 0.1 here"):
        fork_gpt.claim_folder(replace(c, lr=0.1))

"""The outcome's variance, token by token, against closed forms; and what else findings.py measures
anew: gradients without their largest tokens, spliced models, weight decay."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fork_gpt import Config
from model import Shape, Transformer
from rollout import generate
from study import findings

EOS = 9


def walk(p: float, needed: int) -> SimpleNamespace:
    """A world whose responses are four digits, each 1 with chance p or else 0, then EOS; right with
    at least `needed` ones."""

    def ask(model, world, problems, k, max_new, how, seed, rows, starts):
        rng, said = random.Random(seed), []
        for start in starts:
            said.append([int(rng.random() < p) for _ in range(4 - len(start))] + [EOS])
        rewards = [world.reward(None, s + x) for s, x in zip(starts, said, strict=True)]
        return SimpleNamespace(responses=lambda: said), None, torch.tensor(rewards)

    tokenizer = SimpleNamespace(eos=EOS, stops={".": EOS}, decode=lambda ids: ids)
    reward = lambda _, ids: float(sum(i for i in ids if i < EOS) >= needed)  # noqa: E731
    world = SimpleNamespace(tokenizer=lambda: tokenizer, reward=reward)
    run = SimpleNamespace(c=Config(max_new=20, rows=8), world=world, model=None)
    return SimpleNamespace(ask=ask, run=run, reward=reward)


def right(p: float, needed: int, left: int) -> float:
    """P(at least `needed` ones among `left` digits)."""
    needed = max(needed, 0)
    return sum(math.comb(left, i) * p**i * (1 - p) ** (left - i) for i in range(needed, left + 1))


@pytest.mark.parametrize("p, needed", [(0.5, 2), (0.3, 1)])
def test_products_of_two_lots_have_the_squared_differences_as_their_mean(monkeypatch, p, needed):
    """Their sum is Var(R), by place and in all; one lot squared would be far above."""
    toy, rng = walk(p, needed), random.Random(1)
    monkeypatch.setattr(findings.ask, "ask", toy.ask)
    responses = [[int(rng.random() < p) for _ in range(4)] + [EOS] for _ in range(1500)]
    V = findings.values(toy.run, [None] * len(responses), responses, 2, seed=0)
    products = np.array([np.diff(v[0]) * np.diff(v[1]) for v in V])
    exact = np.zeros(5)
    for ones in range(5):  # the value after t digits, `ones` of them 1
        for t in range(4):
            if ones <= t:
                weight = math.comb(t, ones) * p**ones * (1 - p) ** (t - ones)
                up, down = (right(p, needed - ones - b, 3 - t) for b in (1, 0))
                exact[t] += weight * p * (1 - p) * (up - down) ** 2
    V0 = right(p, needed, 4)
    assert exact.sum() == pytest.approx(V0 * (1 - V0))  # the theorem
    error = products.std(0) / math.sqrt(len(products))
    assert np.abs(products.mean(0) - exact).max() < 4 * error.max()
    assert np.abs(products.sum(1).mean() - V0 * (1 - V0)) < 4 * products.sum(1).std() / 38
    assert (products[:, 4] == 0).all()  # the end decides nothing: no continuation is drawn anew


def test_values_end_at_the_reward_and_are_exact_where_nothing_is_left_to_draw(monkeypatch):
    toy = walk(0.5, 2)
    monkeypatch.setattr(findings.ask, "ask", toy.ask)
    (v,) = findings.values(toy.run, [None], [[1, 1, 0, 0, EOS]], 50, seed=3)
    assert v[:, 2:].tolist() == [[1, 1, 1, 1]] * 2  # two ones are enough
    assert v[:, 0].mean() == pytest.approx(right(0.5, 2, 4), abs=0.15)
    assert v[:, 1].mean() == pytest.approx(right(0.5, 1, 3), abs=0.12)
    assert not np.array_equal(v[0, :2], v[1, :2])  # the lots are independent


def test_shares_by_hand_and_their_intervals_against_a_loop():
    x, group = np.array([1.0, 3, 0, 4, 2]), np.array([0, 1, 1, 0, 2])
    cluster = np.array(["a", "a", "b", "b", "c"])
    share, low, high = findings.shares(x, group, cluster, 3)
    assert share.tolist() == [0.5, 0.3, 0.2]
    assert findings.shares(x, group, cluster, 3, cumulate=True)[0].tolist() == pytest.approx(
        [0.5, 0.8, 1]
    )
    rng, drawn = random.Random(0), []
    for _ in range(4000):
        rows = [i for c in rng.choices("abc", k=3) for i in range(5) if cluster[i] == c]
        drawn.append(sum(x[i] for i in rows if group[i] == 0) / sum(x[i] for i in rows))
    drawn.sort()
    assert low[0] == pytest.approx(drawn[100], abs=0.05)
    assert high[0] == pytest.approx(drawn[3900], abs=0.05)


def test_places_of_a_trace():
    text = "try 9 + 2 = 11 left 11 7 goal 4 ; try 11 - 7 = 4 yes answer ( 9 + 2 ) - 7 ."
    one = ["rest", "first operand", "operator", "second operand", "=", "result"]
    expected = [*one, *["rest"] * 6, *one, "yes or no", "rest", *["answer"] * 8]
    assert findings.places(text.split()) == expected
    after = findings.places("try 9 + 2 = 11 no wait left 9".split())
    assert after[6:] == ["yes or no", "after no", "rest", "rest"]


TINY = Shape(16, 2, 2, 1, 8, 24, vocab_size=12)


def model(seed: int) -> Transformer:
    m = Transformer(TINY).init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        m.head_weight.mul_(3)
    return m


def test_a_spliced_model_draws_by_the_other_after_one_word():
    a, b, after = model(0), model(1), 5
    s = generate(findings.Spliced(a, b, after), [[1, 2], [5], [3, 5]], 20, 12, None)
    seen = {True: 0, False: 0}
    for i in range(len(s.finished)):
        one = s.sequences([i])
        tokens, cu, rows, targets = one.scored()
        by_a, by_b = (m(tokens, cu, rows, targets)[0].detach() for m in (a, b))
        spliced = torch.where(tokens[rows] == after, by_b, by_a)
        assert torch.allclose(one.logprobs, spliced, atol=1e-5)
        for row in rows.tolist():
            seen[int(tokens[row]) == after] += 1
    assert min(seen.values()) > 20


def test_a_forbidden_word_is_never_drawn_and_the_others_keep_their_odds():
    m = model(0)
    s = generate(findings.forbid(m, [1, 4]), [[1, 2]], 200, 4, None)
    drawn = s.tokens[s.response]
    assert not ((drawn == 1) | (drawn == 4)).any()
    tokens, cu, rows, targets = s.scored()
    h = m.hidden(tokens, cu)[rows]
    logits = m.logits(h).index_fill(-1, torch.tensor([1, 4]), -torch.inf)
    expected = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    assert torch.allclose(s.logprobs, expected, atol=1e-5)
    again = generate(m, [[1, 2]], 200, 4, None)  # the model itself is as it was
    assert (again.tokens[again.response] == 1).any()


def test_a_tokens_size_is_the_norm_of_its_gradient_by_the_logits():
    m = model(2)
    s = generate(m, [[1, 2], [3]], 2, 5, None)
    tokens, cu, rows, targets = s.scored()
    size = findings.alternatives(m, s, n=2, temperature=0.7)[-1]
    with torch.no_grad():
        logits = m.logits(m.hidden(tokens, cu)[rows])
    for i, y in enumerate(targets.tolist()):
        z = (logits[i] / 0.7).requires_grad_()
        (g,) = torch.autograd.grad(z.log_softmax(-1)[y], z)
        assert size[i].item() == pytest.approx(g.norm().item(), rel=1e-4)


def test_gradients_are_linear_in_their_weights():
    m = model(3)
    s = generate(m, [[1, 2], [3, 4]], 4, 5, None)
    n = int(s.response.sum())
    w = torch.randn(n, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(n) % 3 == 0
    whole, part, rest = findings.gradients(m, s, torch.stack((w, w * mask, w * ~mask)), G=4)
    assert torch.allclose(whole, part + rest, atol=1e-6)
    logprobs, _ = m(*s.scored())
    (w * logprobs).sum().div(n).backward()
    assert torch.allclose(whole.sum(0), torch.cat([p.grad.flatten() for p in m.parameters()]))


def test_weight_decay_is_taken_out_of_what_changed():
    base = {"model.norm.weight": torch.ones(4), "model.embed_tokens.weight": torch.ones(2, 4)}
    decayed = {k: p * 0.9 if p.ndim == 2 else p for k, p in base.items()}
    found = findings.unchanged(base, decayed, decay=0.9)
    assert (found["unchanged"], found["beyond"], found["decayed"]) == (4 / 12, 1, 4 / 12)
    decayed["model.norm.weight"] = torch.tensor([1.0, 1, 2, 1])
    found = findings.unchanged(base, decayed, decay=0.9)
    assert (found["unchanged"], found["beyond"]) == (3 / 12, 11 / 12)
    assert {r["name"]: r["beyond"] for r in found["layers"]} == dict(norm=0.75, embed_tokens=1)

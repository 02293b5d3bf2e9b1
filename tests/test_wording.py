"""Filler words: their share, their entropy, what the grader and the grammar make of them."""

import math
import random
from dataclasses import replace

import pytest
import torch
from common import save_small, seeded

import fork_gpt
from fork_gpt import Config, keep_mask
from infra import files
from model import SIZES, Transformer
from tasks import ask as asking
from tasks.countdown import FILLER, KINDS, SLOTS, Countdown, Problem
from tasks.pretrain import Pretrain, batch_of_traces, pretrain

TEXT = Countdown(filler_share=0.4, filler_entropy=0.69)


def traces(world: Countdown, n: int, attempts: int = 6) -> list[tuple[Problem, str, str]]:
    rng, wording, out = random.Random(0), random.Random(1), []
    for problem in rng.choices(world.splits()["train"], k=n):
        trace = world.trace(problem, rng, 0.5, attempts)
        out.append((problem, trace, world.worded(trace, wording)))
    return out


@pytest.mark.parametrize("h, k", [(0.1, 2), (0.33, 2), (0.69, 2), (0.7, 3), (1.8, 7), (2.07, 8)])
def test_synonyms_have_the_entropy_that_was_set_and_are_as_few_as_can(h, k):
    chances, _ = replace(TEXT, filler_entropy=h).wording
    assert len(chances) == k and sum(chances) == pytest.approx(1)
    assert -sum(p * math.log(p) for p in chances) == pytest.approx(h, abs=1e-6)
    assert chances[0] == max(chances)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.25, 0.4, 0.57])
def test_filler_has_the_share_that_was_set(share):
    world = replace(TEXT, filler_share=share)
    sizes = [(len(trace.split()), len(text.split())) for _, trace, text in traces(world, 300)]
    plain, worded = map(sum, zip(*sizes, strict=True))
    assert 1 - plain / worded == pytest.approx(share, abs=0.03)  # phrases have whole words


def test_wording_changes_no_decision_and_no_grade():
    for problem, trace, worded in traces(TEXT, 100):
        assert TEXT.plain(worded) == trace
        assert TEXT.reward(problem, worded) == Countdown().reward(problem, trace)
        assert TEXT.statements(worded) == Countdown().statements(trace)
        words = worded.split()
        for i in (i for i, word in enumerate(words) if word in SLOTS):
            phrase = words[i - 4 : i]  # of four before each, in the order of its places
            assert all(word in row for word, row in zip(phrase, FILLER, strict=False))


def test_without_filler_the_world_is_what_it_was():
    """The base of the default world is a cache that every run shares: one bit would void it."""
    world, recipe = Countdown(), Pretrain()
    assert all(trace == worded for _, trace, worded in traces(world, 20))
    assert "so" not in world.tokenizer().words
    problems, rng = world.splits()["train"], random.Random("0/7")
    drawn = rng.choices(problems, k=recipe.batch)
    old = [f"{p.prompt} {world.trace(p, rng, recipe.skill, 6, recipe.p_stop)}" for p in drawn]
    old = [i for text in old for i in world.tokenizer().encode(text)]
    assert batch_of_traces(recipe, world, problems, 7)[0].tolist() == old


def test_the_grammar_names_every_token():
    world = replace(TEXT, filler_share=0.15, attempts=2)  # 2 words a pair: one before each slot
    text = (
        "use 9 7 2 goal 25 ; so try 9 * 2 = 18 thus left 18 7 goal 25 ; so try 18 - 7 = 11 so no "
        "back so left 18 7 goal 25 ; so try 18 - 7 = 11 so no stop ."
    )
    words = text.split()
    expected = [KINDS.index("filler") if w in ("so", "thus") else 0 for w in words]
    first, second, third = (i for i, w in enumerate(words) if w == "try")
    # of three numbers operand, operator, operand; of two the operator; and the word after a `no`,
    # but after the second failure of two it must be `stop`
    for i in (first + 1, first + 2, first + 3, second + 2, third + 2, words.index("back")):
        expected[i] = KINDS.index("decisions")
    ids = world.tokenizer().encode(text)
    assert world.kinds(ids) == expected and world.kinds(ids * 3) == expected * 3


def test_oracle_masks_keep_one_kind_and_together_all():
    kinds = torch.tensor([0, 1, 2, 2, 1, 0, -1])
    h, at = torch.rand(7), torch.arange(7)
    masks = [keep_mask(Config(keep=k), h, kinds, at, None, 0)[0] for k in KINDS]
    assert masks[1].tolist() == [False, True, False, False, True, False, False]
    assert sum(m.int() for m in masks).tolist() == [1] * 6 + [0]


def tiny(tmp_path, **flags) -> tuple:
    """A state before its first step, of an untrained model in a world with filler."""
    model = Transformer(replace(SIZES["micro"], vocab_size=TEXT.tokenizer().n_vocab))
    save_small(tmp_path, model.init_weights(seeded()), TEXT.tokenizer().words)
    where = dict(model=str(tmp_path), device="cpu", filler_share=0.4, max_new=8)
    c = Config(**dict(prompts=8, group=4, rounds=1, updates=1, steps=4) | where | flags)
    model, world, splits, _ = asking.open_task(c, torch.device("cpu"), lambda: False)
    return fork_gpt.begin(model, splits["train"], c, files.Clock()), world, splits["train"], c


def run_steps(monkeypatch, tmp_path, **flags) -> tuple:
    """Four steps, half of the rewards 1: (what `update` was given, the log lines, the state)."""
    state, world, problems, c = tiny(tmp_path, **flags)
    given, update = [], fork_gpt.update
    monkeypatch.setattr(Countdown, "reward", lambda self, problem, text: float(len(text) % 2))
    monkeypatch.setattr(fork_gpt, "update", lambda *a, **k: given.append(a) or update(*a, **k))
    return given, [fork_gpt.step(state, world, problems, c) for _ in range(c.steps)], state


def test_rho_moves_to_its_end_over_half_the_steps(monkeypatch, tmp_path):
    given, lines, _ = run_steps(monkeypatch, tmp_path, rho_end=1.0)
    assert [a[4].rho for a in given] == pytest.approx([0.2, 0.6, 1.0, 1.0])
    assert [x["kept_fraction"] for x in lines] == pytest.approx([0.2, 0.6, 1, 1], abs=0.02)


def test_the_frozen_base_ranks_as_it_did_before_training(monkeypatch, tmp_path):
    """With --entropy base the ranking is a function of the tokens, however far training went."""
    *_, state = run_steps(monkeypatch, tmp_path, entropy="base", lr=1e-2)
    first = Transformer(state.model.shape).init_weights(seeded())
    assert all(torch.equal(p, state.base.get_parameter(k)) for k, p in first.named_parameters())
    assert not torch.equal(first.head_weight, state.model.head_weight)


def test_kl_by_kind_is_0_before_training_and_adds_up_after(tmp_path):
    state, world, problems, c = tiny(tmp_path)
    samples, *_ = asking.ask(state.policy, world, problems[:4], 4, 8)
    still = asking.by_kind(state.policy, samples, 1.0)
    assert all(abs(still[f"kl_{k}"]) < 1e-6 for k in KINDS)
    with torch.no_grad():
        state.policy.head_weight.mul_(1.5)
    moved = asking.by_kind(state.policy, samples, 1.0)
    x = state.policy(*samples.scored())[0].detach() - samples.logprobs
    assert sum(moved[f"kl_{k}"] for k in KINDS) == pytest.approx((x.exp() - 1 - x).mean().item())


def test_a_base_goes_on_from_another_with_new_rows_for_new_words(tmp_path):
    old = Transformer(replace(SIZES["micro"], vocab_size=305)).init_weights()
    save_small(tmp_path, old, Countdown().tokenizer().words)
    recipe = Pretrain(size="micro", steps=1, lr=0.0, start=str(tmp_path))
    model, _ = pretrain(recipe, TEXT, tmp_path / "p.pt", lambda: False)
    assert torch.equal(model.head_weight[:305], old.head_weight)
    assert model.head_weight.shape[0] == 305 + 64
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(model.get_parameter(name), old.get_parameter(name))

"""The grid's plan and runs, and the one rule for comparisons, by hand."""

import json
import math
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
from common import save_small, seeded
from test_run import metrics

from infra import files
from model import SIZES, Transformer
from study import grid, stats
from study.grid import Run
from tasks.countdown import Countdown


def test_the_pooled_deviation_is_that_of_the_residuals_of_all_arms():
    squares = 2 * 0.02**2 + 2 * 0.05**2
    found = stats.pooled([[0.7, 0.72, 0.74], [0.5, 0.6], [0.1]])
    assert found == pytest.approx((math.sqrt(squares / 3), 3))
    assert stats.pooled([[0.4], [0.5]]) == pytest.approx((math.nan, 0), nan_ok=True)


def test_students_t_against_the_table():
    for df, t in ((1, 12.706), (2, 4.303), (10, 2.228), (100, 1.984)):
        assert stats.student(df) == pytest.approx(t, abs=2e-3)


@pytest.mark.parametrize("a, sd, word", [
    ([0.70, 0.71, 0.69], 0.005, "equal"), ([0.75, 0.76, 0.74], 0.005, "above"),
    ([0.65, 0.66, 0.64], 0.005, "below"), ([0.75, 0.76], 0.005, "too few runs"),
    ([0.70, 0.71, 0.69], 0.05, "undecided"),  # not shown to differ is not shown to be equal
])  # fmt: skip
def test_the_word_for_a_difference(a, sd, word):
    found = stats.difference(a, [0.70, 0.70, 0.70], sd, df=10)
    assert found["verdict"] == word
    half = 2.228 * sd * math.sqrt(1 / len(a) + 1 / 3)
    assert found["high"] - found["mean"] == pytest.approx(half, rel=1e-3)
    assert found["mean"] == pytest.approx(np.mean(a) - 0.7)


def test_a_difference_covers_the_truth_as_often_as_it_says(monkeypatch):
    """1,000 comparisons of equal arms of three runs each: the interval holds 0 in 95 of 100."""
    monkeypatch.setattr(stats, "student", cache(stats.student))
    held = 0
    for arms in np.random.default_rng(0).normal(0.7, 0.02, (1000, 4, 3)):
        found = stats.difference(arms[0], arms[1], *stats.pooled(list(arms)))
        held += found["low"] < 0 < found["high"]
    assert 930 <= held <= 970


def test_rank_correlation_by_hand():
    assert stats.spearman([1, 3, 2, 4], [1, 27, 8, 64]) == pytest.approx(1)
    assert stats.spearman([1, 3, 2, 4], [-1, -27, -8, -64]) == pytest.approx(-1)
    # ranks 1.5 4 1.5 3 and 1 4 2 3: covariance 4.5, variances 4.5 and 5
    assert stats.spearman([1, 3, 1, 2], [1, 4, 2, 3]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_an_arm_is_judged_at_the_rate_of_the_best_mean_among_those_of_most_runs():
    runs = [(1, 0.9), (2, 0.1), (2, 0.5), (3, 0.2), (3, 0.3)]  # one lucky run is no best rate
    runs = [dict(rate=r, score=x) for r, x in runs]
    assert grid.at_best_rate(runs) == runs[1:3]


def note(run: Run, **found) -> None:
    files.write_json(run.folder() / "summary.json", vars(run) | found)


def test_an_arm_takes_the_rate_of_its_best_score_and_a_control_that_of_top(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "OUT", tmp_path)
    cell = (0.4, 0.69, 8, 8)
    for arm, scores in dict(top=(0.2, 0.3, 0.25, 0.1), all=(0.3, 0.1, 0.4, 0.2)).items():
        for rate, score in zip(grid.RATES["adamw"], scores, strict=True):
            note(Run(*cell, arm, rate), score=score)
    assert grid.best_rate(*cell, "top", "adamw") == grid.RATES["adamw"][1]
    assert grid.best_rate(*cell, "all", "adamw") == grid.RATES["adamw"][2]
    assert grid.best_rate(*cell, "random", "adamw") == grid.RATES["adamw"][1]
    assert not grid.best_rate(0.4, 1.8, 8, 8, "top", "adamw")


def test_the_plan_names_every_run_once_and_its_arms_differ_by_flags_alone(monkeypatch):
    monkeypatch.setattr(grid, "best_rate", lambda *_: 2e-4)
    monkeypatch.setattr(grid, "base_of", lambda *_: "runs/base")
    for part in grid.PLAN.values():
        runs = list(part())
        assert len({r.folder() for r in runs}) == len(runs)
    configs = {a: Run(0.4, 0.69, 8, 8, a, 2e-4).config() for a in grid.ARMS}
    for arm, c in configs.items():
        own = grid.ARMS[arm] | dict(out=c.out)
        own |= dict(prompts=16) if arm == "double" else {}
        assert c == replace(configs["all"], **own)
    c = Run(0.4, 0.69, 8, 8, "top", 0.02, "sgd").config()
    assert c.lr * c.grad_clip == pytest.approx(0.02)  # the length of every step


def test_a_stopped_run_goes_on_bit_for_bit_and_a_done_one_is_left(tmp_path, monkeypatch):
    tokenizer = Countdown(**grid.world_of(0.2, 0.33)).tokenizer()
    model = Transformer(replace(SIZES["micro"], vocab_size=tokenizer.n_vocab))
    save_small(tmp_path / "base", model.init_weights(seeded()), tokenizer.words)
    monkeypatch.setattr(grid, "base_of", lambda *_: tmp_path / "base")
    # a reward that an untrained model gets now and then
    monkeypatch.setattr(Countdown, "reward", lambda _, p, text: float(len(text) % 2))
    small, quick = Run.config, dict(max_new=6, eval_problems=4, save_every=2)
    monkeypatch.setattr(Run, "config", lambda run: replace(small(run), **quick))
    run, found = Run(0.2, 0.33, 2, 2, "top", 1e-3, steps=4), []
    for looks in ([], [False, True]):
        monkeypatch.setattr(grid, "OUT", tmp_path / f"stopped {sum(looks)} times")
        look = iter(looks)
        while not run.done():
            with suppress(KeyboardInterrupt):
                grid.make(run, lambda look=look: next(look, False))
        found.append(metrics(run.folder()))
        assert not (run.folder() / "checkpoints").exists()
    assert found[0] == found[1] and len(found[0]) == 4
    assert any(line["groups"] for line in found[0]), "nothing was learned from: a weak test"
    before = (run.folder() / "summary.json").stat().st_mtime_ns
    grid.make(run, lambda: True)
    assert (run.folder() / "summary.json").stat().st_mtime_ns == before


def test_the_table_is_computed_from_the_runs_and_drawn(tmp_path, monkeypatch):
    """Two worlds of hand-made runs: differences, verdicts and colours on the page of a run."""
    monkeypatch.setattr(grid, "OUT", tmp_path / "grid")
    kinds = {k: [0.5, 0.4, 0.45] for k in ("precision", "recall", *grid.ENTROPY_COLUMNS)}
    rest = dict(arithmetic=1.0, truncated=0.0, grad_norm=0.1, kl=dict.fromkeys(grid.KINDS, 0.0))
    rest |= dict(cpu_seconds=1.0)
    recalls, about = {0.0: 0.9, 0.4: 0.3}, dict(nu=0.5, decisions=dict(entropy=0.69))
    about |= dict(held=[0.6, 0.5, 0.7])
    monkeypatch.setattr(grid, "look", lambda share, h, seed: dict(recall=recalls[share]) | about)
    for share, top in ((0.0, 0.50), (0.4, 0.40)):
        for b, (arm, mean) in product(range(3), (("all", 0.5), ("top", top))):
            found = rest | dict(score=mean + 0.01 * (arm == "all"), test=mean + 0.002 * b)
            note(Run(share, 0.69, 8, 8, arm, 2e-4, base=b), **kinds, **found)
        note(Run(share, 0.69, 8, 8, "top", 1e-4), **kinds, **rest | dict(score=0.1, test=0.9))
    page = tmp_path / "run"
    assert grid.main(["--table", str(page)]) == 0
    found = json.loads((page / "data" / "wording.json").read_text())
    plain, wordy = sorted(found["cells"], key=lambda c: c["share"])
    assert plain["sd"] == pytest.approx(0.002) and plain["df"] == 4
    assert plain["arms"]["top"]["rate"] == 2e-4  # not that of the best test accuracy
    assert plain["arms"]["top"]["minus_all"]["verdict"] == "equal"
    gap = wordy["arms"]["top"]["minus_all"]
    half = 2.776 * 0.002 * math.sqrt(2 / 3)
    assert [gap[k] for k in ("mean", "low")] == pytest.approx([-0.1, -0.1 - half], abs=1e-5)
    assert wordy["arms"]["top"]["score_minus_all"] == pytest.approx(-0.11)
    assert found["correlation"] == dict(rank=None, left_out={"0 0.69": None, "0.4 0.69": None}, n=2)
    html = (page / "report.html").read_text()
    for style in ("d8", "d0"):  # -10 of 12 points, and 0
        assert f'class="mark world {style}"' in html
    assert "filler 40% at 0.69 nats: −10.0" in html
    lines = [json.loads(x) for x in open(tmp_path / "grid" / "runs.jsonl")]
    assert len(lines) == 14

"""The grid's plan and runs, and the one rule for comparisons, by hand."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from infra import files, weights
from model import SIZES, Transformer
from study import grid, stats
from study.grid import Run
from tasks.countdown import Countdown


def test_the_pooled_deviation_is_that_of_the_residuals_of_all_arms():
    arms = [[0.7, 0.72, 0.74], [0.5, 0.6], [0.1]]
    sd, df = stats.pooled(arms)
    assert df == 3
    assert sd == pytest.approx(math.sqrt((2 * 0.02**2 + 2 * 0.05**2) / 3))
    sd, df = stats.pooled([[0.4], [0.5]])
    assert math.isnan(sd) and df == 0


def test_students_t_against_the_table():
    for df, t in ((1, 12.706), (2, 4.303), (10, 2.228), (100, 1.984)):
        assert stats.student(df) == pytest.approx(t, abs=2e-3)


@pytest.mark.parametrize(
    "a, sd, word",
    [
        ([0.70, 0.71, 0.69], 0.005, "equal"),
        ([0.75, 0.76, 0.74], 0.005, "above"),
        ([0.65, 0.66, 0.64], 0.005, "below"),
        ([0.70, 0.71, 0.69], 0.05, "undecided"),  # not shown to differ is not shown to be equal
        ([0.75, 0.76], 0.005, "too few runs"),
    ],
)
def test_the_word_for_a_difference(a, sd, word):
    found = stats.difference(a, [0.70, 0.70, 0.70], sd, df=10)
    assert found["verdict"] == word
    half = 2.228 * sd * math.sqrt(1 / len(a) + 1 / 3)
    assert found["high"] - found["mean"] == pytest.approx(half, rel=1e-3)
    assert found["mean"] == pytest.approx(np.mean(a) - 0.7)


def test_a_difference_covers_the_truth_as_often_as_it_says():
    """1,000 comparisons of equal arms of three runs each: the interval holds 0 in 95 of 100."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        arms = rng.normal(0.7, 0.02, (4, 3))
        found = stats.difference(arms[0], arms[1], *stats.pooled(list(arms)))
        held += found["low"] < 0 < found["high"]
    assert 930 <= held <= 970


def test_rank_correlation_by_hand():
    assert stats.spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert stats.spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # ranks 1 2.5 2.5 4 and 1 2 3 4: covariance 4.5, variances 4.5 and 5
    assert stats.spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


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
    world = Countdown(**grid.world_of(0.2, 0.33))
    model = Transformer(replace(SIZES["micro"], vocab_size=world.tokenizer().n_vocab))
    model.init_weights(torch.Generator().manual_seed(0))
    base = tmp_path / "base"
    weights.save_model(base, model.shape, world.tokenizer().words, model.state_dict())
    monkeypatch.setattr(grid, "base_of", lambda *_: base)
    rng = random.Random(0)
    marks = {}  # a reward that an untrained model gets now and then
    monkeypatch.setattr(
        Countdown, "reward", lambda _, p, text: marks.setdefault(text, float(rng.random() < 0.5))
    )
    small = Run.config
    monkeypatch.setattr(
        Run, "config", lambda r: replace(small(r), max_new=6, eval_problems=4, save_every=2)
    )
    run, found = Run(0.2, 0.33, 2, 2, "top", 1e-3, steps=4), []
    for out in ("whole", "stopped"):
        monkeypatch.setattr(grid, "OUT", tmp_path / out)
        marks.clear()
        rng.seed(0)
        looks = iter([False, True] if out == "stopped" else [])
        while not run.done():
            try:
                grid.make(run, lambda looks=looks: next(looks, False))
            except KeyboardInterrupt:
                pass
        lines = [json.loads(x) for x in open(run.folder() / "metrics.jsonl")]
        timed = ("tok_s", "seconds")
        found.append([{k: v for k, v in x.items() if not k.endswith(timed)} for x in lines])
        assert not (run.folder() / "checkpoints").exists()
    assert found[0] == found[1] and len(found[0]) == 4
    before = (run.folder() / "summary.json").stat().st_mtime_ns
    grid.make(run, lambda: True)
    assert (run.folder() / "summary.json").stat().st_mtime_ns == before


def test_the_table_is_computed_from_the_runs_and_drawn(tmp_path, monkeypatch):
    """Two worlds of hand-made runs: differences, verdicts and colours on the page of a run."""
    monkeypatch.setattr(grid, "OUT", tmp_path / "grid")
    kinds = {k: [0.5, 0.4, 0.45] for k in ("precision", "recall", *grid.ENTROPY_COLUMNS)}
    rest = dict(arithmetic=1.0, truncated=0.0, grad_norm=0.1, kl=dict.fromkeys(grid.KINDS, 0.0))
    bases = {0.0: (0.9, 0.70), 0.4: (0.3, 0.69)}

    def look(share: float, entropy: float, seed: int) -> dict:
        recall, h = bases[share]
        return dict(recall=recall, nu=0.5, decisions=dict(entropy=h), held=[0.6, 0.5, 0.7])

    monkeypatch.setattr(grid, "look", look)
    for share, top in ((0.0, 0.50), (0.4, 0.40)):
        for b in range(3):
            for arm, mean in (("all", 0.5), ("top", top)):
                score = mean + 0.01 * (arm == "all")
                run = Run(share, 0.69, 8, 8, arm, 2e-4, base=b)
                note(run, score=score, test=mean + 0.002 * b, cpu_seconds=1.0, **kinds, **rest)
        note(
            Run(share, 0.69, 8, 8, "top", 1e-4), score=0.1, test=0.9, cpu_seconds=1, **kinds, **rest
        )
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

"""The mask and the objective by hand, what a flag does, and what is refused before anything is
learned.  A whole step is test_step.py's."""

import math
from dataclasses import fields, replace
from fractions import Fraction

import pytest
import torch
from common import TIMING, config, random_model, seeded
from test_step import Sums

import fork_gpt
from fork_gpt import Config, surrogate, top_entropy
from infra import flags
from infra.files import Clock, UserError
from model import Shape
from rollout import generate
from tasks.ask import countdown_of, folder_of, recipe_of, remark
from tasks.countdown import Countdown
from tasks.pretrain import Pretrain

# ---------------------------------------------------------------------- the mask

TEN = [0.8, 0.0, 0.5, 1.0, 0.3, 0.2, 0.9, 0.1, 0.7, 0.4]


@pytest.mark.parametrize("h, rho, kept, tau", [
    (TEN, 0.1, {3}, 1.0), (TEN, 0.2, {3, 6}, 0.9), (TEN, 0.5, {0, 2, 3, 6, 8}, 0.5),
    (TEN, 1.0, {*range(10)}, 0.0), ([0.0], 0.2, {0}, 0.0), ([], 0.2, set(), math.inf),
    (TEN, 1e-9, {3}, 1.0),  # a share that rounds to no token: the 0-th largest was asked for
    # `>= quantile` keeps everything when entropies tie, as a confident small model's do
    ([0.1, 0.25, 0.25, 0.25, 0.3], 0.6, {1, 2, 4}, 0.25), ([0.25] * 1000, 0.2, {*range(200)}, 0.25),
    # a certain token's H can come out as -1e-9 or -0.0, whose bits sort above every number
    ([-1e-9, 0.5, -0.0, 0.4, 0.3], 0.4, {1, 3}, 0.4),
])  # fmt: skip
def test_kept_set_by_hand(h, rho, kept, tau):
    mask, got = top_entropy(torch.tensor(h), rho)
    assert set(mask.nonzero()[:, 0].tolist()) == kept
    assert got == pytest.approx(tau)


def test_the_count_is_the_ceiling_of_the_decimal_product():
    """0.07 * 100 is 7.000000000000001 in floats: a bare ceil keeps 8."""
    cases = [(0.07, 100), (0.14, 50), (0.28, 25), (0.55, 100)]
    assert all(math.ceil(rho * n) == round(rho * n) + 1 for rho, n in cases)
    cases += [(r / 100, n) for r in range(1, 101, 3) for n in (1, 7, 25, 31, 50, 100)]
    for rho, n in cases:
        k = math.ceil(Fraction(str(rho)) * n)
        assert top_entropy(torch.rand(n, generator=seeded()), rho)[0].sum() == k, (rho, n)


def test_threshold_of_more_than_2_to_the_24_values():
    """torch.quantile raises above; a long-answer batch has more tokens."""
    n = 2**24 + 4096
    x = torch.arange(n, dtype=torch.float32).flip(0)  # neighbours above 2^24 tie in fp32
    k = math.ceil(0.2 * n)
    mask, tau = top_entropy(x, 0.2)
    assert int(mask.sum()) == k and mask[:k].all() and tau == n - k


# ---------------------------------------------------------------------- the objective


@pytest.mark.parametrize("ratio, advantage, dual, term, clipped", [
    (1.0, 2.0, 0, 2.0, False),
    (1.5, 2.0, 0, 2.56, True),  # 1.28 * 2
    (1.5, -2.0, 0, -3.0, False),  # a worse action got likelier: the pessimistic bound is free
    (0.5, 2.0, 0, 1.0, False),
    (0.5, -2.0, 0, -1.6, True),  # 0.8 * -2
    (1.27, 1.0, 0, 1.27, False), (0.81, -1.0, 0, -0.81, False),
    (54.6, -1.0, 10, -10.0, True),  # the dual clip bounds negative advantages alone
    (54.6, 1.0, 10, 1.28, True), (9.9, -1.0, 10, -9.9, False),
    (math.exp(19.9), -1.0, 0, -math.exp(19.9), False),
    (math.exp(25), -1.0, 0, -math.exp(20), False),  # far outside any clip, and finite
])  # fmt: skip
def test_clip_by_hand(ratio, advantage, dual, term, clipped):
    old = torch.tensor([-1.0], dtype=torch.float64)
    A, c = torch.tensor([advantage], dtype=torch.float64), Config(dual_clip=float(dual))
    terms, was = surrogate(old + math.log(ratio), old, A, c)
    assert terms.item() == pytest.approx(term, rel=1e-12) and was.item() == clipped


def test_entropies_that_are_not_finite_are_refused_before_anything_is_learned():
    """A NaN's bits sort above every number, or crash the select, depending on its sign."""
    model = random_model(Shape(16, 2, 4, 2, 8, 24, 37))
    samples, c = generate(model, [[1, 2, 3], [4, 5]], 2, 9, 0), Config()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    for first in (True, False):
        if first:
            samples.entropy[-1] = math.nan
        with pytest.raises(UserError, match="not finite.*--lr"):
            fork_gpt.update(model, samples, torch.ones(4), [*range(4)], c, 0, first)
        assert all(p.grad is None for p in model.parameters())


# ---------------------------------------------------------------------- what a flag does

LEARNING = dict(
    prompts=3, group=4, updates=2, max_new=9, microbatch=60, lr=0.02, warmup=1, overlong=4,
    clip_low=0.05, clip_high=0.06, dual_clip=2.0, grad_clip=0.5, oversample=1.2,
)  # fmt: skip
# a value other than that of LEARNING, and what else must be so for it to count
CHANGES = dict(
    seed=1, keep="all", rho=0.4, entropy="rollout", pool="microbatch", normalize="all", prompts=4,
    group=5, updates=3, oversample=2.0, rounds=4, max_new=8, overlong=3, temperature=0.8,
    clip_low=0.01, clip_high=0.01, dual_clip=1.1, optimizer="sgd", lr=0.03, warmup=9,
    weight_decay=0.9, beta2=0.5, grad_clip=0.1, dtype="bfloat16", rho_end=0.5,
)  # fmt: skip
WITH = dict(dual_clip=dict(lr=0.5), rounds=dict(rounds=1), entropy=dict(lr=0.1))
SPEED = dict(rows=4, microbatch=20, recompute=True)
ELSEWHERE = (
    "out resume device threads steps tp "  # test_run, and below
    "model data eval_data template system verifier "  # test_road, test_wrong_inputs
    "max_prompt holdout skip_bad "
    "size pretrain_steps base_seed n_numbers max_number max_value ops "  # below
    "attempts filler_share filler_entropy "
    "save_every eval_every eval_k eval_problems snapshot_every wandb tensorboard"  # test_run
).split()


def learned(**flags) -> list[float]:
    """The weights after three steps, and their log but for what the clock decides."""
    model = random_model(Shape(16, 1, 2, 1, 8, 24, 12, rope_theta=1e4))
    c, problems = Config(**LEARNING | dict(dtype="float64") | flags), list(range(14))
    state, out = fork_gpt.begin(model, problems, c, Clock()), []
    for _ in range(3):
        line = fork_gpt.step(state, Sums(), problems, c)
        out += [x for k, x in line.items() if k not in (*TIMING, "max_dlogp", "tau")]
    return out + [p.double().sum().item() for p in model.parameters()]


def test_every_flag_does_something_and_those_of_speed_nothing_else(fp64):
    """An ignored flag is a silent fallback."""
    names = [*CHANGES, *SPEED, *ELSEWHERE]
    assert sorted(names) == sorted(f.name for f in fields(Config)), "each flag once"
    base = learned()
    for name, value in CHANGES.items():
        before = learned(**WITH[name]) if name in WITH else base
        assert learned(**WITH.get(name, {}) | {name: value}) != before, name
    for name, value in SPEED.items():  # sums in another order, and entropies noted in fp32
        assert learned(**{name: value}) == pytest.approx(base, rel=1e-6), name


def test_flags_make_the_small_world_and_its_base():
    c = Config(n_numbers=2, max_number=5, max_value=9, ops="+-", attempts=4, filler_share=0.2,
               filler_entropy=0.5, size="mini", pretrain_steps=7, base_seed=3)  # fmt: skip
    assert countdown_of(c) == Countdown(2, 5, "+-", 9, 3, 4, 0.2, 0.5)
    assert recipe_of(c) == Pretrain(size="mini", steps=7, seed=3)


@pytest.mark.parametrize("accuracy, truncated, word", [
    (0, 1.0, "cut"), (0, 0.5, "wrong"), (1, 0.0, "right: take harder"), (0.5, 0.0, "--group"),
])  # fmt: skip
def test_a_step_without_a_mixed_group_says_why(accuracy, truncated, word):
    """`reward 0, kept 0` for hours."""
    line = dict(groups=0, accuracy=accuracy, truncated=truncated)
    said = remark(line, Config())
    assert said.startswith("no group was mixed, nothing to learn from: ") and word in said
    assert remark(line | dict(groups=1), Config()) == ""


def test_defaults_follow_the_problem_and_a_run_is_named_after_it(tmp_path):
    small, maths = config(), config("--model", "a/Q", "--data", "d/aime/test.jsonl,x.jsonl")
    assert (small.lr, small.max_new, small.overlong, small.dtype) == (1.5e-4, 160, 0, "float32")
    assert (maths.lr, maths.max_new, maths.overlong, maths.warmup) == (1e-6, 20480, 4096, 10)
    assert config("--model", "a", "--data", "d", "--max-new", "1000").overlong == 200
    names = [str(folder_of(c)) for c in (small, maths)]
    assert names == ["runs/top-rho0.2-seed0", "runs/Q-aime+x-top-rho0.2-seed0"]
    assert "--lr=1e-06" in flags.taken(maths) and "--lr=0.00015" in flags.taken(small)


def test_which_flags_a_run_may_go_on_with(tmp_path):
    """Not with what changes the learning: a pool cut otherwise, a rho that moves otherwise."""
    for own, refused in (((), "lr"), (("--pool", "microbatch"), "microbatch"),
                         (("--rho-end", "0.5"), "steps")):  # fmt: skip
        c = config("--out", str(tmp_path / refused), *own)
        fork_gpt.claim_folder(c)
        anew = dict(steps=9, rows=3, microbatch=7, lr=0.5, device="cpu", save_every=2)
        with pytest.raises(UserError, match=f"--{refused} cannot change in a run"):
            fork_gpt.configure(dict(resume=c.out) | {refused: anew.pop(refused)})
        anew = {k: x for k, x in anew.items() if k not in ("lr", refused)}
        again = fork_gpt.configure(dict(resume=c.out) | anew)
        assert again == replace(c, resume=c.out, **anew)
        fork_gpt.claim_folder(again)  # and its folder is its own, and nobody else's
        (tmp_path / refused / "metrics.jsonl").write_text("{}\n")
        with pytest.raises(UserError, match="--lr 0.00015 there, 0.1 here"):
            fork_gpt.claim_folder(replace(c, lr=0.1))


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize("line, words", [
    ("--reho 0.2", "--reho|--help"), ("--rho 0", "--rho 0.0|(0, 1]"),
    ("--rho 1.5", "--rho 1.5|(0, 1]"), ("--rho nan", "--rho nan|(0, 1]"),
    ("--keep most", "--keep|top"), ("--keep bottom --rho 1", "--rho 1.0|bottom"),
    ("--steps many", "--steps|many"), ("--oversample inf", "--oversample inf"),
    (f"--seed {2**64}", "--seed|1e18"), ("--beta2 1.5", "--beta2 1.5"),
    ("--temperature 1e-9", "--temperature 1e-09|0.01"),
    ("--overlong 200", "--overlong 200|--max-new"), ("--dual-clip 0.5", "--dual-clip 0.5|above 1"),
    ("--ops ++", "--ops '++'"), ("--holdout 0.1", "--holdout|ignored|--data"),
    ("--data x.jsonl", "--data|ignored|--model"), ("--size mini --model runs/x", "--size|ignored"),
    ("--size huge", "--size 'huge'|tiny"), ("--group 1", "--group 1|2"), ("--lr nan", "--lr nan"),
    ("--resume runs/none", "runs/none|config.json"),
    ("--max-number 1", "too few problems"), ("--device cuda", "--device cuda|auto"),
])  # fmt: skip
def test_a_wrong_flag_is_one_clear_line(line, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fork_gpt.main(line.split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(w in said for w in words.split("|")), said
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_flag_with_its_default_in_under_90_lines(capsys):
    with pytest.raises(SystemExit):
        fork_gpt.main(["--help"])
    out = capsys.readouterr().out
    assert out.count("\n") < 90
    for flag in ("--eval", "--arms", "--seeds", "--jobs", "--top-p"):
        assert f" {flag} " in out
    for f in fields(Config):
        name = "--" + f.name.replace("_", "-")
        (said,) = [x for x in out.splitlines() if x.split()[:1] == [name]]
        assert (" * " in said[:24]) == bool(f.metadata["free"])
        assert f.metadata["text"] in said
        for maths in (False, True):
            assert flags.shown(f, maths) in said.split() + [""]

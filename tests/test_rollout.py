"""The sampler: it agrees with the trainer, draws what it says, and loses or repeats no row."""

import math
import re
import runpy
import sys
import time
from copy import deepcopy
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from common import ROOT, all_logits, rounding, save_small, seeded
from test_step import uniform as slow_uniform
from torch.testing import assert_close

import parallel
import rollout
from infra import files
from model import Shape, Transformer
from rollout import Rollout, Sampling, Slots, colour_trace, generate, nucleus, pick, sample
from tasks.countdown import Countdown

V, EOS = 23, 2
PROMPTS = [[3], [4, 5, 6, 7, 8], [9, 9, 10], [1, 2, 3, 4, 5, 6, 7, 8, 9], [11, 12], [5] * 4]
TWO = Sampling(temperature=0.6, threshold=2.4, t_fork=1.2)
ODDS = 1e-6  # false alarms of each chi-square test, were its seed drawn anew
FP32 = rounding(5, 40)  # log-probs and entropies: logits below 5, forty operations on the way


@pytest.fixture(scope="module")
def model() -> Transformer:
    return Transformer(Shape(32, 2, 4, 2, 12, 48, V, rope_theta=1e4)).init_weights(seeded())


def uniforms(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, generator=seeded(seed), dtype=torch.float64)


# ------------------------------------------------------------------ decode = prefill = trainer


@pytest.mark.parametrize("look_every", (1, 5))
@pytest.mark.parametrize("how", (Sampling(), Sampling(0.7), TWO), ids=("T1", "T0.7", "two"))
@pytest.mark.parametrize("G, rows", ((3, 7), (1, 2), (2, 512)))
def test_recorded_logprobs_and_entropies_are_the_trainers(
    model, how, G, rows, look_every, monkeypatch
):
    """The first token is drawn by the prefill, the others by decoding.  In fp64, of which the
    records are rounded once."""
    model = deepcopy(model).double()
    monkeypatch.setitem(rollout.LOOK_EVERY, "cpu", look_every)
    samples = generate(model, PROMPTS, G, 20, EOS, how, 0, None, rows)
    lengths = samples.lengths().tolist()
    assert 1 <= min(lengths) < max(lengths) == 20  # rows ended early, and rows ran to the limit
    _, cu, rows, targets = samples.scored()
    with torch.no_grad():
        logits = all_logits(model, samples.tokens, cu)[rows]
    p, t = logits.softmax(-1), torch.full((sum(lengths), 1), how.temperature)
    if how.threshold is not None:
        t[-(p * p.log()).sum(-1) >= how.threshold] = how.t_fork
    logp = (logits / t).log_softmax(-1)
    logprobs, entropy = logp.gather(-1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)
    assert_close(samples.logprobs, logprobs.float(), rtol=0, atol=rounding(5, 2))
    assert_close(samples.entropy, entropy.float(), rtol=0, atol=rounding(5, 2))


def test_never_written_cache_memory_is_never_read(model):
    """Uninitialised memory may hold NaN, and NaN + -inf is NaN: the bias alone does not mask it."""
    before = generate(model, PROMPTS, 2, 12, EOS)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new memory with NaN
    try:
        assert torch.empty(3).isnan().all()
        after = generate(model, PROMPTS, 2, 12, EOS)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(x, getattr(after, name)) for name, x in vars(before).items())
    assert before.responses() != generate(model, PROMPTS, 2, 12, EOS, seed=1).responses()


# ------------------------------------------------------------------ where a sample ends


@pytest.mark.parametrize("how, look_every, rows", ((Sampling(0.0), 1, 512), (Sampling(), 4, 4)))
def test_a_sample_ends_with_any_end_of_text_or_at_the_limit(
    model, how, look_every, rows, monkeypatch
):
    """A sampler that drops the end-of-text token never trains the decision to stop."""
    monkeypatch.setitem(rollout.LOOK_EVERY, "cpu", look_every)
    free = generate(model, PROMPTS, 1, 12, None, how).responses()
    assert [len(ids) for ids in free] == [12] * len(PROMPTS)  # without `eos` nothing ends early
    for eos in [*{t for ids in free for t in ids}, {EOS, free[0][2], free[1][0]}]:
        stops = eos if isinstance(eos, set) else {eos}
        for max_new in (1, 5, 12):
            cut = generate(model, PROMPTS, 1, max_new, eos, how, max_rows=rows)
            for ids, found, done in zip(free, cut.responses(), cut.finished, strict=True):
                end = next((i for i, t in enumerate(ids, 1) if t in stops), 99)
                assert found == ids[: min(end, max_new)] and bool(done) == (end <= max_new)


def test_no_new_token_no_prompt_and_an_empty_prompt(model):
    with pytest.raises(ValueError, match="max_new is 0"):
        generate(model, PROMPTS, 2, 0, EOS)
    nobody = generate(model, [], 2, 5, EOS)
    assert nobody.responses() == [] and nobody.cu_seqlens.tolist() == [0]
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        generate(model, [[3], [], [4]], 2, 5, EOS)


def test_a_signal_that_waits_leaves_the_rest_undone(model, monkeypatch):
    """A rollout of 20,480 tokens heard of Ctrl-C when it was over."""
    whole = generate(model, PROMPTS, 2, 10, None).tokens
    monkeypatch.setattr(files, "CAUGHT", [time.monotonic()])  # what ends in seconds is not cut
    assert torch.equal(generate(model, PROMPTS, 2, 10, None).tokens, whole)
    monkeypatch.setattr(files, "CAUGHT", [time.monotonic() - 9])
    part = generate(model, PROMPTS, 2, 10, None)
    assert part.response.any() and len(part.tokens) < len(whole)
    with pytest.raises(files.Stopped):
        next(parallel.attended([1]))


# ------------------------------------------------------------------ whom it depends on


@pytest.mark.parametrize("how", (Sampling(0.0), Sampling(), TWO), ids=("greedy", "T1", "two"))
def test_a_sample_does_not_depend_on_who_shares_the_batch(model, how, monkeypatch):
    """Its random numbers are those of its own number, sample and place, wherever it is decoded: in
    a batch of others, in another order, beside the other samples of its group or not."""
    model = deepcopy(model).double()  # in fp32 a rounding may move a boundary past a number

    def texts(which: list[int], G: int, look_every: int = 1, rows: int = 512) -> list[list[int]]:
        monkeypatch.setitem(rollout.LOOK_EVERY, "cpu", look_every)
        some = [PROMPTS[i] for i in which]
        return generate(model, some, G, 9, EOS, how, 7, which, rows).responses()

    alone = [texts([i], 3) for i in range(6)]
    assert how.temperature == 0 or len({str(ids) for group in alone for ids in group}) == 18
    for look_every, rows in ((1, 3), (1, 4), (1, 7), (1, 512), (2, 4), (7, 7), (50, 5)):
        assert texts(range(6), 3, look_every, rows) == sum(alone, [])
    order = [4, 0, 5, 2, 3, 1]
    assert texts(order, 3, 2, 7) == sum((alone[i] for i in order), [])
    assert texts(range(6), 2, 1, 5) == sum((group[:2] for group in alone), [])


# ------------------------------------------------------------------ how the work is done


@pytest.mark.parametrize("G, max_rows", ((1, 3), (2, 6), (3, 3), (4, 13)))
def test_a_prompt_is_prefilled_once_and_rows_that_ended_make_room_at_once(
    model, G, max_rows, monkeypatch
):
    """A batch that waits for its slowest row decodes rows that ended, or leaves slots empty."""
    passes, decoded, backbone, decode = [], [], model.backbone, Slots.decode

    def noted(tokens, *rest):
        passes.append(tokens.tolist())
        return backbone(tokens, *rest)

    def noted_decode(*args):
        logits = decode(*args)
        decoded.append(len(passes.pop()))
        return logits

    monkeypatch.setattr(model, "backbone", noted)
    monkeypatch.setattr(Slots, "decode", noted_decode)
    samples = generate(model, PROMPTS * 3, G, 20, EOS, seed=3, max_rows=max_rows)
    assert sum(passes, []) == sum(PROMPTS * 3, [])  # whatever the group
    lengths = samples.lengths().tolist()
    assert len(set(lengths)) > 5
    groups = [lengths[i : i + G] for i in range(0, len(lengths), G)]
    # the ideal schedule: a step gives each active row a token; a free slot admits at once
    active, steps = [], 0
    while groups or active:
        while groups and max_rows - len(active) >= G:
            active += [max(n - 1, 1) for n in groups.pop(0)]  # a pass at least after the prefill
        active = [n - 1 for n in active if n > 1]
        steps += 1
    barrier = [max(lengths[i : i + max_rows]) for i in range(0, len(lengths), max_rows)]
    assert len(decoded) <= steps and max(decoded) <= max_rows
    assert G == max_rows or steps < sum(n - 1 for n in barrier)
    assert sum(decoded) <= sum(max(n - 1, 1) for n in lengths)


# ------------------------------------------------------------------ random numbers


def test_random_numbers_are_those_of_splitmix64():
    """A function of seed, prompt, sample and place: here against Python's own integers.  The very
    first of seed 0 was once 0, mix's fixed point, and the token the first of the vocabulary."""
    numbers, places = torch.tensor([0, 1, 5, 2**62]), torch.arange(4)
    for seed in (0, 1, 2**63 - 1):
        stream = rollout.streams(seed, numbers, 3)
        found = [rollout.uniform(stream, torch.full((12,), place)) for place in places]
        whose = [(seed or rollout.GOLDEN, n, g) for n in numbers.tolist() for g in range(3)]
        want = [[slow_uniform(*who, place) for who in whose] for place in range(4)]
        assert torch.stack(found).tolist() == want and found[0].dtype == torch.float64


ROWS = {
    "plain": [0.1, 0.5, 0.15, 0.25],
    "zeros": [0, 0, 0.3, 0, 0.7, 0, 0, 0],
    "rare": [1.0, *[1e-8] * 126, 1e-12],
    "rare first": [*[1e-8] * 127, 1.0],
    "no common divisor": [1.0, 2.0, 3.0, 4.0, 5.0],
    "blocks": [1 / (i + 1) for i in range(384)],
    "unnormalised, tiny": [1e-30, 3e-30],
}


@pytest.mark.parametrize("name", ROWS)
def test_each_token_has_its_share_of_the_unit_interval(name):
    """In fp32, 127 tokens of p 1e-8 beside one of p 1 were drawn 0 times in 35 million, and at
    u = 0 or just below 1 a token of p = 0 was."""
    p = torch.tensor(ROWS[name])  # fp32, and what it says is exact
    shares = [Fraction(x) for x in p.tolist()]
    total, below, u, want = sum(shares), Fraction(0), [0.0, 1 - 2**-53], []
    possible = [v for v, share in enumerate(shares) if share]
    want += [possible[0], possible[-1]]
    for v in possible:  # a hundredth inside the ends of the token's piece, if 53 bits can tell
        for at in (below + shares[v] / 100, below + shares[v] * 99 / 100):
            u.append(float(at / total))
            want.append(v)
        below += shares[v]
    found = pick(p.expand(len(u), -1), torch.tensor(u, dtype=torch.float64)).tolist()
    assert found == want


def test_a_share_that_rounds_up_to_1_is_the_last_token_with_a_chance():
    """Its own running sum passes no goal; on a GPU sums round in another order than on a CPU."""
    place, _ = rollout.passed(torch.tensor([[0.25, 0.5, 0.0]]), torch.tensor([1.0]).double())
    assert place.tolist() == [1]


# ------------------------------------------------------------------ the distribution drawn from


def p_value(tokens: torch.Tensor, p: torch.Tensor) -> float:
    """Chi-square test of drawn tokens against the probabilities p (V,), cells below 10 pooled."""
    expected = p.double() * len(tokens)
    counts = torch.bincount(tokens, minlength=len(p)).double()
    assert not counts[p == 0].any()
    rare = expected < 10
    expected, counts = (torch.cat((x[~rare], x[rare].sum()[None])) for x in (expected, counts))
    cells = expected > 0
    statistic = ((counts - expected) ** 2 / expected)[cells].sum()
    free = cells.sum().double() - 1
    return float(torch.special.gammaincc(free / 2, statistic / 2)) if free else 1.0


FORK = torch.tensor([1.0, 0.6, 0.3, 0.0, 0.9, -0.5, -1.0, 0.2])  # about 2.0 nats
SURE = torch.tensor([0.0, 4.5, -1.0, 1.0, 0.5, -2.0, 1.5, 0.0])  # about 0.4 nats
N = 20_000


def probabilities(row: torch.Tensor, temperature: float) -> torch.Tensor:
    if temperature == 0:
        return F.one_hot(row.argmax(), len(row)).double()
    return (row.double() / temperature).softmax(-1)


def check_drawn(drawn, p: torch.Tensor, *others: torch.Tensor) -> None:
    """Tokens, log-probs and entropies are those of p (V,), and not those of any other."""
    tokens, logprobs, entropy = drawn
    assert p_value(tokens, p) > ODDS
    for other in others:  # it can fail
        assert p_value(tokens, other) < ODDS
    of = p[p > 0]
    expected = torch.full((len(tokens),), -float((of * of.log()).sum()))
    assert_close(logprobs.double(), p.log()[tokens], rtol=0, atol=FP32)
    assert_close(entropy, expected, rtol=0, atol=FP32)
    assert logprobs.dtype == entropy.dtype == torch.float32


@pytest.mark.parametrize("row", (FORK, SURE))
@pytest.mark.parametrize("temperature", (1.0, 0.7, 1.5))
def test_sampling_has_the_softmax_frequencies(temperature, row):
    p, other = probabilities(row, temperature), probabilities(row, temperature * 1.15)
    for how in (Sampling(temperature), Sampling(0.0, 0.1, temperature)):  # every row a fork
        check_drawn(sample(row.repeat(N, 1), how, uniforms(N)), p, other, p.roll(1))


@pytest.mark.parametrize("t_other, t_fork", ((0.6, 1.3), (1.4, 0.7), (0.0, 1.0), (1.0, 0.0)))
def test_two_temperatures_have_the_frequencies_of_each_rows_own(t_other, t_fork):
    """Eq. 5: T_fork where the entropy at T=1 reaches the threshold, T_other elsewhere."""
    how = Sampling(t_other, 1.0, t_fork)
    drawn = sample(torch.stack((FORK, SURE)).repeat(N, 1), how, uniforms(2 * N))  # alternating
    for i, (row, t, swapped) in enumerate(((FORK, t_fork, t_other), (SURE, t_other, t_fork))):
        others = [probabilities(row, swapped)] if t and swapped else []
        check_drawn([x[i::2] for x in drawn], probabilities(row, t), *others)


def test_the_threshold_is_reached_from_the_entropy_itself_on():
    """`>=`, and of the distribution at T=1, whatever the temperatures."""
    at_one = rollout.entropy_of(FORK[None].log_softmax(-1))
    above = float(torch.nextafter(at_one, torch.tensor(9.0)))
    for threshold, t in ((float(at_one), 0.5), (above, 3.0)):
        _, _, entropy = sample(FORK[None], Sampling(3.0, threshold, 0.5), uniforms(1))
        p = probabilities(FORK, t)
        assert float(entropy) == pytest.approx(-float((p * p.log()).sum()), abs=FP32)


def test_greedy_is_a_point_with_logprob_0_and_entropy_0():
    rows = torch.randn(50, V, generator=seeded())
    for how in (Sampling(0.0), Sampling(0.0, 1.0, 0.0)):
        tokens, logprobs, entropy = sample(rows, how, uniforms(50))
        assert tokens.tolist() == rows.argmax(-1).tolist()
        assert logprobs.tolist() == [0.0] * 50 and entropy.abs().tolist() == [0.0] * 50


def test_underflowing_probabilities_give_finite_records():
    """0 log 0 is 0, not NaN, and a token of probability 0 is never drawn."""
    row = torch.tensor([2.0, 2.0, -1e5, -1e30])
    for how in (Sampling(), Sampling(0.01), Sampling(0.01, 0.1, 1.0), Sampling(0.5, 9.0, 1.0)):
        tokens, logprobs, entropy = sample(row.repeat(500, 1), how, uniforms(500))
        assert tokens.unique().tolist() == [0, 1]
        assert_close(logprobs, torch.full((500,), -math.log(2)), rtol=0, atol=FP32)
        assert_close(entropy, torch.full((500,), math.log(2)), rtol=0, atol=FP32)


def test_bf16_logits_are_sampled_and_recorded_in_fp32():
    row = FORK.bfloat16()
    drawn = sample(row.repeat(N, 1), Sampling(0.7), uniforms(N))
    check_drawn(drawn, probabilities(row.float(), 0.7))


# ------------------------------------------------------------------ the nucleus


def of_nucleus(p: torch.Tensor, top_p: float) -> torch.Tensor:
    """Probabilities (V,), 0 below the one with which the sum of the likeliest reaches top_p."""
    ranked = p.sort(descending=True).values
    least = ranked[(ranked.cumsum(0) < top_p).sum()]
    return p.where(p >= least, 0) / p[p >= least].sum()


@pytest.mark.parametrize("top_p, top_k, expected", [
    (0.4, 0, [4, 0, 0, 0]), (0.6, 0, [4, 3, 0, 0]), (0.8, 0, [4, 3, 2, 0]),
    (0.95, 0, [4, 3, 2, 1]), (1.0, 1, [4, 0, 0, 0]), (1.0, 3, [4, 3, 2, 0]),
    (1.0, 99, [4, 3, 2, 1]), (0.42, 3, [4, 0, 0, 0]),  # top_p of what top_k left
])  # fmt: skip
def test_top_k_draws_from_the_likeliest_and_top_p_from_those(top_p, top_k, expected):
    order, want = torch.tensor([2, 0, 3, 1]), torch.tensor(expected).double()
    logp = torch.tensor([0.4, 0.3, 0.2, 0.1]).double().log()[order]
    assert_close(nucleus(logp[None], top_p, top_k).exp()[0], (want / want.sum())[order])


@pytest.mark.parametrize("top_p", (0.0, 0.05, 0.3, 0.7, 0.95, 0.999))
def test_the_nucleus_in_a_large_vocabulary(top_p):
    """At top_p 0 nothing was left, and all of the vocabulary was drawn from alike."""
    logp = (3 * torch.randn(40, 50, generator=seeded(), dtype=torch.float64)).log_softmax(-1)
    found, expected = nucleus(logp, top_p), torch.stack([of_nucleus(p, top_p) for p in logp.exp()])
    assert_close(found.exp(), expected, rtol=1e-9, atol=0)
    assert (found[expected == 0] < -1e29).all() and found.isfinite().all()  # 0 log 0 is 0


def test_the_nucleus_has_its_frequencies_and_is_what_is_recorded():
    logits = torch.randn(24, generator=seeded(3))
    expected = of_nucleus(probabilities(logits, 0.8), 0.8)  # (24,)
    assert 3 <= (expected > 0).sum() < 20
    how = Sampling(temperature=0.8, top_p=0.8)
    check_drawn(sample(logits.expand(N, -1), how, uniforms(N, 4)), expected)


# ------------------------------------------------------------------ Rollout


def slow(samples: Rollout) -> list[list]:
    """Every sample as plain lists, and whether it finished."""
    sizes = samples.cu_seqlens.diff().tolist()
    drawn = [int(x.sum()) for x in samples.response.split(sizes)]
    parts = [x.split(sizes) for x in (samples.tokens, samples.response)]
    parts += [x.split(drawn) for x in (samples.logprobs, samples.entropy, samples.kinds)]
    return [[x.tolist() for x in sample] for sample in zip(*parts, samples.finished, strict=True)]


def test_a_rollout_is_cut_and_joined_as_its_samples_are(model):
    """`finished` has no dimension in common with the tokens: it was once left in its old order."""
    samples = generate(model, PROMPTS, 2, 10, EOS)
    samples.kinds = torch.arange(len(samples.kinds))
    plain, responses = slow(samples), []
    assert len({finished for *_, finished in plain}) == 2
    for i, (tokens, response, *_) in enumerate(plain):
        n = len(PROMPTS[i // 2])
        assert tokens[:n] == PROMPTS[i // 2] and response == [False] * n + [True] * len(tokens[n:])
        responses.append(tokens[n:])
    assert samples.responses() == responses
    assert samples.lengths().tolist() == [len(ids) for ids in responses]
    for which in ([0], [11, 3, 3, 0], list(range(11, -1, -1))):
        assert slow(samples.sequences(which)) == [plain[i] for i in which]
    none = samples.sequences([])  # a token that nobody sampled, for a rank that keeps step
    assert len(none.tokens) == 1 and none.cu_seqlens.tolist() == [0, 1] and not none.response[0]
    assert len(none.logprobs) == len(none.entropy) == len(none.kinds) == len(none.finished) == 0
    a, b = samples.sequences([5, 1]), generate(model, [[1, 2]], 1, 1, EOS)
    joined = Rollout.join([a, b, samples])
    assert slow(joined) == slow(a) + slow(b) + plain
    assert joined.cu_seqlens.dtype == a.cu_seqlens.dtype == torch.int32


# ------------------------------------------------------------------ what people see

WORDS, ENTROPY = [" try", " 8", " +", " 3"], [0.0, 1.31, 0.52, 0.49]


def test_a_trace_without_colour_has_the_high_entropies_in_brackets(monkeypatch):
    plain = " try 8[1.31] +[0.52] 3"
    assert colour_trace(WORDS, ENTROPY, colour=False) == plain
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert colour_trace(WORDS, ENTROPY) == plain
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert "\x1b[" in colour_trace(WORDS, ENTROPY)
    monkeypatch.setenv("NO_COLOR", "1")
    assert colour_trace(WORDS, ENTROPY) == plain
    with pytest.raises(ValueError):
        colour_trace(WORDS, ENTROPY[:-1], colour=False)


def test_a_coloured_trace_shades_by_entropy_and_keeps_the_text():
    shades = {0.0: 255, 0.1: 224, 0.3: 217, 0.6: 210, 1.0: 203, 9.0: 203}  # pale to deep
    painted = [f"\x1b[38;5;16;48;5;{c}m {h}\x1b[0m" for h, c in shades.items()]
    assert colour_trace([f" {h}" for h in shades], [*shades], colour=True) == "".join(painted)


def test_the_command_line_prints_a_trace(tmp_path, monkeypatch, capsys):
    tokenizer = Countdown(max_number=5, max_value=9).tokenizer()
    shape = Shape(16, 1, 2, 1, 8, 24, tokenizer.n_vocab, rope_theta=1e4)
    small = Transformer(shape).init_weights(seeded())
    save_small(tmp_path, small, tokenizer.words)
    prompt = "use 5 3 1 goal 9 ;"
    flags = f"--model {tmp_path} --max-new 6 --temperature 0 --n 2".split()
    monkeypatch.setattr(sys, "argv", ["rollout.py", prompt, *flags])
    assert rollout.main() == 0
    ids = generate(small, [tokenizer.encode(prompt)], 1, 6, tokenizer.eos, Sampling(0.0))
    expected = tokenizer.decode(ids.tokens.tolist()).strip()
    line, again = capsys.readouterr().out.splitlines()
    assert line == again and "[" in line and line.startswith(prompt)  # which has no entropies
    assert re.sub(r"\[\d+\.\d\d\]", "", line) == expected  # and there are no colours


def test_the_command_line_says_in_one_line_that_a_folder_is_missing(tmp_path, monkeypatch, capsys):
    line = [ROOT / "rollout.py", "--model", tmp_path / "nowhere", "use 1 2 goal 3"]
    monkeypatch.setattr(sys, "argv", [*map(str, line)])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(line[0], run_name="__main__")
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "nowhere" in err

"""The study's numbers against closed forms, sums by hand and slow obvious versions."""

import json
import math
import random
import re
import shutil
from dataclasses import asdict, dataclass, replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from common import all_logits, config, rounding, save_small, seeded

import fork_gpt
from infra import files, weights
from model import Shape, Transformer
from rollout import Rollout, Sampling, generate
from study import findings as study
from study import report
from study.findings import Flags, Run
from study.stats import deciles, shares
from tasks import ask, pretrain
from tasks.ask import describe, distribution, entropy_by_token, interval, measure
from tasks.countdown import Countdown

# ---------------------------------------------------------------------- what was sampled, in words


def test_distribution_by_hand():
    d = distribution(torch.tensor([0.0, 0.005, 1.0, 2.0, 0.0, 0.0, 0.5, 0.25, 0.02, 3.0]))
    assert d["mean"] == pytest.approx(0.6775) and d["below_0.01"] == pytest.approx(0.4)
    assert d["top20_share"] == pytest.approx(5 / 6.775) and d["p50"] == pytest.approx(0.135)
    assert distribution(torch.zeros(3))["top20_share"] == 0
    with pytest.raises(ValueError, match="no sampled tokens"):
        distribution(torch.zeros(0))


def test_entropy_by_token_by_hand():
    tokens = torch.tensor([9, 3, 5, 3, 5, 3, 7, 9])
    entropy = torch.tensor([0.1, 0.7, 0.2, 0.6, 0.6, 1.1, 2.0, 0.3])
    rows = ((3, 0.8, 3), (5, 0.4, 2), (9, 0.2, 2))  # 7 is too rare
    expected = [(token, pytest.approx(mean), n) for token, mean, n in rows]
    assert entropy_by_token(tokens, entropy, floor=1) == expected


def slow_interval(values: list[float], clusters: list) -> tuple[float, float]:
    """Means of 2,000 draws of as many clusters as there are, every problem of a drawn one."""
    pairs, means = list(zip(values, clusters, strict=True)), []
    groups = [[v for v, d in pairs if d == c] for c in dict.fromkeys(clusters)]
    for draw in np.random.default_rng(0).integers(0, len(groups), (2000, len(groups))):
        drawn = [v for i in draw for v in groups[i]]
        means.append(sum(drawn) / len(drawn))
    return tuple(np.percentile(means, (2.5, 97.5)))


def test_the_interval_draws_whole_clusters():
    """The 381 test problems of the small world are about 64 sets of numbers: drawn one by one, its
    interval was 1.25 times too narrow."""
    rng = random.Random(0)
    clusters = [rng.randrange(20) for _ in range(90)]
    values = [0.1 * (c % 10) + 0.05 * rng.random() for c in clusters]
    assert interval(values, clusters) == pytest.approx(slow_interval(values, clusters))
    low, high = interval(values, range(90))
    assert np.diff(interval(values, clusters))[0] > 1.5 * (high - low)
    assert interval([0.25], ["a"]) == (0.25, 0.25)


def test_measure_grades_each_sample_against_its_own_problem(monkeypatch):
    """Sample b answers problem b // k: any other order still gives plausible accuracies.  And the
    random numbers are always the same ones."""
    odd = lambda _, problem, text: float((problem.goal + len(text)) % 2)  # noqa: E731
    monkeypatch.setattr(Countdown, "reward", odd)
    world = Countdown(2, 6, "+-*", 12)
    tokenizer, problems = world.tokenizer(), world.splits()["train"][:20]
    model = Transformer(Shape(32, 1, 2, 1, 16, 64, tokenizer.n_vocab)).init_weights(seeded())
    three = fork_gpt.Config(eval_k=3, max_new=10)
    found, samples = measure(model, world, problems, three)
    assert found == measure(model, world, problems, replace(three, seed=7))[0]
    assert len(samples.finished) == 60 and 0 < found["truncated"] < 1
    assert found["truncated"] == pytest.approx(1 - samples.finished.float().mean().item())
    texts = [tokenizer.decode(ids) for ids in samples.responses()]
    grades = [odd(world, problems[b // 3], text) for b, text in enumerate(texts)]
    assert found["accuracy"] == pytest.approx(sum(grades) / 60)
    # over sets of numbers: not over problems, and not over samples
    values, sets = np.reshape(grades, (20, 3)).mean(1), [p.numbers for p in problems]
    assert len(set(sets)) < 20 and found["interval"] == pytest.approx(slow_interval(values, sets))
    text = describe("title", found, samples, tokenizer, floor=0)
    assert text.startswith("title") and "95% interval" in text
    ranked = entropy_by_token(samples.tokens[samples.response], samples.entropy, 0)
    for which, (i, h, _) in (("most", ranked[0]), ("least", ranked[-1])):
        assert re.search(rf"{which} forking +{re.escape(tokenizer.token(i).strip())} {h:.3f}", text)


# ---------------------------------------------------------------------- pure statistics


def test_histogram_by_hand():
    got = study.histogram(torch.tensor([2.0, 0.0, 0.6, 0.0, 2.0, 0.0]), 2.0, bins=4)
    assert got == dict(counts=[3, 1, 0, 2], edges=[0, 0.5, 1, 1.5, 2])
    # the last bin has both its bounds; rounding below 0 is 0; one certain token alone is fine
    assert study.histogram(torch.tensor([1.0, 0.5, -1e-9]), 1.0, 2)["counts"] == [1, 2]
    assert study.histogram(torch.zeros(3), 0.0, 2)["counts"] == [3, 0]


def test_overlap_by_hand():
    a, b = torch.tensor([[1, 1, 0, 0, 1, 1], [1, 0, 1, 1, 0, 1]], dtype=torch.bool)
    assert study.overlap(a, b) == 0.5 and study.overlap(a, a) == 1 and study.overlap(a, ~a) == 0


def test_change_by_bin_by_hand():
    base = torch.randperm(400, generator=seeded()).double()  # percentile p of 0 .. 399 is 3.99 p
    got = study.change_by_bin(base, base.square())
    for k, row in enumerate(got):
        mine = np.arange(20 * k, 20 * k + 20)
        b, f = mine.mean(), (mine**2).mean()
        want = dict(low=19.95 * k, high=19.95 * (k + 1), base=b, final=f, change=f - b, n=20)
        assert row == pytest.approx(want)
    assert len(got) == 20
    # ties share one bin: half of the tokens are certain
    base = torch.tensor([0.0] * 50 + [1.0 + i for i in range(50)])
    rows = study.change_by_bin(base, base + 1)
    assert rows[0]["n"] == 50 and rows[0]["base"] == 0 and rows[0]["change"] == 1
    assert sum(r["n"] for r in rows) == 100 and len(rows) < 20
    # a value on a bound belongs to the upper bin
    three = torch.tensor([0.0, 1.0, 2.0])
    assert [r["n"] for r in study.change_by_bin(three, three, bins=2)] == [1, 2]
    only = study.change_by_bin(torch.ones(3), torch.zeros(3))
    assert only == [dict(low=1.0, high=1.0, base=1.0, final=0.0, change=-1.0, n=3)]


def test_deciles_against_sorting():
    rng = random.Random(4)
    for n in (1, 7, 10, 205):
        x = [rng.choice([0.0, rng.random()]) for _ in range(n)]
        got = deciles(torch.tensor(x)).tolist()
        for rank, i in enumerate(sorted(range(n), key=lambda i: (x[i], i))):
            assert got[i] == rank * 10 // n


def test_gradients_compared_by_hand():
    halves = torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    got = study.compare_gradients(halves, torch.tensor([3.0, 0.0, 4.0]))
    assert got == pytest.approx(dict(norm=5.0, cosine=9 / 25, split_half=0.0))
    same = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    want = dict(norm=math.sqrt(45), cosine=1.0, split_half=1.0)
    assert study.compare_gradients(same, same.sum(0)) == pytest.approx(want)
    nothing = dict(norm=0.0, cosine=0.0, split_half=0.0)
    assert study.compare_gradients(torch.zeros(2, 2), torch.ones(2)) == nothing


def test_unchanged_at_bf16_resolution_in_all_and_beyond_weight_decay():
    """Between 1/2 and 1 bf16 has 128 steps: 0.9001 is 0.9 there.  Only matrices decay."""
    final = {
        "embed_tokens": torch.full((2, 4), 0.9001),
        "layers.0.mlp.up_proj": torch.tensor([[1.0, 1.0, 0.9, 0.9, 0.9]]),
        "layers.0.mlp.down_proj": torch.full((1, 3), 1.1),
        "norm": torch.tensor([1.0, 1.001, 0.9, -1.0]),
    }
    final = {f"model.{name}.weight": p for name, p in final.items()}
    got = study.unchanged({k: torch.ones_like(p) for k, p in final.items()}, final, decay=0.9)
    names = ("name", "n", "unchanged", "beyond", "decayed")
    rows = [("embed_tokens", 8, 0, 1, 0), ("layers 0", 8, 2 / 8, 3 / 8, 0)]
    rows += [("norm", 4, 2 / 4, 2 / 4, 1)]
    assert [tuple(r[k] for k in names) for r in got["layers"]] == rows
    assert [got[k] for k in names[2:]] == pytest.approx([4 / 20, 13 / 20, 4 / 20])


# ---------------------------------------------------------------------- from models


@dataclass(frozen=True)
class Coin(Countdown):
    """A world that an untrained model succeeds in half of the time."""

    def reward(self, problem, response):
        return float(len(response) % 2)


WORLD = Coin(2, 12, "+-*", 30)
SHAPE = Shape(32, 1, 2, 1, 16, 48, vocab_size=WORLD.tokenizer().n_vocab)
FP32 = rounding(5, 40)  # log-probs and entropies: logits below 5, forty operations on the way


def tiny(seed: int = 0, shape: Shape = SHAPE) -> Transformer:
    """Untrained, but not uniform: its likeliest token has a third of the probability."""
    model = Transformer(shape).init_weights(seeded(seed))
    with torch.no_grad():
        model.model.norm.weight *= 3
    return model


def sampled(model: Transformer, n: int = 3, T: float = 1.0) -> Rollout:
    prompts = [WORLD.encode(p) for p in WORLD.splits()["train"][:n]]
    return generate(model, prompts, 4, 12, WORLD.tokenizer().eos, Sampling(T), 1)


def test_rescoring_is_what_the_sampler_recorded():
    model = tiny()
    for T in (1.0, 0.7):
        s = sampled(model, n=9, T=T)  # 36 sequences: three blocks
        assert torch.allclose(ask.rescore(model, s, T), s.entropy, atol=FP32)


def test_alternatives_against_the_whole_distribution():
    """Also where the matrices have rows that are no token's, as the published ones do: the largest
    logits of all must not appear."""
    model = tiny(shape=replace(SHAPE, vocab_size=SHAPE.vocab_size + 7))
    model.n_vocab = SHAPE.vocab_size
    with torch.no_grad():
        model.head_weight[model.n_vocab :] = 5 * model.head_weight[3]
    s = sampled(model, T=0.8)
    p, h, best, ids, size = study.alternatives(model, s, 5, 0.8)
    assert torch.allclose(p, s.logprobs.exp(), atol=FP32)
    assert torch.allclose(h, s.entropy, atol=FP32)
    logits = all_logits(model, s.tokens, s.cu_seqlens)[s.scored()[2]]
    scaled = (logits[:, : model.n_vocab] / 0.8).detach().requires_grad_()
    drawn = scaled.log_softmax(-1).gather(-1, s.scored()[3][:, None]).sum()
    (by_logits,) = torch.autograd.grad(drawn, scaled)
    assert torch.allclose(size, by_logits.norm(dim=-1), rtol=1e-4)
    full, order = scaled.softmax(-1).sort(descending=True)
    assert torch.equal(ids, order[:, :5]) and torch.allclose(best, full[:, :5], rtol=1e-4)


def test_anatomy_adds_up_to_the_gradient_of_the_first_update(monkeypatch):
    """What was said of the top 20% was never looked at: 192 tokens cannot be cut in fifths."""
    model = tiny()
    s = sampled(model, n=5, T=0.9)
    rewards = torch.randint(0, 2, (20,), generator=seeded()).float()
    advantages, h = fork_gpt.group_advantages(rewards, 4), s.entropy
    A = advantages.repeat_interleave(s.lengths())
    weights = torch.stack([A * (deciles(h) == d) for d in range(10)])
    parts = study.gradients(model, s, weights, 4, 0.9)  # (10, 2, P)

    def updated(which, keep="all"):
        c = fork_gpt.Config(temperature=0.9, normalize="all", keep=keep)
        model.zero_grad()
        fork_gpt.update(model, s, advantages, [*which], c, lots=0, first=True)
        return -torch.cat([p.grad.flatten() for p in model.parameters()])

    full, top = updated(range(20)), updated(range(20), "top")
    assert full.norm() > 1e-3 and len(h) % 5 == 0, "else two deciles are not exactly the top 20%"
    even = [b for b in range(20) if b // 4 % 2 == 0]  # the first half holds the even groups
    half = updated(even) * int(s.lengths()[even].sum()) / len(h)
    near = rounding(full.abs().max().item(), 100)  # sums of a hundred terms in another order
    sums = (parts.sum((0, 1)), full), (parts[8:].sum((0, 1)), top), (parts[:, 0].sum(0), half)
    assert all(torch.allclose(mine, own, rtol=0, atol=near) for mine, own in sums)
    # a large model's gradient is thinned, its norm estimated
    monkeypatch.setattr(study, "COORDINATES", len(full) // 4)
    thin = study.gradients(model, s, weights, 4, 0.9).sum((0, 1))
    assert len(thin) < len(full) / 4 and thin.norm() == pytest.approx(full.norm().item(), rel=0.15)


def test_a_spliced_model_draws_by_the_other_after_one_word():
    a, b, after = tiny(0), tiny(1), 5
    s = generate(study.Spliced(a, b, after), [[1, 2], [5], [3, 5]], 20, 12, None)
    tokens, cu, rows, targets = s.scored()
    by_a, by_b = (m(tokens, cu, rows, targets)[0].detach() for m in (a, b))
    spliced = torch.where(tokens[rows] == after, by_b, by_a)
    assert torch.allclose(s.logprobs, spliced, atol=1e-5)
    assert 20 < (tokens[rows] == after).sum() < len(rows) - 20


def test_a_forbidden_word_is_never_drawn_and_the_others_keep_their_odds():
    m = tiny()
    s = generate(study.forbid(m, [1, 4]), [[1, 2]], 200, 4, None)
    tokens, cu, rows, targets = s.scored()
    assert not torch.isin(targets, torch.tensor([1, 4])).any()
    logits = all_logits(m, tokens, cu)[rows].index_fill(-1, torch.tensor([1, 4]), -torch.inf)
    expected = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    assert torch.allclose(s.logprobs, expected, atol=1e-5)
    again = generate(m, [[1, 2]], 200, 4, None)  # the model itself is as it was
    assert (again.tokens[again.response] == 1).any()


def make_run(folder, world=WORLD, shape=SHAPE) -> Run:
    """A run of four steps as `fork_gpt.py` leaves it; its models are not trained, but moved."""
    c = fork_gpt.Config(
        n_numbers=2, max_number=12, max_value=30, steps=4, eval_problems=12, eval_k=2,
        max_new=12, group=4, rows=64, device="cpu",
    )  # fmt: skip
    mine = {k: v for k, v in asdict(c).items() if k not in ("out", "resume")}
    files.write_json(folder / "config.json", mine)
    model, generator, log = tiny(shape=shape), seeded(9), ""
    weights.save_snapshot(folder, 0, model.state_dict())
    for step in range(1, 5):
        with torch.no_grad():
            for p in model.parameters():
                p += 0.05 * torch.randn(p.shape, generator=generator)
        if step % 2 == 0:
            weights.save_snapshot(folder, step, model.state_dict())
        line = dict.fromkeys(study.COLUMNS, (step - 1) / 8) | dict(step=step, groups=3)
        log += json.dumps(line | (dict(val_accuracy=0.5) if step == 2 else {})) + "\n"
    if world is WORLD:
        save_small(folder, model, world.tokenizer().words)
    (folder / "metrics.jsonl").write_text(log)
    files.write_json(folder / "summary.json", dict(cpu_seconds=12.5))
    states = study.states_of(folder, 4, model)
    return Run(folder, c, world, world.splits(), model, states=states)


SMALL = Flags(all=True, problems=6, k=2, responses=3, continuations=2)


def read(folder) -> dict:
    """Every section of a run; NaN and Infinity are no JSON."""
    paths = sorted((folder / "data").glob("*.json"))
    return {p.stem: json.loads(p.read_text(), parse_constant=pytest.fail) for p in paths}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("whole"))
    study.study(run, SMALL)
    return run, read(run.folder)


def test_every_section_is_written(whole):
    run, data = whole
    assert list(data) == sorted(study.QUICK | study.SLOW)
    assert not [name for name, x in data.items() if "missing" in x]
    assert not list((run.folder / "data").glob(".*")), "a temporary file was left"
    d = data["run"]
    assert d["n_params"] == sum(p.numel() for p in run.model.parameters())
    assert d["cpu_seconds"] == 12.5 and d["n_test"] == 12 and "Countdown: 2 numbers" in d["world"]
    argv = d["command"].split()
    assert argv[:2] == ["python", "fork_gpt.py"]  # the command makes this run
    assert asdict(config(*argv[2:])) == asdict(run.c) | dict(out=str(run.folder))
    d = data["training"]
    assert d["step"] == [1, 2, 3, 4] and d["tau"] == [0, 1 / 8, 2 / 8, 3 / 8]
    assert d["val_step"] == [2] and d["val_accuracy"] == [0.5]


def test_distribution_and_tokens_of_a_run(whole):
    run, data = whole
    for which, state in (("base", 0), ("final", 4)):
        d, t = data["distribution"][which], data["tokens"][which]
        found, s = measure(run.at(state), WORLD, run.problems(), run.c)
        assert d["accuracy"] == found["accuracy"] and d["p80"] == distribution(s.entropy)["p80"]
        assert sum(d["histogram"]["counts"]) == d["n_tokens"] == len(s.entropy)
        ranked = entropy_by_token(s.tokens[s.response], s.entropy, data["tokens"]["floor"])
        ranked = [(WORLD.tokenizer().token(i), h, n) for i, h, n in ranked]
        for rows, want in ((t["highest"], ranked[:100]), (t["lowest"], ranked[:-101:-1])):
            assert [(r["token"], r["entropy"], r["count"]) for r in rows] == want
    b, f = (data["distribution"][w]["histogram"]["edges"] for w in ("base", "final"))
    top = max(s.entropy.max().item() for _, s in run.looks.values())
    assert b == f and b[-1] == pytest.approx(top), "one scale, up to the highest of both"
    other = replace(run, looks=dict(base=run.looks["final"], final=run.looks["base"]))
    assert study.distributions(other, SMALL)["base"]["histogram"]["edges"] == b


def test_traces_of_a_run(whole):
    run, data = whole
    tokenizer, prompts = WORLD.tokenizer(), [p.prompt for p in run.problems()]
    for record in data["traces"]:
        i = prompts.index(record["problem"])
        for which in ("base", "final"):
            r, one = record[which], run.look(which)[1].sequences([2 * i])
            mine = one.responses()[0]
            assert [t["t"] for t in r["tokens"]] == [tokenizer.token(x) for x in mine]
            right = WORLD.reward(run.problems()[i], tokenizer.decode(mine)) > 0
            assert r["correct"] == right and r["length"] == len(mine)
            assert r["finished"] == (mine[-1] == tokenizer.eos)
            assert [t["h"] for t in r["tokens"]] == pytest.approx(one.entropy.tolist(), abs=1e-4)
            for t in r["tokens"]:
                p = [p for _, p in t["alt"]]
                assert len(p) == 5 and sum(p) < 1.01 and p == sorted(p, reverse=True)
                if "\ufffd" not in t["t"]:  # a byte that is no character has no text of its own
                    assert dict(map(tuple, t["alt"])).get(t["t"], t["p"]) == t["p"]
    assert len(data["traces"]) == 6 and len({r["problem"] for r in data["traces"]}) == 6


def test_during_of_a_run(whole):
    """The final model's responses re-scored by every kept step, against one pass a sequence."""
    run, data = whole
    d, pools = data["during"], []
    s = run.look("final")[1].sequences(range(12))
    for step in (0, 2, 4):
        model = run.at(step)
        pools.append([h for b in range(12) for h in model(*s.sequences([b]).scored())[1].tolist()])
    n = len(pools[0])
    tops = [fork_gpt.top_entropy(torch.tensor(h), 0.2)[0] for h in pools]
    assert d["steps"] == [0, 2, 4] and d["n_tokens"] == n
    for name, other in (("overlap_base", tops[0]), ("overlap_final", tops[2])):
        assert d[name] == pytest.approx([study.overlap(t, other) for t in tops])
    assert d["overlap_base"][0] == 1 and 0 < d["overlap_base"][2] < 1
    assert d["percentiles"]["p90"] == pytest.approx([np.percentile(h, 90) for h in pools], rel=1e-4)
    total = sum(b["change"] * b["n"] for b in d["bins"])
    assert total / n == pytest.approx(d["mean"][2] - d["mean"][0], abs=1e-6)


def test_two_temperatures_of_a_run(whole):
    run, data = whole
    d = data["two_temperature"]
    for x in (d, d["other"]):
        assert [r["t"] for r in x["fork"]] == [r["t"] for r in x["rest"]] == [*study.TEMPERATURES]
    assert d["threshold"] == pytest.approx(data["distribution"]["final"]["p80"])
    assert d["threshold_kind"] == "percentile 80" and d["n_problems"] == 6 and d["k"] == 2
    assert d["other"]["threshold"] == 0.3 and d["other"]["threshold_kind"] == "0.3 nats"
    model, some = study.forbid(run.at("final"), range(256)), run.problems()[:6]
    for x, t in product((d, d["other"]), (0.3, 1.0, 3.0)):
        i, nats = study.TEMPERATURES.index(t), x["threshold"]
        for which, how in dict(fork=(1.0, nats, t), rest=(t, nats, 1.0)).items():
            want, _ = measure(model, WORLD, some, run.c, Sampling(*how))
            low, high = want.pop("interval")
            assert x[which][i] == want | dict(t=t, low=low, high=high)
    assert d["fork"][4] == d["rest"][4] and d["fork"][-1] != d["rest"][-1]


def test_anatomy_takes_mixed_groups_and_their_own_advantages(monkeypatch, whole):
    run, data = whole
    for which, d in zip(("base", "final"), data["anatomy"]["models"], strict=True):
        arms = {a["name"]: a for a in d["arms"]}
        assert list(arms) == ["top 20%", "random 20%", "bottom 80%", "all"]
        assert d["model"] == which and arms["all"]["cosine"] == pytest.approx(1)
        # projections on the full gradient add up to it: of the two masks, and of the ten deciles
        for rows in ([arms["top 20%"], arms["bottom 80%"]], d["deciles"]):
            along = sum(r["norm"] * r["cosine"] for r in rows)
            assert along == pytest.approx(arms["all"]["norm"], rel=1e-5)
            assert sum(r["noise"] for r in rows) == pytest.approx(1, rel=1e-5)
        means = [r["entropy"] for r in d["deciles"]]
        assert means == sorted(means) and [r["decile"] for r in d["deciles"]] == [*range(1, 11)]
    got, real = [], study.gradients
    monkeypatch.setattr(study, "gradients", lambda *args: got.extend(args) or real(*args))
    found = study.anatomy_of(run, "base", SMALL)
    model, s, weights, G, _ = got
    assert model is run.model and torch.equal(model.head_weight, tiny().head_weight) and G == 4
    texts = [WORLD.tokenizer().decode(ids) for ids in s.responses()]
    rewards = torch.tensor([float(len(t) % 2) for t in texts])
    A = fork_gpt.group_advantages(rewards, 4).repeat_interleave(s.lengths())
    right = rewards.view(-1, 4).sum(1)
    assert ((right > 0) & (right < 4)).all() and found["n_groups"] == len(right) < 6
    masks = weights[:14] != 0  # ten deciles, top, random, bottom, all
    assert torch.equal(weights[13], A) and torch.equal(weights[:10].sum(0), A)
    assert torch.equal(masks[:10].sum(0), torch.ones_like(A).long())
    assert torch.equal(masks[10], masks[8:10].any(0)) and torch.equal(masks[12], ~masks[10])
    assert masks[11].sum() == math.ceil(len(A) / 5)
    assert s.entropy[masks[9]].min() >= s.entropy[masks[:9].any(0)].max()
    assert ((weights[14:28] != 0).sum(1) == masks.sum(1).clamp(max=study.LARGEST)).all()
    cu, n = s.cu_seqlens.tolist(), s.lengths().tolist()
    prompts = [s.tokens[a : b - k].tolist() for a, b, k in zip(cu, cu[1:], n, strict=False)]
    assert all(p == prompts[i - i % 4] for i, p in enumerate(prompts)), "groups stay together"


def test_decomposition_values_and_what_was_learned_of_a_run(whole):
    run, data = whole
    for which in ("base", "final"):
        d = data["decomposition"][which]
        assert d["n_responses"] == 3 and d["K"] == 2
        assert d["n_tokens"] == sum(r["n"] for r in d["deciles"]) == sum(r["n"] for r in d["kinds"])
        for rows in (d["deciles"], d["kinds"]):
            assert sum(r["share"] for r in rows) == pytest.approx(1)
        assert d["cumulative"]["share"][-1] == pytest.approx(1)
    for record, values in zip(data["traces"], data["values"], strict=True):
        for which in ("base", "final"):
            v, tokens = values[which]["v"], record[which]["tokens"]
            assert len(v) == len(tokens) + 1 and v[-1] == record[which]["correct"]
            for t, (token, alt) in enumerate(zip(tokens, values[which]["alt"], strict=True)):
                for (text, p), x in zip(token["alt"], alt, strict=True):
                    assert (x is None) == (p < study.PLAUSIBLE)
                    if text == token["t"] and "\ufffd" not in text:
                        assert x == pytest.approx(v[t + 1], abs=1e-4)  # it is this very token
    bars = {r["name"]: r for r in data["learned"]["bars"]}
    for name, which in (("base", "base"), ("trained", "final")):
        assert bars[name]["accuracy"] == data["distribution"][which]["accuracy"]
    assert len(bars) == 5 and all(0 <= r["first"] <= r["accuracy"] for r in bars.values())


def test_continuations_are_graded_from_their_own_beginning(monkeypatch):
    """Beginnings that have ended are not continued, and what runs over `max_new` is cut before it
    is graded."""
    world = Countdown(2, 6, "+-*", 12)
    encode = world.tokenizer().encode
    problem = next(p for p in world.problems() if p.numbers == (3, 2) and p.goal == 5)
    begun = ["try 3 + 2", "answer 3 + 2 .", "answer 3", "stop .", "no", "answer 3"]
    starts = [encode(x) for x in begun]
    tails = ["= 5 yes answer 3 + 2 .", "+ 2 .", "answer 3 + 2 .", "* 2 ."]

    def fixed(model, prompts, K, max_new, *_):
        assert prompts == [encode(problem.prompt) + starts[i] for i in (0, 2, 4, 5)] and K == 1
        assert max_new == 7  # the shortest beginning has one token of eight
        none, ids = torch.zeros(0), [encode(t) for t in tails]
        tokens = torch.zeros(1, dtype=torch.long)
        about = dict(logprobs=none, entropy=none, tokens=tokens, response=tokens > 0)
        return SimpleNamespace(responses=lambda: ids, **about)

    monkeypatch.setattr(ask, "generate", fixed)
    c = SimpleNamespace(max_new=8, rows=8, temperature=1.0)
    run = SimpleNamespace(c=c, world=world, model=None)
    got = study.continued(run, [problem] * 6, starts, 0)
    # the first tail would be right, but ends after the eighth token
    said = ("= 5 yes answer", "", "+ 2 .", "", "answer 3 + 2 .", "* 2 .")
    tokens = [encode(t) if t else [] for t in said]
    assert got == list(zip(tokens, [0, 1, 1, 0, 1, 0], strict=True))
    full = [encode("answer 3 + 2 stop stop stop stop")]
    assert len(full[0]) == 8 and study.continued(run, [problem], full, 0) == [([], 0)]


# ---------------------------------------------------------------------- where it is decided

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
    run = SimpleNamespace(c=fork_gpt.Config(max_new=20, rows=8), world=world, model=None)
    return SimpleNamespace(ask=ask, run=run, reward=reward)


def right(p: float, needed: int, left: int) -> float:
    """P(at least `needed` ones among `left` digits)."""
    needed = max(needed, 0)
    return sum(math.comb(left, i) * p**i * (1 - p) ** (left - i) for i in range(needed, left + 1))


@pytest.mark.parametrize("p, needed", [(0.5, 2), (0.3, 1)])
def test_products_of_two_lots_have_the_squared_differences_as_their_mean(monkeypatch, p, needed):
    """Their sum is Var(R), by place and in all; one lot squared would be far above."""
    toy, rng = walk(p, needed), random.Random(1)
    monkeypatch.setattr(study.ask, "ask", toy.ask)
    responses = [[int(rng.random() < p) for _ in range(4)] + [EOS] for _ in range(1500)]
    V = study.values(toy.run, [None] * len(responses), responses, 2, seed=0)
    products = np.array([np.diff(v[0]) * np.diff(v[1]) for v in V])
    exact = np.zeros(5)
    for t in range(4):
        for ones in range(t + 1):  # among the first t digits
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
    monkeypatch.setattr(study.ask, "ask", toy.ask)
    (v,) = study.values(toy.run, [None], [[1, 1, 0, 0, EOS]], 50, seed=3)
    assert v[:, 2:].tolist() == [[1, 1, 1, 1]] * 2  # two ones are enough
    assert v[:, 0].mean() == pytest.approx(right(0.5, 2, 4), abs=0.15)
    assert v[:, 1].mean() == pytest.approx(right(0.5, 1, 3), abs=0.12)
    assert not np.array_equal(v[0, :2], v[1, :2])  # the lots are independent


def test_shares_by_hand_and_their_intervals_over_all_draws():
    x, group = np.array([1.0, 3, 0, 4, 2]), np.array([0, 1, 1, 0, 2])
    cluster = np.array(["a", "a", "b", "b", "c"])
    share, low, high = shares(x, group, cluster, 3)
    assert share.tolist() == [0.5, 0.3, 0.2]
    assert shares(x, group, cluster, 3, cumulate=True)[0].tolist() == pytest.approx([0.5, 0.8, 1])
    drawn = []  # of 27 equally likely draws, so that the ends have a chance of 3.7% each at least
    for draw in product("abc", repeat=3):
        rows = np.concatenate([np.flatnonzero(cluster == c) for c in draw])
        drawn.append(np.bincount(group[rows], x[rows], 3) / x[rows].sum())
    assert np.allclose((low, high), (np.min(drawn, 0), np.max(drawn, 0)))


def test_places_of_a_trace():
    text = "try 9 + 2 = 11 left 11 7 goal 4 ; try 11 - 7 = 4 yes answer ( 9 + 2 ) - 7 ."
    one = ["rest", "first operand", "operator", "second operand", "=", "result"]
    expected = [*one, *["rest"] * 6, *one, "yes or no", "rest", *["answer"] * 8]
    assert study.places(text.split()) == expected
    after = study.places("try 9 + 2 = 11 no wait left 9".split())
    assert after[6:] == ["yes or no", "after no", "rest", "rest"]


# ---------------------------------------------------------------------- what is missing


def test_a_model_with_one_token_that_is_never_right(tmp_path):
    """Its entropy is 0 everywhere, nothing can be forced, and no division by it may leave a NaN."""
    text = dict(decode=lambda ids: "x" * len(ids), token=lambda i: "x")
    one = SimpleNamespace(eos=None, stops={}, words=(), **text)
    splits = dict(train=["a", "b"], val=[], test=[*"abcdefg"])
    world = SimpleNamespace(
        tokenizer=lambda: one, encode=lambda p: [0], reward=lambda p, t: 0.0, name=str,
        kinds=None, cluster=str, statements=lambda t: [], splits=lambda: splits,
    )  # fmt: skip
    run = make_run(tmp_path, world=world, shape=Shape(8, 1, 1, 1, 4, 8, vocab_size=1))
    study.study(run, SMALL)
    data = read(tmp_path)
    assert {k for k, x in data.items() if "missing" in x} == {"anatomy", "decomposition", "learned"}
    assert "right and wrong answers" in data["anatomy"]["missing"]
    assert "every continuation" in data["decomposition"]["missing"]
    base, final = (data["distribution"][which] for which in ("base", "final"))
    assert base["top20_share"] == 0 and final["histogram"]["counts"][0] == 7 * 2 * 12
    assert data["two_temperature"]["fork"][0]["accuracy"] == final["accuracy"] == 0
    assert len(data["during"]["bins"]) == 1 and data["during"]["overlap_base"] == [1, 1, 1]
    one = dict(t="x", h=0.0, q=0.0, p=1.0, alt=[["x", 1.0]])
    assert data["traces"][0]["base"]["tokens"][0] == one


@pytest.fixture
def line(monkeypatch, capsys, tmp_path):
    """The command line with a page that is only named, and a base model that is there: its code,
    what it printed last."""
    monkeypatch.setattr(report, "write", lambda f: f / "report.html")
    save_small(tmp_path.parent / "base", tiny(0), WORLD.tokenizer().words)
    monkeypatch.setattr(pretrain, "base_model", lambda *a: (tmp_path.parent / "base", {}))

    def go(*argv: object) -> tuple[int, str]:
        code = files.command("-m study", study.main, [str(a) for a in argv])
        out = capsys.readouterr()
        return code, out.err.strip().splitlines()[-1] if code else out.out.strip()

    return go


def test_command_line_finds_what_the_run_had(tmp_path, line):
    """`python -m study RUN` from the folder alone gives the bytes that the run itself wrote.  The
    slow sections say what makes them, and none of an earlier model stays behind."""
    run = make_run(tmp_path)
    run.world = Countdown(2, 12, "+-*", 30)
    files.write_atomic(tmp_path / "data" / "decomposition.json", b'{"K": 8}')
    study.study(run)
    data = read(tmp_path)
    assert all(f"-m study {tmp_path} --all" in data[name]["missing"] for name in study.SLOW)
    first = {p.name: p.read_bytes() for p in (tmp_path / "data").iterdir()}
    code, out = line(tmp_path, "--device", "cpu")
    assert code == 0 and out.endswith("report.html")
    assert {p.name: p.read_bytes() for p in (tmp_path / "data").iterdir()} == first


def test_a_run_that_was_interrupted(tmp_path, line):
    """No model, no summary, half a line of metrics: the last snapshot is the final model."""
    make_run(tmp_path)
    for name in ("model.pt", "summary.json", "snapshots/000004.pt"):
        (tmp_path / name).unlink()
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"step": 5, "accu')
    assert line(tmp_path, "--device", "cpu")[0] == 0
    data = read(tmp_path)
    assert data["during"]["steps"] == [0, 2] and data["run"]["cpu_seconds"] is None
    assert data["training"]["step"] == [1, 2, 3, 4] and "p80" in data["distribution"]["final"]
    # stopped before anything was trained or kept
    for name in ("snapshots/000000.pt", "snapshots/000002.pt", "metrics.jsonl"):
        (tmp_path / name).unlink()
    assert line(tmp_path, "--device", "cpu")[0] == 0
    data = read(tmp_path)
    for name in ("distribution", "traces", "during", "sparsity", "training"):
        assert "--resume" in data[name]["missing"] or "two kept steps" in data[name]["missing"]


def test_a_run_without_snapshots(tmp_path, line):
    """The base model comes from where the run took it; the run itself cannot show it any more."""
    run = make_run(tmp_path)
    shutil.rmtree(tmp_path / "snapshots")
    run.states = study.states_of(tmp_path, 4, run.model)
    study.study(run)
    assert f"-m study {tmp_path}" in read(tmp_path)["sparsity"]["missing"]
    assert line(tmp_path, "--device", "cpu")[0] == 0
    data = read(tmp_path)
    assert data["during"]["steps"] == [0, 4] and 0 < data["sparsity"]["unchanged"] < 1
    run.splits, run.looks = dict(train=[], val=[], test=[]), {}
    study.study(run)
    assert "no test problems" in read(tmp_path)["distribution"]["missing"]


def test_mistakes_are_one_line(tmp_path, line):
    assert line() == (2, "-m study: name the run's folder first: python -m study runs/x")
    code, text = line(tmp_path / "none")
    assert code == 2 and "none/config.json: No such file" in text
    for flag, bad in (("--problems", 0), ("--continuations", 0), ("--percentile", 101.0)):
        code, text = line(tmp_path, flag, bad)
        assert code == 2 and text.startswith(f"-m study: {flag} {bad}: it must be")
    assert line(tmp_path, "--nope", 1)[0] == 2
    make_run(tmp_path)
    log = tmp_path / "metrics.jsonl"
    whole = log.read_text()
    odd = b'{"step": 2, "ac', b"", b"\0", whole.encode("utf-16"), b'{"step": 2}', b"[" * 10**4
    for bad in odd:  # half, blank, NUL, UTF-16, foreign, nested
        log.write_bytes(whole.splitlines()[0].encode() + b"\n" + bad + b"\n")
        code, text = line(tmp_path, "--device", "cpu")
        assert code == 2 and "metrics.jsonl, line 2: " in text and text.endswith("start anew")
    log.write_text(whole)
    for name in ("2x.pt", "².pt"):  # no step's
        (tmp_path / "snapshots" / name).write_bytes(b"")
    (tmp_path / "snapshots" / "000002.pt").write_bytes(b"half")
    assert "000002.pt is damaged" in line(tmp_path, "--device", "cpu")[1]
    fits, finite = "the weights of step 2 do not fit", "000002.pt: no finite weights"
    for bad, why in (({}, fits), (3, finite), (dict(x=torch.tensor(math.nan)), finite)):
        weights.save(tmp_path / "snapshots" / "000002.pt", dict(step=2, weights=bad))
        code, text = line(tmp_path, "--device", "cpu")
        assert code == 2 and why in text


def test_a_padded_bf16_model_takes_the_same_road(tmp_path):
    """As a Qwen3 run: compute in bf16, matrices with rows that are no token's."""
    run = make_run(tmp_path, shape=replace(SHAPE, vocab_size=SHAPE.vocab_size + 15))
    run.model = run.model.bfloat16()
    run.model.n_vocab = SHAPE.vocab_size
    study.study(run, SMALL)
    data = read(tmp_path)
    assert not [name for name, x in data.items() if "missing" in x]
    assert data["anatomy"]["models"][0]["arms"][3]["cosine"] == pytest.approx(1)

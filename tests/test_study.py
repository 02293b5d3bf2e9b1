"""The statistics against numbers worked out by hand and slow obvious versions."""

import json
import math
import random
import re
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_model import all_logits
from test_run import config

import fork_gpt
from infra import files, weights
from model import Shape, Transformer, entropy_of
from rollout import Rollout, Sampling, generate
from study import findings as study
from study import report
from study.findings import Flags, Missing, Run
from tasks import ask, pretrain
from tasks.ask import describe, distribution, entropy_by_token, interval, measure
from tasks.countdown import Countdown

THREE = fork_gpt.Config(eval_k=3, max_new=10)  # samples per problem


def test_distribution_by_hand():
    d = distribution(torch.tensor([0.0, 0.005, 1.0, 2.0, 0.0, 0.0, 0.5, 0.25, 0.02, 3.0]))
    assert d["mean"] == pytest.approx(0.6775) and d["below_0.01"] == pytest.approx(0.4)
    assert d["top20_share"] == pytest.approx(5 / 6.775) and d["p50"] == pytest.approx(0.135)
    assert distribution(torch.zeros(3))["top20_share"] == 0
    with pytest.raises(ValueError, match="no sampled tokens"):
        distribution(torch.zeros(0))


def test_entropy_by_token_against_a_loop():
    rng = random.Random(0)
    tokens = [rng.choice([3, 5, 5, 5, 9, 9]) for _ in range(500)] + [7] * 5
    entropy = [rng.random() for _ in tokens]
    got = entropy_by_token(torch.tensor(tokens), torch.tensor(entropy), floor=5)
    slow = []
    for t in {3, 5, 9}:
        mine = [h for i, h in zip(tokens, entropy, strict=True) if i == t]
        slow.append((t, sum(mine) / len(mine), len(mine)))
    slow.sort(key=lambda row: -row[1])
    assert [(i, n) for i, _, n in got] == [(i, n) for i, _, n in slow]  # 7 is too rare
    assert [h for _, h, _ in got] == pytest.approx([h for _, h, _ in slow], rel=1e-6)


def test_interval_against_a_plain_bootstrap():
    rng = random.Random(1)
    values = [rng.random() < 0.3 for _ in range(200)]
    means = sorted(sum(rng.choices(values, k=200)) / 200 for _ in range(4000))
    low, high = interval(values)
    assert low == pytest.approx(means[100], abs=0.012)
    assert high == pytest.approx(means[3900], abs=0.012)
    # and against the normal approximation of a mean
    se = math.sqrt(0.3 * 0.7 / 200)
    assert high - low == pytest.approx(2 * 1.96 * se, rel=0.15)


def test_measure_and_describe():
    world = Countdown(2, 6, "+-*", 12)
    tokenizer, problems = world.tokenizer(), world.splits()["val"]
    model = Transformer(Shape(32, 1, 2, 1, 16, 64, vocab_size=tokenizer.n_vocab)).init_weights()
    found, samples = measure(model, world, problems, THREE)
    assert found == measure(model, world, problems, THREE)[0]  # always the same seed
    assert len(samples.finished) == 3 * len(problems)
    assert found["truncated"] == pytest.approx(1 - samples.finished.float().mean().item())
    text = describe("title", found, samples, tokenizer, floor=0)
    assert text.startswith("title") and "95% interval" in text and "most forking" in text


def test_measure_grades_each_sample_against_its_own_problem(monkeypatch):
    """Sample b answers problem b // k: any other order still gives plausible accuracies."""
    world = Countdown(2, 6, "+-*", 12)
    tokenizer, problems = world.tokenizer(), world.splits()["train"][:20]

    def answered(model, prompts, k, *args, **kw):
        texts = []
        for i, p in enumerate(problems):
            right = next(
                f"answer {a} {op} {b} ." for a, op, b, c, _ in world.moves(p.numbers) if c == p.goal
            )
            texts += [right] * (i % (k + 1)) + ["stop ."] * (k - i % (k + 1))
        ids = [tokenizer.encode(t) for t in texts]
        tokens = torch.tensor([t for x in ids for t in x])
        cu = torch.tensor([0, *map(len, ids)]).cumsum(0).int()
        zero = torch.zeros(len(tokens))
        on = torch.ones(len(tokens), dtype=torch.bool)
        return Rollout(tokens, cu, on, zero, zero, torch.ones(len(ids), dtype=torch.bool))

    monkeypatch.setattr(ask, "generate", answered)
    model = Transformer(Shape(32, 1, 2, 1, 16, 64, vocab_size=tokenizer.n_vocab))
    found, samples = measure(model, world, problems, THREE)
    assert found["accuracy"] == pytest.approx(sum(i % 4 for i in range(20)) / 60)
    assert found["truncated"] == 0
    words = re.findall(r"least forking   (.*)", describe("t", found, samples, tokenizer, floor=0))
    assert "answer 0.000" in words[0] or "stop 0.000" in words[0]


# ---------------------------------------------------------------------- pure statistics


def test_histogram_of_known_entropies():
    logits = torch.zeros(8, 4)  # four equally likely tokens: ln 4 nats
    logits[3:, 0] = 1e4  # a certain one: 0
    h = entropy_of(logits.log_softmax(-1))
    got = study.histogram(h, math.log(4), bins=4)
    assert got["counts"] == [5, 0, 0, 3]
    assert got["edges"] == pytest.approx([math.log(4) * i / 4 for i in range(5)])
    # the last bin has both its bounds; rounding below 0 is 0; one certain token alone is fine
    assert study.histogram(torch.tensor([1.0, 0.5, -1e-9]), 1.0, 2)["counts"] == [1, 2]
    assert study.histogram(torch.zeros(3), 0.0, 2)["counts"] == [3, 0]


def test_overlap_by_hand():
    a = torch.tensor([1, 1, 0, 0, 1, 1], dtype=torch.bool)
    b = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)
    assert study.overlap(a, b) == 0.5 and study.overlap(a, a) == 1 and study.overlap(a, ~a) == 0


def test_change_by_bin_against_sorting():
    rng = random.Random(3)
    base = [rng.random() for _ in range(400)]
    final = [b * 0.5 + rng.random() for b in base]
    got = study.change_by_bin(torch.tensor(base), torch.tensor(final))
    order = sorted(range(400), key=lambda i: base[i])
    assert len(got) == 20
    for k, row in enumerate(got):
        mine = order[20 * k : 20 * k + 20]
        b, f = (sum(x[i] for i in mine) / 20 for x in (base, final))
        assert row["n"] == 20 and row["base"] == pytest.approx(b, rel=1e-5)
        assert row["final"] == pytest.approx(f, rel=1e-5)
        assert row["change"] == pytest.approx(f - b, abs=1e-6)
        assert row["low"] <= min(base[i] for i in mine) + 1e-6
        assert row["high"] >= max(base[i] for i in mine) - 1e-6
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
        got = study.deciles(torch.tensor(x)).tolist()
        for rank, i in enumerate(sorted(range(n), key=lambda i: (x[i], i))):
            assert got[i] == rank * 10 // n


def test_spearman_against_a_slow_version():
    rng = random.Random(5)
    x = [rng.randrange(6) for _ in range(40)]
    y = [v + rng.randrange(5) for v in x]

    def ranks(v):  # 1 + how many are smaller + half of the others that tie
        return [1 + sum(b < a for b in v) + (sum(b == a for b in v) - 1) / 2 for a in v]

    want = np.corrcoef(ranks(x), ranks(y))[0, 1]
    assert study.spearman(np.array(x), np.array(y)) == pytest.approx(want)
    a = np.array([1.0, 5.0, 3.0])
    assert study.spearman(a, a**3) == pytest.approx(1)
    assert study.spearman(a, -a) == pytest.approx(-1)
    assert study.spearman(a, np.ones(3)) == 0


def test_clustered_resamples_whole_responses():
    """Ten tokens of equal effect in a response are one observation, not ten."""
    rng = np.random.default_rng(6)
    values = rng.random(30)
    tokens, cluster = values.repeat(10), np.arange(30).repeat(10)
    low, high = study.clustered(lambda i: tokens[i].mean(), cluster, 2000)
    assert (low, high) == pytest.approx(interval(values), abs=0.01)
    plain = interval(tokens)
    assert high - low > 2.5 * (plain[1] - plain[0])  # sqrt(10) = 3.2


def test_gradients_compared_by_hand():
    halves = torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    got = study.compare_gradients(halves, torch.tensor([3.0, 0.0, 4.0]))
    assert got == pytest.approx(dict(norm=5.0, cosine=9 / 25, split_half=0.0))
    same = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    want = dict(norm=math.sqrt(45), cosine=1.0, split_half=1.0)
    assert study.compare_gradients(same, same.sum(0)) == pytest.approx(want)
    nothing = dict(norm=0.0, cosine=0.0, split_half=0.0)
    assert study.compare_gradients(torch.zeros(2, 2), torch.ones(2)) == nothing


def test_unchanged_at_bf16_resolution():
    """Between 1 and 2 bf16 has 128 steps: 1.001 is 1 there, 1.1 is not."""
    base = {
        "model.embed_tokens.weight": torch.ones(4, 2),
        "model.layers.0.mlp.up_proj.weight": torch.ones(5),
        "model.layers.0.mlp.down_proj.weight": torch.ones(3),
        "model.norm.weight": torch.ones(4),
    }
    final = {k: p.clone() for k, p in base.items()}
    final["model.embed_tokens.weight"] *= 1.001
    final["model.layers.0.mlp.up_proj.weight"][:2] = 1.1
    final["model.norm.weight"][1:] = -1
    got = study.unchanged(base, final)
    assert got["unchanged"] == pytest.approx(15 / 20) and got["dtype"] == "bfloat16"
    rows = [("embed_tokens", 1.0, 8), ("layers 0", 6 / 8, 8), ("norm", 1 / 4, 4)]
    assert [(r["name"], r["unchanged"], r["n"]) for r in got["layers"]] == rows


def test_steps_of_a_trace_and_of_a_text():
    words = " try 8 + 3 = 11 no wait left 8 3 ; try 8 * 3".split(" ")[1:]
    assert study.steps_of([f" {w}" for w in words], True) == [(0, 12), (12, 16)]
    text = ["So", " try", "\n", "Then", " 3", ".\n\n", "42"]
    assert study.steps_of(text, False) == [(0, 3), (3, 6), (6, 7)]
    assert study.steps_of([" 5"], True) == [(0, 1)]


# ---------------------------------------------------------------------- from models


@dataclass(frozen=True)
class Coin(Countdown):
    """A world that an untrained model succeeds in half of the time."""

    def reward(self, problem, response):
        return float(len(response) % 2)


WORLD = Coin(2, 12, "+-*", 30)
SHAPE = Shape(32, 1, 2, 1, 16, 48, vocab_size=WORLD.tokenizer().n_vocab)


def tiny(seed: int = 0, **kw) -> Transformer:
    """Untrained, but not uniform: its likeliest token has a third of the probability."""
    shape = Shape(**asdict(SHAPE) | kw)
    model = Transformer(shape).init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model.model.norm.weight *= 3
    return model


def sampled(model: Transformer, n: int = 3, G: int = 4, T: float = 1.0, max_new: int = 12):
    prompts = [WORLD.encode(p) for p in WORLD.splits()["train"][:n]]
    generator = torch.Generator().manual_seed(1)
    return generate(model, prompts, G, max_new, WORLD.tokenizer().eos, Sampling(T), generator)


def test_rescoring_is_what_the_sampler_recorded():
    model = tiny()
    for T in (1.0, 0.7):
        s = sampled(model, n=9, T=T)  # 36 sequences: three blocks
        recorded = s.entropy
        assert torch.allclose(study.rescore(model, s, T), recorded, atol=1e-5)


def test_alternatives_against_the_whole_distribution():
    """Also where the matrices have rows that are no token's, as the published ones do: the largest
    logits of all must not appear."""
    model = tiny(vocab_size=SHAPE.vocab_size + 7)
    model.n_vocab = SHAPE.vocab_size
    with torch.no_grad():
        model.head_weight[model.n_vocab :] = 5 * model.head_weight[3]
    s = sampled(model, T=0.8)
    p, h, best, ids = study.alternatives(model, s, 5, 0.8)
    assert torch.allclose(p, s.logprobs.exp(), atol=1e-5)
    assert torch.allclose(h, s.entropy, atol=1e-5)
    logits = all_logits(model, s.tokens, s.cu_seqlens)[s.response.nonzero()[:, 0] - 1]
    full = (logits[:, : model.n_vocab] / 0.8).softmax(-1)
    for row, q, i in zip(full.tolist(), best.tolist(), ids.tolist(), strict=True):
        slow = sorted(range(len(row)), key=lambda v: -row[v])[:5]
        assert i == slow and q == pytest.approx([row[v] for v in slow], rel=1e-4)


def test_anatomy_adds_up_to_the_gradient_of_the_first_update(monkeypatch):
    model = tiny()
    s = sampled(model, n=4, G=4, T=0.9)
    rewards = torch.randint(0, 2, (16,), generator=torch.Generator().manual_seed(0)).float()
    advantages = fork_gpt.group_advantages(rewards, 4)
    h = s.entropy
    masks = torch.stack([study.deciles(h) == d for d in range(10)])
    parts = study.gradients(model, s, advantages, masks, 4, 0.9)  # (10, 2, P)

    def updated(which, **kw):
        c = fork_gpt.Config(temperature=0.9, normalize="all", **kw)
        model.zero_grad()
        fork_gpt.update(model, s, advantages, which, c, None, first=True)
        return -torch.cat([p.grad.flatten() for p in model.parameters()])

    full = updated(range(16), keep="all")
    assert full.norm() > 1e-3
    assert torch.allclose(parts.sum((0, 1)), full, atol=1e-6)
    if len(h) % 5 == 0:  # then the two highest deciles are exactly the top 20%
        assert torch.allclose(parts[8:].sum((0, 1)), updated(range(16), keep="top"), atol=1e-6)
    # the first half holds the even groups
    even = [0, 1, 2, 3, 8, 9, 10, 11]
    half = updated(even, keep="all") * int(s.lengths()[even].sum()) / len(h)
    assert torch.allclose(parts[:, 0].sum(0), half, atol=1e-6)
    # a large model's gradient is thinned, its norm estimated
    monkeypatch.setattr(study, "COORDINATES", len(full) // 4)
    thin = study.gradients(model, s, advantages, masks, 4, 0.9).sum((0, 1))
    assert len(thin) < len(full) / 4 and thin.norm() == pytest.approx(full.norm().item(), rel=0.15)


def make_run(folder, steps: int = 4, world=WORLD, shape=SHAPE, **kw) -> Run:
    """A run as `fork_gpt.py` leaves it, of models that are not trained but moved."""
    c = fork_gpt.Config(
        n_numbers=2,
        max_number=12,
        max_value=30,
        steps=steps,
        eval_problems=12,
        eval_k=2,
        max_new=12,
        group=4,
        rows=64,
        device="cpu",
        **kw,
    )
    mine = {k: v for k, v in asdict(c).items() if k not in ("out", "resume")}
    files.write_json(folder / "config.json", mine)
    model = tiny(**asdict(shape))
    generator = torch.Generator().manual_seed(9)
    log = []
    for step in range(steps + 1):
        if step % 2 == 0:
            weights.save_snapshot(folder, step, model)
        with torch.no_grad():
            for p in model.parameters():
                p += 0.05 * torch.randn(p.shape, generator=generator)
        keys = "accuracy reward length truncated entropy entropy_kept entropy_dropped tau"
        line = dict.fromkeys((keys + " grad_norm kept_fraction").split(), step / 8)
        log.append(dict(step=step + 1) | line | (dict(val_accuracy=0.5) if step == 1 else {}))
    model.load_state_dict(weights.load(folder / "snapshots" / f"{steps:06}.pt")["weights"])
    if world is WORLD:
        weights.save_model(folder, model, world.tokenizer().words)
    text = "".join(json.dumps(line) + "\n" for line in log[:steps])
    files.write_atomic(folder / "metrics.jsonl", text.encode())
    files.write_json(folder / "summary.json", dict(cpu_seconds=12.5))
    states = study.states_of(folder, steps, model)
    return Run(folder, c, world, world.splits(), model, states=states)


SMALL = Flags(all=True, problems=6, k=2, responses=3, positions=20, continuations=2)


def read(folder) -> dict:
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    files = sorted((folder / "data").glob("*.json"))
    return {p.stem: json.loads(p.read_text(), parse_constant=refuse) for p in files}


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
    assert argv[:2] == ["python", "fork_gpt.py"]
    again = asdict(config(argv[2:]))  # the command makes this run
    assert again == asdict(run.c) | dict(out=str(run.folder))
    d = data["training"]
    assert d["step"] == [1, 2, 3, 4] and d["tau"] == [0, 1 / 8, 2 / 8, 3 / 8]
    assert d["val_step"] == [2] and d["val_accuracy"] == [0.5]


def test_distribution_and_tokens_of_a_run(whole):
    run, data = whole
    for which, seed_state in (("base", 0), ("final", 4)):
        d, t = data["distribution"][which], data["tokens"][which]
        found, s = measure(run.at(seed_state), WORLD, run.problems(), run.c)
        h = s.entropy
        assert d["accuracy"] == found["accuracy"] and d["p80"] == distribution(h)["p80"]
        assert sum(d["histogram"]["counts"]) == d["n_tokens"] == len(h)
        by_token = {}
        for i, x in zip(s.tokens[s.response].tolist(), h.tolist(), strict=True):
            by_token.setdefault(i, []).append(x)
        slow = sorted((-sum(x) / len(x), i, len(x)) for i, x in by_token.items())
        for rows, want in ((t["highest"], slow), (t["lowest"], slow[::-1])):
            assert len(rows) == min(100, len(slow)) and data["tokens"]["floor"] == 0
            for r, (mean, i, n) in zip(rows, want, strict=False):
                assert (r["token"], r["count"]) == (WORLD.tokenizer().token(i), n)
                assert r["entropy"] == pytest.approx(-mean, rel=1e-5)
    b, f = (data["distribution"][w]["histogram"]["edges"] for w in ("base", "final"))
    assert b == f, "one scale for both"
    top = max(s.entropy.max().item() for _, s in run.looks.values())
    assert b[-1] == pytest.approx(top), "up to the highest entropy of both"
    other = replace(run, looks=dict(base=run.looks["final"], final=run.looks["base"]))
    assert study.distributions(other, SMALL)["base"]["histogram"]["edges"] == b


def test_traces_of_a_run(whole):
    run, data = whole
    tokenizer = WORLD.tokenizer()
    problems = {p.prompt: p for p in run.problems()}
    assert len(data["traces"]) == 6
    for record in data["traces"]:
        problem = problems[record["problem"]]
        for which in ("base", "final"):
            r = record[which]
            _, s = run.look(which)
            mine = s.responses()[run.problems().index(problem) * 2]
            assert [t["t"] for t in r["tokens"]] == [tokenizer.token(i) for i in mine]
            text = tokenizer.decode(mine)
            assert r["correct"] == (WORLD.reward(problem, text) > 0)
            recorded = s.sequences([run.problems().index(problem) * 2])
            recorded = recorded.entropy.tolist()
            assert [t["h"] for t in r["tokens"]] == pytest.approx(recorded, abs=1e-4)
            assert r["finished"] == (mine[-1] == tokenizer.eos) and r["length"] == len(mine)
            for t in r["tokens"]:
                probabilities = [p for _, p in t["alt"]]
                assert len(probabilities) == 5 and sum(probabilities) < 1.01
                assert probabilities == sorted(probabilities, reverse=True)
                if "\ufffd" not in t["t"]:  # a byte that is no character has no text of its own
                    assert dict(map(tuple, t["alt"])).get(t["t"], t["p"]) == t["p"]
    outcomes = [r["base"]["correct"] for r in data["traces"]]
    assert sum(outcomes) == 3, "both outcomes are shown"


def test_during_of_a_run(whole):
    """The final model's responses re-scored by every kept step, against one pass a sequence."""
    run, data = whole
    d = data["during"]
    _, s = run.look("final")
    s = s.sequences(range(12))
    pools = []
    for step in (0, 2, 4):
        model = run.at(step)
        pools.append([h for b in range(12) for h in model(*s.sequences([b]).scored())[1].tolist()])
    n = len(pools[0])
    k = math.ceil(n / 5)
    tops = [set(sorted(range(n), key=lambda i, h=h: -h[i])[:k]) for h in pools]
    assert d["steps"] == [0, 2, 4] and d["n_tokens"] == n
    assert d["overlap_base"] == pytest.approx([len(t & tops[0]) / k for t in tops])
    assert d["overlap_final"] == pytest.approx([len(t & tops[2]) / k for t in tops])
    assert d["overlap_base"][0] == 1 and 0 < d["overlap_base"][2] < 1
    assert d["percentiles"]["p90"] == pytest.approx([np.percentile(h, 90) for h in pools], rel=1e-4)
    total = sum(b["change"] * b["n"] for b in d["bins"])
    assert total / n == pytest.approx(d["mean"][2] - d["mean"][0], abs=1e-6)


def test_two_temperatures_of_a_run(whole):
    run, data = whole
    d = data["two_temperature"]
    assert [r["t"] for r in d["fork"]] == [r["t"] for r in d["rest"]] == list(study.TEMPERATURES)
    assert d["threshold"] == pytest.approx(data["distribution"]["final"]["p80"])
    assert d["threshold_kind"] == "percentile 80" and d["n_problems"] == 6 and d["k"] == 2
    model, some = run.at("final"), run.problems()[:6]
    for i, t in ((2, 0.3), (4, 1.0), (6, 3.0)):
        fork, _ = measure(model, WORLD, some, run.c, Sampling(1.0, d["threshold"], t))
        rest, _ = measure(model, WORLD, some, run.c, Sampling(t, d["threshold"], 1.0))
        for row, want in ((d["fork"][i], fork), (d["rest"][i], rest)):
            assert row["length"] == want["length"] and row["accuracy"] == want["accuracy"]
            assert [row["low"], row["high"]] == list(want["interval"])
    assert d["fork"][4] == d["rest"][4] and d["fork"][6] != d["rest"][6]
    nats = study.two_temperature(run, Flags(problems=1, k=1, threshold=0.5))
    assert nats["threshold"] == 0.5 and nats["threshold_kind"] == "absolute"


def test_anatomy_of_a_run(whole):
    _, data = whole
    d = data["anatomy"]
    arms = {a["name"]: a for a in d["arms"]}
    assert list(arms) == ["top 20%", "random 20%", "bottom 80%", "all"]
    assert arms["all"]["cosine"] == pytest.approx(1) and len(d["deciles"]) == 10
    # projections on the full gradient add up to it: of the two masks, and of the ten deciles
    for rows in ([arms["top 20%"], arms["bottom 80%"]], d["deciles"]):
        assert sum(r["norm"] * r["cosine"] for r in rows) == pytest.approx(
            arms["all"]["norm"], rel=1e-5
        )
    means = [r["entropy"] for r in d["deciles"]]
    assert means == sorted(means) and [r["decile"] for r in d["deciles"]] == list(range(1, 11))


def test_anatomy_takes_mixed_groups_and_their_own_advantages(monkeypatch, whole):
    run, _ = whole
    got = {}
    real = study.gradients

    def record(model, samples, advantages, masks, G, T):
        got.update(s=samples, a=advantages, masks=masks, G=G)
        return real(model, samples, advantages, masks, G, T)

    monkeypatch.setattr(study, "gradients", record)
    found = study.anatomy(run, SMALL)
    texts = [WORLD.tokenizer().decode(ids) for ids in got["s"].responses()]
    rewards = torch.tensor([float(len(t) % 2) for t in texts])
    assert torch.allclose(got["a"], fork_gpt.group_advantages(rewards, 4))
    right = rewards.view(-1, 4).sum(1)
    assert ((right > 0) & (right < 4)).all() and found["n_groups"] == len(right) < 6
    h = got["s"].entropy
    assert got["masks"][:10].sum(0).eq(1).all() and got["masks"][9].sum() >= len(h) // 10
    assert got["masks"][10].sum() == math.ceil(len(h) / 5)
    assert h[got["masks"][9]].min() >= h[got["masks"][:9].any(0)].max()
    prompts = prompts_of(got["s"])
    assert all(p == prompts[i - i % 4] for i, p in enumerate(prompts)), "groups stay together"


def prompts_of(s: Rollout) -> list[list[int]]:
    """The prompt's ids of every sample."""
    cu, n = s.cu_seqlens.tolist(), s.lengths().tolist()
    return [s.tokens[a : b - k].tolist() for a, b, k in zip(cu[:-1], cu[1:], n, strict=True)]


def test_causal_of_a_run(whole):
    _, data = whole
    d = data["causal"]
    assert d["K"] == 2 and d["n_positions"] == sum(r["n"] for r in d["deciles"]) <= 20
    for r in d["deciles"]:
        assert 0 <= r["low"] <= r["effect"] <= r["high"] <= 1 and r["n"] <= 2
        assert abs(r["kept"] - r["forced"]) <= r["effect"] + 1e-9 and r["weighted"] <= r["effect"]
    effects = [t["effect"] for t in d["tries"]]
    assert effects == sorted(effects, reverse=True) and len(effects) <= 20
    assert -1 <= d["low"] <= d["correlation"] <= d["high"] <= 1


def test_causal_table_by_hand():
    # decile, entropy, kept, again, forced, p_forced, response
    rows = np.array(
        [
            [0, 0.0, 1.0, 1.0, 0.0, 0.0, 0],
            [0, 0.1, 1.0, 0.5, 0.5, 0.2, 1],
            [9, 1.0, 0.5, 0.5, 0.75, 0.4, 0],
            [9, 2.0, 0.5, 0.0, 0.5, 0.4, 1],
        ]
    )
    d = study.causal_table(rows)
    low, high = d["deciles"]
    assert low["decile"] == 1 and high["decile"] == 10 and low["n"] == 2
    assert low["kept"] == 1 and low["forced"] == 0.25 and low["effect"] == 0.75
    assert low["noise"] == 0.25 and high["noise"] == 0.25 and low["weighted"] == 0.05
    assert high["effect"] == 0.125, "the absolute difference, not the difference"
    assert (low["low"], low["high"]) == (0.5, 1.0)
    assert d["correlation"] == pytest.approx(-1)
    with pytest.raises(Missing, match="every continuation"):
        study.causal_table(rows * [1, 1, 0, 0, 0, 1, 1])


def test_continuations_are_graded_from_their_own_beginning(monkeypatch):
    """Continuation j belongs to beginning j // K, beginnings that have ended are not continued, and
    what runs over `max_new` is cut before it is graded."""
    world = Countdown(2, 6, "+-*", 12)
    encode, problem = (
        world.tokenizer().encode,
        next(p for p in world.problems() if p.numbers == (3, 2) and p.goal == 5),
    )
    starts = [encode(x) for x in ("try 3 + 2", "answer 3 + 2 .", "answer 3", "stop .", "no")]
    tails = ["stop .", "= 5 yes answer 3 + 2 .", "+ 2 .", "* 2 .", "answer 3 + 2 .", "3 3 3 3 ."]

    def fixed(model, prompts, K, max_new, *_):
        assert prompts == [encode(problem.prompt) + starts[i] for i in (0, 2, 4)]
        assert max_new == 7  # the shortest beginning has one token of eight
        none = torch.zeros(0)
        responses = [encode(t) for t in tails]
        return SimpleNamespace(responses=lambda: responses, logprobs=none, entropy=none)

    monkeypatch.setattr(ask, "generate", fixed)
    c = SimpleNamespace(max_new=8, rows=8)
    run = SimpleNamespace(c=c, world=world, model=None)
    got = study.continued(run, problem, starts, 2, None)
    # the second tail would be right, but ends after the eighth token
    full = [encode("answer 3 + 2 stop stop stop stop")]
    assert len(full[0]) == 8 and study.continued(run, problem, full, 2, None).tolist() == [[0, 0]]
    assert got.tolist() == [[0, 0], [1, 1], [1, 0], [0, 0], [1, 0]]


def test_causal_forces_the_likeliest_other_token(monkeypatch, whole):
    run, _ = whole
    calls = []

    def record(run, problem, starts, K, generator):
        calls.append((starts, K))
        return np.arange(len(starts) * K).reshape(-1, K) % 2.0

    monkeypatch.setattr(study, "continued", record)
    d = study.causal(run, Flags(responses=2, positions=10**6, continuations=3))
    _, s = run.look("final")
    assert len(calls) == 4, "kept and forced, of each of two responses"
    for b in range(2):
        one = s.sequences([2 * b])
        ids = one.responses()[0]
        (kept, K2), (forced, K1) = calls[2 * b : 2 * b + 2]
        assert (K2, K1) == (6, 3) and kept == [ids[: i + 1] for i in range(len(ids))]
        tokens, cu, at, _ = one.scored()
        logits = all_logits(run.at("final"), tokens, cu)[at]
        logits[torch.arange(len(ids)), ids] = -torch.inf
        other = logits.argmax(-1).tolist()
        assert forced == [ids[:i] + [t] for i, t in enumerate(other)]
    assert d["n_positions"] == len(calls[0][0]) + len(calls[2][0])


# ---------------------------------------------------------------------- what is missing


def test_a_model_with_one_token(tmp_path):
    """Its entropy is 0 everywhere, nothing can be forced, and no division by it may leave a NaN."""
    one = SimpleNamespace(eos=None, decode=lambda ids: "x" * len(ids), token=lambda i: "x")
    world = SimpleNamespace(
        tokenizer=lambda: one,
        encode=lambda p: [0],
        reward=lambda p, t: 0.0,
        statements=lambda t: [],
        name=str,
        splits=lambda: dict(train=["a", "b"], val=[], test=list("abcdefg")),
    )
    run = make_run(tmp_path, world=world, shape=Shape(8, 1, 1, 1, 4, 8, vocab_size=1))
    study.study(run, SMALL)
    data = read(tmp_path)
    assert {k for k, x in data.items() if "missing" in x} == {"anatomy", "causal"}
    assert data["distribution"]["base"]["top20_share"] == 0
    assert data["distribution"]["final"]["histogram"]["counts"][0] == 7 * 2 * 12
    assert len(data["during"]["bins"]) == 1 and data["during"]["overlap_base"] == [1, 1, 1]
    assert data["traces"][0]["base"]["tokens"][0] == dict(t="x", h=0.0, p=1.0, alt=[["x", 1.0]])


def test_no_correct_response_at_all(tmp_path):
    run = make_run(tmp_path)
    run.world = Countdown(2, 12, "+-*", 30)  # an untrained model solves nothing
    study.study(run, SMALL)
    data = read(tmp_path)
    assert data["distribution"]["final"]["accuracy"] == 0
    assert data["two_temperature"]["fork"][0]["accuracy"] == 0 and len(data["traces"]) == 6
    assert "right and wrong answers" in data["anatomy"]["missing"]
    assert "every continuation" in data["causal"]["missing"]


def test_without_all_the_slow_sections_say_what_makes_them(tmp_path):
    """And none of an earlier model stays behind."""
    run = make_run(tmp_path)
    files.write_atomic(tmp_path / "data" / "causal.json", b'{"K": 8}')
    study.study(run)
    data = read(tmp_path)
    for name in study.SLOW:
        assert f"-m study {tmp_path} --all" in data[name]["missing"]


@pytest.fixture
def line(monkeypatch, capsys):
    """The command line with a page that is only named: its code, what it printed."""
    monkeypatch.setattr(report, "write", lambda f: f / "report.html")

    def go(*argv: str) -> tuple[int, str]:
        code = study.main([str(a) for a in argv])
        out = capsys.readouterr()
        last = out.err.strip().splitlines()[-1] if code else out.out.strip()
        return code, last

    return go


def test_command_line_finds_what_the_run_had(tmp_path, line):
    """`python -m study RUN` from the folder alone gives the bytes that the run itself wrote."""
    run = make_run(tmp_path)
    run.world = Countdown(2, 12, "+-*", 30)
    study.study(run)
    first = {p.name: p.read_bytes() for p in (tmp_path / "data").iterdir()}
    code, out = line(tmp_path, "--device", "cpu")
    assert code == 0 and out.endswith("report.html")
    assert {p.name: p.read_bytes() for p in (tmp_path / "data").iterdir()} == first


def test_a_run_that_was_interrupted(tmp_path, line, monkeypatch):
    """No model, no summary, half a line of metrics: the last snapshot is the final model."""
    make_run(tmp_path)
    for name in ("model.pt", "summary.json", "snapshots/000004.pt"):
        (tmp_path / name).unlink()
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"step": 5, "accu')
    base = tiny(0)
    monkeypatch.setattr(pretrain, "base_model", lambda *a: (base, {}))
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


def test_a_run_without_snapshots(tmp_path, line, monkeypatch):
    """The base model comes from where the run took it; the run itself cannot show it any more."""
    run = make_run(tmp_path)
    for p in (tmp_path / "snapshots").iterdir():
        p.unlink()
    run.states = study.states_of(tmp_path, 4, run.model)
    study.study(run)
    assert f"-m study {tmp_path}" in read(tmp_path)["sparsity"]["missing"]
    base = tiny(0)
    monkeypatch.setattr(pretrain, "base_model", lambda *a: (base, {}))
    assert line(tmp_path, "--device", "cpu")[0] == 0
    data = read(tmp_path)
    assert data["during"]["steps"] == [0, 4] and 0 < data["sparsity"]["unchanged"] < 1
    run.splits = dict(train=[], val=[], test=[])
    run.looks = {}
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
    (tmp_path / "snapshots" / "000002.pt").write_bytes(b"half")
    code, text = line(tmp_path, "--device", "cpu")
    assert code == 2 and "000002.pt is damaged" in text
    weights.save(tmp_path / "snapshots" / "000002.pt", dict(step=2, weights={}))
    code, text = line(tmp_path, "--device", "cpu")
    assert code == 2 and "the weights of step 2 do not fit" in text


def test_a_padded_bf16_model_takes_the_same_road(tmp_path):
    """As a Qwen3 run: compute in bf16, matrices with rows that are no token's."""
    shape = Shape(**asdict(SHAPE) | dict(vocab_size=SHAPE.vocab_size + 15))
    run = make_run(tmp_path, shape=shape)
    run.model = run.model.bfloat16()
    run.model.n_vocab = SHAPE.vocab_size
    study.study(run, SMALL)
    data = read(tmp_path)
    assert not [name for name, x in data.items() if "missing" in x]
    assert data["anatomy"]["arms"][3]["cosine"] == pytest.approx(1)

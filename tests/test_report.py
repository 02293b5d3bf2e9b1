"""The page: numbers land where they must, verdicts follow their rules, and a browser shows it."""

import json
import math
import random
import re
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from infra import files
from infra.files import UserError
from study import figures, report

HOSTILE = ["</script>", '"<b onclick=x>', "&amp;", "\n", "\x1b[31m", "\u202eltr", "\ud800", "'"]
HOSTILE += ["🧮", "{{tally}}"]


def example(tokens: int = 160) -> dict:
    """Every section with numbers of the size that the small world gives; six problems of `tokens`
    tokens, some of them hostile."""
    rng = random.Random(0)
    edges = [0.022 * i for i in range(51)]
    bell = [math.exp(-(((x - 0.7) / 0.2) ** 2)) for x in edges[5:50]]
    counts = [54_746, 497, 227, 1, 0] + [int(3 + 4000 * x) for x in bell]
    shape = dict(n_tokens=66_742, dtype="float32", histogram=dict(edges=edges, counts=counts))
    shape |= dict(p5=1e-4, p25=5e-4, p50=0.0015, p75=0.008, p80=0.0199, p85=0.5, p90=0.73)
    shape |= {"p95": 1.07, "p99": 1.09, "mean": 0.14, "below_0.01": 0.7675, "top20_share": 0.9876}
    base = shape | dict(accuracy=0.402, interval=[0.371, 0.432], arithmetic=0.985)
    base |= dict(length=43.8, truncated=0.017)
    final = shape | dict(accuracy=0.749, interval=[0.713, 0.781], arithmetic=0.977)
    final |= dict(length=61.5, truncated=0.13, mean=0.09, p80=0.024)
    words = {" wait": 1.06, " back": 1.05, " *": 1.03, " stop": 0.97, " -": 0.81, " +": 0.8}
    words |= {f" {n}": 0.24 / n for n in range(1, 31)} | {" =": 4e-4, " goal": 3e-4, " try": 2e-4}
    words |= {"<b>": 0.33, "\n": 0.002, "&": 0.001, "wait": 0.5, "\u202eabc": 0.1}
    rows = [dict(token=t, entropy=h, count=100 + i) for i, (t, h) in enumerate(words.items())]
    rows.sort(key=lambda r: -r["entropy"])
    low = rows[::-1]
    later = [r | dict(entropy=0.6 * r["entropy"]) for r in rows]

    def trace(right: bool) -> dict:
        out = []
        for i in range(tokens):
            h = rng.random() * 1.1 if i % 5 == 0 else rng.random() * 0.02
            t = HOSTILE[i // 16 % len(HOSTILE)] if i % 16 == 3 else rng.choice(list(words))
            others = [[x, 0.1 / (j + 1)] for j, x in enumerate(rng.sample(HOSTILE + [" 9"], 4))]
            out.append(dict(t=t, h=h, q=max(0.0, 1 - h), p=0.5, alt=[[t, 0.5], *others]))
        return dict(correct=right, finished=right, tokens=out)

    def valued(i: int) -> dict:
        v = [0.5 + 0.4 * (t % 7 == i) for t in range(tokens + 1)]
        return dict(v=v, alt=[[0.5, 0.25, None, 0.0, 1.0]] * tokens)

    def decided(top: float) -> dict:
        each = dict(share=top, low=top - 0.1, high=top + 0.1, n=99)
        rows = [each | dict(entropy=0.1 * d, decile=d) for d in range(1, 11)]
        kinds = [each | dict(name=k, entropy=0.3) for k in ("operator", "after no", "=")]
        share = dict(share=[min(1.0, i / 20) for i in range(1, 101)])
        found = dict(deciles=rows, kinds=kinds, words=kinds, cumulative=share, K=16)
        return found | dict(top20=[top, 0.9, 1.1], percent_for_90=18, n_responses=120)

    steps = list(range(1, 61))
    grow = [0.4 + 0.35 * (1 - math.exp(-i / 18)) for i in steps]
    kept = list(range(0, 61, 10))
    grid = [0, 0.05, 0.3, 0.6, 1, 2, 3, 5]

    def point(t: float, accuracy: float) -> dict:
        out = dict(t=t, accuracy=accuracy, low=max(0, accuracy - 0.04))
        return out | dict(high=accuracy + 0.04, length=60, truncated=0.1)

    def an_arm(keep: str, end: float, rho: float = 0.2, flags: str = "") -> dict:
        up = [0.4 + (end - 0.4) * (1 - math.exp(-i / 18)) for i in steps]
        curve = dict(step=steps, cpu_seconds=[(1.9 if keep == "all" else 1.7) * i for i in steps])
        curve |= dict(accuracy=up, runs=[[v + d for v in up] for d in (-0.03, 0, 0.03)])
        test = dict(accuracy=end, low=end - 0.03, high=end + 0.03, arithmetic=0.98, length=60)
        test |= dict(per_seed=[end - 0.01, end, end + 0.01], truncated=0.1, cpu_seconds=102)
        out = dict(name=f"{keep} {flags}".strip(), keep=keep, rho=rho, flags=flags, seed=[0, 1, 2])
        return out | dict(curve=curve, test=test)

    arms = [an_arm("top", 0.738), an_arm("all", 0.741, 1.0), an_arm("random", 0.66)]
    arms += [an_arm("bottom", 0.39), an_arm("bottom", 0.41, flags="optimizer=sgd lr=0.05")]
    arms += [an_arm("top", 0.72, 0.1), an_arm("top", 0.74, 0.5)]
    layers = ["embed_tokens", "layers 0", "layers 1", "layers 2", "norm"]
    return dict(
        run=dict(
            name="top-rho0.2-seed0", command="python fork_gpt.py --keep top --rho 0.2", seed=0,
            model="tiny", n_params=325_056, dtype="float32", torch="2.13.0+cpu", keep="top",
            rho=0.2, hardware="Intel Xeon at 2.1 GHz", world="Countdown: 3 numbers up to 12",
            steps=60, n_test=381, k=4, cpu_seconds=213.0,
        ),
        training=dict(
            step=steps, accuracy=grow, reward=grow, length=[50.0] * 60, truncated=[0.1] * 60,
            entropy=[0.13] * 60, entropy_kept=[0.67 - 0.005 * i for i in steps],
            entropy_dropped=[0.002] * 60, tau=[0.015] * 60, grad_norm=[0.6] * 60,
            kept_fraction=[0.2] * 60, val_step=kept[1:],
            val_accuracy=[grow[i - 1] - 0.02 for i in kept[1:]],
        ),
        distribution=dict(base=base, final=final),
        tokens=dict(
            floor=66, base=dict(highest=rows, lowest=low),
            final=dict(highest=later, lowest=later[::-1]),
        ),
        traces=[
            dict(problem=f"use 9 7 {i} goal 25 ;", base=trace(i % 2 == 0), final=trace(i != 1))
            for i in range(6)
        ],
        values=[dict(base=valued(i), final=valued(i)) for i in range(6)],
        learned=dict(bars=[dict(name="base", accuracy=0.4, low=0.3, high=0.5, first=0.2)] * 2),
        two_temperature=dict(
            threshold=0.0242, threshold_kind="percentile 80", k=4, n_problems=96, model="final",
            fork=[point(t, 0.75 - 0.05 * max(0, t - 1)) for t in grid],
            rest=[point(t, 0.74 if t <= 1 else 0.4 / t**2) for t in grid],
            other=dict(
                threshold=0.3, threshold_kind="0.3 nats", fork=[point(t, 0.75) for t in grid],
                rest=[point(t, 0.74) for t in grid],
            ),
        ),
        during=dict(
            steps=kept, overlap_base=[1 - 0.002 * i for i in kept], rho=0.2, n_tokens=26_085,
            overlap_final=[0.88 + 0.002 * i for i in kept],
            percentiles={
                f"p{p}": [10 ** (p / 25 - 4) * (1 - i / 200) for i in kept]
                for p in (5, 25, 50, 75, 80, 85, 90, 95, 99)
            },
            mean=[0.14 - 0.0005 * i for i in kept],
            by_rho=[dict(rho=r, overlap=0.5 + 2 * r) for r in (0.05, 0.1, 0.15, 0.2)],
            bins=[
                dict(low=i / 20, high=(i + 1) / 20, base=1e-4 * 1.6**i, final=1e-4 * 1.6**i, n=1304,
                     change=0.0001 * i if i < 16 else -0.05 * (i - 15))
                for i in range(20)
            ],
        ),
        comparison=dict(
            base=dict(accuracy=0.402, interval=[0.371, 0.432]), n_problems=381, k=4, arms=arms,
            sd=0.01, df=14,
        ),
        anatomy=dict(models=[dict(
            n_tokens=30_802, n_groups=90, model="base", largest=10, mean_advantage=-0.36,
            arms=[
                dict(name=name, norm=norm, cosine=cosine, split_half=half, robust=0.5, down=0.8)
                for name, norm, cosine, half in (
                    ("top 20%", 0.0630, 0.9996, 0.77), ("random 20%", 0.0154, 0.79, 0.40),
                    ("bottom 80%", 0.0016, 0.056, 0.06), ("all", 0.0631, 1.0, 0.76),
                )
            ],
            deciles=[
                dict(decile=i, entropy=1e-4 * 2.5**i, norm=1e-5 * 2.4**i, cosine=i / 10,
                     split_half=0.08 * i - 0.1)
                for i in range(1, 11)
            ],
        )]),
        decomposition=dict(base=decided(1.05), final=decided(0.96)),
        sparsity=dict(
            dtype="bfloat16", unchanged=0.0936, beyond=0.75, decayed=0.4,
            layers=[
                dict(name=n, unchanged=0.05 * i, beyond=0.1 * i, decayed=0.4, n=29_280)
                for i, n in enumerate(layers, 1)
            ],
        ),
    )  # fmt: skip


def save(folder: Path, sections: dict) -> Path:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, d in sections.items():
        (folder / "data" / f"{name}.json").write_text(json.dumps(d))
    return folder


def command(argv: list[str]) -> int:
    return files.command("-m study.report", report.main, argv)


@pytest.fixture(scope="module")
def data() -> dict:
    return example()


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    folder = save(tmp_path_factory.mktemp("run"), data)
    report.write(folder)
    return folder


def drawn(drawing: tuple) -> ET.Element:
    return ET.fromstring(f"<svg>{drawing[0]}</svg>")


def with_class(svg: ET.Element, name: str) -> list[ET.Element]:
    return [e for e in svg.iter() if name in e.get("class", "").split()]


def number(words: str) -> float:
    """What a tick's label says."""
    scale = {"%": 0.01, "k": 1000}.get(words[-1], 1)
    return float(words.rstrip("%k").replace(",", "").replace("−", "-")) * scale


def axis(svg: ET.Element, which: str):
    """Pixels to data along x or y, read off the ticks' labels as a person would: the outer two."""
    marks = [e for e in with_class(svg, "tick") if re.fullmatch(r"[−\d.,]+[%k]?", e.text)]
    marks = [e for e in marks if (e.get("text-anchor") == "end") == (which == "y")]
    shift = -4 if which == "y" else 0
    pairs = sorted((float(e.get(which)) + shift, number(e.text)) for e in marks)
    (a, va), (b, vb) = pairs[0], pairs[-1]
    return lambda pixel: va + (pixel - a) / (b - a) * (vb - va)


def path(e: ET.Element) -> list[tuple[float, float]]:
    return [tuple(map(float, p.split())) for p in e.get("d")[1:].split("L")]


@pytest.mark.parametrize("width", [report.WIDE, report.NARROW])
def test_histogram_bars_stand_for_their_counts_on_the_log_axis(data, width):
    d = data["distribution"]
    bars = with_class(drawn(figures.histogram(d, width)), "bar")
    counts = [c for c in d["base"]["histogram"]["counts"] if c]
    assert len(bars) == len(counts) == 49 and 1 in counts  # a single token is seen, none is not
    unit = float(bars[0].get("height")) / math.log10(2 * counts[0])
    for bar, n in zip(bars, counts, strict=True):
        assert float(bar.get("height")) == pytest.approx(unit * math.log10(2 * n), abs=0.02)
    foot = {round(float(b.get("y")) + float(b.get("height")), 1) for b in bars}
    assert len(foot) == 1


def test_histogram_shades_rise_with_entropy_and_end_at_the_99th_percentile(data):
    bars = with_class(drawn(figures.histogram(data["distribution"], 720)), "bar")
    shades = [int(b.get("class").split()[1][1:]) for b in bars]
    assert shades == sorted(shades) and shades[0] == 0 and shades[-1] == 9
    assert [figures.level(h, 1.0) for h in (0, 0.05, 0.1, 0.95, 1, 7)] == [0, 0, 1, 9, 9, 9]
    assert figures.level(0, 0) == 0


@pytest.mark.parametrize("width", [report.WIDE, report.NARROW])
def test_points_stand_at_their_values(data, width):
    d = data["during"]
    svg = drawn(figures.overlaps(d, width))
    x, y = axis(svg, "x"), axis(svg, "y")
    marks = [m for m in with_class(svg, "mark") if "all" in m.get("class")]
    found = [(x(float(m.get("cx"))), y(float(m.get("cy")))) for m in marks]
    for (a, b), step, share in zip(found, d["steps"], d["overlap_base"], strict=True):
        assert a == pytest.approx(step, abs=0.05) and b == pytest.approx(share, abs=1e-3)


def test_intervals_stand_at_their_ends(data):
    d = data["two_temperature"]
    svg = drawn(figures.temperatures(d, 720))
    y = axis(svg, "y")
    whiskers = [w for w in with_class(svg, "whisker") if "top" in w.get("class")]
    for w, r in zip(whiskers, d["fork"] + d["other"]["fork"], strict=True):
        (_, low), (_, high) = path(w)
        assert (y(low), y(high)) == pytest.approx((r["low"], r["high"]), abs=2e-3)


def test_rows_of_dots_stand_at_their_values_and_seeds_are_small(data):
    d = data["comparison"]
    svg = drawn(figures.final_test(d, 720))
    x = axis(svg, "x")
    big = [m for m in with_class(svg, "mark") if "small" not in m.get("class")]
    values = [d["base"]["accuracy"], *(a["test"]["accuracy"] for a in d["arms"])]
    assert [x(float(m.get("cx"))) for m in big] == pytest.approx(values, abs=2e-3)
    small = [x(float(m.get("cx"))) for m in with_class(svg, "small")]
    assert small == pytest.approx([v for a in d["arms"] for v in a["test"]["per_seed"]], abs=2e-3)


def test_a_fall_of_entropy_hangs_below_zero(data):
    d = data["during"]
    svg = drawn(figures.changes(d, 720))
    y, zero = axis(svg, "y"), path(with_class(svg, "zero")[0])[0][1]
    for bar, r in zip(with_class(svg, "bar"), d["bins"], strict=True):
        top, height = float(bar.get("y")), float(bar.get("height"))
        assert (top if r["change"] < 0 else top + height) == pytest.approx(zero, abs=0.06)
        end = top + height if r["change"] < 0 else top
        assert y(end) == pytest.approx(r["change"], abs=1e-3)


def test_curves_and_their_runs_stand_at_their_values(data):
    d = data["comparison"]
    svg = drawn(figures.FIGURES["arms_step"][1](d, 720))
    x, y = axis(svg, "x"), axis(svg, "y")
    c = figures.arm(d, "random")["curve"]
    line = [p for p in with_class(svg, "line") if "random" in p.get("class")][0]
    found = [(x(a), y(b)) for a, b in path(line)]
    assert [a for a, _ in found] == pytest.approx(c["step"], abs=0.1)
    assert [b for _, b in found] == pytest.approx(c["accuracy"], abs=1e-3)
    thin = [path(p) for p in with_class(svg, "seed") if "random" in p.get("class")]
    for one, values in zip(thin, c["runs"], strict=True):
        assert [y(b) for _, b in one] == pytest.approx(values, abs=1e-3)


def test_the_size_of_a_word_is_linear_in_its_entropy(data):
    svg = drawn(figures.cloud(data["tokens"], 720))
    most, least = figures.most_and_least(data["tokens"]["base"])
    sizes = [float(e.get("style")[10:-2]) for e in with_class(svg, "token")]
    h = [r["entropy"] for r in most + least]
    assert sizes == pytest.approx([12 + 34 * x / max(h) for x in h], abs=0.06)
    assert not {r["token"] for r in most} & {r["token"] for r in least}


@pytest.mark.parametrize("width", [report.WIDE, report.NARROW])
def test_no_word_leaves_the_cloud_or_covers_another(data, width):
    boxes = []
    for e in with_class(drawn(figures.cloud(data["tokens"], width)), "token"):
        size, x, y = float(e.get("style")[10:-2]), float(e.get("x")), float(e.get("y"))
        boxes.append((x, y, x + 0.602 * size * len(e.text)))
    assert all(-1 <= a and b <= width + 1 for a, _, b in boxes)
    for (_, y, end), (start, y2, _) in pairwise(boxes):
        assert y2 > y or start > end


def test_labels_of_lines_keep_apart():
    assert figures.spread([10, 11, 50], 14, 0, 100) == [10, 24, 50]
    assert figures.spread([95, 99], 14, 0, 100) == [86, 100]
    assert figures.spread([5.0], 14, 20, 100) == [20]


RANGES = [(0, 1), (0.38, 0.77), (-0.21, 0.002), (1e-6, 3e-6), (5, 5), (0, 1360)]


@pytest.mark.parametrize("low, high", RANGES)
def test_ticks_are_few_round_and_inside(low, high):
    found = figures.ticks(low, high)
    assert 1 <= len(found) <= 6 and all(low <= v <= high for v in found)
    assert low == high or len(found) >= 2
    gaps = {float(f"{b - a:.6g}") for a, b in pairwise(found)}
    assert len(gaps) <= 1 and all(str(f"{g:e}")[0] in "125" for g in gaps)


def test_the_sentences_hold_the_numbers(data):
    def said(key: str) -> str:
        section, draw = figures.FIGURES[key]
        return draw(data[section], 720)[2]

    words = said("histogram")
    assert "76.8% of 66,742 tokens are below 0.01 nats" in words and "98.8%" in words
    assert "40.2% [37.1,\u00a043.2] to 74.9%" in said("before_after")
    words = said("arms_cpu")  # `all` needs 1.9 s a step: at 102 s it did 53
    assert words.startswith("Training accuracy after 102 CPU-seconds")
    assert f"all {100 * data['comparison']['arms'][1]['curve']['accuracy'][52]:.1f}%" in words
    assert "minus all is −0.3 [−2.1,\u00a0+1.5] points, 3 runs: undecided" in said("arms_test")
    assert "97.7% of the change" in said("change") and "70.0% at 10%" in said("overlap_rho")
    assert "shares 88.0% of its 20%" in said("overlap")
    assert "weight decay alone changes 60.0%, and beyond it 25.0%" in said("sparsity")
    assert "holds 105% [90, 110] of what decides" in said("cumulative")


def test_the_top_fifth_counts_the_border_bin_in_part():
    three = ((2.0, 1, -3.0), (1.0, 3, 1.0), (0.0, 6, 0.5))
    rows = [dict(base=b, n=n, change=c) for b, n, c in three]
    # 2 of 10 tokens: the one that changes by -3, and one of the three that change by 1
    assert figures.top_fifth(rows) == pytest.approx((4 / 9, -1.0))


def verdict(name: str, data: dict, **changed) -> str:
    key = report.CLAIMS[name][0]
    return report.judge(name, {key: data[key] | changed})[1]


def arms(**ends: float) -> list[dict]:
    tests = {k: dict(accuracy=a, length=60, per_seed=[a] * 3) for k, a in ends.items()}
    return [dict(name=k, keep=k, rho=0.2, flags="", test=t) for k, t in tests.items()]


@pytest.mark.parametrize("top, other, words", [
    # sd .01 of twelve degrees of freedom: an interval is .0178 to both sides
    (0.74, 0.70, (report.HOLDS, report.HOLDS)), (0.5, 0.7, (report.FAILS, report.FAILS)),
    (0.71, 0.70, (report.UNCLEAR, report.UNCLEAR)), (0.702, 0.7, (report.FAILS, report.HOLDS)),
    (0.0, 0.0, (report.UNTESTED, report.UNTESTED)),  # nothing was right
])  # fmt: skip
def test_a_verdict_follows_the_rule_for_arms(data, top, other, words):
    changed = dict(arms=arms(top=top, all=other), sd=0.01, df=12)
    assert verdict("top_beats_all", data, **changed) == words[0]
    assert verdict("top_loses_nothing", data, **changed) == words[1]
    changed["arms"] = arms(top=top, random=other)
    assert verdict("top_beats_random", data, **changed) == words[0]
    changed["arms"] = arms(all=top, bottom=other)
    assert verdict("bottom_fails", data, **changed) == words[0]
    changed["arms"][0]["test"]["per_seed"].pop()  # no sentence from two seeds
    assert verdict("bottom_fails", data, **changed) == report.UNTESTED


@pytest.mark.parametrize("top, other, word", [
    ((0.71, 0.77), (0.6, 0.7), report.HOLDS), ((0.5, 0.55), (0.6, 0.7), report.FAILS),
    ((0.6, 0.7), (0.65, 0.75), report.UNCLEAR),
    ((0.7, 0.8), (0.6, 0.7), report.UNCLEAR),  # they touch: a tie is no difference
    ((0.0, 0.0), (0.0, 0.0), report.UNTESTED),  # nothing was right
])  # fmt: skip
def test_a_verdict_within_a_run_follows_the_intervals(data, top, other, word):
    d = dict(accuracy=sum(top) / 2, interval=top), dict(accuracy=sum(other) / 2, interval=other)
    assert verdict("rlvr_helps", dict(distribution=dict(final=d[0], base=d[1]))) == word


def test_an_arm_with_other_flags_is_not_the_arm(data):
    odd = arms(all=0.15)[0] | dict(flags="normalize=all", name="all normalize=all")
    found = [odd, *arms(top=0.55, all=0.15)]
    assert figures.arm(dict(arms=found), "all") is found[2]
    assert figures.title_of(odd) == "all normalize=all"
    assert [figures.title_of(a) for a in found[1:]] == ["top 20%", "all"]


def test_verdicts_of_temperatures(data):
    ends = {0: 0.6, 1: 0.7, 2: 0.1, 3: 0.8}
    rows = {t: dict(t=t, accuracy=a, low=a - 0.02, high=a + 0.02) for t, a in ends.items()}
    d = dict(fork=[rows[0], rows[1], rows[3]], rest=[rows[1], rows[2], rows[3]])
    d |= dict(other=dict(d))
    assert verdict("warm_forks", data, **d) == report.HOLDS  # 0.8 at T = 3
    assert verdict("hot_rest", data, **d) == report.HOLDS  # 0.1 at T = 2, the lowest above 1
    assert verdict("cold_forks", data, **d) == report.HOLDS  # 0.6 against 0.7
    swapped = dict(fork=d["rest"], rest=d["fork"])  # the thresholds disagree: no verdict
    assert verdict("cold_forks", data, **d | dict(other=swapped)) == report.UNCLEAR
    alike = dict(fork=d["rest"], rest=d["rest"])
    assert verdict("cold_forks", data, **alike, other=alike) == report.UNCLEAR
    one = dict(fork=[rows[1]], rest=d["rest"])
    assert verdict("warm_forks", data, **one, other=one) == report.UNTESTED


def rising(*changes: float) -> list[dict]:
    """Bins of base entropy 0, 1, 2, ..., one token each, that change so much."""
    return [dict(base=i, n=1, change=c) for i, c in enumerate(changes)]


def models(*arms: dict) -> dict:
    """`anatomy` with these masks."""
    return dict(models=[dict(arms=list(arms))])


YES, NO, OPEN, NEVER = report.HOLDS, report.FAILS, report.UNCLEAR, report.UNTESTED
RULES = [  # claim, what the data is changed to, verdict
    ("positions_stay", {}, YES),
    ("tenth_stays", {}, NO),
    ("positions_stay", dict(by_rho=[dict(rho=0.2, overlap=0.799)]), NO),
    ("positions_stay", dict(steps=[0]), NEVER),
    ("change_at_forks", dict(bins=rising(0, 0, 0, 0, 0.1)), YES),
    ("change_at_forks", dict(bins=rising(1, 1, 1, 1, 1)), NO),
    ("change_at_forks", dict(bins=rising(0, 0)), NEVER),
    ("forks_gain", dict(bins=rising(-1, 0, 0, 0, 0.1)), YES),
    ("forks_gain", dict(bins=rising(1, 1, 1, 1, -0.1)), NO),
    ("forks_gain", dict(bins=rising(0, 0)), NEVER),
    ("forks_decide", {}, YES),
    ("forks_decide", dict.fromkeys(("base", "final"), dict(top20=[0.6, 0.5, 0.7])), OPEN),
    ("forks_decide", dict.fromkeys(("base", "final"), dict(top20=[0.4, 0.3, 0.49])), NO),
    ("few_change", dict(beyond=0.94), YES),
    ("few_change", dict(beyond=0.71), YES),
    ("few_change", dict(beyond=0.96), NO),
    ("few_change", dict(beyond=0.69), NO),
    ("top_is_the_gradient", models(dict(name="top 20%", norm=1, cosine=0.95)), YES),
    ("top_is_the_gradient", models(dict(name="top 20%", norm=1, cosine=0.94)), NO),
    ("top_is_the_gradient", models(dict(name="top 20%", norm=0, cosine=0)), NEVER),
    ("top_is_the_gradient", models(), NEVER),
    ("fewer_is_too_few", {}, YES),
    ("fewer_is_too_few", dict(sd=0.02), OPEN),
    ("fewer_is_too_few", dict(arms=[]), NEVER),
    ("rho_matters_little", {}, NO),
    ("rho_matters_little", dict(sd=0.02), OPEN),
    ("rho_matters_little", dict(arms=[]), NEVER),
    ("kinds_of_token", {}, YES),
    ("longer_answers", {}, OPEN),
]


@pytest.mark.parametrize("name, changed, word", RULES)
def test_the_other_verdicts_by_their_rules(data, name, changed, word):
    assert verdict(name, data, **changed) == word


def test_verdicts_of_entropy_length_and_share(data):
    base = data["distribution"]["base"]
    for share, held, word in ((0.5, 0.5, YES), (0.49, 0.9, NO), (0.9, 0.49, NO)):
        changed = base | {"below_0.01": share, "top20_share": held}
        assert verdict("few_hold_entropy", data, base=changed) == word
    assert verdict("few_hold_entropy", data, base=base | dict(mean=0)) == NEVER
    for length, word in ((63.1, YES), (62.9, OPEN), (57.1, OPEN), (56.9, NO)):
        pair = arms(top=0.7, all=0.7)
        pair[0]["test"]["length"] = length
        assert verdict("longer_answers", data, arms=pair) == word


def test_the_page_is_whole_small_and_says_every_verdict(run, data):
    page = (run / "report.html").read_text()
    assert (run / "report.html").stat().st_size < 2_000_000
    assert "Missing." not in page and not re.search(r"\bnan\b|\bNone\b", page)
    for name in report.CLAIMS:
        here, word = report.judge(name, data)
        assert f"{report.MARK[word]} {word}</b>" in page and report.esc(here) in page, name
    drawn = {p.stem for p in (run / "figures").iterdir()}
    assert drawn == {*figures.FIGURES, "trace"}
    assert not list(run.rglob("*.tmp"))


def test_nothing_is_fetched(run):
    page = (run / "report.html").read_text()
    assert not re.search(r"(src|srcset|poster)\s*=|<link|@import|url\(|fetch\(|XMLHttp", page)
    assert re.findall(r'https?://[^"<\s]+', page) == ["https://arxiv.org/abs/2506.01939"]
    for file in (run / "figures").glob("*.svg"):
        odd = r"https?://(?!www\.w3\.org/2000/svg)|var\(|href|<script"
        assert not re.search(odd, file.read_text())


def test_each_figure_alone_is_xml_titled_and_on_its_own_ground(run):
    ns = "{http://www.w3.org/2000/svg}"
    for file in (run / "figures").glob("*.svg"):
        svg = ET.parse(file).getroot()
        assert svg.tag == f"{ns}svg" and svg.get("role") == "img"
        assert svg.find(f"{ns}title").text and len(svg.find(f"{ns}desc").text) > 30
        if file.stem != "trace":
            assert svg.find(f"{ns}rect").get("fill") == "#ffffff"
            assert figures.LIGHT["paper"] not in file.read_text()  # nor in halos and hollow dots


def test_the_picture_underlines_the_kept_tokens_on_shades_of_their_entropy(run, data):
    svg = ET.parse(run / "figures" / "trace.svg").getroot()
    assert svg.get("width") == "720" and "prefers-color-scheme:dark" in svg[2].text
    told = [t for side in ("base", "final") for t in data["traces"][0][side]["tokens"][:120]]
    words = [e for e in svg.iter() if e.get("textLength")]
    assert [w.text for w in words] == [figures.shown(report.word_of(t)) for t in told]
    lines = {(e.get("x"), float(e.get("y")) - 25) for e in svg.iter() if e.get("class") == "line"}
    grounds = [e for e in svg.iter() if re.fullmatch(r"e\d", e.get("class", "")) and e.get("rx")]
    top = report.darkest(data["traces"])
    for t, ground in zip(told, grounds, strict=True):
        assert ground.get("class") == f"e{figures.level(t['h'], top)}"
        assert ((ground.get("x"), float(ground.get("y"))) in lines) == (t["q"] < 0.2)
        assert float(ground.get("x")) + float(ground.get("width")) <= 700


class Tags(HTMLParser):
    """What a browser would see: tags with attributes, heading levels, text by tag."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, words: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(words)


def test_hostile_tokens_stay_text(run):
    page = (run / "report.html").read_text()
    seen = Tags(page)
    assert not any(name.startswith("on") for _, attrs in seen.tags for name in attrs)
    assert sum(tag == "script" for tag, _ in seen.tags) == 2  # </script> in a token ends nothing
    assert len(json.loads(seen.scripts[0])) == 12
    assert not set("\u202e\x1b\ud800") & set(page)  # shown as escapes, not passed on
    assert r"\u202eabc" in page and r"\x1b[31m" in page and r"\ud800" in page and "⏎" in page
    assert "&lt;b&gt;" in page and "&amp;amp;" in page


def test_what_a_screen_reader_needs(run):
    seen = Tags((run / "report.html").read_text()).tags
    assert ("html", {"lang": "en"}) in seen
    levels = [int(tag[1]) for tag, _ in seen if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    for tag, attrs in seen:
        if tag == "svg":
            assert attrs["role"] == "img" and len(attrs["aria-label"]) > 40
        if tag == "th":
            assert attrs["scope"] in ("col", "row")
    stops = [attrs for tag, attrs in seen if tag == "i" and attrs.get("tabindex") == "0"]
    assert len(stops) == 14  # one in each trace, and in the two that lead; arrows reach the others


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [figures.LIGHT, figures.DARK])
def test_every_pair_of_text_and_ground_has_contrast(palette):
    for name in ("ink", "muted", *figures.MASKS):
        assert contrast(palette[name], palette["paper"]) >= 4.5, name
    assert contrast(palette["ink"], palette["panel"]) >= 4.5
    for end in figures.RAMPS.values():
        for ground in figures.ramp(palette, end):
            assert contrast(palette["ink"], ground) >= 4.5, ground
        shades = [luminance(c) for c in figures.ramp(palette, end)]  # reads without colour vision
        assert shades == sorted(shades, reverse=palette is figures.LIGHT)
        assert min(max(a, b) / min(a, b) for a, b in pairwise(shades)) > 1.03


def test_a_missing_section_says_why_and_how(tmp_path, data):
    rest = {k: v for k, v in data.items() if k != "during"}
    rest |= dict(learned=dict(missing="takes minutes: python -m study X --all"))
    folder = save(tmp_path, rest)
    page = report.write(folder).read_text()
    assert "data/during.json is not there; this makes it: python -m study" in page
    assert "takes minutes: python -m study X --all" in page
    assert page.count("Missing.") == 2
    assert not (folder / "figures" / "learned.svg").exists()
    found, _ = report.read_data(folder)
    assert report.judge("positions_stay", found) == ("data/during.json is missing", report.UNTESTED)


def test_a_folder_of_arms_alone_is_a_page(tmp_path, data):
    page = report.write(save(tmp_path, dict(comparison=data["comparison"]))).read_text()
    assert page.count("Missing.") == 12 and "fork_gpt.py --arms" not in page
    assert "random 20%" in page and (tmp_path / "figures" / "arms_cpu.svg").exists()


@pytest.mark.parametrize("key, changed", [
    ("training", dict(step=[])), ("tokens", dict(base=dict(highest=[], lowest=[]))),
    ("during", dict(bins=[])), ("comparison", dict(arms=[])), ("anatomy", dict(models=[])),
    ("two_temperature", dict(fork=[])), ("sparsity", dict(layers=[])),
])  # fmt: skip
def test_an_empty_list_is_a_missing_section(tmp_path, data, key, changed):
    page = report.write(save(tmp_path, data | {key: data[key] | changed})).read_text()
    assert page.count("Missing.") == 1 and f"of data/{key}.json is empty" in page


def test_no_trace_and_traces_without_tokens(tmp_path, data):
    page = report.write(save(tmp_path, data | dict(traces=[]))).read_text()
    assert "data/traces.json is empty" in page
    nothing = dict(correct=False, finished=True, tokens=[])
    empty = [dict(problem="p", base=nothing, final=nothing)]
    assert "✗ wrong" in report.write(save(tmp_path, data | dict(traces=empty))).read_text()


def test_one_token_without_entropy(tmp_path, data):
    only = [dict(token=" .", entropy=0.0, count=300)]
    zero = {k: 0.0 for k in data["distribution"]["base"] if re.fullmatch(r"p\d+|mean", k)}
    shape = data["distribution"]["base"] | zero | {"top20_share": 0.0, "below_0.01": 1.0}
    shape |= dict(histogram=dict(edges=[0.0, 0.0], counts=[300]), n_tokens=300)
    tokens = dict(floor=100, base=dict(highest=only, lowest=only))
    tokens |= dict(final=dict(highest=[], lowest=[]))
    point = dict(t=" .", h=0.0, q=0.0, p=1.0, alt=[[" .", 1.0]])
    one = dict(correct=True, finished=True, tokens=[point])
    sections = data | dict(distribution=dict(base=shape, final=shape), tokens=tokens)
    sections |= dict(traces=[dict(problem="p", base=one, final=one)], values=[])
    page = report.write(save(tmp_path, sections)).read_text()
    assert not re.search(r"\bnan\b|\binf\b", page)
    for name in ("few_hold_entropy", "kinds_of_token"):
        assert report.judge(name, sections)[1] == report.UNTESTED


def test_zero_correct_an_interrupted_run_and_one_step(tmp_path, data):
    zero = dict(accuracy=0.0, interval=[0.0, 0.0])
    d = {k: data["distribution"][k] | zero for k in ("base", "final")}
    points = [dict(t=t, accuracy=0, low=0, high=0, length=1, truncated=0) for t in (0, 1, 2)]
    warm = data["two_temperature"] | dict(fork=points, rest=points)
    warm |= dict(other=dict(warm))
    sections = data | dict(distribution=d, two_temperature=warm)
    sections |= dict(training={k: v[:1] for k, v in data["training"].items()})
    assert "0.0%" in report.write(save(tmp_path, sections)).read_text()
    for name in ("rlvr_helps", "warm_forks", "hot_rest", "cold_forks"):
        assert report.judge(name, sections)[1] == report.UNTESTED


@pytest.mark.parametrize("bad", ["NaN", "-Infinity", "1e999", '"broken', "[3", "[" * 10**5])
def test_damaged_data_is_one_line_and_writes_nothing(tmp_path, data, bad):
    folder = save(tmp_path, data)
    whole = json.dumps(data["decomposition"])
    (folder / "data" / "decomposition.json").write_text(whole.replace('"K": 16', f'"K": {bad}'))
    with pytest.raises(
        UserError, match=r"decomposition\.json: .*; this makes it again: python -m study"
    ):
        report.write(folder)
    assert not (folder / "report.html").exists() and not (folder / "figures").exists()


def test_data_of_another_shape_is_one_line_and_keeps_the_old_page(tmp_path, data, capsys):
    folder = save(tmp_path, data)
    old = report.write(folder).read_text()
    save(folder, dict(sparsity=dict(layers=[dict(name="x")])))
    assert command([str(folder)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "not what this version of the study writes" in err
    assert (folder / "report.html").read_text() == old


def test_the_command_line(tmp_path, data, capsys):
    assert command([str(tmp_path)]) == 2
    assert "has no findings: python -m study" in capsys.readouterr().err
    assert command([]) == 2 and "usage" in capsys.readouterr().err
    assert command([str(save(tmp_path, dict(run=data["run"])))]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")


# ---------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def chromium():
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    api = pytest.importorskip("playwright.sync_api")
    if not found:
        pytest.skip("no chromium here: apt-get install chromium")
    flags = "--no-sandbox --disable-gpu --disable-quic --disable-background-networking"
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=found, args=flags.split())
        yield browser
        browser.close()


def opened(chromium, run: Path, width: int = 1280, scheme: str = "light"):
    """The page, and a list that gathers what the console says."""
    page = chromium.new_page(viewport=dict(width=width, height=800), color_scheme=scheme)
    said: list[str] = []
    page.on("console", lambda m: said.append(m.text))
    page.on("pageerror", lambda e: said.append(str(e)))
    page.on("request", lambda r: r.url.startswith("file:") or said.append(r.url))
    page.goto((run / "report.html").as_uri())
    return page, said


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_scrolling_sideways(chromium, run, width, scheme):
    page, said = opened(chromium, run, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    palette = figures.DARK if scheme == "dark" else figures.LIGHT
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    rgb = [int(palette["paper"][i : i + 2], 16) for i in (1, 3, 5)]
    assert [int(x) for x in re.findall(r"\d+", ground)][:3] == rgb
    sizes = page.evaluate(
        """[...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width)
        .map(s => s.getBoundingClientRect().width / s.viewBox.baseVal.width)"""
    )
    assert len(sizes) == len(figures.FIGURES) + 1  # one of the two widths of each, and the lead
    assert min(sizes) * 12 >= 11  # px of the smallest label
    assert said == []
    page.close()


def test_labels_of_figures_stay_on_the_phone(chromium, run):
    page, _ = opened(chromium, run, 390)
    outside = page.evaluate(
        """[...document.querySelectorAll('svg.narrow text')].filter(t => {
          const box = t.getBoundingClientRect();
          return box.left < 0 || box.right > 390;
        }).map(t => t.textContent)"""
    )
    assert outside == []
    token, tip = page.locator("#traces .trace i").nth(9), page.locator("#tip")
    token.evaluate("x => x.scrollIntoView({block: 'start'})")
    token.click()  # a tap: what it shows lies along the edge that is farther away
    box = tip.bounding_box()
    assert (box["x"], box["width"]) == (10, 370) and box["y"] + box["height"] == 790
    token.evaluate("x => { x.blur(); x.scrollIntoView({block: 'end'}); }")
    token.click()
    assert tip.bounding_box()["y"] == 10
    page.close()


def test_hover_tap_and_keyboard_show_the_alternatives(chromium, run, data):
    page, said = opened(chromium, run)
    trace = data["traces"][0]["base"]["tokens"]
    tokens = page.locator('#traces .trace[data-trace="0base"] i')
    assert tokens.count() == len(trace) and not page.locator("#tip").is_visible()
    tokens.nth(5).hover()
    words = page.inner_text("#tip")
    assert f"entropy {trace[5]['h']:.3f} nats, probability 50.0%" in words
    assert len(page.query_selector_all("#tip div")) == 6  # a head, the five likeliest
    v = data["values"][0]["base"]["v"]
    assert f"P(right) {100 * v[5]:.1f}% before, {100 * v[6]:.1f}% after" in words
    for word, _ in trace[5]["alt"]:
        assert figures.shown(word).strip() in words
    odd = next(i for i, t in enumerate(trace) if t["t"] == "\x1b[31m")
    tokens.nth(odd).hover()
    assert page.inner_text("#tip strong") == r"\x1b[31m"
    page.mouse.move(0, 0)
    assert not page.locator("#tip").is_visible()
    tokens.nth(0).focus()
    page.keyboard.press("ArrowRight")
    assert f"entropy {trace[1]['h']:.3f} nats" in page.inner_text("#tip")
    outline = "getComputedStyle(document.activeElement).outlineWidth"
    assert page.evaluate(outline) == "3px"
    page.keyboard.press("ArrowDown")  # to the next of the kept
    assert page.evaluate("document.activeElement.classList.contains('kept')")
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()
    page.locator("#during svg.wide").first.focus()  # a chart's points speak, too
    for key, step in (("ArrowRight", 0), ("ArrowRight", 10), ("ArrowLeft", 0)):
        page.keyboard.press(key)
        share = data["during"]["overlap_base"][step // 10]
        words = f"with base: {figures.num(share)} at {step}"
        assert page.inner_text("#tip") == words
    tokens.nth(8).click()
    assert f"entropy {trace[8]['h']:.3f} nats" in page.inner_text("#tip") and said == []
    page.close()


def test_the_slider_fades_what_is_not_kept_and_the_shades_change(chromium, run, data):
    page, said = opened(chromium, run)
    tokens = [t for x in data["traces"] for s in ("base", "final") for t in x[s]["tokens"]]
    kept, out = (page.locator(f"#traces .trace i.{name}") for name in ("kept", "out"))
    for percent in (20, 50, 100):
        page.locator("input[type=range]").first.fill(str(percent))
        want = sum(100 * t["q"] < percent for t in tokens)
        assert (kept.count(), out.count()) == (want, len(tokens) - want)
    assert page.locator("output").last.inner_text() == "100"
    ground = "getComputedStyle(document.querySelector('.trace .u8, .trace .u7')).backgroundColor"
    before = page.evaluate(ground)
    page.locator("input[value=value]").last.check()
    assert page.evaluate(ground) != before and said == []
    page.close()


def test_print_keeps_the_shades_and_drops_the_dark(chromium, run):
    page, _ = opened(chromium, run, 720, "dark")
    page.emulate_media(media="print")
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert ground == "rgb(253, 252, 249)"
    fork = "getComputedStyle(document.querySelector('#traces .kept'))"
    assert page.evaluate(f"{fork}.printColorAdjust") == "exact"
    assert page.evaluate("getComputedStyle(document.querySelector('svg.wide')).display") == "block"
    page.close()

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
    shape |= {"p80": 0.0199, "p99": 1.09, "mean": 0.14, "below_0.01": 0.7675, "top20_share": 0.9876}
    base = dict(accuracy=0.402, interval=[0.371, 0.432], length=43.8, truncated=0.017)
    final = dict(accuracy=0.749, interval=[0.713, 0.781], length=61.5, truncated=0.13, p80=0.024)
    words = {" wait": 1.06, " back": 1.05, " *": 1.03, " stop": 0.97, " -": 0.81, " +": 0.8}
    words |= {f" {n}": 0.24 / n for n in range(1, 31)} | {" =": 4e-4, " goal": 3e-4, " try": 2e-4}
    words |= {"<b>": 0.33, "\n": 0.002, "&": 0.001, "wait": 0.5, "\u202eabc": 0.1}
    rows = [dict(token=t, entropy=h, count=100 + i) for i, (t, h) in enumerate(words.items())]
    rows.sort(key=lambda r: -r["entropy"])
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

    steps, kept = [*range(1, 61)], [*range(0, 61, 10)]

    def grown(end: float) -> list[float]:
        return [0.4 + (end - 0.4) * (1 - math.exp(-i / 18)) for i in steps]

    def warmed(threshold: float, kind: str, fork, rest) -> dict:
        out = dict(threshold=threshold, threshold_kind=kind)
        for name, accuracy in dict(fork=fork, rest=rest).items():
            at = [(t, accuracy(t)) for t in (0, 0.05, 0.3, 0.6, 1, 2, 3, 5)]
            out[name] = [dict(t=t, accuracy=a, low=max(0, a - 0.04), high=a + 0.04) for t, a in at]
        return out

    def an_arm(keep: str, end: float, rho: float = 0.2, flags: str = "") -> dict:
        curve = dict(step=steps, cpu_seconds=[(1.9 if keep == "all" else 1.7) * i for i in steps])
        curve |= dict(accuracy=grown(end), runs=[grown(end + d) for d in (-0.03, 0, 0.03)])
        test = dict(accuracy=end, low=end - 0.03, high=end + 0.03, arithmetic=0.98, length=60)
        test |= dict(per_seed=[end - 0.01, end, end + 0.01], truncated=0.1, cpu_seconds=102)
        name = f"{keep} {flags}".strip()
        return dict(name=name, keep=keep, rho=rho, flags=flags, curve=curve, test=test)

    arms = [an_arm("top", 0.738), an_arm("all", 0.741, 1.0), an_arm("random", 0.66)]
    arms += [an_arm("bottom", 0.39), an_arm("bottom", 0.41, flags="optimizer=sgd lr=0.05")]
    arms += [an_arm("top", 0.72, 0.1), an_arm("top", 0.74, 0.5)]

    def cell(share: float, entropy: float, gap: float, verdict: str) -> dict:
        top = dict(mean=gap, low=gap - 0.01, high=gap + 0.01, verdict=verdict)
        found = dict(all=dict(test=[0.4] * 3), top=dict(test=[0.4 + gap] * 3, minus_all=top))
        base = [dict(recall=0.5, nu=0.3, decisions=dict(entropy=0.7), held=[0.6, 0.5, 0.7])]
        found = dict(share=share, entropy=entropy, arms=found, base=base)
        return found | dict(prompts=8, group=8, optimizer="adamw")

    worlds = [cell(0.0, 0.69, 0.0, "equal"), cell(0.4, 0.33, 0.01, "undecided")]
    worlds += [cell(0.4, 1.8, -0.11, "below")]
    pieces = (("top 20%", 0.063, 0.9996, 0.77), ("random 20%", 0.0154, 0.79, 0.4))
    pieces += (("bottom 80%", 0.0016, 0.056, 0.06), ("all", 0.0631, 1.0, 0.76))
    tenths = [(i, 1e-4 * 2.5**i, 1e-5 * 2.4**i, 0.08 * i - 0.1) for i in range(1, 11)]
    bins = [1e-4 * i if i < 16 else 0.05 * (15 - i) for i in range(20)]
    layers = enumerate(("embed_tokens", "layers 0", "layers 1", "norm"), 1)
    falling = {p: [10 ** (p / 25 - 4) * (1 - i / 200) for i in kept] for p in (5, 50, 80, 90, 99)}
    return dict(
        run=dict(
            name="top-rho0.2-seed0", command="python fork_gpt.py --keep top --rho 0.2", seed=0,
            model="tiny", n_params=325_056, dtype="float32", torch="2.13.0+cpu", keep="top",
            rho=0.2, hardware="Intel Xeon at 2.1 GHz", world="Countdown: 3 numbers up to 12",
            steps=60, cpu_seconds=213.0,
        ),
        training=dict(
            step=steps, accuracy=grown(0.75), entropy_kept=[0.67 - 0.005 * i for i in steps],
            entropy_dropped=[0.002] * 60, val_step=kept[1:],
            val_accuracy=[grown(0.75)[i - 1] - 0.02 for i in kept[1:]],
        ),
        distribution=dict(base=shape | base, final=shape | final),
        tokens=dict(
            floor=66, base=dict(highest=rows, lowest=rows[::-1]),
            final=dict(highest=later, lowest=later[::-1]),
        ),
        traces=[
            dict(problem=f"use 9 7 {i} goal 25 ;", base=trace(i % 2 == 0), final=trace(i != 1))
            for i in range(6)
        ],
        values=[dict(base=valued(i), final=valued(i)) for i in range(6)],
        learned=dict(bars=[dict(name="base", accuracy=0.4, low=0.3, high=0.5, first=0.2)] * 2),
        two_temperature=dict(
            warmed(0.0242, "percentile 80", lambda t: 0.75 - 0.05 * max(0, t - 1),
                   lambda t: 0.74 if t <= 1 else 0.4 / t**2),
            other=warmed(0.3, "0.3 nats", lambda t: 0.75, lambda t: 0.74),
        ),
        during=dict(
            steps=kept, overlap_base=[1 - 0.002 * i for i in kept], rho=0.2, n_tokens=26_085,
            overlap_final=[0.88 + 0.002 * i for i in kept],
            percentiles={f"p{p}": values for p, values in falling.items()},
            mean=[0.14 - 0.0005 * i for i in kept],
            by_rho=[dict(rho=r, overlap=0.5 + 2 * r) for r in (0.05, 0.1, 0.15, 0.2)],
            bins=[dict(base=1e-4 * 1.6**i, n=1304, change=x) for i, x in enumerate(bins)],
        ),
        comparison=dict(base=base, arms=arms, sd=0.01, df=14),
        anatomy=dict(models=[dict(
            n_tokens=30_802, model="base", largest=10, mean_advantage=-0.36,
            arms=[
                dict(name=name, norm=norm, cosine=cosine, split_half=half, robust=0.5, down=0.8)
                for name, norm, cosine, half in pieces
            ],
            deciles=[dict(decile=i, entropy=h, norm=n, split_half=s) for i, h, n, s in tenths],
        )]),
        decomposition=dict(base=decided(1.05), final=decided(0.96)),
        wording=dict(cells=worlds, correlation=dict(rank=0.7, left_out={"0.4 1.8": 0.5}, n=3)),
        sparsity=dict(
            dtype="bfloat16", unchanged=0.0936, beyond=0.75, decayed=0.4,
            layers=[dict(name=x, beyond=0.1 * i, decayed=0.4, n=29_280) for i, x in layers],
        ),
    )  # fmt: skip


def save(folder: Path, sections: dict) -> Path:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, d in sections.items():
        (folder / "data" / f"{name}.json").write_text(json.dumps(d))
    return folder


def command(argv: list[str]) -> int:
    return files.command("-m study.report", report.main, argv)


DATA = example()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return report.write(save(tmp_path_factory.mktemp("run"), DATA)).parent


def drawn(key: str, width: int = 720) -> ET.Element:
    section, draw = figures.FIGURES[key]
    return ET.fromstring(f"<svg>{draw(DATA[section], width)[0]}</svg>")


def select(svg: ET.Element, style: str) -> list[ET.Element]:
    """The elements that have all these classes, and none of those with a minus."""
    want, never = ({x.lstrip("-") for x in style.split() if (x[0] == "-") == y} for y in (0, 1))
    styles = ((e, {*e.get("class", "").split()}) for e in svg.iter())
    return [e for e, has in styles if want <= has and not never & has]


def number(words: str) -> float:
    """What a tick's label says."""
    scale = {"%": 0.01, "k": 1000}.get(words[-1], 1)
    return float(words.rstrip("%k").replace(",", "").replace("−", "-")) * scale


def axis(svg: ET.Element, which: str, log: bool):
    """Pixels to data along x or y, read off the ticks' labels as a person would: the outer two."""
    marks = [e for e in select(svg, "tick") if re.fullmatch(r"[−\d.,]+[%k]?", e.text)]
    marks = [e for e in marks if (e.get("text-anchor") == "end") == (which == "y")]
    shift, value = -4 if which == "y" else 0, math.log10 if log else float
    pairs = sorted((float(e.get(which)) + shift, value(number(e.text))) for e in marks)
    (a, va), (b, vb) = pairs[0], pairs[-1]
    return lambda pixel: va + (pixel - a) / (b - a) * (vb - va)


def points(e: ET.Element) -> list[tuple[float, float]]:
    """Of a dot, a bar's two ends, or a line."""
    if e.tag == "circle":
        return [(float(e.get("cx")), float(e.get("cy")))]
    if e.tag == "rect":
        x, y, height = (float(e.get(k)) for k in ("x", "y", "height"))
        return [(x, y), (x, y + height)]
    return [tuple(map(float, p.split())) for p in e.get("d")[1:].split("L")]


def ends(rows: list[dict]) -> list[float]:
    return [r[k] for r in rows for k in ("low", "high")]


RANDOM = next(a["curve"] for a in DATA["comparison"]["arms"] if a["keep"] == "random")


@pytest.mark.parametrize("width", [report.WIDE, report.NARROW])
@pytest.mark.parametrize("key, style, which, values", [
    ("histogram", "bar", "y", lambda d: [  # a single token is seen, none is not
        math.log10(x) for n in d["base"]["histogram"]["counts"] if n for x in (n, 0.5)]),
    ("training", "line top", "y", lambda d: d["accuracy"]),
    ("training", "mark all", "x", lambda d: d["val_step"]),
    ("overlap", "mark all", "x", lambda d: d["steps"]),
    ("overlap", "mark all", "y", lambda d: d["overlap_base"]),
    ("overlap", "mark top", "y", lambda d: d["overlap_final"]),
    ("overlap_rho", "mark all", "y", lambda d: [r["overlap"] for r in d["by_rho"]]),
    ("two_temperature", "whisker top", "y", lambda d: ends(d["fork"] + d["other"]["fork"])),
    ("two_temperature", "mark all", "y", lambda d: [
        r["accuracy"] for r in d["rest"] + d["other"]["rest"]]),
    ("decomposition", "bar", "y", lambda d: [
        x for k in ("base", "final") for r in d[k]["deciles"] for x in (r["share"], 0)]),
    ("decomposition", "whisker", "y", lambda d: ends(d["base"]["deciles"] + d["final"]["deciles"])),
    ("change", "bar", "y", lambda d: [  # a fall hangs below zero
        f(r["change"], 0) for r in d["bins"] for f in (max, min)]),
    ("arms_test", "mark -small", "x", lambda d: [
        x["accuracy"] for x in (d["base"], *(a["test"] for a in d["arms"]))]),
    ("arms_test", "small", "x", lambda d: [v for a in d["arms"] for v in a["test"]["per_seed"]]),
    ("arms_step", "line random", "x", lambda d: RANDOM["step"]),
    ("arms_step", "line random", "y", lambda d: RANDOM["accuracy"]),
    ("arms_step", "seed random", "y", lambda d: sum(RANDOM["runs"], [])),
    ("arms_cpu", "line random", "x", lambda d: RANDOM["cpu_seconds"]),
    ("sparsity", "mark base", "x", lambda d: [d["decayed"], *(r["decayed"] for r in d["layers"])]),
])  # fmt: skip
def test_what_is_drawn_stands_at_its_value(key, style, which, values, width):
    svg, found = drawn(key, width), []
    for panel in svg if svg[0].tag == "g" else [svg]:
        scale = axis(panel, which, log=key == "histogram")
        found += [scale(p["xy".index(which)]) for e in select(panel, style) for p in points(e)]
    third_of_a_pixel = abs(scale(0.3) - scale(0))
    assert found == pytest.approx(values(DATA[figures.FIGURES[key][0]]), abs=third_of_a_pixel)


def test_histogram_shades_rise_with_entropy_and_end_at_the_99th_percentile():
    shades = [int(b.get("class").split()[1][1:]) for b in select(drawn("histogram"), "bar")]
    assert shades == sorted(shades) and shades[0] == 0 and shades[-1] == 9
    assert [figures.level(h, 1.0) for h in (0, 0.05, 0.1, 0.95, 1, 7)] == [0, 0, 1, 9, 9, 9]
    assert figures.level(0, 0) == 0


@pytest.mark.parametrize("width", [report.WIDE, report.NARROW])
def test_the_size_of_a_word_is_linear_in_its_entropy_and_none_covers_another(width):
    words = select(drawn("cloud", width), "token")
    most, least = figures.most_and_least(DATA["tokens"]["base"])
    assert not {r["token"] for r in most} & {r["token"] for r in least}
    sizes = [float(e.get("style")[10:-2]) for e in words]
    h = [r["entropy"] for r in most + least]
    assert sizes == pytest.approx([12 + 34 * x / max(h) for x in h], abs=0.06)
    starts = [(float(e.get("x")), float(e.get("y"))) for e in words]
    stops = [x + 0.602 * s * len(e.text) for e, s, (x, _) in zip(words, sizes, starts, strict=True)]
    assert min(starts)[0] >= -1 and max(stops) <= width + 1
    for end, (_, y), (x, below) in zip(stops, starts, starts[1:], strict=False):
        assert below > y or x > end


def test_labels_of_lines_keep_apart():
    assert figures.spread([10, 11, 50], 14, 0, 100) == [10, 24, 50]
    assert figures.spread([95, 99], 14, 0, 100) == [86, 100]
    assert figures.spread([5.0], 14, 20, 100) == [20]


@pytest.mark.parametrize("low, high", [
    (0, 1), (0.38, 0.77), (-0.21, 0.002), (1e-6, 3e-6), (5, 5), (0, 1360)
])  # fmt: skip
def test_ticks_are_few_round_and_inside(low, high):
    found = figures.ticks(low, high)
    assert (1 if low == high else 2) <= len(found) <= 6 and all(low <= v <= high for v in found)
    gaps = {float(f"{b - a:.6g}") for a, b in pairwise(found)}
    assert len(gaps) <= 1 and all(str(f"{g:e}")[0] in "125" for g in gaps)


def test_the_sentences_hold_the_numbers():
    def said(key: str) -> str:
        section, draw = figures.FIGURES[key]
        return draw(DATA[section], 720)[2]

    words = said("histogram")
    assert "76.8% of 66,742 tokens are below 0.01 nats" in words and "98.8%" in words
    assert "40.2% [37.1,\u00a043.2] to 74.9%" in said("before_after")
    words = said("arms_cpu")  # `all` needs 1.9 s a step: at 102 s it did 53
    assert words.startswith("Training accuracy after 102 CPU-seconds")
    assert f"all {100 * DATA['comparison']['arms'][1]['curve']['accuracy'][52]:.1f}%" in words
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


def verdict(name: str, **changed) -> str:
    key = report.CLAIMS[name][0]
    return report.judge(name, {key: DATA[key] | changed})[1]


def arms(**ends: float) -> list[dict]:
    tests = {k: dict(accuracy=a, length=60, per_seed=[a] * 3) for k, a in ends.items()}
    return [dict(name=k, keep=k, rho=0.2, flags="", test=t) for k, t in tests.items()]


YES, NO, OPEN, NEVER = report.HOLDS, report.FAILS, report.UNCLEAR, report.UNTESTED


@pytest.mark.parametrize("top, other, beats, keeps_up", [
    # sd .01 of twelve degrees of freedom: an interval is .0178 to both sides
    (0.74, 0.70, YES, YES), (0.5, 0.7, NO, NO), (0.71, 0.70, OPEN, OPEN), (0.702, 0.7, NO, YES),
    (0.0, 0.0, NEVER, NEVER),  # nothing was right
])  # fmt: skip
def test_a_verdict_follows_the_rule_for_arms(top, other, beats, keeps_up):
    pooled = dict(sd=0.01, df=12)
    pair = arms(top=top, all=other)
    assert verdict("top_beats_all", arms=pair, **pooled) == beats
    assert verdict("top_loses_nothing", arms=pair, **pooled) == keeps_up
    assert verdict("top_beats_random", arms=arms(top=top, random=other), **pooled) == beats
    pair = arms(all=top, bottom=other)
    assert verdict("bottom_fails", arms=pair, **pooled) == beats
    pair[0]["test"]["per_seed"].pop()  # no sentence from two seeds
    assert verdict("bottom_fails", arms=pair, **pooled) == NEVER


def test_an_arm_with_other_flags_is_not_the_arm():
    odd = arms(all=0.15)[0] | dict(flags="normalize=all", name="all normalize=all")
    found = [odd, *arms(top=0.55, all=0.15)]
    assert figures.arm(dict(arms=found), "all") is found[2]
    assert figures.title_of(odd) == "all normalize=all"
    assert [figures.title_of(a) for a in found[1:]] == ["top 20%", "all"]


def test_verdicts_of_temperatures():
    ends = {0: 0.6, 1: 0.7, 2: 0.1, 3: 0.8}
    rows = {t: dict(t=t, accuracy=a, low=a - 0.02, high=a + 0.02) for t, a in ends.items()}
    one = dict(fork=[rows[0], rows[1], rows[3]], rest=[rows[1], rows[2], rows[3]])
    for name in ("warm_forks", "hot_rest", "cold_forks"):
        assert verdict(name, **one, other=one) == YES
    swapped = dict(fork=one["rest"], rest=one["fork"])  # the thresholds disagree: no verdict
    assert verdict("cold_forks", **one, other=swapped) == OPEN
    alike = dict(fork=one["rest"], rest=one["rest"])
    assert verdict("cold_forks", **alike, other=alike) == OPEN
    only = dict(fork=[rows[1]], rest=one["rest"])
    assert verdict("warm_forks", **only, other=only) == NEVER


def measured(**intervals: tuple[float, float]) -> dict:
    return {k: dict(accuracy=sum(x) / 2, interval=x) for k, x in intervals.items()}


def rising(*changes: float) -> dict:
    """Bins of base entropy 0, 1, 2, ..., one token each, that change so much."""
    return dict(bins=[dict(base=i, n=1, change=c) for i, c in enumerate(changes)])


def cosine(cosine: float, norm: float = 1) -> dict:
    return dict(models=[dict(arms=[dict(name="top 20%", norm=norm, cosine=cosine)])])


def held(*top20: float) -> dict:
    return dict.fromkeys(("base", "final"), dict(top20=top20))


def entropies(share: float, held: float, mean: float = 1) -> dict:
    return dict(base={"below_0.01": share, "top20_share": held, "mean": mean})


def ranks(rank: float | None, least: float | None) -> dict:
    return dict(correlation=dict(rank=rank, left_out={"a": 0.9, "b": least}, n=9))


def longer(length: float) -> dict:
    pair = arms(top=0.7, all=0.7)
    pair[0]["test"]["length"] = length
    return dict(arms=pair)


@pytest.mark.parametrize("name, cases", [  # what the data is changed to, verdict
    ("rlvr_helps", [(measured(final=(0.71, 0.77), base=(0.6, 0.7)), YES)]),
    ("rlvr_helps", [(measured(final=(0.5, 0.55), base=(0.6, 0.7)), NO)]),
    ("rlvr_helps", [(measured(final=(0.6, 0.7), base=(0.65, 0.75)), OPEN)]),
    ("rlvr_helps", [(measured(final=(0.7, 0.8), base=(0.6, 0.7)), OPEN)]),  # a tie is no difference
    ("positions_stay", [({}, YES), (dict(by_rho=[dict(rho=0.2, overlap=0.799)]), NO)]),
    ("positions_stay", [(dict(steps=[0]), NEVER)]), ("tenth_stays", [({}, NO)]),
    ("change_at_forks", [(rising(0, 0, 0, 0, 0.1), YES), (rising(1, 1, 1, 1, 1), NO)]),
    ("change_at_forks", [(rising(0, 0), NEVER)]), ("forks_gain", [(rising(0, 0), NEVER)]),
    ("forks_gain", [(rising(-1, 0, 0, 0, 0.1), YES), (rising(1, 1, 1, 1, -0.1), NO)]),
    ("forks_decide", [({}, YES), (held(0.6, 0.5, 0.7), OPEN), (held(0.4, 0.3, 0.49), NO)]),
    ("few_change", [(dict(beyond=x), YES) for x in (0.94, 0.71)]),
    ("few_change", [(dict(beyond=x), NO) for x in (0.96, 0.69)]),
    ("top_is_the_gradient", [(cosine(0.95), YES), (cosine(0.94), NO), (cosine(0, 0), NEVER)]),
    ("top_is_the_gradient", [(dict(models=[dict(arms=[])]), NEVER)]),
    ("fewer_is_too_few", [({}, YES), (dict(sd=0.02), OPEN), (dict(arms=[]), NEVER)]),
    ("rho_matters_little", [({}, NO), (dict(sd=0.02), OPEN), (dict(arms=[]), NEVER)]),
    ("few_hold_entropy", [(entropies(0.5, 0.5), YES), (entropies(0.5, 0.5, mean=0), NEVER)]),
    ("few_hold_entropy", [(entropies(0.49, 0.9), NO), (entropies(0.9, 0.49), NO)]),
    ("longer_answers", [({}, OPEN), (longer(63.1), YES), (longer(62.9), OPEN)]),
    ("longer_answers", [(longer(57.1), OPEN), (longer(56.9), NO)]), ("kinds_of_token", [({}, YES)]),
    ("plain_is_equal", [({}, YES)]), ("wording_hurts", [({}, YES), (dict(cells=[]), NEVER)]),
    ("recall_predicts", [({}, YES), (ranks(0.59, 0.6), NO), (ranks(0.7, 0.49), NO)]),
    ("recall_predicts", [(ranks(None, None), NEVER)]),
])  # fmt: skip
def test_the_other_verdicts_by_their_rules(name, cases):
    assert [verdict(name, **changed) for changed, _ in cases] == [word for _, word in cases]


def test_the_page_is_whole_small_fetches_nothing_and_says_every_verdict(run):
    page = (run / "report.html").read_text()
    assert len(page.encode()) < 2_000_000
    assert "Missing." not in page and not re.search(r"\bnan\b|\bNone\b", page)
    for name in report.CLAIMS:
        here, word = report.judge(name, DATA)
        assert f"{report.MARK[word]} {word}</b>" in page and report.esc(here) in page, name
    assert not re.search(r"(src|srcset|poster)\s*=|<link|@import|url\(|fetch\(|XMLHttp", page)
    assert re.findall(r'https?://[^"<\s]+', page) == ["https://arxiv.org/abs/2506.01939"]


def test_each_figure_alone_is_xml_titled_and_on_its_own_ground(run):
    ns, files = "{http://www.w3.org/2000/svg}", [*(run / "figures").iterdir()]
    assert {p.name for p in files} == {f"{name}.svg" for name in (*figures.FIGURES, "trace")}
    for file in files:
        svg, text = ET.parse(file).getroot(), file.read_text()
        assert svg.tag == f"{ns}svg" and svg.get("role") == "img"
        assert svg.find(f"{ns}title").text and len(svg.find(f"{ns}desc").text) > 30
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|var\(|href|<script", text)
        if file.stem != "trace":
            assert svg.find(f"{ns}rect").get("fill") == "#ffffff"
            assert figures.LIGHT["paper"] not in text  # nor in halos and hollow dots


def test_the_picture_underlines_the_kept_tokens_on_shades_of_their_entropy(run):
    svg = ET.parse(run / "figures" / "trace.svg").getroot()
    assert svg.get("width") == "720" and "prefers-color-scheme:dark" in svg[2].text
    told = [t for side in ("base", "final") for t in DATA["traces"][0][side]["tokens"][:120]]
    words = [e for e in svg.iter() if e.get("textLength")]
    assert [w.text for w in words] == [figures.shown(report.word_of(t)) for t in told]
    lines = {(e.get("x"), float(e.get("y")) - 25) for e in svg.iter() if e.get("class") == "line"}
    grounds = [e for e in svg.iter() if re.fullmatch(r"e\d", e.get("class", "")) and e.get("rx")]
    top = report.darkest(DATA["traces"])
    for t, ground in zip(told, grounds, strict=True):
        assert ground.get("class") == f"e{figures.level(t['h'], top)}"
        assert ((ground.get("x"), float(ground.get("y"))) in lines) == (t["q"] < 0.2)
        assert float(ground.get("x")) + float(ground.get("width")) <= 700


class Tags(HTMLParser):
    """What a browser would see: tags with attributes, and the text of scripts."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.scripts = [], []
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


def test_a_missing_section_says_why_and_how(tmp_path):
    rest = {k: v for k, v in DATA.items() if k != "during"}
    rest |= dict(learned=dict(missing="takes minutes: python -m study X --all"))
    page = report.write(save(tmp_path, rest)).read_text()
    assert "data/during.json is not there; this makes it: python -m study" in page
    assert "takes minutes: python -m study X --all" in page
    assert page.count("Missing.") == 2
    assert not (tmp_path / "figures" / "learned.svg").exists()
    found, _ = report.read_data(tmp_path)
    assert report.judge("positions_stay", found) == ("data/during.json is missing", report.UNTESTED)


def test_a_folder_of_arms_alone_is_a_page(tmp_path):
    page = report.write(save(tmp_path, dict(comparison=DATA["comparison"]))).read_text()
    assert page.count("Missing.") == 13 and "fork_gpt.py --arms" not in page
    assert "random 20%" in page and (tmp_path / "figures" / "arms_cpu.svg").exists()


@pytest.mark.parametrize("key, changed", [
    ("training", dict(step=[])), ("tokens", dict(base=dict(highest=[], lowest=[]))),
    ("during", dict(bins=[])), ("comparison", dict(arms=[])), ("anatomy", dict(models=[])),
    ("two_temperature", dict(fork=[])), ("sparsity", dict(layers=[])), ("traces", []),
])  # fmt: skip
def test_an_empty_list_is_a_missing_section(tmp_path, key, changed):
    section = DATA[key] | changed if changed else changed
    page = report.write(save(tmp_path, DATA | {key: section})).read_text()
    assert page.count("Missing.") == 1 and f"of data/{key}.json is empty" in page


def test_nothing_right_no_entropy_and_one_step(tmp_path):
    """One token in all, an answer without any, and a run that was stopped after its first step."""
    zero = dict(accuracy=0.0, interval=[0.0, 0.0], p80=0.0, p99=0.0, mean=0.0, top20_share=0.0)
    zero |= dict(histogram=dict(edges=[0.0, 0.0], counts=[300]), n_tokens=300)
    shape, only = DATA["distribution"]["base"] | zero, [dict(token=" .", entropy=0.0, count=300)]
    tokens = dict(base=dict(highest=only, lowest=only), final=dict(highest=[], lowest=[]))
    one = dict(t=" .", h=0.0, q=0.0, p=1.0, alt=[[" .", 1.0]])
    said = (dict(correct=False, finished=True, tokens=x) for x in ([], [one]))
    traces = [dict(problem="p", base=answer, final=answer) for answer in said]
    points = [dict(t=t, accuracy=0, low=0, high=0) for t in (0, 1, 2)]
    warm = DATA["two_temperature"] | dict(fork=points, rest=points)
    sections = DATA | dict(distribution=dict(base=shape, final=shape), traces=traces, values=[])
    sections |= dict(tokens=tokens | dict(floor=100), two_temperature=warm | dict(other=warm))
    sections |= dict(training={k: v[:1] for k, v in DATA["training"].items()})
    page = report.write(save(tmp_path, sections)).read_text()
    assert "0.0%" in page and "✗ wrong" in page and not re.search(r"\bnan\b|\binf\b", page)
    untested = "rlvr_helps warm_forks hot_rest cold_forks few_hold_entropy kinds_of_token"
    assert {report.judge(name, sections)[1] for name in untested.split()} == {report.UNTESTED}


@pytest.mark.parametrize("bad", ["NaN", "-Infinity", "1e999", '"broken', "[3", "[" * 10**5])
def test_damaged_data_is_one_line_and_writes_nothing(tmp_path, bad):
    folder = save(tmp_path, DATA)
    whole = json.dumps(DATA["decomposition"])
    (folder / "data" / "decomposition.json").write_text(whole.replace('"K": 16', f'"K": {bad}'))
    said = r"decomposition\.json: .*; this makes it again: python -m study"
    with pytest.raises(files.UserError, match=said):
        report.write(folder)
    assert [p.name for p in folder.iterdir()] == ["data"]


def test_data_of_another_shape_is_one_line_and_keeps_the_old_page(tmp_path, capsys):
    folder = save(tmp_path, DATA)
    old = report.write(folder).read_text()
    save(folder, dict(sparsity=dict(layers=[dict(name="x")])))
    assert command([str(folder)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "not what this version of the study writes" in err
    assert (folder / "report.html").read_text() == old


def test_the_command_line(tmp_path, capsys):
    assert command([str(tmp_path)]) == 2
    assert "has no findings: python -m study" in capsys.readouterr().err
    assert command([]) == 2 and "usage" in capsys.readouterr().err
    assert command([str(save(tmp_path, dict(run=DATA["run"])))]) == 0
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
    scale = "s => s.getBoundingClientRect().width / s.viewBox.baseVal.width"
    sizes = [x for x in page.eval_on_selector_all("svg", f"all => all.map({scale})") if x]
    assert len(sizes) == len(figures.FIGURES) + 1  # one of the two widths of each, and the lead
    assert min(sizes) * 12 >= 11  # px of the smallest label
    assert said == []


def test_labels_of_figures_stay_on_the_phone(chromium, run):
    page, _ = opened(chromium, run, 390)
    ends = "t => [t.getBoundingClientRect().left, t.getBoundingClientRect().right]"
    ends = page.eval_on_selector_all("svg.narrow text", f"all => all.map({ends})")
    assert len(ends) > 100 and all(0 <= left <= right <= 390 for left, right in ends)
    token, tip = page.locator("#traces .trace i").nth(9), page.locator("#tip")
    token.evaluate("x => x.scrollIntoView({block: 'start'})")
    token.click()  # a tap: what it shows lies along the edge that is farther away
    box = tip.bounding_box()
    assert (box["x"], box["width"]) == (10, 370) and box["y"] + box["height"] == 790
    token.evaluate("x => { x.blur(); x.scrollIntoView({block: 'end'}); }")
    token.click()
    assert tip.bounding_box()["y"] == 10


def test_hover_tap_and_keyboard_show_the_alternatives(chromium, run):
    page, said = opened(chromium, run)
    trace = DATA["traces"][0]["base"]["tokens"]
    tokens = page.locator('#traces .trace[data-trace="0base"] i')
    assert tokens.count() == len(trace) and not page.locator("#tip").is_visible()
    tokens.nth(5).hover()
    words = page.inner_text("#tip")
    assert f"entropy {trace[5]['h']:.3f} nats, probability 50.0%" in words
    assert len(page.query_selector_all("#tip div")) == 6  # a head, the five likeliest
    v = DATA["values"][0]["base"]["v"]
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
        share = DATA["during"]["overlap_base"][step // 10]
        words = f"with base: {figures.num(share)} at {step}"
        assert page.inner_text("#tip") == words
    tokens.nth(8).click()
    assert f"entropy {trace[8]['h']:.3f} nats" in page.inner_text("#tip") and said == []


def test_the_slider_fades_what_is_not_kept_and_the_shades_change(chromium, run):
    page, said = opened(chromium, run)
    tokens = [t for x in DATA["traces"] for s in ("base", "final") for t in x[s]["tokens"]]
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


def test_print_keeps_the_shades_and_drops_the_dark(chromium, run):
    page, _ = opened(chromium, run, 720, "dark")
    page.emulate_media(media="print")
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert ground == "rgb(253, 252, 249)"
    fork = "getComputedStyle(document.querySelector('#traces .kept'))"
    assert page.evaluate(f"{fork}.printColorAdjust") == "exact"
    assert page.evaluate("getComputedStyle(document.querySelector('svg.wide')).display") == "block"

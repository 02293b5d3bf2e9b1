"""The figures of the page: each a drawing and the sentence that says what it shows.

A figure is a plain function from a section's dict (RUN/data/SECTION.json) and a width in pixels to
the inside of an <svg>, its height and the sentence; the page has each twice, for a desk and for a
phone, so that labels keep their size.  Colours and lines are classes of the style in page.html.
Entropies are nats, shares 0..1, intervals 95%, as in the data.
"""

import html
import math
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from statistics import fmean as mean
from typing import Any

from study.stats import difference

LEVELS = 10  # shades of a ramp
SMALLEST = 12  # px, of any label
SIDES = dict(base="Base model", final="After RLVR")
MASKS = ("top", "all", "random", "bottom")
Figure = tuple[str, int, str]  # the inside of an <svg>, its height in px, the sentence
Drawing = tuple[str, int]
Ticks = Sequence[tuple[float, str]]

# ---------------------------------------------------------------------- words and numbers


def shown(text: Any) -> str:
    """`text` with what is invisible, or would turn the line around, made visible: a newline as ⏎,
    control and format characters and lone surrogates as escapes."""
    odd = ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp")
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in odd else c
        for c in str(text).replace("\n", "⏎")
    )


def esc(text: Any) -> str:
    return html.escape(shown(text))


def pct(x: float) -> str:
    return f"{100 * x:.1f}%"


def integer(x: float) -> str:
    return f"{100 * x:g}%"


def num(x: float) -> str:
    """Three digits, however small."""
    return f"{x:.3f}" if 0.1 <= abs(x) < 10 else f"{x:,.0f}" if abs(x) >= 10 else f"{x:.3g}"


def signed(x: float, form: str = "+.3f") -> str:
    return format(x, form).replace("-", "−")


def span(low: float | None, high: float | None) -> str:
    """[low, high] in percent, which no line break divides."""
    return "" if low is None or high is None else f" [{100 * low:.1f},\u00a0{100 * high:.1f}]"


def at(r: dict) -> str:
    """accuracy, low, high in words."""
    return pct(r["accuracy"]) + span(r["low"], r["high"])


def names(rows: Sequence[dict]) -> list[str]:
    """Tokens as labels: without the spaces around them, unless two would then read the same."""
    tokens = [r["token"] for r in rows]
    bare = [t.strip(" ") or "␣" * len(t) for t in tokens]
    pairs = zip(tokens, bare, strict=True)
    return [shown(t.replace(" ", "␣") if bare.count(b) > 1 else b) for t, b in pairs]


# ---------------------------------------------------------------------- colour

LIGHT = dict(paper="#fdfcf9", panel="#f4f1ea", ink="#23262c", muted="#5c6370", rule="#dcd8cf")
LIGHT |= dict(hot="#ee7a1c", rise="#3f9ad6", fall="#d86fb6")
LIGHT |= dict(top="#b2460a", all="#1c5d9f", random="#4f6b52", bottom="#96307a")
DARK = dict(paper="#15171b", panel="#1f2228", ink="#f1efea", muted="#a3a9b4", rule="#363a42")
DARK |= dict(hot="#b04f0c", rise="#1f669f", fall="#96307a")
DARK |= dict(top="#f5944a", all="#6fb3f2", random="#9cc09f", bottom="#ea8fcd")
RAMPS = dict(e="hot", u="rise", d="fall")  # entropy; P(right) goes up; down


def ramp(palette: dict[str, str], end: str) -> list[str]:
    """LEVELS shades from nothing (the paper) to much: one hue, and lightness that only falls, or on
    dark paper only rises, so that it reads without colour vision."""
    a, b = ([int(palette[c][i : i + 2], 16) for i in (1, 3, 5)] for c in ("paper", end))
    steps = [i / (LEVELS - 1) for i in range(LEVELS)]
    mix = [[round(x + (y - x) * s) for x, y in zip(a, b, strict=True)] for s in steps]
    return ["#{:02x}{:02x}{:02x}".format(*c) for c in mix]


def variables(palette: dict[str, str]) -> dict[str, str]:
    shades = {k: ramp(palette, end) for k, end in RAMPS.items()}
    return palette | {f"{k}{i}": c for k, mix in shades.items() for i, c in enumerate(mix)}


def level(x: float, top: float) -> int:
    """Which shade: linear from 0 to `top`, the last one from there on."""
    return max(0, min(LEVELS - 1, int(LEVELS * x / top))) if top > 0 else 0


# ---------------------------------------------------------------------- drawing


def scale(low: float, high: float, a: float, b: float) -> Callable[[float], float]:
    """The linear map of [low, high] to pixels [a, b]; an empty range maps to `a`."""
    return lambda v: a + (v - low) / ((high - low) or 1.0) * (b - a)


def ticks(low: float, high: float, n: int = 5) -> list[float]:
    """At most n + 1 round numbers within [low, high]."""
    if high <= low:
        return [low]
    least = 10.0 ** math.floor(math.log10((high - low) / n))
    step = next(m * least for m in (1, 2, 2.5, 5, 10) if (high - low) / (m * least) <= n)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def plain(values: Sequence[float]) -> Ticks:
    return [(v, f"{v:,g}".replace("-", "−")) for v in values]


def percents(values: Sequence[float]) -> tuple[tuple[float, float], Ticks]:
    """An axis of shares that holds the values, and its ticks."""
    pad = 0.04 * (max(values) - min(values)) or 0.02
    ends = max(0.0, min(values) - pad), min(1.0, max(values) + pad)
    return ends, [(v, integer(v)) for v in ticks(*ends)]


def label(x: float, y: float, words: Any, style: str = "", anchor: str = "start") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} class="{style}">{esc(words)}</text>'


def rect(x: float, y: float, w: float, h: float, style: str, more: str = "") -> str:
    size = f'x="{x:.2f}" y="{y:.2f}" width="{w:.2f}" height="{h:.2f}"'
    return f'<rect class="{style}" {size} {more}/>'


def stroke(points: Sequence[tuple[float, float]], style: str) -> str:
    return f'<path class="{style}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>'


def mark(x: float, y: float, style: str, words: str, r: float = 4.5) -> str:
    """A point; the page says `words` of it under the pointer, a finger or the arrow keys."""
    place = f'cx="{x:.1f}" cy="{y:.1f}" r="{r:g}"'
    return f'<circle class="mark {style}" {place} data-say="{esc(words)}"/>'


def stack(*parts: Drawing) -> Drawing:
    """Drawings below one another."""
    out, y = "", 0
    for body, h in parts:
        out, y = out + f'<g transform="translate(0 {y})">{body}</g>', y + h + 20
    return out, y - 20


def axes(
    w: int, h: int, x: tuple, y: tuple, xticks: Ticks, yticks: Ticks, words: tuple, right: int = 12
) -> tuple[Callable, Callable, str]:
    """Data to pixels in x and in y, and the grid; words: what x is, what y is, and a note."""
    left, top, bottom = 48, 34, h - 44
    px, py = scale(*x, left, w - right), scale(*y, bottom, top)
    xname, yname, *note = words
    out = [label(0, 12, yname, "axis"), label(w - right, h - 4, xname, "axis", "end")]
    out += [label(w - right, 28, n, "name all", "end") for n in note]
    for v, name in yticks:
        out.append(stroke([(left, py(v)), (w - right, py(v))], "grid"))
        out.append(label(left - 8, py(v) + 4, name, "tick", "end"))
    out += [label(px(v), bottom + 18, name, "tick", "middle") for v, name in xticks]
    return px, py, "".join(out)


def spread(ys: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights of labels, moved to be `gap` apart and, if they fit, within [low, high]."""
    order, out, limit = sorted(range(len(ys)), key=lambda i: ys[i]), list(ys), low
    for i in order:
        out[i] = limit = max(ys[i], limit)
        limit += gap
    limit = high
    for i in reversed(order):
        out[i] = limit = min(out[i], limit)
        limit -= gap
    return out


def curves(
    series: Sequence[dict], w: int, h: int, words: tuple, y: tuple = (), xticks: Ticks = ()
) -> Drawing:
    """Lines named at their right ends: dict(name, style, x, y) and optionally `runs`, thin lines of
    the same x, and `low` and `high`, upright lines.  `dotted`: points are marked, and named by `at`
    or their x.  `y`: range and ticks, if not shares; `xticks`: if not round numbers."""
    xs = [v for s in series for v in s["x"]]
    y, yticks = y or percents([v for s in series for v in sum(s.get("runs", ()), s["y"])])
    ends, right = (min(xs), max(xs)), 14 + max(8 * len(s["name"]) for s in series)
    px, py, out = axes(w, h, ends, y, xticks or plain(ticks(*ends, 4)), yticks, words, right)
    heights = spread([py(s["y"][-1]) for s in series], 14, 20, h - 44)
    for s, height in zip(series, heights, strict=True):
        style, xs = s["style"], [px(v) for v in s["x"]]
        for one in s.get("runs", ()):
            out += stroke([*zip(xs, map(py, one), strict=True)], f"seed {style}")
        for a, *ends in zip(xs, s.get("low", ()), s.get("high", ()), strict=False):
            out += "" if None in ends else stroke([(a, py(v)) for v in ends], f"whisker {style}")
        points = [*zip(xs, map(py, s["y"]), strict=True)]
        out += stroke(points, f"line {style}")
        dotted = s.get("dotted") or len(points) == 1
        places = s.get("at") or [f"{v:g}" for v in s["x"]]
        said = [f"{s['name']}: {num(v)} at {x}" for v, x in zip(s["y"], places, strict=True)]
        out += "".join(mark(*p, style, x) for p, x in zip(points, said, strict=True) if dotted)
        out += label(points[-1][0] + 10, height + 4, s["name"], f"name {style}")
    return out, h


def column(a: float, b: float, y: float, foot: float, shade: int, words: str) -> str:
    """Between pixels a and b, from `foot` up or down to y; see `mark` for the words."""
    place = a + 0.5, min(y, foot), max(b - a - 1, 0.5), abs(foot - y)
    return rect(*place, f"bar e{shade}", f'data-say="{esc(words)}"')


def by_decile(rows: Sequence[dict], key: str, w: int, h: int, words: tuple) -> Drawing:
    """Bars of r[key] by decile of entropy, shaded by it, with intervals low, high if there are."""
    ends = [0.0, 1e-9, *(r[k] for r in rows for k in (key, "low", "high") if k in r)]
    y, top = (min(ends) * 1.05, max(ends) * 1.05), max(r["entropy"] for r in rows)
    xticks = [(r["decile"] - 0.5, str(r["decile"])) for r in rows]
    (px, py, out), whiskers = axes(w, h, (0, 10), y, xticks, plain(ticks(*y, 4)), words), ""
    for r, (x, name) in zip(rows, xticks, strict=True):
        shade, said = level(r["entropy"], top), f"decile {name}: {num(r[key])}"
        out += column(px(x - 0.5), px(x + 0.5), py(r[key]), py(0), shade, said)
        ends = [(px(x), py(r[k])) for k in ("low", "high") if k in r]
        whiskers += stroke(ends, "whisker") if ends else ""
    return out + whiskers, h


def dots(
    rows: Sequence[dict], w: int, what: str, form: Callable = integer, beside: bool = False
) -> Drawing:
    """One row a thing, from 0: dict(name, points: [(style, value) or (style, value, low, high)]),
    optionally a note.  Names stand above their rows, or `beside` them."""
    ends = [v for r in rows for p in r["points"] for v in p[1:] if v is not None]
    low, high = min([*ends, 0.0]) * 1.04, max([*ends, 1e-9]) * 1.04
    left = 24 + round(7.3 * max(len(r["name"]) for r in rows)) if beside else 4
    step, first = (24, 14) if beside else (46, 30)
    px, h = scale(low, high, left, w - 12), step * len(rows) + 44
    out = [label(w - 12, h - 4, what, "axis", "end")]
    for v in ticks(low, high):
        out.append(stroke([(px(v), 0), (px(v), h - 42)], "grid"))
        anchor = "middle" if px(v) > left + 12 else "start"
        out.append(label(px(v), h - 24, form(v), "tick", anchor))
    for i, r in enumerate(rows):
        y, points = step * i + first, r["points"]
        if beside:
            out.append(label(left - 10, y + 4, r["name"], "token", "end"))
        else:
            out.append(stroke([(left, y), (w - 12, y)], "track"))
            out.append(label(4, y - 12, r["name"], f"name {points[-1][0]}"))
            out.append(label(w - 12, y - 12, r.get("note", ""), "tick", "end"))
        whiskers = [p for p in points if len(p) == 4 and None not in p]
        out += [stroke([(px(v), y) for v in p[2:]], f"whisker {p[0]}") for p in whiskers]
        tell = pct if form is integer else num
        out += [mark(px(p[1]), y, p[0], f"{r['name']}: {tell(p[1])}") for p in points]
    return "".join(out), h


def flow(items: Sequence[tuple[str, float, str]], w: int, y: float) -> tuple[str, float]:
    """(text, font px, style) set below y in centred rows of a monospaced face, whose widths are
    known, and where they end."""
    rows, used = [[]], 0.0
    for text, size, style in items:
        width = 0.602 * size * cells(text) + 0.6 * size
        if used and used + width > w:
            rows.append([])
            used = 0.0
        rows[-1].append((text, size, style, width))
        used += width
    out = []
    for row in filter(None, rows):
        y += 1.2 * max(size for _, size, _, _ in row)
        x = (w - sum(width for *_, width in row)) / 2
        for text, size, style, width in row:
            place = f'x="{x + 0.3 * size:.1f}" y="{y:.1f}" style="font-size:{size:.1f}px"'
            out.append(f'<text class="token {style}" {place}>{esc(text)}</text>')
            x += width
    return "".join(out), y


def cells(text: str) -> int:
    """The width of a text in a monospaced face."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


# ---------------------------------------------------------------------- a run


def tested(r: dict) -> dict:
    """Base or final of `distribution`, as accuracy, low, high."""
    low, high = r["interval"] or (None, None)
    return dict(accuracy=r["accuracy"], low=low, high=high)


def row(name: str, style: str, r: dict, more: Sequence[tuple] = ()) -> dict:
    """A row of `dots`: r's accuracy with its interval, in words too, and `more` points."""
    points = [*more, (style, r["accuracy"], r["low"], r["high"])]
    return dict(name=name, points=points, note=at(r))


def before_after(d: dict, w: int) -> Figure:
    """Test accuracy of the base and of the trained model, with intervals."""
    b, f = d["base"], d["final"]
    rows = [row(SIDES["base"], "base", tested(b)), row(SIDES["final"], "top", tested(f))]
    said = (
        f"Accuracy goes from {at(tested(b))} to {at(tested(f))}; answers go from {b['length']:.0f} "
        f"to {f['length']:.0f} tokens, the share that is cut off from {pct(b['truncated'])} to "
        f"{pct(f['truncated'])}."
    )
    return *dots(rows, w, "accuracy on the test split, 95% interval"), said


def training(d: dict, w: int) -> Figure:
    """Accuracy of the sampled answers by step, and the validation measurements as dots."""
    series = [dict(name="training", style="top", x=d["step"], y=d["accuracy"])]
    val = dict(name="validation", style="all", x=d["val_step"], y=d["val_accuracy"], dotted=True)
    series += [val] if d["val_step"] else []
    n = min(5, len(d["step"]))

    def ends(key: str, form: Callable = num) -> str:
        return f"from {form(mean(d[key][:n]))} to {form(mean(d[key][-n:]))}"

    said = (
        f"From the first {n} to the last {n} of {len(d['step'])} steps the accuracy of the sampled "
        f"answers goes {ends('accuracy', pct)}, the mean entropy of the tokens in the gradient "
        f"{ends('entropy_kept')} nats, of the others {ends('entropy_dropped')}."
    )
    return *curves(series, w, 280, ("step", "accuracy")), said


def learned(d: dict, w: int) -> Figure:
    """Accuracy of base, trained model and what lies between; hollow: of the first attempt."""
    rows = [row(r["name"], "top", r, [("base", r["first"])]) for r in d["bars"]]
    said = "; ".join(f"{r['name']}: {at(r)}" for r in d["bars"])
    first, last = (pct(d["bars"][i]["first"]) for i in (0, -1))
    said += f". Right at the first attempt: base {first}, trained {last}."
    return *dots(rows, w, "accuracy: ● answer, ○ first attempt"), said


# ---------------------------------------------------------------------- where the entropy is


def histogram(d: dict, w: int) -> Figure:
    """Counts on a log axis that starts at half a token, so that a single one is seen."""
    base, final = d["base"]["histogram"], d["final"]["histogram"]
    floor, most = math.log10(0.5), max(*base["counts"], *final["counts"], 1)
    top = math.ceil(math.log10(most) + 0.01)
    ends = min(base["edges"][0], final["edges"][0]), max(base["edges"][-1], final["edges"][-1])
    yticks = [(e, f"{10**e:,}" if e < 4 else f"{10 ** (e - 3):,}k") for e in range(top + 1)]
    words = ("entropy, nats", "tokens, log scale", "bars: base, line: after RLVR")
    px, py, out = axes(w, 320, ends, (floor, top), plain(ticks(*ends)), yticks, words)
    p99, foot = d["base"]["p99"], py(floor)
    heights, after = ([py(math.log10(max(n, 0.5))) for n in x["counts"]] for x in (base, final))
    for (a, b), y, n in zip(pairwise(base["edges"]), heights, base["counts"], strict=True):
        said = f"{num(a)} to {num(b)} nats: {n:,} tokens"
        out += column(px(a), px(b), y, foot, level((a + b) / 2, p99), said) if n else ""
    steps = zip(pairwise(final["edges"]), after, strict=True)
    out += stroke([(px(x), y) for ends, y in steps for x in ends], "line solid all")
    x = px(d["base"]["p80"])
    out += stroke([(x, 38), (x, foot)], "rule")
    out += label(x + 14, 52, f"base, 80th percentile: {num(d['base']['p80'])}", "tick")
    said = "; after RLVR: ".join(
        f"{pct(x['below_0.01'])} of {x['n_tokens']:,} tokens are below 0.01 nats, the 80th "
        f"percentile is {num(x['p80'])} and the highest fifth holds {pct(x['top20_share'])} of "
        "all entropy"
        for x in (d["base"], d["final"])
    )
    return out, 320, f"Base model ({d['base']['dtype']}): {said}."


def after(d: dict) -> dict[str, float]:
    """Token -> mean entropy after RLVR."""
    return {r["token"]: r["entropy"] for r in d["final"]["highest"] + d["final"]["lowest"]}


def ranking(d: dict, w: int) -> Figure:
    """The fifteen tokens of highest base entropy: base and trained mean entropy, in nats."""
    t, final, rows = d["base"], after(d), []
    for r, name in zip(t["highest"][:15], names(t["highest"][:15]), strict=True):
        later = [final[r["token"]]] if r["token"] in final else []
        base = ("base", r["entropy"], *(sorted((r["entropy"], *later)) if later else ()))
        rows.append(dict(name=name[:14], points=[base, *(("top", h) for h in later)]))

    def three(rows: list[dict]) -> str:
        pairs = zip(names(rows[:3]), rows, strict=False)
        return ", ".join(f"“{name}” {num(r['entropy'])}" for name, r in pairs)

    said = f"Of the tokens drawn more than {d['floor']} times {three(t['highest'])} have the "
    said += f"highest mean entropy (nats), {three(t['lowest'])} the lowest."
    if ten := [r for r in t["highest"][:10] if r["token"] in final]:
        moved = mean([r["entropy"] for r in ten]), mean([final[r["token"]] for r in ten])
        said += f" RLVR moves the {len(ten)} highest from {num(moved[0])} to {num(moved[1])}."
    what = "mean entropy, nats: ○ base, ● after RLVR"
    return *dots(rows, w, what, "{:g}".format, beside=True), said


def most_and_least(t: dict) -> tuple[list[dict], list[dict]]:
    """The 100 highest and the 100 lowest; fewer where a small vocabulary's would overlap."""
    n = min(100, max(1, len({r["token"] for r in t["highest"] + t["lowest"]}) // 2))
    return t["highest"][:n], t["lowest"][:n]


def cloud(d: dict, w: int) -> Figure:
    """The tokens of highest and lowest mean entropy, font size linear in it."""
    most, least = most_and_least(d["base"])
    top = max(r["entropy"] for r in most) or 1.0

    def sized(rows: list[dict], style: str) -> list[tuple[str, float, str]]:
        pairs = zip(names(rows), rows, strict=True)
        return [(name, SMALLEST + 34 * r["entropy"] / top, style) for name, r in pairs]

    high, y = flow(sized(most, "top"), w, 20)
    low, end = flow(sized(least, "muted"), w, y + 46)
    heads = label(0, 12, "highest mean entropy", "axis") + label(0, y + 40, "lowest", "axis")
    a, b = (num(mean([r["entropy"] for r in rows])) for rows in (most, least))
    said = f"The size of a token grows linearly with its mean entropy: the {len(most)} highest "
    said += f"average {a} nats, the {len(least)} lowest {b}."
    return heads + high + low, round(end + 10), said


# ---------------------------------------------------------------------- where it is decided


def held(x: dict) -> str:
    """The share of the outcome's variance at the top fifth, in words."""
    share, low, high = (100 * v for v in x["top20"])
    return f"{share:.0f}% [{low:.0f}, {high:.0f}]"


def cumulative(d: dict, w: int) -> Figure:
    """Share of the outcome's variance at the x% of tokens with the highest entropy."""
    b, f = d["base"], d["final"]
    lines = ("base", "ink", b), ("trained", "top", f)
    series = [dict(name=n, style=s, y=[0, *x["cumulative"]["share"]]) for n, s, x in lines]
    series = [s | dict(x=[*range(101)]) for s in series]
    y = min(map(min, (s["y"] for s in series))), 1.05 * max(1.0, *(max(s["y"]) for s in series))
    words = ("% of tokens with the highest entropy", "share of the outcome’s variance")
    said = (
        "A fifth of the tokens, where the base model hesitates most, holds "
        f"{held(b)} of what decides whether its answer is right; {b['percent_for_90']}% of its "
        f"tokens hold 90%, {f['percent_for_90']}% of the trained model’s."
    )
    return *curves(series, w, 280, words, (y, [(v, integer(v)) for v in ticks(*y)])), said


def decomposition(d: dict, w: int) -> Figure:
    """Share of the outcome's variance that each tenth of the tokens by entropy holds."""
    words = "decile of entropy, 10 = highest", "share of the outcome’s variance"
    panels = [
        by_decile(d[k]["deciles"], "share", w, 230, (words[0], f"{name}: {words[1]}"))
        for k, name in SIDES.items()
    ]
    said = (
        f"The highest fifth holds {held(d['base'])} of what decides the base model’s answers, "
        f"{held(d['final'])} of the trained model’s; an estimate without bias may exceed 100%. "
        f"{d['base']['n_responses']} answers of each."
    )
    return *stack(*panels), said


def kinds(d: dict, w: int) -> Figure:
    """Share of the outcome's variance by what a token is there for."""
    rows = {}
    for which, style in dict(base="base", final="top").items():
        for r in d[which]["kinds"]:
            rows.setdefault(r["name"], []).append((style, r["share"], r["low"], r["high"]))
    said = "; ".join(
        f"{name}: " + ", ".join(f"{r['name']} {pct(r['share'])}" for r in d[which]["kinds"][:3])
        for which, name in SIDES.items()
    )
    drawn = [dict(name=name, points=points) for name, points in rows.items()]
    what = "share of the variance: ○ base, ● after RLVR"
    return *dots(drawn, w, what, beside=True), f"{said}."


def at_temperature(x: dict, which: str, t: float | str) -> dict | None:
    """The row of `which` at temperature `t`, or its "coldest", or "warm": the best above 1."""
    rows = x[which]
    if t == "coldest":
        return min(rows, key=lambda r: r["t"], default=None)
    if t == "warm":
        return max((r for r in rows if r["t"] > 1), key=lambda r: r["accuracy"], default=None)
    return next((r for r in rows if r["t"] == t), None)


def temperatures(d: dict, w: int) -> Figure:
    """Accuracy over temperature (paper Eq. 5), at equal distances; a panel for each threshold."""
    both = d, d["other"]
    panels, parts, most = [], [], max(r["high"] for x in both for r in x["fork"] + x["rest"])
    for x in both:
        grid, series = sorted({r["t"] for r in x["fork"] + x["rest"]}), []
        # intervals of one temperature stand beside each other
        for name, style, aside in (("fork", "top", -0.06), ("rest", "all", 0.06)):
            line = {k: [r[k] for r in x[name]] for k in ("accuracy", "low", "high")}
            xs = [grid.index(r["t"]) + aside for r in x[name]]
            line |= dict(name=f"{name} at T", style=style, x=xs, y=line["accuracy"], dotted=True)
            line |= dict(at=[f"T = {r['t']:g}" for r in x[name]])
            series.append(line)
        kind = f"{num(x['threshold'])} nats ({x['threshold_kind']})"
        words = "temperature T, the other kind at 1", f"accuracy; forks from {kind}"
        xticks = [(i, f"{t:g}") for i, t in enumerate(grid)]
        panels.append(curves(series, w, 320, words, percents((0, most)), xticks))
        points = dict(everything=("fork", 1), best_warmer_forks=("fork", "warm"))
        points |= dict(coldest_forks=("fork", "coldest"), hot_rest=("rest", 2))
        rows = {name.replace("_", " "): at_temperature(x, *way) for name, way in points.items()}
        said = [f"{name}, at T = {r['t']:g}, {at(r)}" for name, r in rows.items() if r]
        parts.append(f"Forks from {kind}: {'; '.join(said)}.")
    return *stack(*panels), " ".join(parts)


# ---------------------------------------------------------------------- what RLVR does to it


def overlaps(d: dict, w: int) -> Figure:
    """Share of the top-20% positions that each kept step has with the base and the final model."""
    columns = (("with base", "all", d["overlap_base"]), ("with final", "top", d["overlap_final"]))
    series = [dict(name=n, style=s, x=d["steps"], y=y, dotted=True) for n, s, y in columns]
    said = (
        f"At step {d['steps'][-1]:,} the model shares {pct(d['overlap_base'][-1])} of its "
        f"{integer(d['rho'])} of positions with the highest entropy with the base model "
        f"({d['n_tokens']:,} tokens)."
    )
    return *curves(series, w, 280, ("step", "overlap")), said


def overlap_rho(d: dict, w: int) -> Figure:
    """The overlap of base and final model by the share of tokens that is compared."""
    x, y = ([r[k] for r in d["by_rho"]] for k in ("rho", "overlap"))
    series = [dict(name="overlap", style="all", x=x, y=y, dotted=True)]
    series.append(dict(name="by chance", style="random", x=x, y=x))
    words = ("share of tokens compared, rho", "overlap")
    said = ", ".join(f"{pct(b)} at {integer(a)}" for a, b in zip(x, y, strict=True))
    said = f"What is kept of the forking positions depends on how many are compared: {said}."
    xticks = [(v, integer(v)) for v in ticks(x[0], x[-1])]
    return *curves(series, w, 280, words, percents((0, 1)), xticks), said


def changes(d: dict, w: int) -> Figure:
    """Mean change of entropy, nats, in each 5% of the tokens by base entropy."""
    rows, values = d["bins"], [0.0, *(r["change"] for r in d["bins"])]
    pad = 0.06 * (max(values) - min(values)) or 0.1
    y, n = (min(values) - pad, max(values) + pad), len(rows)
    xticks = [(i, str(5 * i)) for i in range(0, 21, 4)] if n == 20 else []
    what = "percentile of base entropy" if n == 20 else f"{n} bins by base entropy, ties merged"
    words = (what, "change of mean entropy, nats")
    px, py, out = axes(w, 280, (0, n), y, xticks, plain(ticks(*y)), words)
    top = max(r["base"] for r in rows)
    for i, r in enumerate(rows):
        shade, words = level(r["base"], top), f"{num(r['base'])} nats: {signed(r['change'])}"
        out += column(px(i), px(i + 1), py(r["change"]), py(0), shade, words)
    out += stroke([(px(0), py(0)), (px(n), py(0))], "zero")
    share, change = top_fifth(rows)
    said = (
        f"{pct(share)} of the change, summed over bins without sign, lies in the fifth of the "
        f"tokens with the highest base entropy, which change by {signed(change)} nats on average."
    )
    return out, 280, said


def top_fifth(rows: Sequence[dict]) -> tuple[float, float]:
    """(share of all |entropy change| in the fifth of the tokens whose base entropy is highest,
    their mean change in nats); the bin at the border counts in part."""
    left = need = 0.2 * sum(r["n"] for r in rows)
    inside = change = 0.0
    for r in sorted(rows, key=lambda r: -r["base"]):
        n = min(left, r["n"])
        inside, change, left = inside + n * abs(r["change"]), change + n * r["change"], left - n
    total = sum(r["n"] * abs(r["change"]) for r in rows)
    return inside / (total or 1.0), change / (need or 1.0)


def percentiles(d: dict, w: int) -> Figure:
    """Percentiles of the entropy, nats on a log axis, over the kept steps."""
    series = []
    for name, ys in d["percentiles"].items():
        logs = [math.log10(max(v, 1e-5)) for v in ys]  # zero must stand somewhere on a log axis
        style = "top" if int(name[1:]) >= 80 else "all"
        series.append(dict(name=name, style=style, x=d["steps"], y=logs))
    low = math.floor(min(v for s in series for v in s["y"]))
    high = math.ceil(max(v for s in series for v in s["y"]) + 1e-9)
    small = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    yticks = [(e, "10" + str(e).translate(small)) for e in range(low, high + 1)]
    words = ("step", "entropy, nats, log scale (0 drawn at 10⁻⁵)")
    rows = {p: v for p, v in d["percentiles"].items() if p in ("p50", "p80", "p90", "p99")}
    parts = [f"{p} {num(v[0])} → {num(v[-1])}" for p, v in (rows | dict(mean=d["mean"])).items()]
    said = f"From step {d['steps'][0]:,} to {d['steps'][-1]:,}, in nats: {', '.join(parts)}."
    return *curves(series, w, 320, words, ((low, high), yticks)), said


def sparsity(d: dict, w: int) -> Figure:
    """Share of parameters unchanged in bf16, in all and by layer; hollow: by weight decay alone."""
    total, rows = d | dict(name="all parameters", n=sum(r["n"] for r in d["layers"])), []
    for r in (total, *d["layers"]):
        points = [("base", r["decayed"]), ("all" if r is total else "top", r["beyond"])]
        rows.append(dict(name=r["name"], points=points, note=f"of {r['n']:,}"))
    said = (
        f"{pct(1 - d['unchanged'])} of the parameters changed in {d['dtype']}; weight decay alone "
        f"changes {pct(1 - d['decayed'])}, and beyond it {pct(1 - d['beyond'])} changed."
    )
    return *dots(rows, w, "unchanged: ● beyond weight decay, ○ by it alone"), said


def anatomy(d: dict, w: int) -> Figure:
    """The norm by mask; below it the norm and the agreement of two halves by entropy decile."""
    d, rows = d["models"][0], []
    for a in d["arms"]:
        note = f"cosine with all {a['cosine']:.2f}, halves {signed(a['split_half'], '.2f')}"
        rows.append(dict(name=a["name"], points=[(a["name"].split()[0], a["norm"])], note=note))
    parts = [dots(rows, w, "gradient norm", "{:g}".format)]
    for key, what in (("norm", "gradient norm"), ("split_half", "cosine of the two halves")):
        words = "decile of entropy, 10 = highest", what
        parts.append(by_decile(d["deciles"], key, w, 210, words))
    said = "; ".join(
        f"{a['name']}: norm {num(a['norm'])}, cosine with all {signed(a['cosine'], '.3f')}, halves "
        f"agree {signed(a['split_half'], '.2f')}, {signed(a['robust'], '.2f')} without its "
        f"{d['largest']} largest tokens"
        for a in d["arms"]
    )
    for a in (a for a in d["arms"] if a["name"].startswith("bottom")):
        down, push = (signed(v, "+.2f") for v in (a["down"], d["mean_advantage"]))
        said += f". The {a['name']} without them have cosine {down} with “every drawn token down”; "
        said += f"mean advantage of a token {push}"
    return *stack(*parts), f"{said}. {d['n_tokens']:,} tokens of the {d['model']} model."


# ---------------------------------------------------------------------- arms


def arm(d: dict, keep: str, rho: float = 0.2) -> dict | None:
    """The arm with this mask and no other flag; with `all`, rho says nothing."""
    same = [a for a in d["arms"] if a["keep"] == keep and not a["flags"]]
    return next((a for a in same if keep == "all" or abs(a["rho"] - rho) < 1e-9), None)


def minus(d: dict, a: dict | None, b: dict | None) -> dict | None:
    """Arm a's accuracy minus arm b's by the rule of study/stats.py, `n` runs each at least; None
    where one is missing or nothing was right."""
    if not a or not b or a["test"]["accuracy"] == b["test"]["accuracy"] == 0:
        return None
    x, y = (arm["test"]["per_seed"] for arm in (a, b))
    return difference(x, y, d["sd"] or math.nan, d["df"]) | dict(n=min(len(x), len(y)))


def in_points(found: dict) -> str:
    """A difference in points, with its interval and its runs."""
    gap, low, high = (signed(100 * (found[k] or 0), "+.1f") for k in ("mean", "low", "high"))
    ends = "" if found["low"] is None else f" [{low},\u00a0{high}]"
    return f"{gap}{ends} points, {found['n']} run{'s' * (found['n'] > 1)}"


def title_of(a: dict) -> str:
    """The arm in words, "bottom 80%", unless it has other flags."""
    share = {"all": "all", "bottom": f"bottom {100 - 100 * a['rho']:g}%"}
    return a["name"] if a["flags"] else share.get(a["keep"], f"{a['keep']} {100 * a['rho']:g}%")


def style_of(a: dict) -> str:
    return a["keep"] if a["keep"] in MASKS else "ink"


def main_arms(d: dict) -> list[dict]:
    """The four arms that only the mask tells apart, or else the first four."""
    return [a for keep in MASKS if (a := arm(d, keep))] or d["arms"][:4]


def arm_curves(d: dict, w: int, over: str, what: str) -> Figure:
    """Each arm's mean training accuracy, its runs as thin lines, over the column `over`."""
    made = [(title_of(a), style_of(a), a["curve"]) for a in main_arms(d) if a["curve"]["step"]]
    if not made:
        return label(0, 20, "no arm has made a step yet", "axis"), 40, "No arm has made a step."
    series = [
        dict(name=title[:12], style=style, x=c[over], y=c["accuracy"], runs=c["runs"])
        for title, style, c in made
    ]
    common, parts = min(c[over][-1] for *_, c in made), []
    for title, _, c in made:
        done = sum(x <= common for x in c[over])
        parts += [f"{title} {pct(c['accuracy'][done - 1])}"] if done else []
    n = " or ".join(map(str, sorted({len(c["runs"]) for *_, c in made})))
    said = f"Training accuracy after {common:,.0f} {what}, where the first arm ends: "
    said += f"{', '.join(parts)}; means over {n} runs each."
    return *curves(series, w, 340, (what, "training accuracy")), said


def final_test(d: dict, w: int) -> Figure:
    """Each arm's test accuracy with its interval, its runs as small dots."""
    rows = [row(SIDES["base"], "base", tested(d["base"]))]
    for a in d["arms"]:
        each = [(f"small {style_of(a)}", v) for v in a["test"]["per_seed"]]
        rows.append(row(title_of(a), style_of(a), a["test"], each))
    said = ", ".join(f"{title_of(a)} {pct(a['test']['accuracy'])}" for a in main_arms(d))
    said = f"Right answers on new problems: base {pct(d['base']['accuracy'])}, {said}"
    if found := minus(d, arm(d, "top"), arm(d, "all")):
        word = found["verdict"].replace("equal", "equal within two points")
        said += f"; top 20% minus all is {in_points(found)}: {word}"
    return *dots(rows, w, "test accuracy; small dots are runs"), f"{said}."


def wording_worlds(d: dict) -> list[dict]:
    """The worlds of the grid in which top and all were run with the first batch and AdamW."""
    cells = [c for c in d["cells"] if (c["prompts"], c["optimizer"]) == (8, "adamw")]
    return [c for c in cells if {"top", "all"} <= c["arms"].keys()]


def gap(c: dict, arm: str = "top", other: str = "all") -> dict:
    """An arm minus another of a world of the grid: of several runs on test, of one its score."""
    a, n = c["arms"][arm], len(c["arms"][arm]["test"])
    if n > 1:
        return a[f"minus_{other}"] | dict(n=n)
    return dict(mean=a[f"score_minus_{other}"], low=None, high=None, verdict="too few runs", n=n)


def world_name(c: dict) -> str:
    return f"filler {integer(c['share'])} at {c['entropy']:g} nats" if c["share"] else "no filler"


def ratio(c: dict) -> float:
    """The entropy of a filler word over that of a decision, at the base; 0 without filler."""
    return c["entropy"] / c["base"][0]["decisions"]["entropy"] if c["share"] else 0.0


def phase(d: dict, w: int) -> Figure:
    """Top minus all over the filler's entropy, in those of decisions, and the filler's share."""
    none, places = -4, (0.125, 0.25, 0.5, 1, 2, 4)  # on a scale of powers of two
    xticks = [(none, "none"), *((math.log2(v), f"{v:g}") for v in places)]
    yticks = [(v, integer(v)) for v in (0, 0.2, 0.4)]
    what = "entropy of a filler word over that of a decision", "share of filler words"
    px, py, out = axes(w, 380, (-4.5, 2), (-0.05, 0.47), xticks, yticks, what)
    out += stroke([(px(0), 34), (px(0), 336)], "rule")
    said = []
    for c in wording_worlds(d):
        found, base = gap(c), c["base"][0]
        points, name = 100 * found["mean"], world_name(c)
        words = f"{name}: top 20% minus all {in_points(found)}; recall {pct(base['recall'])}, "
        words += f"holds {held(dict(top20=base['held']))} of the outcome’s variance"
        style = f"world {'u' if points > 0 else 'd'}{level(abs(points), 12)}"
        style += " unsure" * (found["verdict"] in ("undecided", "too few runs"))
        x, y = px(math.log2(ratio(c)) if c["share"] else none), py(c["share"])
        out += mark(x, y, style, words, 14)
        out += label(x, y + 4, signed(points, "+.0f"), "name inside", "middle")
        said.append((points, words))
    said = f"Worst, {min(said)[1]}; best, {max(said)[1]}."
    if (r := d["correlation"])["rank"] is not None:
        said += f" The base’s recall and this gap have rank correlation {r['rank']:.2f} over"
        said += f" {r['n']} worlds and batches."
    return out, 380, said


# each figure that page.html names: its section, and the figure
FIGURES: dict[str, tuple[str, Callable[[dict, int], Figure]]] = dict(
    before_after=("distribution", before_after),
    training=("training", training),
    learned=("learned", learned),
    histogram=("distribution", histogram),
    ranking=("tokens", ranking),
    cloud=("tokens", cloud),
    cumulative=("decomposition", cumulative),
    decomposition=("decomposition", decomposition),
    kinds=("decomposition", kinds),
    two_temperature=("two_temperature", temperatures),
    overlap=("during", overlaps),
    overlap_rho=("during", overlap_rho),
    change=("during", changes),
    percentiles=("during", percentiles),
    arms_test=("comparison", final_test),
    arms_step=("comparison", partial(arm_curves, over="step", what="steps")),
    arms_cpu=("comparison", partial(arm_curves, over="cpu_seconds", what="CPU-seconds")),
    anatomy=("anatomy", anatomy),
    sparsity=("sparsity", sparsity),
    phase=("wording", phase),
)

"""The figures of the page: each a drawing, and the sentence that says what it shows.

A drawing is a plain function from a section's dict (RUN/data/SECTION.json) and a width in pixels to
the inside of an <svg> and its height; the page has each twice, for a desk and for a phone, so that
labels keep their size.  Its colours and lines are classes of the style in page.html.
Entropies are nats, shares 0..1, intervals 95%, as in the data.
"""

import html
import math
import unicodedata
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

LEVELS = 10  # shades of entropy
SMALLEST = 12  # px, of any label
SIDES = dict(base="Base model", final="After RLVR")
MASKS = ("top", "all", "random", "bottom")

# ---------------------------------------------------------------------- words and numbers


def shown(text: Any) -> str:
    """`text` with what is invisible, or would turn the line around, made visible: a newline as ⏎,
    control and format characters and lone surrogates as escapes."""
    odd = ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp")
    out = []
    for c in str(text):
        escape = unicodedata.category(c) in odd
        out.append("⏎" if c == "\n" else c.encode("unicode_escape").decode() if escape else c)
    return "".join(out)


def esc(text: Any) -> str:
    return html.escape(shown(text))


def pct(x: float) -> str:
    return f"{100 * x:.1f}%"


def whole(x: float) -> str:
    return f"{100 * x:g}%"


def num(x: float) -> str:
    """Three digits, however small."""
    return f"{x:.3f}" if 0.1 <= abs(x) < 10 else f"{x:,.0f}" if abs(x) >= 10 else f"{x:.3g}"


def span(low: float | None, high: float | None) -> str:
    """[low, high] in percent, which no line break divides."""
    return "" if low is None or high is None else f" [{100 * low:.1f},\u00a0{100 * high:.1f}]"


def at(r: dict) -> str:
    """accuracy, low, high in words."""
    return pct(r["accuracy"]) + span(r["low"], r["high"])


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def names(rows: Sequence[dict]) -> list[str]:
    """Tokens as labels: without the spaces around them, unless two would then read the same."""
    tokens = [r["token"] for r in rows]
    bare = [t.strip(" ") or "␣" * len(t) for t in tokens]
    pairs = zip(tokens, bare, strict=True)
    return [shown(t.replace(" ", "␣") if bare.count(b) > 1 else b) for t, b in pairs]


# ---------------------------------------------------------------------- colour

LIGHT = dict(paper="#fdfcf9", panel="#f4f1ea", ink="#23262c", muted="#5c6370", rule="#dcd8cf")
LIGHT |= dict(hot="#ee7a1c", top="#b2460a", all="#1c5d9f", random="#4f6b52", bottom="#96307a")
DARK = dict(paper="#15171b", panel="#1f2228", ink="#f1efea", muted="#a3a9b4", rule="#363a42")
DARK |= dict(hot="#b04f0c", top="#f5944a", all="#6fb3f2", random="#9cc09f", bottom="#ea8fcd")


def ramp(palette: dict[str, str]) -> list[str]:
    """LEVELS shades from no entropy (the paper) to much: one hue, and lightness that only falls, or
    on dark paper only rises, so that it reads without colour vision."""
    a, b = ([int(palette[c][i : i + 2], 16) for i in (1, 3, 5)] for c in ("paper", "hot"))
    mix = [
        [x + (y - x) * i / (LEVELS - 1) for x, y in zip(a, b, strict=True)] for i in range(LEVELS)
    ]
    return ["#" + "".join(f"{round(x):02x}" for x in c) for c in mix]


def variables(palette: dict[str, str]) -> dict[str, str]:
    return palette | {f"e{i}": c for i, c in enumerate(ramp(palette))}


def level(entropy: float, top: float) -> int:
    """Which shade: linear from 0 to `top` nats, the last one from there on."""
    return max(0, min(LEVELS - 1, int(LEVELS * entropy / top))) if top > 0 else 0


# ---------------------------------------------------------------------- drawing

Drawing = tuple[str, int]  # the inside of an <svg>, its height in px
Ticks = Sequence[tuple[float, str]]


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


def percents(low: float, high: float) -> tuple[tuple[float, float], Ticks]:
    """An axis of shares that holds [low, high], and its ticks."""
    pad = 0.04 * (high - low) or 0.02
    low, high = max(0.0, low - pad), min(1.0, high + pad)
    return (low, high), [(v, whole(v)) for v in ticks(low, high)]


def label(x: float, y: float, words: Any, style: str = "", anchor: str = "start") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} class="{style}">{esc(words)}</text>'


def stroke(points: Sequence[tuple[float, float]], style: str) -> str:
    return f'<path class="{style}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>'


def mark(x: float, y: float, style: str) -> str:
    return f'<circle class="mark {style}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'


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
    """Heights of labels, moved as little as keeps them `gap` apart and, if they fit, within
    [low, high]."""
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
    series: Sequence[dict], w: int, h: int, y: tuple, yticks: Ticks, words: tuple, x: Ticks = ()
) -> Drawing:
    """Lines named at their right ends: dict(name, style, x, y) and optionally low, high (a band; at
    `dotted` points upright lines).  `x`: ticks, if not round numbers."""
    xs = [v for s in series for v in s["x"]]
    ends = min(xs), max(xs)
    right = 14 + max(8 * len(s["name"]) for s in series)
    xticks = x or plain(ticks(*ends, 4))
    px, py, out = axes(w, h, ends, y, xticks, yticks, words, right)
    heights = spread([py(s["y"][-1]) for s in series], 14, 20, h - 44)
    for s, height in zip(series, heights, strict=True):
        style, dotted = s["style"], s.get("dotted") or len(s["x"]) == 1
        points = [(px(a), py(b)) for a, b in zip(s["x"], s["y"], strict=True)]
        bounds = s.get("low") or [], s.get("high") or []
        if bounds[0] and None not in (*bounds[0], *bounds[1]):
            low, high = ([(px(a), py(b)) for a, b in zip(s["x"], z, strict=True)] for z in bounds)
            if dotted:
                out += "".join(stroke(p, f"whisker {style}") for p in zip(low, high, strict=True))
            else:
                out += stroke(high + low[::-1], f"band {style}")
        out += stroke(points, f"line {style}")
        out += "".join(mark(*p, style) for p in points) if dotted else ""
        out += label(points[-1][0] + 10, height + 4, s["name"], f"name {style}")
    return out, h


def bars(items: Sequence[tuple], px: Callable, py: Callable, zero: float = 0.0) -> str:
    """Upright bars (left, right, value, shade) in data units, from `zero`."""
    out = []
    for a, b, v, shade in items:
        x, y = px(a) + 0.5, min(py(v), py(zero))
        size = f'width="{max(px(b) - px(a) - 1, 0.5):.2f}" height="{abs(py(v) - py(zero)):.2f}"'
        out.append(f'<rect class="bar e{shade}" x="{x:.2f}" y="{y:.2f}" {size}/>')
    return "".join(out)


def by_decile(rows: Sequence[dict], key: str, w: int, h: int, y: tuple, words: tuple) -> tuple:
    """px, py and bars of r[key] by decile of entropy, shaded by the entropy."""
    xticks = [(r["decile"] - 0.5, str(r["decile"])) for r in rows]
    px, py, out = axes(w, h, (0, 10), y, xticks, plain(ticks(*y, 4)), words)
    top = max(r["entropy"] for r in rows)
    items = [(r["decile"] - 1, r["decile"], r[key], level(r["entropy"], top)) for r in rows]
    return px, py, out + bars(items, px, py)


def dots(rows: Sequence[dict], w: int, what: str, form: Callable = num, side: int = 0) -> Drawing:
    """One row a thing, from 0: dict(name, points: [(style, value)]), optionally low, high, note.
    Names stand above their rows, or `side` px wide at their left."""
    high = [v for r in rows for v in (r.get("high"), *(p for _, p in r["points"])) if v is not None]
    top, step, left = max([*high, 1e-9]) * 1.04, 24 if side else 46, side or 4
    px, h = scale(0, top, left, w - 12), step * len(rows) + 44
    out = [label(w - 12, h - 4, what, "axis", "end")]
    for v in ticks(0, top):
        out.append(stroke([(px(v), 0), (px(v), h - 42)], "grid"))
        out.append(label(px(v), h - 24, form(v), "tick", "middle" if v else "start"))
    for i, r in enumerate(rows):
        y, style = step * i + (14 if side else 30), r["points"][-1][0]
        if side:
            out.append(label(left - 10, y + 4, r["name"], "token", "end"))
        else:
            out.append(stroke([(left, y), (w - 12, y)], "track"))
            out.append(label(4, y - 12, r["name"], f"name {style}"))
            out.append(label(w - 12, y - 12, r.get("note", ""), "tick", "end"))
        if r.get("low") is not None:
            out.append(stroke([(px(r["low"]), y), (px(r["high"]), y)], f"whisker {style}"))
        out += [mark(px(v), y, s) for s, v in r["points"]]
    return "".join(out), h


def flow(items: Sequence[tuple[str, float, str]], w: int, y: float) -> tuple[str, float]:
    """(text, font px, style) set below y in centred rows of a monospaced face, whose widths are
    known, and where they end."""
    rows: list[list] = [[]]
    used = 0.0
    for text, size, style in items:
        cells = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
        width = 0.602 * size * cells + 0.6 * size
        if used and used + width > w:
            rows, used = [*rows, []], 0.0
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


# ---------------------------------------------------------------------- the figures


def compare(a: Sequence[float], b: Sequence[float]) -> str:
    """Interval a against b: "above", "below", or "overlap", which touching counts as."""
    return "above" if a[0] > b[1] else "below" if a[1] < b[0] else "overlap"


def tested(d: dict, which: str) -> dict | None:
    """Base or final of `distribution`, as accuracy, low, high."""
    r = d.get(which)
    low, high = r and r["interval"] or (None, None)
    return r and dict(accuracy=r["accuracy"], low=low, high=high)


def before_after(d: dict, w: int) -> Drawing:
    """Test accuracy of the base and of the trained model, with intervals."""
    styles = dict(base="base", final="top")
    rows = [(SIDES[s], style, tested(d, s)) for s, style in styles.items()]
    return dots(
        [r | dict(name=n, points=[(s, r["accuracy"])], note=at(r)) for n, s, r in rows if r],
        w, "accuracy on the test split, 95% interval", whole,
    )  # fmt: skip


def say_before_after(d: dict) -> str:
    b, f = d["base"], d.get("final")
    if not f:
        return (
            f"The base model’s accuracy is {at(tested(d, 'base'))}; no trained model is there yet."
        )
    how = {"above": "above", "below": "below", "overlap": "not apart from"}
    apart = how[compare(f["interval"], b["interval"])]
    return (
        f"Accuracy goes from {at(tested(d, 'base'))} to {at(tested(d, 'final'))}: the new interval "
        f"is {apart} the old. Answers go from {b['length']:.0f} to {f['length']:.0f} tokens, the "
        f"share that is cut off from {pct(b['truncated'])} to {pct(f['truncated'])}."
    )


def training(d: dict, w: int) -> Drawing:
    """Accuracy of the sampled answers by step, and the validation measurements as dots."""
    series = [dict(name="training", style="top", x=d["step"], y=d["accuracy"])]
    if d.get("val_step"):
        val = dict(x=d["val_step"], y=d["val_accuracy"], dotted=True)
        series.append(val | dict(name="validation", style="all"))
    values = [v for s in series for v in s["y"]]
    return curves(series, w, 280, *percents(min(values), max(values)), ("step", "accuracy"))


def say_training(d: dict) -> str:
    n = min(5, len(d["step"]))

    def ends(key: str, form: Callable = num) -> str:
        return f"from {form(mean(d[key][:n]))} to {form(mean(d[key][-n:]))}"

    return (
        f"From the first {n} to the last {n} of {len(d['step'])} steps the accuracy of the sampled "
        f"answers goes {ends('accuracy', pct)}, the mean entropy of the tokens in the gradient "
        f"{ends('entropy_kept')} nats, of the others {ends('entropy_dropped')}."
    )


def histogram(d: dict, w: int) -> Drawing:
    """Counts on a log axis that starts at half a token, so that a single one is seen."""
    base, final = d["base"]["histogram"], (d.get("final") or d["base"])["histogram"]
    floor, most = math.log10(0.5), max(*base["counts"], *final["counts"], 1)
    top = math.ceil(math.log10(most) + 0.01)
    ends = min(base["edges"][0], final["edges"][0]), max(base["edges"][-1], final["edges"][-1])
    yticks = [(e, f"{10**e:,}" if e < 4 else f"{10 ** (e - 3):,}k") for e in range(top + 1)]
    words = ("entropy, nats", "tokens, log scale", "bars: base, line: after RLVR")
    words = words if d.get("final") else words[:2]
    px, py, out = axes(w, 320, ends, (floor, top), plain(ticks(*ends)), yticks, words)
    counted = zip(pairwise(base["edges"]), base["counts"], strict=True)
    out += bars(
        [(a, b, math.log10(n), level((a + b) / 2, d["base"]["p99"])) for (a, b), n in counted if n],
        px, py, floor,
    )  # fmt: skip
    if d.get("final"):
        heights = [py(math.log10(n) if n else floor) for n in final["counts"]]
        steps = zip(pairwise(final["edges"]), heights, strict=True)
        out += stroke([(px(x), y) for ends, y in steps for x in ends], "line solid all")
    x = px(d["base"]["p80"])
    out += stroke([(x, 38), (x, py(floor))], "rule")
    return out + label(x + 14, 52, f"base, 80th percentile: {num(d['base']['p80'])}", "tick"), 320


def say_histogram(d: dict) -> str:
    def one(x: dict) -> str:
        return (
            f"{pct(x['below_0.01'])} of {x['n_tokens']:,} tokens are below 0.01 nats, the 80th "
            f"percentile is {num(x['p80'])} and the highest fifth holds {pct(x['top20_share'])} of "
            "all entropy"
        )

    final = f" After RLVR: {one(d['final'])}." if d.get("final") else ""
    return f"Base model ({d['base']['dtype']}): {one(d['base'])}.{final}"


def after(d: dict) -> dict[str, float]:
    """Token -> mean entropy after RLVR."""
    final = d.get("final") or dict(highest=[], lowest=[])
    return {r["token"]: r["entropy"] for r in final["highest"] + final["lowest"]}


def ranking(d: dict, w: int) -> Drawing:
    """The fifteen tokens of highest base entropy: base and trained mean entropy, in nats."""
    rows, final, out = d["base"]["highest"][:15], after(d), []
    for r, name in zip(rows, names(rows), strict=True):
        points = [("base", r["entropy"])]
        points += [("top", final[r["token"]])] if r["token"] in final else []
        ends = sorted(v for _, v in points)
        out.append(dict(name=name[:14], points=points, low=ends[0], high=ends[-1]))
    side = 24 + round(7.3 * max(len(r["name"]) for r in out))
    return dots(out, w, "mean entropy, nats: ○ base, ● after RLVR", "{:g}".format, side)


def say_tokens(d: dict) -> str:
    t, final = d["base"], after(d)

    def three(rows: list[dict]) -> str:
        pairs = zip(names(rows[:3]), rows, strict=False)
        return ", ".join(f"“{name}” {num(r['entropy'])}" for name, r in pairs)

    ten = [r for r in t["highest"][:10] if r["token"] in final]
    moved = (
        [mean([r["entropy"] for r in ten]), mean([final[r["token"]] for r in ten])] if ten else []
    )
    return (
        f"Of the tokens drawn more than {d['floor']} times {three(t['highest'])} have the highest "
        f"mean entropy (nats), {three(t['lowest'])} the lowest."
        + (
            f" RLVR moves the {len(ten)} highest from {num(moved[0])} to {num(moved[1])}."
            if ten
            else ""
        )
    )


def most_and_least(t: dict) -> tuple[list[dict], list[dict]]:
    """The 100 highest and the 100 lowest; fewer where a small vocabulary's would overlap."""
    n = min(100, max(1, len({r["token"] for r in t["highest"] + t["lowest"]}) // 2))
    return t["highest"][:n], t["lowest"][:n]


def cloud(d: dict, w: int) -> Drawing:
    """The tokens of highest and lowest mean entropy, font size linear in it."""
    most, least = most_and_least(d["base"])
    top = max(r["entropy"] for r in most) or 1.0

    def sized(rows: list[dict], style: str) -> list[tuple[str, float, str]]:
        pairs = zip(names(rows), rows, strict=True)
        return [(name, SMALLEST + 34 * r["entropy"] / top, style) for name, r in pairs]

    high, y = flow(sized(most, "top"), w, 20)
    low, end = flow(sized(least, "muted"), w, y + 46)
    heads = label(0, 12, "highest mean entropy", "axis") + label(0, y + 40, "lowest", "axis")
    return heads + high + low, round(end + 10)


def say_cloud(d: dict) -> str:
    most, least = most_and_least(d["base"])
    a, b = (mean([r["entropy"] for r in rows]) for rows in (most, least))
    return (
        f"The size of a token grows linearly with its mean entropy: the {len(most)} highest "
        f"average {num(a)} nats, the {len(least)} lowest {num(b)}."
    )


def temperatures(d: dict, w: int) -> Drawing:
    """Accuracy over temperature (paper Eq. 5): forks at t, and the rest at t; equal spacing."""
    grid = sorted({r["t"] for r in d["fork"] + d["rest"]})
    series, aside = [], 0.06  # so that intervals of one temperature stand beside each other
    for name, style, rows, x in (
        ("forks at T", "top", d["fork"], -aside),
        ("rest at T", "all", d["rest"], aside),
    ):
        y, low, high = ([r[k] for r in rows] for k in ("accuracy", "low", "high"))
        line = dict(name=name, style=style, x=[grid.index(r["t"]) + x for r in rows])
        series.append(line | dict(y=y, low=low, high=high, dotted=True))
    y = percents(0, max(max(s["high"]) for s in series))
    words = ("temperature T, the other kind at 1", "accuracy")
    return curves(series, w, 320, *y, words, [(i, f"{t:g}") for i, t in enumerate(grid)])


def pick(rows: Sequence[dict], t: float) -> dict | None:
    return next((r for r in rows if r["t"] == t), None)


def coldest(rows: Sequence[dict]) -> dict | None:
    return min(rows, key=lambda r: r["t"], default=None)


def warmer(rows: Sequence[dict]) -> list[dict]:
    return [r for r in rows if r["t"] > 1]


def best(rows: Sequence[dict]) -> dict | None:
    return max(rows, key=lambda r: r["accuracy"], default=None)


def say_temperatures(d: dict) -> str:
    points = {
        "Everything": pick(d["fork"], 1),
        "Forks, best of the higher": best(warmer(d["fork"])),
        "Forks, coldest": coldest(d["fork"]),
        "The rest, next higher": coldest(warmer(d["rest"])),
    }
    parts = [f"{name}, at T = {r['t']:g}: {at(r)}." for name, r in points.items() if r]
    return f"Forks start at {num(d['threshold'])} nats ({d['threshold_kind']}). {' '.join(parts)}"


def overlaps(d: dict, w: int) -> Drawing:
    """Share of the top-20% positions that each kept step has with the base and the final model."""
    columns = (("with base", "all", d["overlap_base"]), ("with final", "top", d["overlap_final"]))
    series = [dict(name=n, style=s, x=d["steps"], y=y, dotted=True) for n, s, y in columns]
    y = percents(min(v for s in series for v in s["y"]), 1.0)
    return curves(series, w, 280, *y, ("step", "overlap"))


def say_overlaps(d: dict) -> str:
    return (
        f"At step {d['steps'][-1]:,} the model shares {pct(d['overlap_base'][-1])} of its "
        f"{whole(d['rho'])} of positions with the highest entropy with the base model "
        f"({d['n_tokens']:,} tokens)."
    )


def changes(d: dict, w: int) -> Drawing:
    """Mean change of entropy, nats, in each 5% of the tokens by base entropy."""
    rows, values = d["bins"], [0.0, *(r["change"] for r in d["bins"])]
    pad = 0.06 * (max(values) - min(values)) or 0.1
    y, n = (min(values) - pad, max(values) + pad), len(rows)
    xticks = [(i, str(5 * i)) for i in range(0, 21, 4)] if n == 20 else []
    what = "percentile of base entropy" if n == 20 else f"{n} bins by base entropy, ties merged"
    words = (what, "change of mean entropy, nats")
    px, py, out = axes(w, 280, (0, n), y, xticks, plain(ticks(*y)), words)
    top = max(r["base"] for r in rows)
    items = [(i, i + 1, r["change"], level(r["base"], top)) for i, r in enumerate(rows)]
    return out + bars(items, px, py) + stroke([(px(0), py(0)), (px(n), py(0))], "zero"), 280


def top_fifth(rows: Sequence[dict]) -> tuple[float, float]:
    """(share of all |entropy change| in the fifth of the tokens whose base entropy is highest,
    their mean change in nats); the bin at the border counts in part."""
    left = need = 0.2 * sum(r["n"] for r in rows)
    inside = signed = 0.0
    for r in sorted(rows, key=lambda r: -r["base"]):
        n = min(left, r["n"])
        inside, signed, left = inside + n * abs(r["change"]), signed + n * r["change"], left - n
    total = sum(r["n"] * abs(r["change"]) for r in rows)
    return inside / (total or 1.0), signed / (need or 1.0)


def signed(x: float) -> str:
    return f"{x:+.3f}".replace("-", "−")


def say_changes(d: dict) -> str:
    share, change = top_fifth(d["bins"])
    return (
        f"{pct(share)} of the change, summed over bins without sign, lies in the fifth of the "
        f"tokens with the highest base entropy, which change by {signed(change)} nats on average."
    )


def percentiles(d: dict, w: int) -> Drawing:
    """Percentiles of the entropy, nats on a log axis, over the kept steps."""
    series = []
    for name, ys in d["percentiles"].items():
        logs = [math.log10(max(v, 1e-5)) for v in ys]  # zero must stand somewhere on a log axis
        style = "top" if int(name[1:]) >= 80 else "all"
        series.append(dict(name=name, style=style, x=d["steps"], y=logs))
    low = math.floor(min(v for s in series for v in s["y"]))
    high = math.ceil(max(v for s in series for v in s["y"]) + 1e-9)
    yticks = [(e, f"{10.0**e:g}") for e in range(low, high + 1)]
    words = ("step", "entropy, nats, log scale (0 drawn at 0.00001)")
    return curves(series, w, 320, (low, high), yticks, words)


def say_percentiles(d: dict) -> str:
    rows = {p: d["percentiles"][p] for p in ("p50", "p80", "p90", "p99") if p in d["percentiles"]}
    parts = [f"{p} {num(v[0])} → {num(v[-1])}" for p, v in (rows | dict(mean=d["mean"])).items()]
    return f"From step {d['steps'][0]:,} to {d['steps'][-1]:,}, in nats: {', '.join(parts)}."


def arm(d: dict, keep: str, rho: float = 0.2) -> dict | None:
    """The arm with this mask and no other flag; with `all`, rho says nothing."""
    same = [a for a in d["arms"] if a["keep"] == keep and not a.get("flags")]
    return next((a for a in same if keep == "all" or abs(a["rho"] - rho) < 1e-9), None)


def test_of(d: dict, keep: str) -> dict | None:
    return (arm(d, keep) or {}).get("test")


def title_of(a: dict) -> str:
    """The arm in words, "bottom 80%", unless it has other flags."""
    share = {"all": "all", "bottom": f"bottom {100 - 100 * a['rho']:g}%"}
    return a["name"] if a.get("flags") else share.get(a["keep"], f"{a['keep']} {100 * a['rho']:g}%")


def main_arms(d: dict) -> list[dict]:
    """The four arms that only the mask tells apart, or else the first four."""
    return [a for keep in MASKS if (a := arm(d, keep))] or d["arms"][:4]


def arm_curves(d: dict, w: int, over: str, what: str) -> Drawing:
    """Each arm's mean training accuracy, with its band, over the column `over` of its curve."""
    series = []
    for a in main_arms(d):
        c, style = a["curve"], a["keep"] if a["keep"] in MASKS else "ink"
        columns = dict(x=c[over], y=c["accuracy"])
        series.append(columns | dict(name=title_of(a)[:12], style=style))
    series = [s for s in series if s["x"]]
    if not series:
        return label(0, 20, "no arm has made a step yet", "axis"), 40
    values = [v for s in series for v in s["y"]]
    return curves(series, w, 340, *percents(min(values), max(values)), (what, "training accuracy"))


def by_step(d: dict, w: int) -> Drawing:
    return arm_curves(d, w, "step", "step")


def say_by_step(d: dict) -> str:
    ends = [
        f"{title_of(a)} {pct(a['curve']['accuracy'][-1])}"
        for a in main_arms(d)
        if a["curve"]["accuracy"]
    ]
    n = sorted({len(a["seed"]) for a in main_arms(d)})
    over = f"means over {' or '.join(map(str, n))} runs each"
    return f"Training accuracy at the last step: {', '.join(ends) or 'none yet'}; {over}."


def by_cpu(d: dict, w: int) -> Drawing:
    return arm_curves(d, w, "cpu_seconds", "CPU-seconds")


def say_by_cpu(d: dict) -> str:
    arms = {title_of(a): a["curve"] for a in main_arms(d) if a["curve"]["step"]}
    if not arms:
        return "No arm has made a step yet."
    common = min(c["cpu_seconds"][-1] for c in arms.values())
    parts = []
    for name, c in arms.items():
        done = sum(t <= common for t in c["cpu_seconds"])
        parts += [f"{name} {pct(c['accuracy'][done - 1])}"] if done else []
    return f"After {common:,.0f} CPU-seconds, where the quickest arm ends: {', '.join(parts)}."


def final_test(d: dict, w: int) -> Drawing:
    """Each arm's test accuracy with its interval, the seeds as small dots."""
    rows = []
    if b := tested(dict(base=d.get("base")), "base"):
        rows.append(b | dict(name=SIDES["base"], points=[("base", b["accuracy"])], note=at(b)))
    for a in d["arms"]:
        t, style = a["test"], a["keep"] if a["keep"] in MASKS else "ink"
        points = [(f"small {style}", v) for v in t["per_seed"]] + [(style, t["accuracy"])]
        row = dict(name=title_of(a), points=points, note=at(t))
        rows.append(row | dict(low=t["low"], high=t["high"]))
    return dots(rows, w, "test accuracy; small dots are seeds", whole)


def say_final_test(d: dict) -> str:
    parts = [f"base {pct(d['base']['accuracy'])}"] if d.get("base") else []
    parts += [f"{title_of(a)} {pct(a['test']['accuracy'])}" for a in main_arms(d)]
    top, full = test_of(d, "top"), test_of(d, "all")
    if top and full:
        gap = f"{100 * (top['accuracy'] - full['accuracy']):+.1f}".replace("-", "−")
        parts.append(f"so top 20% minus all is {gap} points")
    return f"Test accuracy: {', '.join(parts)}."


def anatomy(d: dict, w: int) -> Drawing:
    """The norm by mask; below it the norm and the agreement of two halves by entropy decile."""
    d, rows = d["models"][0], []
    for a in d["arms"]:
        keep, note = (
            a["name"].split()[0],
            f"cosine with all {a['cosine']:.2f}, halves {a['split_half']:.2f}",
        )
        style = keep if keep in MASKS else "ink"
        rows.append(dict(name=a["name"], points=[(style, a["norm"])], note=note))
    out, y = dots(rows, w, "gradient norm", "{:g}".format)
    for key, what in (("norm", "gradient norm"), ("split_half", "cosine of the two halves")):
        values = [0.0, *(r[key] for r in d["deciles"])]
        ends = min(values) * 1.05, max(*values, 1e-9) * 1.05
        words = ("decile of entropy, 10 = highest", what)
        _, _, part = by_decile(d["deciles"], key, w, 210, ends, words)
        out, y = out + f'<g transform="translate(0 {y + 20})">{part}</g>', y + 230
    return out, y


def say_anatomy(d: dict) -> str:
    d = d["models"][0]
    parts = [
        f"{a['name']} has norm {num(a['norm'])}, cosine {a['cosine']:.3f} with the full gradient "
        f"and {a['split_half']:.2f} between halves"
        for a in d["arms"]
    ]
    return f"{'; '.join(parts)}. {d['n_tokens']:,} tokens of the {d['model']} model."


def decomposition(d: dict, w: int) -> Drawing:
    """Share of the outcome's variance that each tenth of the tokens by entropy holds."""
    rows = d["base"]["deciles"]
    ends = [x for r in rows for x in (r["low"], r["high"])]
    y = min(0.0, *ends) * 1.05, max(*ends, 1e-9) * 1.05
    words = ("decile of entropy, 10 = highest", "share of the outcome's variance")
    px, py, out = by_decile(rows, "share", w, 320, y, words)
    for r in rows:
        x = r["decile"] - 0.5
        out += stroke([(px(x), py(r["low"])), (px(x), py(r["high"]))], "whisker")
    return out, 320


def say_decomposition(d: dict) -> str:
    parts = []
    for which, name in SIDES.items():
        share, low, high = d[which]["top20"]
        ends = f"[{100 * low:.0f}, {100 * high:.0f}]"
        most = ", ".join(f"{r['name']} {pct(r['share'])}" for r in d[which]["kinds"][:3])
        parts.append(f"{name}: the top fifth holds {100 * share:.0f}% {ends}; {most}.")
    return " ".join(parts)


def sparsity(d: dict, w: int) -> Drawing:
    """Share of parameters unchanged in bf16, in all and by layer."""
    n = sum(r["n"] for r in d["layers"])
    total = dict(name="all parameters", unchanged=d["unchanged"], n=n)
    rows = []
    for r in (total, *d["layers"]):
        note = f"{pct(r['unchanged'])} of {r['n']:,}"
        style = "all" if r is total else "top"
        rows.append(dict(name=r["name"], points=[(style, r["unchanged"])], note=note))
    return dots(rows, w, f"share of parameters unchanged in {d['dtype']}", whole)


def say_sparsity(d: dict) -> str:
    rows = sorted(d["layers"], key=lambda r: r["unchanged"])
    parts = [f"{r['name']} {pct(1 - r['unchanged'])}" for r in (rows[0], rows[-1])]
    return (
        f"{pct(1 - d['unchanged'])} of the parameters changed in {d['dtype']}; most of them in "
        f"{parts[0]}, fewest in {parts[1]}."
    )


# each figure that page.html names: its section, its drawing and its sentence
FIGURES = dict(
    before_after=("distribution", before_after, say_before_after),
    training=("training", training, say_training),
    histogram=("distribution", histogram, say_histogram),
    ranking=("tokens", ranking, say_tokens),
    cloud=("tokens", cloud, say_cloud),
    two_temperature=("two_temperature", temperatures, say_temperatures),
    overlap=("during", overlaps, say_overlaps),
    change=("during", changes, say_changes),
    percentiles=("during", percentiles, say_percentiles),
    arms_step=("comparison", by_step, say_by_step),
    arms_cpu=("comparison", by_cpu, say_by_cpu),
    arms_test=("comparison", final_test, say_final_test),
    anatomy=("anatomy", anatomy, say_anatomy),
    decomposition=("decomposition", decomposition, say_decomposition),
    sparsity=("sparsity", sparsity, say_sparsity),
)

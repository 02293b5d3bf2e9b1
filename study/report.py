"""The page: what the study and `--arms` found (RUN/data/*.json), as one file a person can read.

    python -m study.report RUN    # `fork_gpt.py` and `python -m study` end by doing the same

Writes RUN/report.html, which needs no other file and no network, RUN/figures/*.svg, and with them
trace.svg, a problem's two answers coloured by entropy.  page.html holds the story, the style, the
script and, in slots, each figure's title and the paper's number and each claim's rule; figures.py
draws; here are the verdicts, the tables and the traces.  Nothing is written by hand that a number
decides: a section that is missing says which command makes it, its claims are "not testable".
"""

import json
import math
import re
import sys
from collections.abc import Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from infra.files import UserError, command, write_atomic
from study import figures as fig
from study.figures import DARK, FIGURES, LEVELS, LIGHT, SIDES, esc, label, level, num, pct, rect

PAGE = Path(__file__).with_name("page.html")
WIDE, NARROW, LEAD = 720, 350, 480  # px: each figure's two widths, and that of the first one
RHO = 0.2  # the share of tokens that the page marks at first
DECIDES = 0.5  # change of P(right) that has the darkest shade
RAMPS = dict(e="entropy", u="value", d="value")  # what each ramp of figures.py shades

# ---------------------------------------------------------------------- the verdicts
# what was found here, and the word for it by the rule that page.html states beside the claim

HOLDS, FAILS = "holds", "does not hold"
UNCLEAR, UNTESTED = "not distinguishable", "not testable in this run"
MARK = {HOLDS: "✓", FAILS: "✗", UNCLEAR: "≈", UNTESTED: "–"}
Verdict = tuple[str, str]


def yes(here: str, true: bool, but: str | bool = "") -> Verdict:
    """`but`: why nothing can be said."""
    return (str(but), UNTESTED) if but else (here, HOLDS if true else FAILS)


def higher(a: Sequence[float], b: Sequence[float]) -> str:
    """Interval a against b; where they touch, they are not apart."""
    return HOLDS if a[0] > b[1] else FAILS if a[1] < b[0] else UNCLEAR


def apart(a: dict | None, b: dict | None) -> Verdict:
    """Within a run: is a, dict(accuracy, low, high), above b?"""
    if not a or not b:
        return "one of the two was not run", UNTESTED
    if a["high"] == b["high"] == 0:
        return "nothing was right", UNTESTED
    here = f"{fig.at(a)} against {fig.at(b)}"
    return here, higher((a["low"], a["high"]), (b["low"], b["high"]))


def both_thresholds(d: dict, a: tuple, b: tuple) -> Verdict:
    """Two temperatures: the same verdict at both thresholds, or none."""
    found = [apart(fig.at_temperature(x, *a), fig.at_temperature(x, *b)) for x in (d, d["other"])]
    words = {word for _, word in found}
    return "; ".join(dict(found)), words.pop() if len(words) == 1 else UNCLEAR


def against(d: dict, a: str, b: str, equal: str = FAILS) -> Verdict:
    """Arm a minus arm b by the rule of study/stats.py: is it above 0?"""
    if found := fig.minus(d, fig.arm(d, a), fig.arm(d, b)):
        words = dict(above=HOLDS, below=FAILS, equal=equal, undecided=UNCLEAR)
        return fig.in_points(found), words.get(found["verdict"], UNTESTED)
    return f"{a} and {b} were not both run, or nothing was right", UNTESTED


def over_rho(d: dict, rhos: Sequence[float], good: str, bad: str) -> Verdict:
    """The top arms of these rho, or of all below 0.2, each minus that of 0.2: are all `good`?"""
    plain = [a["rho"] for a in d["arms"] if a["keep"] == "top" and not a["flags"]]
    rhos = rhos or [r for r in plain if r < RHO]
    found = {r: fig.minus(d, fig.arm(d, "top", r), fig.arm(d, "top")) for r in rhos}
    if not found or None in found.values():
        return "these shares were not all run, or nothing was right", UNTESTED
    words = {x["verdict"] for x in found.values()}
    verdict = FAILS if words & {*bad.split()} else HOLDS if words == {good} else UNCLEAR
    here = "; ".join(f"rho {r:g}: {fig.in_points(x)}" for r, x in found.items())
    return here, UNTESTED if "too few runs" in words else verdict


def few_hold_entropy(d: dict) -> Verdict:
    low, top = d["base"]["below_0.01"], d["base"]["top20_share"]
    but = d["base"]["mean"] == 0 and "the base model has no entropy at all"
    here = f"{pct(low)} below 0.01 nats; the top fifth holds {pct(top)}"
    return yes(here, low >= 0.5 <= top, but)


def kinds_of_token(d: dict) -> Verdict:
    most, least = (r[:10] for r in fig.most_and_least(d["base"]))
    a, b = (fig.mean([r["entropy"] for r in rows]) for rows in (most, least))
    but = (len(most) < 2 or a == 0) and "too few tokens, or none with entropy"
    return yes(f"{num(a)} against {num(b)} nats, {len(most)} tokens each", a > 10 * b, but)


def kept_positions(d: dict, rho: float) -> Verdict:
    found = next(r["overlap"] for r in d["by_rho"] if r["rho"] == rho)
    here = f"{pct(found)} at step {d['steps'][-1]:,}"
    return yes(here, found >= 0.8, len(d["steps"]) < 2 and "one kept step only")


def change_at_forks(d: dict, gain: bool) -> Verdict:
    share, change = fig.top_fifth(d["bins"])
    here = f"{fig.signed(change)} nats" if gain else f"{pct(share)} of the change is there"
    but = not any(r["change"] for r in d["bins"]) and "no bin changed"
    return yes(here, change > 0 if gain else share > 0.5, but)


def longer_answers(d: dict) -> Verdict:
    pair = [a["test"] for k in ("top", "all") if (a := fig.arm(d, k)) and a["test"]["length"]]
    if len(pair) < 2 or min(len(t["per_seed"]) for t in pair) < 3:
        return "top and all were not both run three times", UNTESTED
    a, b = (t["length"] for t in pair)
    verdict = HOLDS if a > 1.05 * b else FAILS if a < 0.95 * b else UNCLEAR
    return f"{a:.0f} against {b:.0f} tokens", verdict


def top_is_the_gradient(d: dict) -> Verdict:
    top = [a["cosine"] for a in d["models"][0]["arms"] if a["name"][:3] == "top" and a["norm"]]
    cosine = max(top, default=0)
    return yes(f"cosine {cosine:.3f}", cosine >= 0.95, not top and "no gradient to take apart")


def forks_decide(d: dict) -> Verdict:
    here = f"{fig.held(d['base'])} of the base’s variance, {fig.held(d['final'])} of the trained’s"
    return here, higher(d["base"]["top20"][1:], (0.5, 0.5))


def few_change(d: dict) -> Verdict:
    """Weight decay changes most parameters by itself: only what is beyond it counts."""
    here = f"{pct(1 - d['beyond'])} beyond weight decay, {pct(1 - d['decayed'])} by it alone"
    return yes(here, 0.05 <= 1 - d["beyond"] <= 0.3)


def rlvr_helps(d: dict) -> Verdict:
    return apart(fig.tested(d["final"]), fig.tested(d["base"]))


def recall_predicts(d: dict) -> Verdict:
    r = d["correlation"]
    if None in (r["rank"], *r["left_out"].values()):
        return "too few worlds", UNTESTED
    least = min(r["left_out"].values())
    here = f"rank correlation {r['rank']:.2f}, at least {least:.2f} with a world left out"
    return yes(here, r["rank"] >= 0.6 and least >= 0.5)


def in_worlds(d: dict, low: float, high: float, good: str) -> Verdict:
    """Top minus all in the worlds whose filler has `low` to `high` times the entropy of a decision,
    and that three runs were made of: are all `good`?"""
    worlds = [c for c in fig.wording_worlds(d) if low <= fig.ratio(c) <= high]
    found = {fig.world_name(c): x for c in worlds if (x := fig.gap(c))["n"] > 2}
    here = "; ".join(f"{name}: {fig.in_points(x)}" for name, x in found.items())
    words = {x["verdict"] for x in found.values()}
    verdict = HOLDS if words == {good} else UNCLEAR if words <= {good, "undecided"} else FAILS
    return (here, verdict) if found else ("no such world has three runs", UNTESTED)


# each claim of page.html: the section that decides it, the rule, and what the rule takes besides
CLAIMS: dict[str, tuple] = dict(
    rlvr_helps=("distribution", rlvr_helps),
    few_hold_entropy=("distribution", few_hold_entropy),
    kinds_of_token=("tokens", kinds_of_token),
    warm_forks=("two_temperature", both_thresholds, ("fork", "warm"), ("fork", 1)),
    hot_rest=("two_temperature", both_thresholds, ("rest", 1), ("rest", 2)),
    cold_forks=("two_temperature", both_thresholds, ("rest", "coldest"), ("fork", "coldest")),
    positions_stay=("during", kept_positions, 0.2),
    tenth_stays=("during", kept_positions, 0.1),
    change_at_forks=("during", change_at_forks, False),
    forks_gain=("during", change_at_forks, True),
    top_loses_nothing=("comparison", against, "top", "all", HOLDS),
    top_beats_all=("comparison", against, "top", "all"),
    bottom_fails=("comparison", against, "all", "bottom"),
    top_beats_random=("comparison", against, "top", "random"),
    rho_matters_little=("comparison", over_rho, (0.1, 0.5), "equal", "above below"),
    fewer_is_too_few=("comparison", over_rho, (), "below", "equal above"),
    longer_answers=("comparison", longer_answers),
    top_is_the_gradient=("anatomy", top_is_the_gradient),
    forks_decide=("decomposition", forks_decide),
    few_change=("sparsity", few_change),
    recall_predicts=("wording", recall_predicts),
    wording_hurts=("wording", in_worlds, 0.7, math.inf, "below"),
    plain_is_equal=("wording", in_worlds, 0, 0, "equal"),
)


def judge(name: str, found: dict) -> Verdict:
    """(here, verdict) of a claim; not testable where its section is missing."""
    key, rule, *more = CLAIMS[name]
    if key not in found:
        return f"data/{key}.json is missing", UNTESTED
    return rule(found[key], *more)


# ---------------------------------------------------------------------- tables


def table_row(head: Sequence[str], row: Sequence[str]) -> str:
    """Cells are HTML; on a phone the row becomes a block whose cells `head` labels."""
    cells = zip(head[1:], row[1:], strict=True)
    rest = "".join(f'<td data-label="{esc(name)}"><span>{x}</span></td>' for name, x in cells)
    return f'<tr><th scope="row">{row[0]}</th>{rest}</tr>'


def html_table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{esc(x)}</th>' for x in head)
    body = "".join(table_row(head, row) for row in rows)
    head = f"<caption>{esc(caption)}</caption><thead><tr>{top}</tr></thead>"
    return f"<table>{head}<tbody>{body}</tbody></table>"


def claim_row(words: Sequence[str], here: str, verdict: str) -> str:
    """A row of the verdict table; words: the claim, the paper, the rule."""
    first = f"{esc(words[0])}<small>{esc(words[2])}</small>"
    word = f'<b class="{verdict.split()[0]}">{MARK[verdict]} {verdict}</b>'
    head = ("claim", "the paper", "here", "verdict")
    return table_row(head, (first, esc(words[1]), esc(here), word))


def folded(title: str, caption: str, head: Sequence[str], rows: Sequence) -> str:
    return f"<details><summary>{title}</summary>{html_table(caption, head, rows)}</details>"


def token_table(d: dict) -> str:
    """The tokens of `tokens.json` as a table: base and trained mean entropy, draws."""
    final, out = fig.after(d), ""
    head = ("token", "base, nats", "after RLVR", "drawn by base")
    for which in ("highest", "lowest"):
        cells = []
        for name, r in zip(fig.names(rows := d["base"][which]), rows, strict=True):
            later = num(final[r["token"]]) if r["token"] in final else "–"
            cells.append([f"<code>{esc(name)}</code>", num(r["entropy"]), later, f"{r['count']:,}"])
        title = f"The {len(rows)} tokens of {which} mean entropy"
        out += folded(title, "In the order of the base model", head, cells)
    return out


def word_table(d: dict) -> str:
    """The words of `decomposition.json` and what they hold of the outcome's variance."""
    head, out = ("word", "share of the variance", "drawn", "mean entropy, nats"), ""
    for which, name in SIDES.items():
        rows = []
        for r in d[which]["words"]:
            share = pct(r["share"]) + fig.span(r["low"], r["high"])
            rows.append([f"<code>{esc(r['name'])}</code>", share, f"{r['n']:,}", num(r["entropy"])])
        out += folded(f"{name}: what each word decides", "Words drawn often", head, rows)
    return out


def arms_table(d: dict) -> str:
    """The comparison's record as a table of the page."""
    head = ("arm", "test accuracy", "runs", "tokens", "cut off", "arithmetic", "CPU-seconds")
    rows = []
    for a in d["arms"]:
        t, seeds = a["test"], " ".join(pct(v) for v in a["test"]["per_seed"])
        row = [esc(fig.title_of(a)), fig.at(t), seeds, f"{t['length']:.0f}", pct(t["truncated"])]
        row += ["" if t["arithmetic"] is None else pct(t["arithmetic"]), f"{t['cpu_seconds']:,.0f}"]
        rows.append(row)
    return html_table("Final models on the test split", head, rows)


def world_table(d: dict) -> str:
    """The cells of the grid: what the base is like, accuracy of all, the other arms minus it."""
    head = ["world", "recall", "holds", "noise dropped", "all", "top minus all", "others minus all"]
    rows = []
    for c in (c for c in d["cells"] if "all" in c["arms"]):
        base = c["base"][0]
        minus = {a: fig.in_points(fig.gap(c, a)) for a in c["arms"] if a != "all"}
        world = f"{fig.world_name(c)}; {c['prompts']}×{c['group']} answers, {c['optimizer']}"
        every, top = pct(fig.mean(c["arms"]["all"]["test"])), minus.pop("top", "–")
        others = "; ".join(f"{a} {x}" for a, x in minus.items())
        about = pct(base["recall"]), fig.held(dict(top20=base["held"])), pct(base["nu"])
        rows.append([world, *about, every, top, others])
    rows = [[*map(esc, row)] for row in rows]
    return folded("Every world, batch and mask", "Accuracy on test", head, rows)


def about(d: dict) -> str:
    """The run in a list."""
    d = d | {"gradient on": f"{d.get('keep')}, rho {d.get('rho')}", "precision": d.get("dtype")}
    for key, name in dict(n_params="parameters", cpu_seconds="CPU-seconds").items():
        d[name] = f"{d[key]:,.0f}" if d.get(key) is not None else None
    keys = ["command", "world", "model", "parameters", "precision", "steps", "gradient on", "seed"]
    rows = [(k, d[k]) for k in (*keys, "hardware", "torch", "CPU-seconds") if d.get(k) is not None]
    return f"<dl>{''.join(f'<dt>{k}</dt><dd>{esc(v)}</dd>' for k, v in rows)}</dl>"


# ---------------------------------------------------------------------- traces


def sides(x: dict) -> list[tuple[str, dict]]:
    """("base" or "final", the answer) of those to this problem that are there."""
    return [(s, x[s]) for s in SIDES if x.get(s)]


def darkest(d: list[dict]) -> float:
    """The entropy with the darkest shade: the 99th percentile of all traces; 0 without a token."""
    h = sorted(t["h"] for x in d for _, r in sides(x) for t in r["tokens"])
    return h[int(0.99 * (len(h) - 1))] if h else 0.0


def word_of(t: dict) -> str:
    """A token's text without the space before it."""
    return t["t"].lstrip(" ") or "␣" * len(t["t"])


def shaded(tokens: Sequence[dict], key: str, top: float, v: Sequence[float] = ()) -> str:
    """Tokens as the script expects them, with classes for their entropy and for the change of
    P(right); the Tab key reaches the first, the arrow keys the rest."""
    out = []
    for i, t in enumerate(tokens):
        word, style = word_of(t), f"e{level(t['h'], top)}" + " kept" * (t["q"] < RHO)
        if len(v) > i + 1:
            style += f" {'u' if v[i + 1] > v[i] else 'd'}{level(abs(v[i + 1] - v[i]), DECIDES)}"
        out.append(" " if i and t["t"].startswith(" ") and "␣" not in word else "")
        place = f'tabindex="{-1 if i else 0}" class="{style}"'
        out.append(f'<i role="button" {place}>{esc(word)}</i>' + "\n" * word.endswith("\n"))
    name = f'data-trace="{key}" role="group" aria-label="tokens of an answer"'
    return f'<p class="trace" {name}>{"".join(out)}</p>'


def graded(r: dict) -> str:
    return "✓ right" if r["correct"] else "✗ wrong"


def answers(d: list[dict], values: list[dict], i: int, top: float, most: int = 10**9) -> str:
    """A problem and its answers side by side, of each at most the first `most` tokens."""
    out = f'<p class="problem"><code>{esc(d[i]["problem"])}</code></p><div class="pair">'
    for side, r in sides(d[i]):
        v = values[i].get(side, {}).get("v", ()) if i < len(values) else ()
        n, shown = r.get("length", len(r["tokens"])), min(most, len(r["tokens"]))
        more = f", the first {shown} shown" if n > shown else ""
        word = f'<b class="{graded(r)[2:]}">{graded(r)}</b>'
        ended = "ended" if r["finished"] else "cut off"
        head = f'<p class="who">{SIDES[side]} {word} <span>{n} tokens, {ended}{more}</span></p>'
        text = shaded(r["tokens"][:most], f"{i}{side}", top, v)
        out += f'<div class="answer">{head}{text}</div>'
    return out + "</div>"


def trace_html(d: list[dict], values: list[dict]) -> str:
    """All problems, the base model's answer beside the trained one's."""
    base, final = (sum(bool(x.get(s) and x[s]["correct"]) for x in d) for s in SIDES)
    said = f"Drawn at random: of these {len(d)} problems the base model has {base} right, "
    top = darkest(d)
    out = "".join(answers(d, values, i, top) for i in range(len(d)))
    return f"<p>{said}the trained one {final}.</p>{out}"


def trace_data(d: list[dict], values: list[dict]) -> str:
    """What the script shows of each token: text, entropy, probability, alternatives with their
    P(right), rank, P(right) before and after."""
    data = {}
    for i, side, r in ((i, *found) for i, x in enumerate(d) for found in sides(x)):
        found = values[i].get(side) if i < len(values) else None
        data[f"{i}{side}"] = rows = []
        for t, x in enumerate(r["tokens"]):
            after = found["alt"][t] if found else [None] * len(x["alt"])
            alt = [[fig.shown(w), p, v] for (w, p), v in zip(x["alt"], after, strict=True)]
            rows.append([fig.shown(x["t"]), x["h"], x["p"], alt, x["q"]])
            rows[-1] += found["v"][t : t + 2] if found else []
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def picture(d: list[dict], most: int = 120) -> str:
    """The first problem's two answers as an SVG of its own, 720 px wide, on a card that is light
    or, where the reader's system is, dark: shaded by entropy, the kept tokens underlined."""
    w, pad, size, y, top = WIDE, 24, 15, 40, darkest(d)
    out = [label(pad, y, d[0]["problem"], "problem")]
    for side, r in sides(d[0]):
        out.append(label(pad, y := y + 40, SIDES[side], "side"))
        out.append(label(w - pad, y, graded(r), f"side {graded(r)[2:]}", "end"))
        x, y = pad, y + 14
        for t in r["tokens"][:most]:
            word = fig.shown(word_of(t))
            wide = 0.602 * size * fig.cells(word) + 8
            if x > pad and x + wide > w - pad:
                x, y = pad, y + 34
            out.append(rect(x, y, wide, 25, f"e{level(t['h'], top)}", 'rx="4"'))
            out += [rect(x, y + 25, wide, 2.5, "line")] if t["q"] < RHO else []
            place = f'x="{x + 4:.1f}" y="{y + 17.5}" textLength="{wide - 8:.1f}"'
            place += ' lengthAdjust="spacingAndGlyphs"'
            out.append(f'<text class="word" {place}>{esc(word)}</text>')
            x += wide + 3
        out += [label(x + 4, y + 17.5, "…", "word")] if len(r["tokens"]) > most else []
        y += 30
    y += 34
    out.append(rect(pad + 76, y - 10, 200, 12, "card"))
    out += [rect(pad + 76 + 20 * i, y - 10, 20, 12, f"e{i}") for i in range(LEVELS)]
    out += [label(pad, y, "entropy: 0"), label(pad + 284, y, f"{top:.1f} nats")]
    out.append(label(w - pad, y, "underlined: the 20% that receive gradient", "", "end"))

    own = dict(card="paper", line="ink", word="ink", side="ink", problem="ink", right="random")
    own |= dict(wrong="top") | {f"e{i}": f"e{i}" for i in range(LEVELS)}
    fill = "text{fill:var(--muted)}.card{stroke:var(--rule)}"
    fill += "".join(f".{k}{{fill:var(--{name})}}" for k, name in own.items())
    style = f".word,.problem{{font:{size}px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}}"
    style = "text{font:13px system-ui,sans-serif}" + style + ".side,.problem{font-weight:600}"
    dark = f"@media(prefers-color-scheme:dark){{{coloured(fill, DARK)}}}"
    title = "One problem, answered by the base and by the trained model"
    body = rect(0.5, 0.5, w - 1, y + 21, "card", 'rx="10"') + "".join(out)
    said = "Each word stands on a background as dark as its entropy."
    return svg_file((0, 0, w, y + 22), title, said, style + coloured(fill, LIGHT) + dark, body)


def coloured(style: str, palette: dict[str, str]) -> str:
    """The style with a palette's colours in place of variables, which not every viewer knows."""
    return re.sub(r"var\(--(\w+)\)", lambda m: fig.variables(palette)[m[1]], style)


def svg_file(box: tuple, title: str, said: str, style: str, body: str) -> str:
    """An SVG that stands alone; box: left, top, width, height in px."""
    size = f'viewBox="{" ".join(map(str, box))}" width="{box[2]}" height="{box[3]}" role="img"'
    head = f"<title>{esc(title)}</title><desc>{esc(said)}</desc><style>{style}</style>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{head}{body}</svg>\n'


# ---------------------------------------------------------------------- the page

STUDY, ALL = "python -m study RUN", "python -m study RUN --all"
ARMS = "python fork_gpt.py --arms top,all,random,bottom --seeds 3"
GRID = "python -m study.grid, hours on a core, and then python -m study.grid --table RUN"
# each section: the command that makes it, and the lists without which there is nothing to draw
SECTIONS = dict(
    run=(STUDY, ""),
    training=(STUDY, "step"),
    distribution=(STUDY, ""),
    tokens=(STUDY, "base.highest base.lowest"),
    traces=(STUDY, ""),
    two_temperature=(ALL, "fork rest"),
    during=(STUDY, "steps bins"),
    comparison=(ARMS, "arms"),
    learned=(ALL, "bars"),
    anatomy=(ALL, "models"),
    decomposition=(ALL, "base.deciles final.deciles"),
    values=(ALL, ""),
    sparsity=(STUDY, "layers"),
    wording=(GRID, "cells"),
)
DRAWN = (token_table, word_table, arms_table, world_table)
TABLES = {f.__name__: f for f in DRAWN}
# the figure that answers the title: the first that this run has
LEADS = dict(
    arms_test="Right answers, by the tokens that were trained on",
    cumulative="How much of the outcome a part of the tokens decides",
    before_after="Right answers, before and after",
)


def twice(key: str, title: str, d: dict, wide: int) -> tuple[str, str]:
    """A figure for a desk, `wide` px, and for a phone; and its sentence."""
    out = ""
    for w, style in ((NARROW, "narrow"), (wide, "wide")):
        body, h, said = FIGURES[key][1](d, w)
        name = f'class="{style}" role="img" aria-label="{esc(title)}. {esc(said)}"'
        out = f'<svg viewBox="0 0 {w} {h}" width="{w}" height="{h}" {name}>{body}</svg>' + out
    return out, esc(said)


def figure(key: str, title: str, paper: str, d: dict) -> str:
    """One figure with its title, its computed sentence and the paper's counterpart."""
    drawn, said = twice(key, title, d, WIDE)
    words = f"<p><b>This run</b> {said}</p><p class='paper'><b>The paper</b> {esc(paper)}</p>"
    return f"<figure><h3>{esc(title)}</h3>{drawn}<figcaption>{words}</figcaption></figure>"


def standalone(key: str, title: str, d: dict, style: str) -> str:
    """A figure as a file of its own: on white, with its style and its title in it."""
    body, h, said = FIGURES[key][1](d, WIDE)
    style = coloured(style, LIGHT | dict(paper="#ffffff"))
    ground = rect(-24, -48, WIDE + 48, h + 68, "", 'fill="#ffffff"')
    body = ground + label(0, -20, title, "title") + body
    return svg_file((-24, -48, WIDE + 48, h + 68), title, said, style, body)


def lead(found: dict) -> str:
    """The chart that answers the title, and its sentence."""
    for key, title in LEADS.items():
        if d := found.get(FIGURES[key][0]):
            d = d | dict(arms=fig.main_arms(d)) if "arms" in d else d
            drawn, said = twice(key, title, d, LEAD)
            return f'<figure><p class="title">{title}</p>{drawn}</figure><p>{said}</p>'
    return ""


def page(found: dict, missing: dict[str, str]) -> tuple[str, dict[str, str]]:
    """page.html with its slots filled, and the figures as files, name -> SVG."""
    template, judged = PAGE.read_text(), {name: judge(name, found) for name in CLAIMS}
    style = re.search(r'<style id="figures">(.*?)</style>', template, re.DOTALL)[1]
    pairs = [(kind, i) for kind in ("rect.e", ".world.u", ".world.d") for i in range(LEVELS)]
    rects = "".join(f"{kind}{i}{{fill:var(--{kind[-1]}{i})}}" for kind, i in pairs)
    style += rects
    light, dark = (
        f":root{{{''.join(f'--{k}:{v};' for k, v in fig.variables(colours).items())}}}"
        for colours in (LIGHT, DARK)
    )
    shades = rects + "".join(
        f".by-{by} .{k}{i},.legend .{k}{i}{{background:var(--{k}{i})}}"
        for k, by in RAMPS.items()
        for i in range(LEVELS)
    )
    told, values = found.get("traces", []), found.get("values", [])
    heads = re.findall(r'<section id="(\w+)"><h2>(.*?)</h2>', template)
    n = [sum(v == word for _, v in judged.values()) for word in MARK]
    once = dict(
        name=esc(found.get("run", {}).get("name", "a run")),
        palette=f"{light}@media screen and (prefers-color-scheme:dark){{{dark}}}{shades}",
        darkest=num(darkest(told)),
        sample=answers(told, values, 0, darkest(told), 72) if told else "",
        traces=trace_html(told, values) if told else "",
        lead=lead(found),
        tally="{} claims: {} hold, {} do not, {} undecided, {} not testable.".format(sum(n), *n),
        contents="".join(f'<li><a href="#{key}">{title}</a></li>' for key, title in heads),
        about=about(found["run"]) if "run" in found else "",
        trace_data=trace_data(told, values),
    )
    files = {"trace": picture(told)} if told else {}

    def slot(m: re.Match) -> str:
        kind, key, *words = m[1], m[2], *(x.strip() for x in m[3].split("|")[1:])
        if kind in once:
            return once[kind]
        if kind == "missing":
            why = missing.get(key)
            return f'<p class="missing"><b>Missing.</b> {esc(why)}</p>' if why else ""
        if kind == "ramp":
            return "".join(f'<i class="{key}{i}"></i>' for i in range(LEVELS))
        if kind == "claim":
            return claim_row(words, *judged[key])
        d = found.get(FIGURES[key][0] if kind == "figure" else key)
        if not d:
            return ""
        if kind in TABLES:
            return TABLES[kind](d)
        files[key] = standalone(key, words[0], d, style)
        return figure(key, *words, d)

    return re.sub(r"\{\{(\w+) ?(\w*)([^{}]*)\}\}", slot, template), files


def finite(text: str) -> float:
    x = float(text)
    if not math.isfinite(x):
        raise ValueError(f"{text} cannot be drawn")
    return x


def nothing_in(d: Any, lists: str) -> str:
    """The first of the lists, "base.highest base.lowest", that is empty, or ""."""
    if isinstance(d, list):
        return "" if d else "the list"
    return next((path for path in lists.split() if not reduce(getitem, path.split("."), d)), "")


def read_data(folder: Path) -> tuple[dict, dict[str, str]]:
    """RUN/data/*.json: the sections that can be drawn, and why the others cannot.  UserError where
    there are none, or one is damaged."""
    data = folder / "data"  # glob would pass over a folder it may not read
    if not (data.exists() and any(p.suffix == ".json" for p in data.iterdir())):
        raise UserError(f"{folder / 'data'} has no findings: python -m study {folder} makes them")
    found, missing = {}, {}
    for key, (how, lists) in SECTIONS.items():
        path, make = folder / "data" / f"{key}.json", how.replace("RUN", str(folder))
        try:
            d = json.loads(path.read_bytes(), parse_float=finite, parse_constant=finite)
            if isinstance(d, dict) and "missing" in d:
                missing[key] = d["missing"]
            elif empty := nothing_in(d, lists):
                missing[key] = f"{empty} of data/{key}.json is empty, so there is nothing to draw"
            else:
                found[key] = d
        except FileNotFoundError:
            missing[key] = f"data/{key}.json is not there; this makes it: {make}"
        except OSError as e:
            raise UserError(f"cannot read {path}: {e.strerror}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise UserError(f"{path}: {e!r}; this makes it again: {make}") from None
    return found, missing


def write(folder: Path) -> Path:
    """Draw folder/data/*.json as folder/report.html, whose path is returned, and as
    folder/figures/*.svg.  UserError where the data is damaged; then nothing is written."""
    found, missing = read_data(folder)
    try:
        text, files = page(found, missing)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
        what = f"is not what this version of the study writes ({e!r})"
        raise UserError(f"{folder / 'data'} {what}; make it again: {STUDY} or {ARMS}") from e
    for name, drawing in files.items():
        write_atomic(folder / "figures" / f"{name}.svg", drawing.encode())
    write_atomic(folder / "report.html", text.encode())
    return folder / "report.html"


def main(argv: list[str]) -> int:
    """The command line."""
    if len(argv) != 1 or argv[0].startswith("-"):
        raise UserError("usage: python -m study.report RUN")
    print(write(Path(argv[0])))
    return 0


if __name__ == "__main__":
    sys.exit(command("-m study.report", main, sys.argv[1:]))

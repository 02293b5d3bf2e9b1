"""The page: what the study and `--arms` found (RUN/data/*.json), as one file a person can read.

    python -m study.report RUN    # `fork_gpt.py` and `python -m study` end by doing the same

Writes RUN/report.html, which needs no other file and no network, and RUN/figures/*.svg.  page.html
holds the story, the style, the script and, in slots, each figure's title and the paper's number and
each claim's rule; figures.py draws; here are the verdicts, the tables and the coloured traces.
Nothing is written by hand that a number decides: a section that is missing says which command makes
it, and its claims are "not testable".
"""

import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from infra.files import UserError, write_atomic
from study.figures import (
    DARK,
    FIGURES,
    LEVELS,
    LIGHT,
    SIDES,
    after,
    arm,
    at,
    best,
    coldest,
    compare,
    esc,
    label,
    level,
    mean,
    most_and_least,
    names,
    num,
    pct,
    pick,
    shown,
    signed,
    test_of,
    tested,
    title_of,
    top_fifth,
    variables,
    warmer,
)  # fmt: skip
from study.stats import difference

PAGE = Path(__file__).with_name("page.html")
WIDE, NARROW = 720, 350  # px: the two widths at which each figure is drawn

# ---------------------------------------------------------------------- the verdicts
# what was found here, and the word for it by the rule that page.html states beside the claim

HOLDS, FAILS = "holds", "does not hold"
UNCLEAR, UNTESTED = "not distinguishable", "not testable in this run"
TOO_SMALL = "not testable at this size"
MARK = {HOLDS: "✓", FAILS: "✗", UNCLEAR: "≈", UNTESTED: "–", TOO_SMALL: "–"}
Verdict = tuple[str, str]


def higher(a: Sequence[float], b: Sequence[float]) -> str:
    return {"above": HOLDS, "below": FAILS, "overlap": UNCLEAR}[compare(a, b)]


def yes(true: bool) -> str:
    return HOLDS if true else FAILS


def apart(a: dict | None, b: dict | None) -> Verdict:
    """Is a, dict(accuracy, low, high), above b?"""
    if not a or not b:
        return "one of the two was not run", UNTESTED
    if a["high"] == b["high"] == 0:
        return "nothing was right", UNTESTED
    return f"{at(a)} against {at(b)}", higher((a["low"], a["high"]), (b["low"], b["high"]))


def few_hold_entropy(d: dict) -> Verdict:
    b = d["base"]
    if b["mean"] == 0:
        return "the base model has no entropy at all", UNTESTED
    here = f"{pct(b['below_0.01'])} below 0.01 nats; the top fifth holds {pct(b['top20_share'])}"
    return here, yes(b["below_0.01"] >= 0.5 and b["top20_share"] >= 0.5)


def kinds_of_token(d: dict) -> Verdict:
    most, least = most_and_least(d["base"])
    n = min(10, len(most))
    if n < 2 or most[0]["entropy"] == 0:
        return "too few tokens, or none with entropy", UNTESTED
    a, b = (mean([r["entropy"] for r in rows[:n]]) for rows in (most, least))
    return f"{num(a)} against {num(b)} nats, {n} tokens each", yes(a > 10 * b)


def positions_stay(d: dict) -> Verdict:
    if len(d["steps"]) < 2:
        return "one kept step only", UNTESTED
    last = d["overlap_base"][-1]
    return f"{pct(last)} at step {d['steps'][-1]:,}", yes(last >= 0.8)


def change_at_forks(d: dict) -> Verdict:
    if not any(r["change"] for r in d["bins"]):
        return "no bin changed", UNTESTED
    share, _ = top_fifth(d["bins"])
    return f"{pct(share)} of the change is there", yes(share > 0.5)


def forks_gain(d: dict) -> Verdict:
    if not any(r["change"] for r in d["bins"]):
        return "no bin changed", UNTESTED
    _, change = top_fifth(d["bins"])
    return f"{signed(change)} nats", yes(change > 0)


def against(d: dict, a: str, b: str, words: dict[str, str]) -> Verdict:
    """Arm a minus arm b by the rule of study/stats.py, whose word `words` turns into a verdict."""
    x, y = test_of(d, a), test_of(d, b)
    if not x or not y or x["accuracy"] == y["accuracy"] == 0:
        return f"{a} and {b} were not both run, or nothing was right", UNTESTED
    found = difference(x["per_seed"], y["per_seed"], d["sd"] or math.nan, d["df"])
    n = min(len(x["per_seed"]), len(y["per_seed"]))
    ends = "" if found["low"] is None else f" [{signed(found['low'])}, {signed(found['high'])}]"
    return f"{signed(found['mean'])}{ends}, {n} runs", words.get(found["verdict"], UNTESTED)


BEATS = dict(above=HOLDS, below=FAILS, equal=FAILS, undecided=UNCLEAR)
LOSES_NOTHING = BEATS | dict(equal=HOLDS)


def rho_matters_little(d: dict) -> Verdict:
    tests = [a["test"] for rho in (0.1, 0.2, 0.5) if (a := arm(d, "top", rho))]
    if len(tests) < 3 or not any(t["high"] for t in tests):
        return "top with rho 0.1, 0.2 and 0.5 were not all run, or nothing was right", UNTESTED
    ends = [(t["low"], t["high"]) for t in tests]
    same = all(compare(e, ends[1]) == "overlap" for e in ends)
    return ", ".join(map(at, tests)), yes(same)


def longer_answers(d: dict) -> Verdict:
    top, full = test_of(d, "top"), test_of(d, "all")
    if not top or not full or not full["length"]:
        return "top and all were not both run", UNTESTED
    ratio = top["length"] / full["length"]
    verdict = HOLDS if ratio > 1.05 else FAILS if ratio < 0.95 else UNCLEAR
    return f"{top['length']:.0f} against {full['length']:.0f} tokens", verdict


def top_is_the_gradient(d: dict) -> Verdict:
    top = next(
        (a for a in d["models"][0]["arms"] if a["name"].startswith("top") and a["norm"]), None
    )
    if not top:
        return "no gradient to take apart", UNTESTED
    return f"cosine {top['cosine']:.3f}", yes(top["cosine"] >= 0.95)


def forks_decide(d: dict) -> Verdict:
    share, low, high = d["base"]["top20"]
    here = f"{pct(share)} [{100 * low:.0f}, {100 * high:.0f}] of the outcome's variance"
    return here, higher((low, high), (0.5, 0.5))


def few_change(d: dict) -> Verdict:
    """Weight decay changes most parameters by itself: only what is beyond it counts."""
    here = f"{pct(1 - d['beyond'])} beyond weight decay, {pct(1 - d['decayed'])} by it alone"
    return here, yes(0.05 <= 1 - d["beyond"] <= 0.3)


# each claim of page.html: the section that decides it, and how
CLAIMS: dict[str, tuple[str, Callable[[dict], Verdict]]] = dict(
    rlvr_helps=("distribution", lambda d: apart(tested(d, "final"), tested(d, "base"))),
    few_hold_entropy=("distribution", few_hold_entropy),
    kinds_of_token=("tokens", kinds_of_token),
    warm_forks=("two_temperature", lambda d: apart(best(warmer(d["fork"])), pick(d["fork"], 1))),
    hot_rest=("two_temperature", lambda d: apart(pick(d["rest"], 1), coldest(warmer(d["rest"])))),
    cold_forks=("two_temperature", lambda d: apart(coldest(d["rest"]), coldest(d["fork"]))),
    positions_stay=("during", positions_stay),
    change_at_forks=("during", change_at_forks),
    forks_gain=("during", forks_gain),
    top_loses_nothing=("comparison", lambda d: against(d, "top", "all", LOSES_NOTHING)),
    top_beats_all=("comparison", lambda d: against(d, "top", "all", BEATS)),
    bottom_fails=("comparison", lambda d: against(d, "all", "bottom", BEATS)),
    top_beats_random=("comparison", lambda d: against(d, "top", "random", BEATS)),
    rho_matters_little=("comparison", rho_matters_little),
    longer_answers=("comparison", longer_answers),
    grows_with_size=("run", lambda d: (f"{d.get('n_params', 0):,} parameters only", TOO_SMALL)),
    top_is_the_gradient=("anatomy", top_is_the_gradient),
    forks_decide=("decomposition", forks_decide),
    few_change=("sparsity", few_change),
)


def verdicts(found: dict) -> dict[str, Verdict]:
    """Claim -> (here, verdict); not testable where its section is missing."""
    return {
        name: judge(found[key]) if key in found else (f"data/{key}.json is missing", UNTESTED)
        for name, (key, judge) in CLAIMS.items()
    }


# ---------------------------------------------------------------------- tables and traces


def table_row(head: Sequence[str], row: Sequence[str]) -> str:
    """Cells are HTML; on a phone the row becomes a block whose cells `head` labels."""
    cells = zip(head[1:], row[1:], strict=True)
    rest = "".join(f'<td data-label="{esc(name)}"><span>{x}</span></td>' for name, x in cells)
    return f'<tr><th scope="row">{row[0]}</th>{rest}</tr>'


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{esc(x)}</th>' for x in head)
    body = "".join(table_row(head, row) for row in rows)
    head = f"<caption>{esc(caption)}</caption><thead><tr>{top}</tr></thead>"
    return f"<table>{head}<tbody>{body}</tbody></table>"


def claim(words: Sequence[str], here: str, verdict: str) -> str:
    """A row of the verdict table; words: the claim, the paper, the rule."""
    first = f"{esc(words[0])}<small>{esc(words[2])}</small>"
    word = f'<b class="{verdict.split()[0]}">{MARK[verdict]} {verdict}</b>'
    head = ("claim", "the paper", "here", "verdict")
    return table_row(head, (first, esc(words[1]), esc(here), word))


def token_table(d: dict) -> str:
    """The tokens of `tokens.json` as a table: base and trained mean entropy, draws."""
    final, out = after(d), []
    head = ("token", "base, nats", "after RLVR", "drawn by base")
    for which in ("highest", "lowest"):
        rows, cells = d["base"][which], []
        for name, r in zip(names(rows), rows, strict=True):
            later = num(final[r["token"]]) if r["token"] in final else "–"
            cells.append([f"<code>{esc(name)}</code>", num(r["entropy"]), later, f"{r['count']:,}"])
        title = f"The {len(rows)} tokens of {which} mean entropy"
        body = table("In the order of the base model", head, cells)
        out.append(f"<details><summary>{title}</summary>{body}</details>")
    return "".join(out)


def arms_table(d: dict) -> str:
    head = ("arm", "test accuracy", "seeds", "tokens", "cut off", "arithmetic", "CPU-seconds")
    rows = []
    for a in d["arms"]:
        t, seeds = a["test"], " ".join(pct(v) for v in a["test"]["per_seed"])
        true = "" if t["arithmetic"] is None else pct(t["arithmetic"])
        rest = f"{t['length']:.0f}", pct(t["truncated"]), true
        rows.append([esc(title_of(a)), at(t), seeds, *rest, f"{t['cpu_seconds']:,.0f}"])
    return table("Final models on the test split", head, rows)


def shades(d: list[dict]) -> tuple[float, float]:
    """Over all traces, nats: the darkest shade (the 99th percentile), and the least entropy of the
    highest fifth.  Zeros where there is no token."""
    h = sorted(t["h"] for x in d for side in SIDES if x.get(side) for t in x[side]["tokens"])
    return (h[int(0.99 * (len(h) - 1))], h[int(0.8 * len(h))]) if h else (0.0, 0.0)


def shaded(tokens: Sequence[dict], key: str, d: list[dict]) -> str:
    """Tokens as the script expects them; the Tab key reaches the first, the arrow keys the rest."""
    (top, tau), out = shades(d), []
    for i, t in enumerate(tokens):
        word = t["t"].lstrip(" ") or "␣" * len(t["t"])
        out.append(" " if i and t["t"].lstrip(" ") != t["t"] and "␣" not in word else "")
        fork = " fork" if t["h"] >= tau > 0 else ""
        style = f'tabindex="{-1 if i else 0}" class="e{level(t["h"], top)}{fork}"'
        out.append(f'<i role="button" {style}>{esc(word)}</i>' + "\n" * word.endswith("\n"))
    name = f'data-trace="{key}" role="group" aria-label="tokens shaded by entropy"'
    return f'<p class="trace" {name}>{"".join(out)}</p>'


def answer(r: dict, side: str, key: str, d: list[dict]) -> str:
    right = "right" if r["correct"] else "wrong"
    n, ended = r.get("length", len(r["tokens"])), "ended" if r["finished"] else "cut off"
    more = f", the first {len(r['tokens'])} shown" if n > len(r["tokens"]) else ""
    word = f'<b class="{right}">{"✓" if r["correct"] else "✗"} {right}</b>'
    head = f"<h4>{SIDES[side]} {word} <span>{n} tokens, {ended}{more}</span></h4>"
    return f'<div class="answer">{head}{shaded(r["tokens"], key, d)}</div>'


def traces(d: list[dict]) -> str:
    """All problems, the base model's answer beside the trained one's."""
    right = {s: sum(bool(x.get(s) and x[s]["correct"]) for x in d) for s in SIDES}
    boxes = "".join(f'<i class="e{i}"></i>' for i in range(LEVELS))
    out = [
        f"<p>Of these {len(d)} problems the base model has {right['base']} right, the trained one "
        f'{right["final"]}.</p><p class="legend">0 <span>{boxes}</span> {num(shades(d)[0])} nats '
        "and more</p>"
    ]
    for i, x in enumerate(d):
        both = "".join(answer(x[s], s, f"{i}{s}", d) for s in SIDES if x.get(s))
        problem = f'<h3 class="problem"><code>{esc(x["problem"])}</code></h3>'
        out.append(f'{problem}<div class="pair">{both}</div>')
    return "".join(out)


def trace_data(d: list[dict]) -> str:
    """What the script shows of each token: text, entropy, probability, alternatives."""
    data = {}
    for i, x in enumerate(d):
        for side in (s for s in SIDES if x.get(s)):
            data[f"{i}{side}"] = [
                [shown(t["t"]), t["h"], t["p"], [[shown(word), p] for word, p in t["alt"]]]
                for t in x[side]["tokens"]
            ]
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def sample(d: list[dict]) -> str:
    """The first right answer of the trained model, to stand below the headline."""
    for i, x in enumerate(d):
        if x.get("final") and x["final"]["correct"] and x["final"]["tokens"]:
            what = "An answer of the trained model, shaded by entropy. Point at a token, or tap it."
            text = shaded(x["final"]["tokens"][:60], f"{i}final", d)
            return f'{text}<p class="legend">{what}</p>'
    return ""


# ---------------------------------------------------------------------- the page

STUDY, ALL = "python -m study RUN", "python -m study RUN --all"
ARMS = "python fork_gpt.py --arms top,all,random,bottom --seeds 3"
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
    anatomy=(ALL, "models"),
    decomposition=(ALL, "base.deciles final.deciles"),
    sparsity=(STUDY, "layers"),
)
TABLES = dict(token_table=token_table, arms_table=arms_table, traces=traces)


def figure(key: str, title: str, paper: str, d: dict) -> str:
    """One figure with its title, its computed sentence and the paper's counterpart."""
    _, draw, say = FIGURES[key]
    sentence, out = say(d), []
    for w, style in ((WIDE, "wide"), (NARROW, "narrow")):
        body, h = draw(d, w)
        name = f'class="{style}" role="img" aria-label="{esc(title)}. {esc(sentence)}"'
        out.append(f'<svg viewBox="0 0 {w} {h}" width="{w}" height="{h}" {name}>{body}</svg>')
    words = (
        f"<p><b>This run</b> {esc(sentence)}</p><p class='paper'><b>The paper</b> {esc(paper)}</p>"
    )
    return f"<figure><h3>{esc(title)}</h3>{''.join(out)}<figcaption>{words}</figcaption></figure>"


def standalone(key: str, title: str, d: dict, style: str) -> str:
    """A figure as a file of its own: on white, with its style and its title in it."""
    _, draw, say = FIGURES[key]
    body, h = draw(d, WIDE)
    palette = variables(LIGHT | dict(paper="#ffffff"))
    style = re.sub(r"var\(--(\w+)\)", lambda m: palette[m[1]], style)
    w, h = WIDE + 48, h + 68
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-24 -48 {w} {h}" width="{w}" '
        f'height="{h}" role="img"><title>{esc(title)}</title><desc>{esc(say(d))}</desc>'
        f'<style>{style}</style><rect x="-24" y="-48" width="{w}" height="{h}" fill="#ffffff"/>'
        f"{label(0, -20, title, 'title')}{body}</svg>\n"
    )


def about(d: dict) -> str:
    """The run in a list."""
    d = d | {"gradient on": f"{d.get('keep')}, rho {d.get('rho')}", "precision": d.get("dtype")}
    for key, name in dict(n_params="parameters", cpu_seconds="CPU-seconds").items():
        d[name] = f"{d[key]:,.0f}" if d.get(key) is not None else None
    keys = ["command", "world", "model", "parameters", "precision", "steps", "gradient on", "seed"]
    rows = [(k, d[k]) for k in (*keys, "hardware", "torch", "CPU-seconds") if d.get(k) is not None]
    return f"<dl>{''.join(f'<dt>{k}</dt><dd>{esc(v)}</dd>' for k, v in rows)}</dl>"


def tally(judged: dict[str, Verdict]) -> str:
    n = [sum(v == word for _, v in judged.values()) for word in MARK]
    return (
        f"{len(judged)} claims: {n[0]} hold, {n[1]} do not, {n[2]} undecided, "
        f"{n[3] + n[4]} not testable in this run."
    )


def page(found: dict, missing: dict[str, str]) -> tuple[str, dict[str, str]]:
    """page.html with its slots filled, and the figures as files, name -> SVG."""
    template, judged = PAGE.read_text(), verdicts(found)
    style = re.search(r'<style id="figures">(.*?)</style>', template, re.DOTALL)[1]
    light, dark = (
        "".join(f"--{k}:{v};" for k, v in variables(colours).items()) for colours in (LIGHT, DARK)
    )
    once = dict(
        name=esc(found.get("run", {}).get("name", "a run")),
        palette=f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}",
        sample=sample(found.get("traces", [])),
        tally=tally(judged),
        about=about(found["run"]) if "run" in found else "",
        trace_data=trace_data(found.get("traces", [])),
    )
    files = {}

    def slot(m: re.Match) -> str:
        kind, key, *words = m[1], m[2], *(x.strip() for x in m[3].split("|")[1:])
        if kind in once:
            return once[kind]
        if kind == "missing":
            why = missing.get(key)
            return f'<p class="missing"><b>Missing.</b> {esc(why)}</p>' if why else ""
        if kind == "claim":
            return claim(words, *judged[key])
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
    for path in lists.split():
        value = d
        for part in path.split("."):
            value = value[part]
        if not value:
            return path
    return ""


def read(folder: Path) -> tuple[dict, dict[str, str]]:
    """RUN/data/*.json: the sections that can be drawn, and why the others cannot.  UserError where
    there are none, or one is damaged."""
    if not any((folder / "data").glob("*.json")):
        raise UserError(f"{folder / 'data'} has no findings: python -m study {folder} makes them")
    found, missing = {}, {}
    for key, (command, lists) in SECTIONS.items():
        path, make = folder / "data" / f"{key}.json", command.replace("RUN", str(folder))
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
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{path}: {e!r}; this makes it again: {make}") from None
    return found, missing


def write(folder: Path) -> Path:
    """Draw folder/data/*.json as folder/report.html, whose path is returned, and as
    folder/figures/*.svg.  UserError where the data is damaged; then nothing is written."""
    folder = Path(folder)
    found, missing = read(folder)
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
    """The command line: 0, or 2 after one line about a mistake."""
    if len(argv) != 1 or argv[0].startswith("-"):
        print("usage: python -m study.report RUN", file=sys.stderr)
        return 2
    try:
        print(write(Path(argv[0])))
    except UserError as e:
        print(f"report: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

r"""Decide whether a model's answer to a mathematics problem is right: the reward of RLVR.

    grade(response, gold)        True when the final answer of `response` equals `gold`
    python verify.py FILE.jsonl  writes FILE.graded.jsonl, the grade beside each record; - is a pipe

Training finds and repeats whatever a grader wrongly accepts; what it wrongly refuses only slows
training.  So this file finds ONE claim, reads claim and gold with one parser (algebra.py), compares
values, and refuses when in doubt.  It never runs text, never waits, never tries several candidates.

Extraction: after the last `</think>`, the last closed, non-empty `\boxed{}` or `\fbox{}` (the
innermost; `\boxed 5` too); else `<answer>`; else the last of `####`, "Answer:", "the answer is", to
its sentence's end; else one short line is itself the answer.  A last box left open or taken back
counts for nothing.  Boxes joined in one sentence are one answer only if gold is a list or a set.

Kind         accepted                                 refused, and why
numbers      1/2 = 2/4 = \frac12 = .50, 1\frac12,     1000001 for 1000000, 0 for 1e-10: exact;
             1,000 = 1{,}000 = 1\,000 = 10^3 = 1e3    1,00 for 100, 1,5 for 1.5: a comma separates
closed form  1/\sqrt3 = \sqrt3/3, \log_2 8 = 3,       5!, 5^2, 5x, \sqrt5 for 5; what differs by
             e^{i\pi} = -1, |-5| = 5                  1e-10, or was lost in cancelling
expressions  (x+2)/7 = x/7+2/7, (n+1) n! = (n+1)!,    \sqrt{x^2} for x, \log x for \ln x; eat for
             \cos 2x = 2\cos^2 x - 1                  tea: three letters alone are a word
equations    x=5 = 5 = 5=x, y=2x for 2x-y=0           b+1 for 9=b+1, x=5 for y=5, x>5 for 5
several      2,1 = \{1,2\}, \pm2 = 2,-2;              1 or 2 for 2, 42 43 44 for 43: hedges;
             (1,5]\cup[2,7) = (1,7), x \ne 1          \{\{1\}\} for \{1\}; x<0 and x>11 is empty
ordered      x \in (1,2] = 1<x\le2, equal matrices    (2,1) for (1,2), [1,2] for (1,2)
words        \text{Yes} = yes, (C) = C = (C) third    b for B: symbols have a case; (C) and (D)

Policy        rule                                    reason, example
rounding      a closed form for a decimal gold: to    100/7 for 14.29, not for 14.28: no fishing;
              its digits; a decimal for a closed one  14.2857 for 100/7, not 14.29; 7.413 for 7.41
              from 4 right places                     is another number
percent       p% = p; = p/100 if gold has the sign    28 and 0.28 for 28%; not 28% or 28 for 0.28
units         may be missing, may not differ; a       5 for 5 cm and 3 h for 3, not 5 m for 5 cm,
              letter glued to a number is a variable  12m for 12; 60^\circ for \pi/3
order         free in lists and sets                  kept in brackets, and in named parts x=1, y=2
number words  to ninety; hundred to trillion          five for 5, 3.5 million for 3500000
base          may be left out, not exchanged          31 for 31_4, not 31_4 for 31
times         12 and 24 hours                         7:15 P.M. for 19:15
chains        a named chain counts by its last side   x = 3+4 = 7 \approx 7.01 for 7

Limits: answers over 2,048 characters or 1,000 marks are strings, boxes over 8,192 open; phrases
are sought in the last 4,096; numbers have 4,000 digits, exponents 10^4, brackets a depth of 60.
"""

import argparse
import json
import operator
import os
import re
import sys
from fractions import Fraction
from functools import reduce

import algebra
from algebra import FAILURES, MAX_ANSWER, Group, Scalar, Value, exact, lift, read, same, size

MODES = ("auto", "boxed", "answer", "dapo")
MAX_BOX, TAIL, MAX_BARE = 8192, 4096, 200

# --------------------------------------------------------------------------------------- extraction
BOX = re.compile(r"(?:boxed|(?<=f)box)\s{0,9}(?:\{|([-+]?\d[\d.,/]*|[A-Z](?![A-Za-z])))")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
CLAIM = re.compile(r"""(?xi)\#{4}|final\s{1,3}answer[*_]{0,3}\s{0,3}\n|(?:\b(?:answer|réponse)|答案)
    [*_]{0,3}(?:\s{1,3}(?:is|est|should\ be|must\ be)\b|\s{0,3}(?:[:：=]|(?=\$|\\[(\[])))""")
LEAD = re.compile(r"(?:[\s:：*_`$]|\\[\[(])*")
STOP = re.compile(r"""(?x)(?<!\.)\.(?=\s|\*|$)|[\n。]|<\||</|(?<!\\)[!?](?=\s)
    |,?\s(?:which|because|since|where|it|so|as|making|giving)\b""")
DAPO = re.compile(r"(?i)Answer\s*:\s*([^\n]+)")
TAKEN_BACK = re.compile(r"""(?xi)[\s$.,;)\]\\*]{0,8}(?:but\s)?(?:(?:this|that|it|which)\s)?
    (?:is|was|seems|looks)\s(?:\w{1,12}\s)?(?:wrong|incorrect|false|impossible|a\ mistake
    |not\s(?:the\s|a\s)?(?:correct|right|valid|answer))""")
DENIED = (" not", "n't", "cannot", "never", "instead of", "rather than")
JOINED = re.compile(r"""(?xis)(?!.*\b(?:then|but|not|so|no|wait|instead)\b)
    [^.!?]{0,90}(?:[,;&]|\b(?:and|or)\b)(?:\\[a-z]+|[^\w\\])*(?:\w{1,4}\s?=\s?)?\$?\\?f?""")


def _last_box(text: str, end: int) -> tuple[int, int, str] | None:
    """Start, end and content of the last non-empty box before `end`; an open one contains ""."""
    for _ in range(1000):
        if (end := text.rfind("box", 0, end)) < 0:
            break
        if not (opening := BOX.match(text, end)):
            continue
        if opening[1]:
            return end, opening.end(), opening[1].rstrip(".,/")
        depth, close = 1, None
        for close in BRACE.finditer(text, opening.end(), opening.end() + MAX_BOX):
            depth += {"{": 1, "}": -1}.get(close[0], 0)
            if not depth:
                break
        if depth:
            return end, len(text), ""
        if content := text[opening.end() : close.start()].strip():
            return end, close.end(), content
    return None


def _joined_boxes(text: str) -> str | None:
    """The contents of the last boxes when one sentence joins several of them into one answer."""
    box, parts = _last_box(text, len(text)), []
    while box and box[2] and len(parts) < 50:
        parts.append(box[2])
        start, box = box[0], _last_box(text, box[0])
        if not box or start - box[1] > 120 or not JOINED.fullmatch(text, box[1], start):
            break
    return " ; ".join(reversed(parts)) if len(parts) > 1 else None


def _claim(text: str) -> str | None:
    """What the last answer phrase claims, cut at the end of its sentence."""
    if not (claims := [*CLAIM.finditer(text)]):
        return None
    text = text[LEAD.match(text, claims[-1].end()).end() :]
    text = re.sub(r"^The [^=<>.\n]{1,99}\sis\s", "", text)  # Answer: The largest n is 5.
    stop = STOP.search(text)
    return (text[: stop.start()] if stop else text).strip(" \t*_`") or None


def extract(response: object, mode: str = "auto") -> str | None:
    """The one final answer that `response` states, as text, or None.  Never raises."""
    if not isinstance(response, str):
        return None
    if mode == "dapo":
        return (DAPO.findall(response[-300:]) or [None])[-1]
    text = response.rpartition("</think>")[2]
    if mode != "answer" and (box := _last_box(text, len(text))):
        start, end, content = box
        before = text[max(0, start - 40) : start].lower().rstrip("f").rstrip("\\$([ \n")
        if not TAKEN_BACK.match(text, end) and not before.removesuffix(" be").endswith(DENIED):
            return content or None
        text = text[end:]
    if mode == "boxed":
        return None
    if (opened := text.rfind("<answer>")) >= 0:
        inside = text[opened + 8 :].partition("</answer>")
        text = inside[0].strip() if inside[1] else ""
        return _claim(text[-TAIL:]) or text or None
    return _claim(text[-TAIL:])


ZERO, PERCENT = exact(0), exact(Fraction(1, 100))
OPERATIONS = {"∪": operator.or_, "∩": operator.and_, "∖": operator.sub}
LABEL = re.compile(r"""(?xs)(?:(?i:option|choice)\s)?(?:\(([A-J])\)|([A-Ja-j])[).:]|([A-J])$)
    (?:[\s\\~]{1,3}(?!and\b|or\b)([^\s+\-*/^=<>,;&(].*))?""")


def _same(g: Value, a: Value) -> bool:
    """Whether answer `a` equals gold `g`, under the policies of the table above."""
    if "eq" in (g[0], a[0]) or g.name and a.name and g.name != a.name:
        left, right = _zero(g), _zero(a)
        if not left or not right or same(left, ZERO) or same(right, ZERO):
            return False
        sides = [(left, right.at[0]), (right, left.at[0])]
        return same(*(lift(operator.mul, x, Scalar((y,))) for x, y in sides))
    if type(g) is type(a) is Scalar:
        return _same_scalar(g, a)
    return type(g) is type(a) and _same_group(g, a)


def _zero(x: Value) -> Scalar | None:
    """left - right of an equation; f(x) = 2x is y = 2x."""
    if type(x) is Group:
        return x.items[0] if x.kind == "eq" else None
    if not re.fullmatch(r"[A-Za-z](?:\(x\))?", x.name):
        return None
    return lift(operator.sub, algebra.symbol("y" if "(" in x.name else x.name), x)


def _same_scalar(g: Scalar, a: Scalar) -> bool:
    if a.unit.startswith("base") and a.unit != g.unit or g.unit and a.unit and g.unit != a.unit:
        return False
    written = g.places is not None or a.places is not None
    if not (written and {*map(type, g.at + a.at)} != {Fraction}) and same(g, a):
        return True
    for x, y in ((g, a), (a, g)):
        scale = {"degree": algebra.DEGREE, "percent": PERCENT if x is g else None}.get(x.unit)
        if scale and not y.unit and same(lift(operator.mul, x, scale), y):
            return True
    return written and len(g.at) == len(a.at) == 1 and _rounds(g, a)


def _rounds(g: Scalar, a: Scalar) -> bool:
    """The rounding policy: gold's digits decide; for a closed gold, four right places suffice."""
    closed, places = (a.at[0], g.places) if g.places is not None else (g.at[0], a.places)
    endless = type(closed) is not Fraction or 10**400 % closed.denominator > 0
    enough = places >= (4 if g.places is None else 1 if abs(g.at[0]) >= 10 else 2)
    if None not in (g.places, a.places):
        endless, enough = True, g.places >= 2 and a.places >= max(5, g.places + 1)
    if not endless or not enough or places > 300:
        return False
    slack = 0 if type(closed) is Fraction else Fraction(abs(closed)) / 10**14
    apart = abs(Fraction(size(g.at[0])) - Fraction(size(a.at[0])))
    return apart <= Fraction(1, 2 * 10**places) + slack


def _same_group(g: Group, a: Group) -> bool:
    kinds = {g.kind, a.kind}
    if "text" in kinds:
        return g == a and g.items != ("",)
    if not kinds.isdisjoint(OPERATIONS) or "set" in kinds and kinds & {"[]", "(]", "[)"}:
        try:
            return _same_sets(g, a)
        except FAILURES:
            pass  # ends with letters have no order
    loose = kinds <= {"list", "set"} or kinds in ({"∪"}, {"∩"})
    interval = any(x.kind == "()" and x.name[:1] not in ("", "(") for x in (g, a))
    named = [{item.name for item in x.items} for x in (g, a)]
    if not loose and len(kinds) > 1:
        one_letter = any(len(names) == 1 and "" not in names for names in named)
        if kinds != {"list", "()"} or interval or one_letter:  # x = 1, x = 2 is no point
            return False
    if any(len(x) > 1 and "" not in x and y == {""} for x, y in (named, named[::-1])):
        loose = False  # x = 1, y = 2 for 1, 2
    gs, left = g.items, [*a.items]
    if loose and ("set" in kinds or any(type(x) is Group for x in gs)):
        gs, left = [*dict.fromkeys(gs)], [*dict.fromkeys(left)]
    if not loose or not len(left) == len(gs) <= 40:
        return len(left) == len(gs) and all(map(_same, gs, left))
    for x in gs:
        if (match := next((y for y in left if _same(x, y)), None)) is None:
            return False
        left.remove(match)
    return True


def _same_sets(g: Group, a: Group) -> bool:
    """Whether two sets hold the same numbers, on the line of all the ends that occur: position
    2k + 1 is the k-th end, 2k the numbers before it."""

    def ends(x: Value) -> list[Scalar]:
        return [end for item in x.items for end in ends(item)] if type(x) is Group else [x]

    def positions(x: Group) -> set[int]:
        if x.kind in OPERATIONS:
            return reduce(OPERATIONS[x.kind], map(positions, x.items))
        at = [2 * next(k for k, cut in enumerate(cuts) if same(cut, end)) + 1 for end in x.items]
        if x.kind == "set":
            return set(at)
        if len(at) != 2 or at[0] > at[1]:
            raise ValueError("no interval")
        return set(range(at[0] + (x.kind[0] == "("), at[1] + (x.kind[1] == "]")))

    cuts: list[Scalar] = []
    for end in sorted(ends(g) + ends(a), key=lambda x: size(*x.at)):
        if not cuts or not same(cuts[-1], end):
            cuts.append(end)
    return positions(g) == positions(a)


def grade(response: object, gold: object, mode: str = "auto") -> bool:
    """Whether the final answer of `response` equals `gold`: a bool, False if either is not text.
    `mode` says where it must stand: "boxed" (boxes only), "answer" ("Answer:" and its like only),
    "auto" (both, as above), "dapo" (as DAPO trained: the last 300 characters, equal strings)."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if not isinstance(response, str) or not isinstance(gold, str) or not gold.strip(" \t\r\n$*."):
        return False
    answer = extract(response, mode)
    if answer is None and mode == "auto" and len(response) <= MAX_BARE:
        answer = response.strip()
        answer = None if re.search("\n|box|</|^$", answer) else answer
    if answer is None or mode == "dapo":
        return answer is not None and dapo_normalize(answer) == dapo_normalize(gold)
    if "nswer" in gold or "box" in gold:
        gold = _joined_boxes(gold) or extract(gold) or gold
    answer, gold = answer.strip(), gold.strip()
    if answer == gold or max(len(answer), len(gold)) > MAX_ANSWER:
        return answer == gold
    try:
        if not algebra.PLAIN.fullmatch(gold):
            if algebra.tokens(answer) == algebra.tokens(gold) != []:
                return True
        elif algebra.PLAIN.fullmatch(answer):
            return _same(read(gold), read(answer))
        g = read(gold)
        if g[0] in ("list", "set") and mode != "answer":
            answer = _joined_boxes(response.rpartition("</think>")[2]) or answer
        a = read(answer)
        if _same(g, a):
            return True
        (letter, rest), (gold_letter, gold_rest) = _label(answer), _label(gold)
        if letter and gold_letter and not (rest and gold_rest):
            return letter == gold_letter
        same_rest = _same(read(gold_rest or gold), read(rest or answer))
        return same_rest and (letter == gold_letter or "" in (letter, gold_letter))
    except FAILURES:
        return False


def _label(text: str) -> tuple[str, str]:
    """A choice letter and what it labels: "(C) 42" gives "C", "42"; two "" without a label."""
    found = LABEL.fullmatch(re.sub(algebra.WRAPPED, r"\1", text).strip(" ."))
    return (found[1] or found[2] or found[3], found[4] or "") if found else ("", "")


def dapo_normalize(answer: str) -> str:
    """The string DAPO's rule compares: the last side without units, wrappers, spaces and commas."""
    words = [w.strip() for w in algebra.tokens(answer.rpartition("=")[2])]
    text = "".join([w for w in words if w[0] != "⟦"])
    digits = text.replace(",", "")
    return digits if digits.isdigit() else text


# ------------------------------------------------------------------------------------- command line
def main(argv: list[str] | None = None) -> int:
    """Grade every record of a JSON Lines file; an output file appears only when it is complete."""
    parser = argparse.ArgumentParser(description="Grade the answers in a JSON Lines file.")
    parser.add_argument("file", help="the file, or - for standard input")
    parser.add_argument("--response", default="response", help="field with the model's text")
    parser.add_argument("--gold", default="gold", help="field with the right answer")
    parser.add_argument("--grade", default="grade", help="field to write: true or false")
    parser.add_argument("--mode", default="auto", choices=MODES)
    parser.add_argument("--out", help="output (default: FILE.graded.jsonl; - of -), - is a pipe")
    args = parser.parse_args(argv)
    piped = args.file == "-"
    out = args.out or ("-" if piped else args.file.removesuffix(".jsonl") + ".graded.jsonl")
    part, unread, total, right, number = f"{out}.part", [], 0, 0, 0
    source, target = (0 if piped else args.file), (1 if out == "-" else part)
    try:
        with (
            open(source, "rb", closefd=not piped) as lines,
            open(target, "w", closefd=out != "-") as graded,
        ):
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                record = json.loads(line)
                if not isinstance(record, dict) or not {args.response, args.gold} <= record.keys():
                    raise ValueError(f"not an object with {args.response!r} and {args.gold!r}")
                gold = record[args.gold]
                gold = str(gold) if type(gold) in (int, float) else gold
                record[args.grade] = grade(record[args.response], gold, args.mode)
                right, total = right + record[args.grade], total + 1
                value = read(gold) if isinstance(gold, str) else Group("text", ("?",))
                if value[0] == "text" and re.search(r"[^\w\s.,'-]|\d|^$", value.items[0]):
                    unread.append(number)
                graded.write(json.dumps(record) + "\n")
                if total % 100 == 0 and sys.stderr.isatty():
                    done = 0 if piped else 40 * lines.tell() // os.path.getsize(args.file)
                    print(f"\r{'#' * done:40} {total:,}", end="", file=sys.stderr, flush=True)
            graded.flush()
            if out != "-":
                os.fsync(graded.fileno())
                os.replace(part, out)
    except (OSError, ValueError, RecursionError) as error:
        if out != "-" and os.path.exists(part):
            os.unlink(part)
        where = args.file if isinstance(error, OSError) else f"{args.file}:{number}"
        print(f"verify.py: {where}: {error}", file=sys.stderr)
        return 1
    print(end="\n" * sys.stderr.isatty(), file=sys.stderr)
    said = f"{out}: {right} of {total} right, accuracy {right / max(total, 1):.4f}"
    if unread:
        where = ", ".join(map(str, unread[:50])) + ", ..." * (len(unread) > 50)
        share = f"{len(unread)} golds ({len(unread) / total:.2%})"
        said += f"\n{share} cannot be read and are only matched as text: lines {where}"
    print(said, file=sys.stderr if out == "-" else sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())

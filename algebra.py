r"""Text to values, values to numbers: what verify.py compares.  Standard library only.

A number is exact while it is rational, else a complex double: the principal value, but odd roots of
negatives are real.  With letters it has values at three points, where every letter is a rational,
positive at the first: equal expressions agree there.  A double carries the largest magnitude seen
on the way to it, of which it knows 14 digits; with less than ten left it equals nothing.
"""

import cmath
import math
import operator
import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache, partial, reduce
from hashlib import blake2b
from itertools import accumulate
from typing import NamedTuple

MAX_ANSWER, MAX_BITS, MAX_EXPONENT, MAX_DEPTH = 2048, 13_288, 10_000, 60
FAILURES = (ValueError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError)
Point = Fraction | complex  # a number at one point


def size(x: Point) -> Fraction | float | None:
    """What orders real numbers; None for the others."""
    if type(x) is Fraction:
        return x
    return x.real if abs(x.imag) <= 1e-13 * abs(x) else None


def power(x: Point, y: Point) -> Point:
    """Exact where it is rational; else principal, but for the odd roots of negative numbers."""
    p, q = y.as_integer_ratio() if type(y) is Fraction else (0, 0)
    if q % 2 and 1 < q < 100 and (size(x) or 0) < 0:
        return power(-x, y) * (1 - p % 2 * 2)
    if q and type(x) is Fraction and abs(p) <= MAX_EXPONENT and (q == 1 or x > 0):
        ratio = x.as_integer_ratio()
        roots = [round(n ** (1 / q)) if q > 1 else n for n in ratio]
        bits = roots[0].bit_length() + 13 * (roots[1].bit_length() - 1)
        if all(r**q == n for r, n in zip(roots, ratio, strict=True)) and bits * abs(p) <= MAX_BITS:
            return Fraction(*roots) ** p
    return complex(x) ** complex(y)


def factorial(x: Point) -> Point:
    if type(x) is Fraction and x.denominator == 1 and 0 <= x <= 1500:
        return Fraction(math.factorial(int(x)))
    return complex(math.gamma(size(x) + 1))


class Double(complex):
    seen = 0.0  # the largest magnitude on the way to it


class Scalar(NamedTuple):
    """A number at one point, or at three with letters in it; and how it was written."""

    at: tuple[Point, ...]
    unit: str = ""
    places: int | None = None
    name: str = ""


class Group(NamedTuple):
    """Several values: list, set, ∪, ∩, ∖, ":", "eq", "text", or as bracketed: a matrix is a []."""

    kind: str
    items: tuple
    name: str = ""


Value = Scalar | Group


def seen(x: Point) -> float:
    return x.seen if type(x) is Double else float(abs(x))


def blurred(x: Point) -> bool:
    """Whether x is all but a fraction of six digits, as 1 + 1e-20: a double would be that one."""
    if type(x) is not Fraction or max(abs(x.numerator), x.denominator) < 10**9:
        return False
    return 0 < abs(x - Fraction(f"{float(x):.5e}")) < abs(x) / 10**11


def lift(f: Callable[..., Point], *args: Value) -> Scalar:
    """f at every point.  A sum or function keeps the largest magnitude seen, a product scales."""
    at, count, fits = [], max([len(x.at) for x in args]), True
    for xs in zip(*[x.at * (count // len(x.at)) for x in args], strict=True):
        value = f(*xs)
        if not value and not all(xs):
            value = Fraction(0)
        if type(value) is Fraction:
            fits = max(map(int.bit_length, value.as_integer_ratio())) <= MAX_BITS
        else:
            value = Double(value + 0)  # no minus zero
            sizes = [(seen(x), float(abs(x))) for x in xs]
            value.seen, near = max(abs(value), *[m for m, _ in sizes]), 1e-13 * (1 + abs(value))
            if f in (operator.mul, operator.truediv, power):
                value.seen = abs(value) * max([m / s for m, s in sizes if s])
                value.seen *= 1 + sizes[1][1] if f is power else 1
            if f in (operator.add, operator.sub):  # a small term would be lost
                fits = not any([3e-15 * m < s < 1e-10 * value.seen for m, s in sizes])
            elif min([abs(value - s) for s in (round(value.real), *sizes[0], *sizes[-1])]) < near:
                # cos 1e-9 is not 1, sin 1e-9 is not 1e-9
                fits = any([type(x) is not Fraction or abs(x) in (0, 1) for x in xs])
            fits = fits and 1e-280 < value.seen < 1e280 and not any(map(blurred, xs))
        if not fits:
            raise ValueError("too large, too small, or no number that a double tells apart")
        at.append(value)
    units = {x.unit for x in args if x.unit}
    units |= {str(args[1].at[0])} if units and f is power else set()
    return Scalar(tuple(at), " ".join(sorted(units)))


def combine(f: Callable[..., Point], x: Value, y: Value) -> Value:
    """f of two numbers; a matrix times a number, the sum or the product of two matrices."""
    if type(x) is type(y) is Scalar:
        return lift(f, x, y)
    x, y = (y, x) if type(x) is Scalar else (x, y)
    if x.kind != "[]" or f is not operator.mul and (f is not operator.add or type(y) is Scalar):
        raise ValueError("no matrix")
    if f is operator.mul and type(y) is Group:  # every row of x combines the rows of y
        rows = [zip(row.items, y.items, strict=True) for row in x.items]
        rows = [[combine(f, *pair) for pair in row] for row in rows]
        return Group("[]", tuple([reduce(partial(combine, operator.add), row) for row in rows]))
    others = [y] * len(x.items) if type(y) is Scalar else y.items
    return Group("[]", tuple([combine(f, *pair) for pair in zip(x.items, others, strict=True)]))


def close(x: Point, y: Point, alone: bool) -> int:
    """1 for values equal as far as doubles tell, 2 for others that are not real, else 0."""
    if type(x) is type(y) is Fraction or math.inf in (abs(x), abs(y)):
        return int(x == y)
    doubt, largest = 3e-15 * max(seen(x), seen(y)), float(max(abs(x), abs(y)))
    step = max([r.denominator for r in (x, y) if type(r) is Fraction], default=0)
    if doubt > 1e-10 * largest:  # cancelled: only zeros are known, and only small ones
        equal = largest <= doubt < 1e-11
    else:  # among constants, a fraction must be the only one that near
        equal = abs(x - y) <= doubt and not (alone and doubt * step**2 > 0.01)
    return 1 if equal else 2 * (size(x) is None is size(y))


def same(a: Scalar, b: Scalar) -> bool:
    """Whether two numbers are equal at every point, but those at which neither is real though both
    are at another: they lie outside of the natural domain."""
    m, n = len(a.at), len(b.at)
    pairs = [*zip(a.at * (n // m or 1), b.at * (m // n or 1), strict=True)]
    found = [close(x, y, m == n == 1) for x, y in pairs]
    real = [2 not in found or None not in map(size, pair) for pair in pairs]
    return 0 not in found and (1, True) in zip(found, real, strict=True)


def exact(x: int | Fraction) -> Scalar:
    return Scalar((Fraction(x),))


CONSTANTS = {name: Scalar((z,)) for name, z in (("π", math.pi + 0j), ("e", math.e + 0j), ("i", 1j))}
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
CONSTANTS |= {word: exact(n) for word, n in SCALES.items()}
negative = partial(combine, operator.mul, exact(-1))
DEGREE = CONSTANTS["\\degree"] = lift(operator.truediv, CONSTANTS["π"], exact(180))
UP, DOWN = Scalar((math.inf + 0j,)), Scalar((-math.inf + 0j,))  # they compare, and have no sum
REALS, EMPTY = Group("()", (DOWN, UP)), Group("set", ())
NAMED = {"∞": UP, "+∞": UP, "-∞": DOWN, "ℝ": REALS, "∅": EMPTY, "\\{\\}": EMPTY}


@lru_cache(maxsize=4096)
def symbol(name: str) -> Scalar:
    """A letter's values: positive, and negative at one or both of the other points, so that any two
    letters differ in order and most in sign.  With this salt the usual ones keep 0.002 apart."""
    if name in CONSTANTS:
        return CONSTANTS[name]
    digest = blake2b(name.encode("utf-8", "replace"), digest_size=8, salt=b"259387").digest()
    u, kind = Fraction(int.from_bytes(digest, "big") % 99991, 99991), ord(name[-1]) % 3
    large, small = -2 * u - Fraction(6, 5), Fraction(9, 10) - u * 4 / 5
    others = ((large, small), (small, large), (large, small - 1))[kind]
    return Scalar((2 * u + Fraction(13, 10), *others))


def floor(x: Scalar) -> Scalar:
    """With letters, a wave for which f(x + 1) = f(x) + 1: three points would miss most jumps."""
    if len(x.at) > 1:
        return lift(lambda p: p + cmath.cos(2 * cmath.pi * p + 1) / 7, x)
    n = size(x.at[0])
    if type(n) is float and abs(n - round(n)) < 1e-9:
        raise ValueError("a floor beside a whole number")
    return exact(math.floor(n))


CURVES = {f: getattr(cmath, f) for f in ("sin", "cos", "tan", "sinh", "cosh", "tanh")}
CURVES |= {"arc" + f: getattr(cmath, "a" + f) for f in CURVES}
for _f, _of in zip("csc sec cot csch sech coth".split(), [*CURVES][:6], strict=True):
    CURVES[_f] = lambda z, f=CURVES[_of]: 1 / f(z)
    CURVES["arc" + _f] = lambda z, f=CURVES["arc" + _of]: f(1 / z)
CURVES |= {"max": lambda *xs: max(xs, key=size), "min": lambda *xs: min(xs, key=size)}
CURVES["Gamma"] = lambda z: factorial(z - 1)
PAIRS = {"\\frac": operator.truediv}
PAIRS["\\binom"] = lambda n, k: factorial(n) / (factorial(k) * factorial(n - k))


# ------------------------------------------------------------------------------------------- tokens
def _table(text: str) -> dict[str, str]:
    """Groups of words, three spaces apart: every word of a group to its first."""
    groups = [group.split() for group in re.split(r"\n|   ", text)]
    return {old: group[0] for group in groups for old in group}


RENAMED = _table(r"""
    \frac \dfrac \tfrac \cfrac   * \cdot \times × · \ast ∙ ⋅ •   / \div ÷   ^ **   ' ′ ’
    ≤ \le \leq \leqslant \leqq <=   ≥ \ge \geq \geqslant \geqq >=   < \lt   > \gt   ∈ \in
    ≠ \ne \neq !=   ≈ \approx \simeq \doteq   ± \pm   ∓ \mp   π \pi pi   ∞ \infty infinity inf
    ∪ \cup   ∩ \cap   ∖ \setminus \backslash   ∅ \emptyset \varnothing   \{ \lbrace   \} \rbrace
    ( \langle \lparen   ) \rangle \rparen   | \vert \mid   , ; or \lor \vee
    ∧ and \land \wedge   … \ldots \dots \cdots ...   - − – ‐ ‑ ﹣   ℝ \R   \sqrt sqrt \surd √
    ⟦percent⟧ % \% percent pct   ⟦degree⟧ ° degrees degree deg   ⟦dollar⟧ \$   ⟦euro⟧ €   ⟦pound⟧ £
    ⟦yen⟧ ¥   \binom \dbinom \tbinom   \epsilon \varepsilon   \phi \varphi   \theta \vartheta
    \tan \tg   \cot \ctg   \arcsin asin   \arccos acos   \arctan atan \arctg   \arcsinh arsinh asinh
    \arccosh arcosh acosh   \arctanh artanh atanh
    0 zero   1 one   2 two   3 three   4 four   5 five   6 six   7 seven   8 eight   9 nine   10 ten
    11 eleven   12 twelve   13 thirteen   14 fourteen   15 fifteen   16 sixteen   17 seventeen
    18 eighteen   19 nineteen   20 twenty   30 thirty   40 forty   50 fifty   60 sixty   70 seventy
    80 eighty   90 ninety
""")
UNITS = _table("""
    mm millimeter millimetre   cm centimeter centimetre   km kilometer kilometre   m meter metre
    dm decimeter   in inch inche   ft foot feet   yd yard   mi mile   mg milligram   g gram
    kg kilogram   lb pound   ml   l liter litre   sec second s   min minute   h hour hr   day   week
    month   year yr   mph   dollar usd   cent   euro   yen   yuan   unit   rad radian   2 square sq
    3 cubic cu   / per
""")
NO_UNITS = _table("""
    and not but mod less more least most greater equal plus minus times wrong incorrect about half
    false nan none except unless squared cubed halves thirds dozen hundred thousand million billion
    trillion
""")
DROPPED = _table(r"""
    \left \right \big \Big \bigg \Bigg \bigl \bigr \Bigl \Bigr \biggl \biggr \limits \quad \qquad
    \displaystyle \, \! \; \: \( \) \[ \] $ ~ \ \overline \vec \bar \hat `
""") | {"\\ ": ""}
UNREAD = _table(r"\end \begin \pmod \equiv \mod \bmod … ? \sim \propto \to & \\ . ; # @ \subset")
CALLS = {"\\" + name for name in (*CURVES, "exp", "log", "ln", "lg")}
OPEN = ("(", "[", "{", "\\{", "\\lvert", "\\lfloor", "\\lceil")
CLOSE = (")", "]", "}", "\\}", "\\rvert", "\\rfloor", "\\rceil")
DEPTH = dict.fromkeys(OPEN, 1) | dict.fromkeys(CLOSE, -1)
RELATIONS, MIRROR = "=<>≤≥≠∈≈", {"<": ">", ">": "<", "≤": "≥", "≥": "≤"}
RANGES = ("()", "(]", "[)", "[]", "∪", "∩", "∖")
CALL_ENDS = {"(", "[", "*", "/", *CALLS}

WRAPPED = r"\\(?:text[a-z]*|mbox|math(?:rm|bf|it)|operatorname|boldsymbol) ?\{([^{}]*)\}"
DOMAIN = r"""(?x)(?:,|\\forall|\bfor(?:\ all|\ any|\ every)?)(?:\\[ ,;]|[\s~]){0,9}
    [a-z]\ ?(?:\\in|∈)\ ?(?:\\mathbb\ ?\{?[ZN]|[ℤℕ])[^,]*$"""
MATRIX = r"(?s)\\begin ?\{(?:array\} ?\{[lcr|]*|(?:[pbB]?|small)matrix)\}(.*?)\\end ?\{\w+\}"
MIXED = r"(?<![\d.^_/*)}\]])(\d+) ?\\[dtc]?frac ?\{(\d+)\} ?\{(\d+)\}"  # 1\frac12 is 3/2
CLOCK = r"(?i)(\d{1,2}):(\d\d)(?: |~|\\,){0,3}([ap])\.?m\b\.?"
REWRITTEN = [  # where the first occurs, the second becomes the third
    ("{", r"(?<=[\d }])\\(?:mathrm|text(?:rm)?) ?\{[ ~]*([hmsgl])\}", r"⟦\1⟧"),
    ("{", WRAPPED, r" \1 "),
    ("{", WRAPPED, r" \1 "),
    ("}", r"\{([-:])\}", r"\1"),
    (":", CLOCK, lambda m: f"{int(m[1]) % 12 + 12 * (m[3] in 'pP')}:{m[2]}"),
    ("-", r"\+ ?- ?", "-"),
    ("-", r"(\^|\*|/|\\cdot|\\times) ?-(\d+(?:\.\d+)?|[A-Za-z])(?![\w^!]|\.\d)", r"\1{-\2}"),
    ("\\circ", r"\^ ?(?:\{ ?\\circ ?\}|\\circ)", "°"),
    ("°", r"° ?([CF])\b", r"⟦\1⟧"),
    ("\\mathbb", DOMAIN, ""),
    ("\\mathbb", r"\\mathbb ?(?:\{R\}|R)", "ℝ"),
    (" ", r" ([hmsgl])(?=$|[.,;/)}])(?:(?<=\d..)|(?<=\d\\[,;: ]..)|(?<=[} ]..)(?=/s))", r"⟦\1⟧"),
    ("\\choose", r"\{ ?\{?([^{}]+)\}? ?\\choose ?\{?([^{}]+)\}? ?\}", r"\\binom{\1}{\2}"),
    ("/", r"(?<=\d) (\d+)/(\d+)(?![\d.])", r"\\frac{\1}{\2}"),
    ("frac", r"frac ?(\d)", r"frac{\1}"),
    ("frac", r"(frac\{\d\}) ?(\d)", r"\1{\2}"),
    ("frac", MIXED, lambda m: f"({m[1]}+{m[2]}/{m[3]})" if int(m[2]) < int(m[3]) else m[0]),
    ("\\begin", MATRIX, r"[[\1]]"),
    ("]]", "&", ","),
    ("]]", r"\\\\\s*(?=\]\])", ""),
    ("]]", r"\\\\", "],["),
    ("\\\\", r"\\\\", r"\\"),  # escaped twice
    ("|", r"\|([^|]+)\|", r"\\lvert \1\\rvert "),
]
for _n, (_mark, _pattern, _new) in enumerate(REWRITTEN):  # a function is faster than a template
    _new = _new if callable(_new) else partial(re.Match.expand, template=_new)
    REWRITTEN[_n] = _mark, re.compile(_pattern), _new
TOKEN = re.compile(r"""(?xsa)
    \d{1,3}(?:(?:,(?:\\!\ ?)?|\{,\}(?:\\!)?|\\[,;:!\ ]|_)\d{3})+(?!\d)(?:\.\d+)?
    |\d*\.\d*(?:\\(?:overline|bar|dot)\ ?\{?\d+\}?|\(\d+\))|(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?
    |\\[A-Za-z]+|\\.|\ ?[A-Za-z]+|⟦[^⟧]*⟧|<=|>=|!=|\*\*|\.\.\.|\S""")


def _unit(token: str, before: list[str]) -> str:
    """The unit that a word is after a number: in 3 h and 10cm, not in 3h."""
    word, last = token.strip().lower(), before[-1]
    unit = UNITS.get(word) or UNITS.get(word.removesuffix("s"))
    if not unit and token[0] == " " and word[2:] and word not in NO_UNITS:
        unit = word.removesuffix("s")
    after = last in CLOSE or last[-1:].isdigit() or last[-1:] in ("π", "⟧") or last[1:] in SCALES
    per = last == "/" and before[-2][0] == "⟦"
    return f"⟦{unit}⟧" if unit and (per or after and word[1:]) else ""


@lru_cache(maxsize=8192)
def tokens(text: str) -> list[str]:
    """The text in one spelling: units of meaning, without spacing, fonts and other decoration."""
    if not text.isascii():
        text = re.sub("[\u2009\u202f\u00a0]", r"\\,", text.replace("º", "°"))
        text = re.sub("√ ?([0-9]+)", r"\\sqrt{\1}", text.replace("ℝ", "\\mathbb{R}"))
        text = re.sub("([⁰¹²³⁴-⁹⁻]+)", r"^{\1}", re.sub("([₀-₉]+)", r"_{\1}", text))
        text = re.sub("([¼-¾⅐-⅞])", r"\\frac{\1}", text)
        text = unicodedata.normalize("NFKC", text).replace("⁄", "}{")
    text = " ".join(text.rstrip(" ,;\\").split())
    for mark, pattern, new in REWRITTEN:
        if mark in text:
            text = pattern.sub(new, text)
    out, depth, gap = [""], 0, ""
    for token in TOKEN.findall(text):
        if token in DROPPED:
            gap = " "
            continue
        word = token.strip()
        token = RENAMED.get(word, token)
        if word.isalpha():
            word = word.lower()
            token = RENAMED.get(word, token)
            token = "\\" + word if "\\" + word in CALLS and word not in UNITS else token
            token = _unit(gap + token if token.isalpha() else token, out) or token
            token = token.strip() if out[-1] in "+-*/^=<>≤≥([{" else token  # 1 + xyz is no word
        gap, depth = "", depth + (0 if token in "{}" else DEPTH.get(token, 0))
        if token[0].isdigit() and out[-1][-1:].isdigit() and out[-2] != "_":
            out.append("*" if out[-2] == "^" else "#")  # 2^6 3^5 is a product, 42 43 is none
        if token == "∧" and out[-1] == ",":
            out[-1] = token
        elif depth and "," in token[1:] and re.fullmatch(r"[\d.,]+", token):
            out += re.split("(,)", token)  # in brackets a comma separates
        elif token != "," or out[-1] not in ("", ","):
            out.append(token)
    return out[1 : len(out) - (out[-1] == ".")]


# -------------------------------------------------------------------------------- tokens to values
NAME = re.compile(r"""(?x)\([A-Za-z\d_{},]+\)
    |(?:(?:^|:)[A-Za-z\\{}][A-Za-z\\{} ]*(?:'|\^\{-1\}|_\w|_\{[^{}]*\}|\([^()]*\))*)+""")
DECIMAL = re.compile(r"-?\d*\.(\d+)(?:\*10\^\{?(-?\d{1,4})\}?)?(?:⟦.*⟧)?")
PLAIN = re.compile(r"""(?x)\$?(-?)(?:(?=\.?\d)(\d{0,18}|\d{1,3}(?:,\d{3})+)
    (?:/0*([1-9]\d{0,17})|\.(\d{1,18}))?|\\[dt]?frac\{(-?\d{1,18})\}\{([1-9]\d{0,17})\})\.?\$?""")


def literal(token: str) -> Fraction:
    """A number as it is written, with marks between its thousands, an exponent or a period."""
    if token.isdigit() and len(token) < 4000:
        return Fraction(int(token))
    if period := re.fullmatch(r"(\d*)\.(\d*)(?:\\[a-z]+|\() ?\{?(\d+)[})]?", token[:200]):
        whole, start, block = period.groups()
        low, high = int((whole + start) or 0), int(whole + start + block)
        return Fraction(high - low, (10 ** len(block) - 1) * 10 ** len(start))
    digits = re.sub(r"[^\de.+-]", "", token.lower())
    if len(digits) > 4000 or re.search(r"e.?\d{5}", digits):
        raise ValueError("too many digits")
    return Fraction(digits)


class Slice:
    """Some tokens, and the ways to read them.  Lists, relations, sets and sums are split at their
    marks outside of brackets, the loosest first; a product is read from left to right."""

    def __init__(self, words: list[str]) -> None:
        self.words, self.rest = words, words[::-1]

    def split(self, marks: str) -> tuple[list[str], list["Slice"]]:
        """The marks, and the pieces that they part."""
        found, pieces, depth = [], [[]], 0
        if {*marks}.isdisjoint(self.words):
            return [], [self]
        for token in self.words:
            depth += DEPTH.get(token, 0)
            if token in marks and not depth:
                found.append(token)
                pieces.append([])
            else:
                pieces[-1].append(token)
        return found, [Slice(piece) for piece in pieces]

    def answer(self) -> Value:
        marks, pieces = self.split(",∧")
        if not marks:
            return self.item()
        items = [piece.item() for piece in pieces]
        names = {x.name for x in items}
        if len(names) == 1 and "" not in names and all(x[0] in RANGES for x in items):
            both = {*marks} == {"∧"} or any(x.kind == "∖" for x in items)  # x ∈ ℝ, x ≠ 2
            kind = "∩" if both else "∪"  # x < 1, x > 2
            return Group(kind, tuple([x._replace(name="") for x in items]), *names)
        return Group("list", tuple(items))

    def item(self) -> Value:
        """A value, an equation, an inequality or a membership."""
        marks, pieces = self.split(RELATIONS)
        if not marks:
            return self.side()
        ops, names = "".join(marks), [piece.name() for piece in pieces]
        if ops[:1] == "≈" and (names[0] or not pieces[0].words):  # x ≈ 3, ≈ 3
            ops = "=" + ops[1:]
        ops = ops.partition("≈")[0]
        if len(ops) == 1 and names[1] and not names[0]:
            pieces, names, ops = pieces[1::-1], names[1::-1], MIRROR.get(ops, ops)
        name, value = names[0], pieces[len(ops)].side
        if {*ops} <= {"=", "∈"} and (name or not ops or not pieces[0].words):
            return value()._replace(name=name) if ops else value()
        if {*ops} == {"="}:
            sides = [piece.side() for piece in pieces[: len(ops) + 1]]
            if all(type(x) is Scalar and same(x, sides[0]) for x in sides):
                return sides[-1]
            return Group("eq", (combine(operator.sub, *sides),))
        if name and ops == "≠":
            return Group("∖", (REALS, Group("set", (value(),))), name)
        name, ends, kind = names[len(ops) > 1], [DOWN, UP], ["(", ")"]
        if not name or len(ops) > 2 or not MIRROR.keys() >= {*ops}:
            raise ValueError("relation")
        for op, before, above, below in zip(ops, names, pieces[1:], pieces, strict=False):
            op, end = (op, above) if before == name else (MIRROR[op], below)
            ends[op in "<≤"] = end.side()
            kind[op in "<≤"] = {"<": ")", "≤": "]", ">": "(", "≥": "["}[op]
        return Group("".join(kind), tuple(ends), name)

    def name(self) -> str:
        """The left side of "name = value" in one spelling; "" when it is an expression."""
        text = "".join(self.words).replace(" ", "")
        known = NAME.fullmatch(text) and not re.search(r"\\frac|\\sqrt|^[a-z]{2}$", text)
        return re.sub(r"[\\{}]", "", text) if known else ""

    def side(self) -> Value:
        """Words; an operation on sets, a ratio; or a number with its unit."""
        words = [word.strip(" ⟦⟧") for word in self.words]
        if all(map(str.isalpha, words)) and (max(map(len, words)) > 2 or words[0].lower() == "no"):
            return text_of(words)
        for mark in "∪∩∖:":
            if mark in words and len(pieces := self.split(mark)[1]) > 1:
                return Group(mark, tuple([piece.side() for piece in pieces]))
        text = "".join(self.words)
        x = NAMED.get(text) or self.total()
        if type(x) is Scalar and "." in text and (decimal := DECIMAL.fullmatch(text)):
            return x._replace(places=max(0, len(decimal[1]) - int(decimal[2] or 0)))
        return x

    def total(self) -> Value:
        marks, pieces = self.split("+-")
        if not marks:
            return self.product()
        signed = [*zip(["+", *marks], pieces, strict=True)][not pieces[0].words :]
        terms = [negative(p.product()) if mark == "-" else p.product() for mark, p in signed]
        return reduce(partial(combine, operator.add), terms)

    def product(self) -> Value:
        x = self.factor()
        while self.rest:
            op = operator.truediv if self.take("*", "/") == "/" else operator.mul
            x = combine(op, x, self.factor())
        return x

    def take(self, *wanted: str) -> str:
        """The next token of a product if it is one of these, else ""."""
        return self.rest.pop() if self.rest and self.rest[-1] in wanted else ""

    def bracket(self) -> list[str]:
        """The next token of a product, with all that it holds if it is a bracket."""
        out, depth = [], 0
        while not out or depth:
            out.append(self.rest.pop())
            depth += DEPTH.get(out[-1], 0)
        return out

    def index(self) -> str:
        return "".join(self.bracket()).replace(" ", "").strip("{}")

    def factor(self, marks: str = "^!") -> Value:
        x = self.atom()
        while token := self.take(*marks):
            x = lift(power, x, self.factor("^")) if token == "^" else lift(factorial, x)
        return x

    def atom(self) -> Value:
        if self.rest[-1] in OPEN:
            return self.group()
        token = self.rest.pop()
        if token[0].isdigit() or token[0] == "." and token[1:]:
            x = Scalar((literal(token),))
            return x._replace(unit="base" + self.index()) if self.take("_") else x
        if token in PAIRS:
            return lift(PAIRS[token], self.atom(), self.atom())
        if token == "\\sqrt":
            n = Slice(self.bracket()[1:-1]).total() if self.rest[-1] == "[" else exact(2)
            return lift(power, self.atom(), lift(operator.truediv, exact(1), n))
        if token in CALLS:
            return self.call(token[1:])
        name = token.strip(" ⟦⟧")
        if token[0] == "⟦" or name in CONSTANTS:
            return Scalar((Fraction(1),), name) if token[0] == "⟦" else CONSTANTS[name]
        unread = token in UNREAD or token[0] == " " and name[2:]
        if unread or not name.isalpha() and token[0] != "\\":
            raise ValueError(token)
        if name.isalpha() and name[1:]:
            self.rest.append(name[1:])
            return symbol(name[0])
        while mark := self.take("_", "'"):
            name += mark + (self.index() if mark == "_" else "")
        return symbol(name)

    def group(self) -> Value:
        """A bracketed number, or a tuple, interval, list or set."""
        opening, *words, closing = self.bracket()
        kind, parts = opening + closing, Slice(words).split("|:")[1]
        if kind == "\\{\\}" and len(parts) == 2 and {*parts[0].words} & {"x", "∈"}:
            sets = [part.answer()._replace(name="") for part in parts if part.words != ["x"]]
            return Group("∩", tuple(sets))  # { x ∈ ℝ | x > 2 }
        alone, inner = len(self.words) == len(words) + 2, Slice(words)
        product = opening == "{" and not alone and "".join(words).isalpha()  # \frac{mgh}{2}
        x = inner.total() if product else inner.answer()
        grouping = ("{}", "()", "[]")[: 3 - alone]  # not [5], but 2[5]
        if type(x) is Scalar and not x.name and kind in grouping:
            return x
        if opening == "\\lvert":
            return lift(abs, x)
        if opening in ("\\lfloor", "\\lceil"):
            return floor(x) if opening == "\\lfloor" else negative(floor(negative(x)))
        kind = {"{}": "list", "\\{\\}": "set"}.get(kind, kind)
        if x[0] == "list":
            return x._replace(kind=kind)
        return x if kind in ("list", "()") else Group(kind, (x,))

    def call(self, name: str) -> Scalar:
        """A function of what stands in brackets after it, or of the factors up to the next one."""
        base = self.atom() if self.take("_") else None
        exponent = self.factor("^") if self.take("^") else None
        base = self.atom() if self.take("_") else base
        words = self.bracket()
        while words[0] not in OPEN and self.rest and self.rest[-1] not in CALL_ENDS:
            words += self.bracket()
        x = Slice([{"⟦degree⟧": "\\degree"}.get(word, word) for word in words]).total()
        if exponent == exact(-1) and "arc" + name in CURVES:
            name, exponent = "arc" + name, None
        if name in CURVES:
            y = lift(CURVES[name], *getattr(x, "items", [x]))
        elif name == "exp":
            y = lift(power, symbol("e"), x)
        else:
            base = base or {"ln": symbol("e"), "lg": exact(10)}.get(name)
            base = lift(cmath.log, base) if base else symbol("log")
            y = lift(operator.truediv, lift(cmath.log, x), base)
        return lift(power, y, exponent) if exponent else y


def text_of(words: list[str]) -> Group:
    text = " ".join(" ".join(words).split())
    if "\\" not in text and re.search(r"[^\W\d_]{3}|^no$", text.casefold()):
        text = re.sub(r"[.,;:!'\"]|\b(?:a|[Aa]n|[Tt]he|[Aa]ll)\b|^A\b(?=.)", " ", text).casefold()
    return Group("text", (" ".join(text.replace("{", " ").replace("}", " ").split()),))


@lru_cache(maxsize=8192)
def read(text: str) -> Value:
    """One answer, as a Scalar, or a Group; of kind "text" when it cannot be read.  Never raises."""
    if len(text) > MAX_ANSWER:
        return Group("text", (text,))
    if plain := PLAIN.fullmatch(text):  # most answers: the long way would give the same, slower
        sign, n, d, part, top, bottom = plain.groups("")
        n = n.replace(",", "") + part or top
        value = Fraction(int(n), int(d or bottom or 10 ** len(part)))
        return Scalar((-value if sign else value,), places=len(part) or None)
    words = tokens(text)
    try:
        deep = len(words) > MAX_DEPTH and max(accumulate([DEPTH.get(w, 0) for w in words]))
        if deep > MAX_DEPTH or len(words) > 1000:
            raise ValueError("too long or too deep")
        ways = [words]
        if "±" in words or "∓" in words:
            ways = [[{"±": s, "∓": t}.get(w, w) for w in words] for s, t in ("+-", "-+")]
        values = [Slice(way).answer() for way in ways]
    except FAILURES:
        name, equals, last = " ".join(words).rpartition("=")
        if equals and not re.search(r"[,∧<>≤≥≠…?]", name):  # a name that cannot be read
            return read(last)
        return text_of(words)
    if len(values) == 1:
        return values[0]
    kind = {"set": "set", "∖": "∩"}.get(values[0][0], "list")  # x ≠ ±1 are both
    items = [x for v in values for x in (v.items if v[0] == kind else (v,))]
    return Group(kind, tuple(dict.fromkeys(items)))

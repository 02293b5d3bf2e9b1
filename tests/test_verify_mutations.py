"""Twenty-eight deliberate faults in verify.py: a compact suite of checks must notice each."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

import verify

SOURCE = Path(verify.__file__).read_text("utf-8")

# response, gold, verdict
CHECKS = [
    ("\\boxed{-5}", "-5", True),
    ("\\boxed{-5}", "5", False),
    ("\\boxed{3-5}", "-2", True),
    ("\\boxed{\\frac{3}{4}}", "\\frac{3}{5}", False),
    ("\\boxed{6/4}", "3/2", True),
    ("\\boxed{1} so \\boxed{2}", "2", True),
    ("\\boxed{1} so \\boxed{2}", "1", False),
    ("\\boxed{7", "7", False),
    ("<think>\\boxed{1}</think> none", "1", False),
    ("\\boxed{1} or \\boxed{2}", "1,2", True),
    ("\\boxed{1} and then \\boxed{2}", "1,2", False),
    ("It is not \\boxed{5}", "5", False),
    ("\\boxed{5} is wrong.", "5", False),
    ("\\boxed{1,000}", "1000", True),
    ("\\boxed{1,00}", "100", False),
    ("\\boxed{2\\sqrt{3}}", "\\sqrt{12}", True),
    ("\\boxed{\\sqrt{3}}", "3", False),
    ("\\boxed{1/(1+\\sqrt2)}", "\\sqrt2-1", True),
    ("\\boxed{(x+1)^2}", "x^2+2x+1", True),
    ("\\boxed{\\sqrt{x^2}}", "x", False),
    ("\\boxed{(2,1)}", "(1,2)", False),
    ("\\boxed{2,1}", "1,2", True),
    ("\\boxed{1,2}", "1,2,3", False),
    ("\\boxed{1,2,3}", "1,2", False),
    ("\\boxed{[1,2]}", "[1,2)", False),
    ("\\boxed{1<x\\le2}", "(1,2]", True),
    ("\\boxed{1<x\\le2}", "(1,2)", False),
    ("\\boxed{x=5}", "y=5", False),
    ("\\boxed{x=5}", "5", True),
    ("\\boxed{0.28}", "28", False),
    ("\\boxed{28\\%}", "0.28", False),
    ("\\boxed{0.28}", "28\\%", True),
    ("\\boxed{28\\%}", "28", True),
    ("\\boxed{5\\text{ cm}}", "5", True),
    ("\\boxed{5\\text{ cm}}", "5\\text{ m}", False),
    ("\\boxed{10m}", "10", False),
    ("\\boxed{4!}", "24", True),
    ("\\boxed{4!}", "4", False),
    ("\\boxed{b}", "B", False),
    ("\\boxed{tea}", "eat", False),
    ("\\boxed{100/7}", "14.29", True),
    ("\\boxed{100/7}", "14.28", False),
    ("\\boxed{0.33}", "1/3", False),
    ("\\boxed{0.3333}", "1/3", True),
    ("\\boxed{1000001}", "1000000", False),
    ("\\boxed{42 43}", "43", False),
    ("\\boxed{1\\frac12}", "3/2", True),
    ("\\boxed{60^\\circ}", "\\pi/3", True),
    ("\\boxed{45^\\circ}", "\\pi/3", False),
    ("\\boxed{\\pm2}", "2,-2", True),
    ("\\boxed{2}", "\\pm2", False),
    ("\\boxed{2x+1=y}", "y=2x+1", True),
    ("\\boxed{31}", "31_4", True),
    ("\\boxed{31_4}", "31", False),
    ("\\boxed{i^2}", "-1", True),
    ("\\boxed{(C) 9}", "C", True),
    ("\\boxed{(C) 9}", "D", False),
    ("\\boxed{}", "", False),
    ("Answer: 5, which is odd", "5", True),
    ("Answer: 5", "5", True),
    ("Answer: 4\nAnswer: 5", "4", False),
    ("\\boxed{5}", 5, False),
    ("\\boxed{2^{10}}", "1024", True),
    (
        "\\boxed{\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}}",
        "\\begin{pmatrix}1&2\\\\3&5\\end{pmatrix}",
        False,
    ),
    ("\\boxed{x+y=1}", "x+y=2", False),
    ("\\boxed{x+y=1}", "2x+2y=2", True),
    ("\\boxed{-\\frac{3}{4}}", "-3/4", True),
    ("\\boxed{2,3,3}", "2,2,3", False),
    ("\\boxed{2 3}", "6", False),
    ("\\boxed{$$}", "$$", False),
    ("\\boxed{2^{99999}}", "2^{88888}", False),
    ("\\boxed{11,2}", "13", False),
    ("\\boxed{5 \\text{ or more}}", "5", False),
    ("\\boxed{(0,1)\\cup(2,3)}", "(0,1)", False),
    ("\\boxed{" + "(" * 90 + "5" + ")" * 90 + "}", "5", False),
]

# a fault: what the source says, what it says instead
FAULTS = [
    ('sign *= {"+": 1, "-": -1', 'sign *= {"+": 1, "-": 1'),  # a dropped minus
    ("int(d or bottom or 10 ** len(part))", "10 ** len(part)"),  # an ignored denominator
    ("value = -value if sign else value", "pass"),  # the minus before \frac
    (
        "    return abs(Fraction(x) - Fraction(y)) <= Fraction(1, 2 * 10**places)",
        "    return True",
    ),  # any decimal rounds
    ("places >= (4 if g.places is None", "places >= (1 if g.places is None"),  # 0.33 for 1/3
    ("if len(gs) != len(as_):", "if len(gs) > len(as_):"),  # extra entries are free
    ("        del left[match]\n", ""),  # one entry matches many
    ("if not loose or len(gs) > 40:", "if len(gs) > 40:"),  # tuples without order
    (
        "kind = opening + self.take(*CLOSE)",
        'kind = opening + (self.take(*CLOSE) and ")")',
    ),  # closing brackets ignored
    (
        'kind = ("(" if ops[0] == "<" else "[") + (")" if ops[1] == "<" else "]")',
        'kind = "()"',
    ),  # strict and weak inequalities confused
    ("g.unit and a.unit and g.unit != a.unit", "False"),  # wrong units accepted
    ('a.unit.startswith("base") and a.unit != g.unit', "False"),  # another base accepted
    ('("percent", Fraction(1, 100))', '("percent", Fraction(1, 10))'),  # a wrong percentage
    (
        "if any(equations) or g.name and a.name and g.name != a.name:",
        "if any(equations):",
    ),  # x = 5 for y = 5
    (
        'end = text.rfind("box", 0, end)',
        'end = text.find("box") if end == len(text) else -1',
    ),  # the first box
    (
        '            if depth:\n                return end, len(text), ""\n',
        "",
    ),  # open boxes accepted
    (
        "if not TAKEN_BACK.match(text, end) and not DENIED.search(before):",
        "if True:",
    ),  # retracted boxes accepted
    (
        'return response[response.rfind("</think>") + 8 :] if',
        "return response if",
    ),  # the reasoning is searched too
    (
        "if UNJOINED.search(gap) or not JOINED.fullmatch(gap):",
        "if not gap:",
    ),  # any boxes are one answer
    ('sign = -1 if k == 2 and name != "∞" else 1', "sign = 1"),  # sqrt(x^2) is x
    (
        "total[m] = total.get(m, 0) + c\n        return self.tidy(total)",
        "total[m] = c\n        return self.tidy(total)",
    ),  # addition overwrites
    ("c, e = c * base, e - 1", "e = e - 1"),  # sqrt 3 times sqrt 3 is 1
    (
        "        if not token.isdigit():\n            return _plain(self.atom())",
        "        if token:\n            return _plain(self.atom())",
    ),  # \frac12
    (
        "return self.raised or not self.tokens[self.pos - 1][-1:].isdigit()",
        "return True",
    ),  # 42 43 is a product
    ("if not NOT_UNITS.isdisjoint(words)", "if not words"),  # "5 or more" is 5
    ("or not gold.strip(", "or gold is None or not str("),  # an empty gold
    ("if self.depth > MAX_DEPTH or", "if"),  # unbounded nesting
    (
        'return self.opaque("power", a, b)\n        if len(a) > 1:',
        "return a\n        if len(a) > 1:",
    ),  # huge exponents ignored
]


def load(source: str, path: Path) -> ModuleType:
    path.write_text(source, "utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[path.stem]
    return module


def mistakes(module: ModuleType) -> list:
    found = []
    for response, gold, right in CHECKS:
        try:
            verdict = module.grade(response, gold)
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            NameError,
            TypeError,
            ValueError,
        ) as error:
            verdict = error
        if verdict is not right:
            found.append((response, gold, verdict))
    return found


def test_the_checks_pass_without_a_fault(tmp_path: Path) -> None:
    assert mistakes(load(SOURCE, tmp_path / "sound.py")) == []


@pytest.mark.parametrize(("said", "instead"), FAULTS, ids=range(len(FAULTS)))
def test_every_fault_is_noticed(said: str, instead: str, tmp_path: Path) -> None:
    assert SOURCE.count(said) == 1, "the list of faults has fallen behind the source"
    assert mistakes(load(SOURCE.replace(said, instead), tmp_path / "faulty.py"))

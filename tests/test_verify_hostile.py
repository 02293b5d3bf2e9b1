"""Inputs meant to hang, crash or fool the verifier: none raises, takes 20 ms or is right."""

import builtins
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import algebra
import verify
from verify import grade

N, LIMIT = 1 << 20, 0.02  # characters, seconds
CHARACTERS = [*'7 \n\ta{}\\$,.-^([|"\0\ud800数😀７½²#=%!_~&<*:', "e\u0301"]
WORDS = [
    "\\boxed{", "\\boxed{}", "\\boxed{{", "\\boxed", "box", "\\fbox", "boxed 7", "\\frac",
    "\\sqrt{", "\\text{", "answer", "Answer: ", "the answer is ", "<answer>", "</answer>",
    "</think>", "<think>", "####", "final answer\n", "1,", "1,000", "\\left(", "\\begin{pmatrix}",
    "1 1/", "12:34", "not ", "\\text{a}", "\\overline{3}", "0.3", "^{\\circ}", "\\pm", "\\,",
]  # fmt: skip
EXPRESSIONS = [
    "10^999999", "9^9^9^9", "9^{9^{9^{9}}}", "2^{2^{2^{49}}}", "10^{-999999}", "1e999999",
    "1e-999999", "1e4000", "999999!", "9!!!!!!!!", "((9!)!)!", "(1000!)^{1000}",
    "\\binom{99999}{50000}", "\\binom{1000}{500}^{1000}", "0^{-1}", "1/0", "\\frac{1}{0}", "0/0",
    "\\sqrt{-1}^{9999}", "\\sqrt[0]{5}", "\\sqrt[999999]{2}", "\\sqrt{10^{3999}+1}",
    "(1+\\sqrt2)^{9999}", "x^{9999}", "(x+y)^{10000}", "x^{x^{x^{x}}}", "e^{e^{e^{e}}}",
    "\\pi^{9999}", "(-1)^{1/2}", "(-8)^{1/3}", "i^i", "0^0", "1" * 4000, "1" * 5000,
    "0." + "1" * 4000, "1" * 1000 + "!", "/".join("1" * 900), "+".join("1" * 900),
    "^".join("2" * 900), "*".join(["9^{999}"] * 250),
    "+".join(f"\\sqrt{{{n}}}" for n in range(2, 170)),
    "".join(f"(1+\\sqrt{{{p}}})" for p in (2, 3, 5, 7, 11, 13, 17, 19, 23)),
    "1/(" + "+".join(f"\\sqrt{{{p}}}" for p in (2, 3, 5, 7, 11, 13)) + ")", "(" * 1000,
    "(" * 500 + "1" + ")" * 500, "{" * 900 + "1" + "}" * 900, "\\frac" * 300,
    "\\sqrt" * 300 + "2", "\\sqrt{" * 200 + "2" + "}" * 200, "-" * 1000 + "1", "±" * 500 + "1",
    "\\pm1" * 300, "|" * 1000, "|" * 501 + "1" + "|" * 501, "1!" * 500, "\\sin" * 300 + "x",
    "\\sin x" * 200, "x_" * 500, "x_{" * 300, "a" * 2000, "ab " * 600, "1," * 1000,
    "1," * 999 + "1", "(1,2)," * 300, "{1,2}" * 300, "\\{" * 300 + "\\}" * 300, "[1,2)" * 300,
    "1\\cup" * 300, "=1" * 700, "x=" * 700, "<1" * 700, "1<" * 700, "x\\in" * 400,
    "\\begin{pmatrix}" * 100, "\\begin{pmatrix}" + "1&" * 500 + "1\\end{pmatrix}",
    "\\begin{pmatrix}" + "1\\\\" * 500 + "\\end{pmatrix}", "&" * 1000, "\\\\" * 900, "\\" * 2001,
    "$" * 2001, "'" * 1000, "x" + "'" * 1000, "%" * 1000, "°" * 1000, ":" * 1000, "1:" * 700,
    "0.(3)" * 300, "0.\\overline{" + "3" * 900 + "}", "0." + "3" * 900 + "...", "1 1/2 " * 300,
    "½" * 500, "²" * 500, "5" + "²" * 500, "5_" + "2" * 1000, "1_000" * 300, "1,000" * 300,
    "1{,}" * 400, "1\\," * 500, "5 " + "cm " * 500, "5\\text{ cm}" * 150, "\\text{" * 300,
    "five " * 300, "million " * 200, "5 million " * 150, "(A) " * 400, "A) " * 500,
    "\\text{(A)}" * 150, "and " * 500, "or" * 900, " or " * 400, "\0" * 100, "5\0", "\ud800",
    "5\ud800", "\udfff" * 500, "５" * 2000, "٣" * 100, "५", "²", "∞" * 500, "∞-∞", "∞/∞",
    "\\infty^{\\infty}", "nan", "NaN", "inf", "-inf", "None", "True", "null",
    "__import__('os').system('true')", "eval('1')", "().__class__", "lambda: 5", "5;5", "5#5",
    "5//1", "5**", "**5", "5..", "..5", "5...5", "5e", "5e+", "0x5", "5j", "5L", "+5+", "5-",
    "--", "+", "=", "5==5==", "5≠5", "\\", "\\\\", "{}", "()", "[]", "e^{10^{9}}",
    "\\cos" * 300 + "1", "\\lfloor" * 300, "\\lfloor 10^{400}\\pi \\rfloor", "\\arctan(10^{300})",
    "\\cosh 1000", "\\log_1 5", "\\log_0 0", "\\max()", "\\max(1,i)", "\\tan\\frac{\\pi}{2}",
    "\\infty\\cdot 0", "\\binom{x}{10^{9}}", "(x+1)!^{(y+2)!}", "[1,\\infty]\\cap" * 90 + "[2,3]",
    "\\{" + ",".join(map(str, range(400))) + "\\}", "\\{1\\}\\cup" * 200 + "\\{2\\}",
    "x\\ne" * 300, "2^" * 600 + "2", "\\{x|" * 300,
]  # fmt: skip


def at_once(response: str, gold: str, right: bool = False) -> bool:
    """Whether the verdict is `right`, and one of three, with cold caches, within the limit."""
    for _ in range(3):
        algebra.tokens.cache_clear()
        algebra.read.cache_clear()
        start = time.process_time()
        verdict = grade(response, gold)
        if time.process_time() - start < LIMIT:
            return verdict is right
    return False


SHAPES = ["{}", "\\boxed{{{}}}", "\\boxed{{5}} {}", "{} \\boxed{{6}}", "Answer: {}"]


@pytest.mark.parametrize("character", CHARACTERS, ids=ascii)
@pytest.mark.parametrize("shape", SHAPES)
def test_megabytes_of_one_character(character: str, shape: str) -> None:
    assert at_once(shape.format(character * (N // len(character))), "42")


@pytest.mark.parametrize("word", WORDS)
def test_megabytes_of_one_word(word: str) -> None:
    assert at_once(word * (N // len(word)), "42") and at_once(word * 300, "42")


def asked(text: str) -> list[tuple[str, str]]:
    return [(f"\\boxed{{{text}}}", "42"), ("\\boxed{42}", text), (f"Answer: {text}", "x+42")]


@pytest.mark.parametrize("text", EXPRESSIONS, ids=range(len(EXPRESSIONS)))
def test_expressions(text: str) -> None:
    assert all(at_once(*pair) for pair in asked(text))


def test_a_worker_thread_grades_as_the_main_one() -> None:
    """Limits by signals work in the main thread only."""
    pairs, found = [pair for text in EXPRESSIONS for pair in asked(text)], []

    def work() -> None:
        found.extend(grade(*pair) for pair in [*pairs, ("\\boxed{\\sqrt8}", "2\\sqrt2")])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert found == [False] * len(pairs) + [True]


def test_grades_and_values_are_the_same_in_every_process() -> None:
    texts = ["\\sqrt2+x_1\\pi", "\\{b,a,c\\}", "\\pm\\sin y", "(1,2)\\cup(3,x)", "\\text{The end}"]
    code = f"import verify; print([verify.read(t) for t in {texts!r}])"
    command, where = [sys.executable, "-c", code], Path(verify.__file__).parent
    seeds = [os.environ | {"PYTHONHASHSEED": seed} for seed in "123"]
    assert len({subprocess.check_output(command, cwd=where, env=env) for env in seeds}) == 1


PAYLOADS = [
    "__import__('os').system('echo 42')", "eval('6*7')", "exec('x=42')", "open('x','w')",
    "(lambda: 42)()", "().__class__.__base__.__subclasses__()", "\\input{/etc/passwd}",
    "\\write18{touch x}", "f'{42}'", "`echo 42`", "$(echo 42)", "sympify('42')",
]  # fmt: skip


@pytest.mark.parametrize("text", PAYLOADS)
def test_no_text_is_executed(text: str, monkeypatch) -> None:
    def never(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("executed")

    with monkeypatch.context() as patched:
        for name in ("eval", "exec", "open"):
            patched.setattr(builtins, name, never)
        patched.setattr(os, "system", never)
        graded = [grade(*pair) for pair in asked(text)]
    assert not any(graded)


THINGS = [
    None, 5, 5.0, float("nan"), float("inf"), True, b"\\boxed{5}", bytearray(b"5"), ["5"], ("5",),
    {"a": "5"}, {5}, object(), 5j, range(5), str,
]  # fmt: skip


@pytest.mark.parametrize("thing", THINGS, ids=map(str, range(len(THINGS))))
def test_things_that_are_not_text(thing: object) -> None:
    assert grade(thing, "5") is grade("\\boxed{5}", thing) is grade(thing, thing) is False


@pytest.mark.parametrize("gold", ["", " ", "\n", "$", "$$", ".", "\t\r\n"])
@pytest.mark.parametrize("response", [
    "", " ", "\\boxed{}", "\\boxed{ }", "\\boxed{42}", "Answer:", "$$", ".", "<answer></answer>",
])  # fmt: skip
def test_empty_gold_is_never_right(response: str, gold: str) -> None:
    assert grade(response, gold) is False


@pytest.mark.parametrize("filler", ["so, x = 5. ", "box ", "the answer is 5 ", "\\frac{1}{2}"])
def test_a_megabyte_is_graded_in_milliseconds(filler: str) -> None:
    assert at_once(filler * (N // len(filler)) + "\\boxed{42}", "42", right=True)


PIECES = [
    " ", "0", "a", "A", "{", "}", "\\", "(", ")", "[", "$", ",", ".", "-", "_", "^", "=", ":",
    "*", "`", "\n", "'", '"', "~", "1 ", "1,", "1,000", "{,}", "\\,", "\\! ", "a ", "a_", "_a",
    "a'", "(a)", "(", "_{", "_{a}", "^{-1}", "\\text{", "\\text{a}", "boxed ", "boxed1", "box",
    "answer ", "answer*", "final ", "final answer ", "not ", "is ", "it is ", "and ", "a, ",
    "then ", "1/", "1 1/", "0.", "0.3", ".(", "e1", "\\frac{", "\\frac{1}{2}", "\\begin{",
    "\\circ", "^ { ",
]  # fmt: skip
PATTERNS = {f"row {n}": (row[1], {"sub"}) for n, row in enumerate(algebra.REWRITTEN)}
for module in (verify, algebra):
    source = Path(module.__file__).read_text("utf-8")
    for name in (k for k, x in vars(module).items() if isinstance(x, re.Pattern)):
        uses = set(re.findall(rf"\b{name}\.(search|match|fullmatch|findall|finditer)\(", source))
        PATTERNS[name] = vars(module)[name], uses


@pytest.mark.parametrize("name", PATTERNS)
def test_no_pattern_backtracks_long(name: str) -> None:
    """Two milliseconds for as many of any piece as are ever searched, with an odd end or none."""
    pattern, methods = PATTERNS[name]
    length = verify.MAX_BOX if name in vars(verify) else verify.MAX_ANSWER

    def seconds(text: str) -> float:
        start = time.process_time()
        for method in methods or {"search"}:
            found = pattern.sub("", text) if method == "sub" else getattr(pattern, method)(text)
            if method == "finditer":
                sum(1 for _ in found)
        return time.process_time() - start

    for piece in PIECES:
        for end in ("", "\x01"):
            text = piece * (length // len(piece)) + end
            assert min(seconds(text) for _ in range(3)) < 0.002, (piece, end)

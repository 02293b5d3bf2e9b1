"""Countdown, a world in which search can be seen.

    python -m tasks.countdown            # sizes of the splits, a problem, three search traces

A problem gives numbers and a goal: combine all the numbers, each once, into the goal.  A *search
trace* tries, and "." ends it:

    use 8 3 goal 24 ; try 8 + 3 = 11 no wait left 8 3 goal 24 ; try 8 * 3 = 24 yes answer 8 * 3 .

After a "no" it may `wait` (start over), go `back` (to the last numbers with a try left) or `stop`.
Operands and operation are a free choice, a fork; the arithmetic and the bookkeeping are determined.
The goal is restated before each choice: a model this small never learns to look far behind.

Real text also has *wording*: choices that decide nothing.  With `filler_share` above 0 a phrase of
filler words stands before every `try`, `left`, `no` and `yes`, each place with its own synonyms,
drawn with `filler_entropy` nats after all decisions are made; the grader does not see them:

    so let me try 8 + 3 = 11 so let us no stop .

A world is what the loop asks of a task: the public methods that Countdown and maths.Maths share.
"""

import ast
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property, reduce
from itertools import combinations, combinations_with_replacement
from operator import add, mul, sub, truediv
from random import Random

from infra.files import UserError
from tasks.tokenizer import Tokenizer, word_tokenizer

EOS = "."
WORDS = [EOS, *"use goal ; try = left no yes wait back stop answer ( )".split()]
KINDS = "bookkeeping", "decisions", "filler"
# the synonyms for each place of a phrase, the usual one first
FILLER = """so thus hence then therefore well okay right
let allow help have make get ask bid
me us you them him her it folks
now here next today first again once still
just simply only merely quickly slowly calmly briefly
see check look consider examine view inspect find
whether if how what why where when which
this that these those such each any some"""
FILLER = [row.split() for row in FILLER.splitlines()]
SLOTS = "try left no yes".split()  # words that a phrase stands before: one in 6 tokens
# characters and parentheses of an answer that is read: far more than 8 numbers need
MAX_ANSWER, MAX_DEPTH = 400, 30
OPERATORS = {ast.Add: add, ast.Sub: sub, ast.Mult: mul, ast.Div: truediv}


@dataclass(frozen=True, order=True)
class Problem:
    """`numbers` descending, each to be used exactly once, to make `goal`."""

    numbers: tuple[int, ...]
    goal: int

    @property
    def prompt(self) -> str:
        return f"use {' '.join(map(str, self.numbers))} goal {self.goal} ;"


@dataclass(frozen=True)
class Countdown:
    """A world's rules.  Every value met on the way is an integer from 0 to `max_value`; `/` must
    divide."""

    n_numbers: int = 3
    max_number: int = 12
    ops: str = "+-*"
    max_value: int = 30
    min_goal: int = 3
    attempts: int = 6  # a trace of the base model stops after so many failures
    filler_share: float = 0.0  # of a trace's tokens
    filler_entropy: float = 0.69  # nats of each filler word

    def __post_init__(self) -> None:
        if not self.ops or any("+-*/".count(o) != self.ops.count(o) for o in self.ops):
            raise UserError(f"--ops {self.ops!r}: it must be some of +-*/, each once")
        if self.max_number > self.max_value:
            raise UserError(f"--max-value {self.max_value}: it must be at least --max-number")
        if self.phrase(1) > len(FILLER) or self.filler_entropy > math.log(len(FILLER[0])):
            raise UserError("--filler-share is at most 0.57, --filler-entropy at most 2.07 nats")

    @cache  # noqa: B019  worlds are values, and few
    def tokenizer(self) -> Tokenizer:
        filler = [w for row in FILLER for w in row] if self.filler_share else []
        return word_tokenizer([*WORDS, *self.ops, *map(str, range(self.max_value + 1)), *filler])

    def encode(self, problem: Problem) -> list[int]:
        """The prompt's ids."""
        return self.tokenizer().encode(problem.prompt)

    def name(self, problem: Problem) -> str:
        """What tells this problem from all others."""
        return problem.prompt

    def cluster(self, problem: Problem) -> tuple[int, ...]:
        """What problems share that are hard or easy together: the numbers."""
        return problem.numbers

    def asked(self, problem: Problem) -> tuple[str, str]:
        """The question and the right answer, as text."""
        return problem.prompt, str(problem.goal)

    def moves(self, numbers: tuple[int, ...]) -> list[tuple[int, str, int, int, tuple[int, ...]]]:
        """Every (a, op, b, result, numbers left) from here once, larger operand first."""
        out = {}
        for i, j in combinations(range(len(numbers)), 2):
            a, b = max(numbers[i], numbers[j]), min(numbers[i], numbers[j])
            rest = numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]
            for op in self.ops:
                if op == "/" and (b == 0 or a % b):
                    continue
                c = {"+": a + b, "-": a - b, "*": a * b, "/": a // max(b, 1)}[op]
                if c <= self.max_value:  # the same try may leave the same numbers in another order
                    out.setdefault((a, op, b, tuple(sorted(rest))), (a, op, b, c, (c, *rest)))
        return list(out.values())

    @cache  # noqa: B019
    def reachable(self, numbers: tuple[int, ...]) -> frozenset[int]:
        """All values that using every number once can make."""
        if len(numbers) == 1:
            return frozenset(numbers)
        after = (tuple(sorted(m[4])) for m in self.moves(numbers))
        return frozenset().union(*map(self.reachable, after))

    def problems(self) -> list[Problem]:
        """Every solvable problem of this world, in a fixed order."""
        sets = combinations_with_replacement(range(self.max_number, 0, -1), self.n_numbers)
        return [
            Problem(s, g) for s in sets for g in sorted(self.reachable(s)) if g >= self.min_goal
        ]

    def splits(self) -> dict[str, list[Problem]]:
        """Disjoint "train", "val" and "test" problems, the same on every machine and for every seed
        of a run.  No number multiset of the test split occurs in the other two; those of
        validation, which is for choosing settings, are only new as (numbers, goal) pairs."""
        rng = Random(0)
        out, held_out = {"train": [], "val": [], "test": []}, {}
        for p in self.problems():
            if p.numbers not in held_out:
                held_out[p.numbers] = rng.random() < 0.15
            split = "test" if held_out[p.numbers] else "val" if rng.random() < 0.15 else "train"
            out[split].append(p)
        for problems in out.values():
            rng.shuffle(problems)
        return out

    def trace(
        self, problem: Problem, rng: Random, skill: float, attempts: int = 6, p_stop: float = 0.3
    ) -> str:
        """A search trace for `problem`, prompt excluded, ending in ".".

        `skill` is the chance that the whole trace prefers moves after which the goal can still be
        reached; otherwise its moves are uniform.  No finished attempt is repeated.  After a "no" it
        stops with chance `p_stop` (always after `attempts`), or starts over, or goes back a try."""
        guided = rng.random() < skill
        start = [(n, str(n)) for n in problem.numbers]  # values with the expressions that made them
        path, words, tried = (), [], 0  # path: the moves that led here
        failed = set()  # paths below which nothing is left to try

        def state(path: tuple) -> list[tuple[int, str]]:
            return reduce(_apply, path, start)

        def moves(path: tuple) -> list:
            found = self.moves(tuple(v for v, _ in state(path)))
            # without "-" a move may lead to numbers that no move is open to
            return [m for m in found if (*path, m) not in failed and self.reachable(m[4])]

        while True:
            choice = moves(path)
            if guided:
                choice = [m for m in choice if problem.goal in self.reachable(m[4])] or choice
            a, op, b, c, _ = move = rng.choice(choice)
            path = (*path, move)
            words += ["try", str(a), op, str(b), "=", str(c)]
            if len(path) < len(start) - 1:
                words += _left(state(path), problem.goal)
                continue
            if c == problem.goal:
                return " ".join([*words, "yes", "answer", state(path)[0][1], EOS])
            words.append("no")
            tried += 1
            failed.add(path)
            while path and not moves(path[:-1]):  # the last way below a node failed: so did it
                path = path[:-1]
                failed.add(path)
            if not path or tried == attempts or rng.random() < p_stop:
                return " ".join([*words, "stop", EOS])
            back = len(path) > 1 and rng.random() < 0.5
            path = path[:-1] if back else ()
            words += ["back" if back else "wait", *_left(state(path), problem.goal)]

    def phrase(self, half: int) -> int:
        """Filler words before a `try` (half 0) or before what follows it (1): together so many to
        the 12 tokens between two tries that their share is `filler_share`."""
        words = round(12 * self.filler_share / (1 - self.filler_share))
        return (words + half) // 2

    @cached_property
    def wording(self) -> tuple[list[float], frozenset[str]]:
        """(the chance of each synonym of a place, all filler words): as few synonyms as can have
        `filler_entropy`; the usual one has a chance of its own and the others share the rest."""
        k = max(2, math.ceil(math.exp(self.filler_entropy) - 1e-9))
        low, high = 1 / k, 1.0
        for _ in range(60):  # entropy falls from ln k to 0 between them
            p = (low + high) / 2
            rest = (1 - p) / (k - 1)
            h = -p * math.log(p) - (1 - p) * math.log(max(rest, 1e-300))
            low, high = (p, high) if h > self.filler_entropy else (low, p)
        words = frozenset(w for row in FILLER for w in row) if self.filler_share else frozenset()
        return [p, *[rest] * (k - 1)], words

    def worded(self, trace: str, rng: Random) -> str:
        """The trace with its phrases; in a world without filler the trace itself."""
        if not self.filler_share:
            return trace
        chances, out = self.wording[0], []
        for word in trace.split():
            if word in SLOTS:
                rows = FILLER[: self.phrase(word != "try")]
                out += [rng.choices(row[: len(chances)], chances)[0] for row in rows]
            out.append(word)
        return " ".join(out)

    def plain(self, text: str) -> str:
        """The text without filler words."""
        filler = self.wording[1]
        return " ".join(w for w in text.split() if w not in filler) if filler else text

    def kinds(self, ids: Sequence[int]) -> list[int]:
        """Of every token of a stream of prompts and responses, what it is by the grammar: an index
        into KINDS.  Decisions are the operands and the operator after a `try`, the operator alone
        where two numbers are left, and the word after a `no` unless it must be `stop`."""
        words, filler, out = self.tokenizer().words, self.wording[1], []
        left, noes, since, listing, before = 0, 0, 9, False, ""  # since: tokens since the last try
        for word in ("" if i < 256 else words[i - 256] for i in ids):
            if word in filler:
                out.append(KINDS.index("filler"))
                continue
            since += 1
            chosen = since == 2 or (since in (1, 3) and left > 2)
            out.append(int(chosen or (before == "no" and noes < self.attempts)))
            if word in ("use", "left"):
                left, listing, noes = 0, True, noes * (word == "left")
            listing = listing and word != "goal"
            left += listing and word.isdigit()
            since *= word != "try"
            noes += word == "no"
            before = word
        return out

    def reward(self, problem: Problem, response: str) -> float:
        """1.0 when the response ends in "." and the text after its last "answer" is an expression
        over exactly the given numbers that equals the goal, else 0.0.  Never raises."""
        found = value_of(self.answer(problem, response) or "")
        return float(found == (problem.goal, sorted(problem.numbers)))

    def answer(self, problem: Problem, response: str) -> str | None:
        """The text between the last "answer" and the final ".", or None where one is missing."""
        _, found, answer = self.plain(response).rstrip().rpartition("answer ")
        return answer.removesuffix(EOS).strip() if found and answer.endswith(EOS) else None

    def same(self, a: str, b: str) -> bool:
        """Whether two answers are one vote."""
        return a == b

    def statements(self, text: str) -> list[bool]:
        """Of every statement "a op b = c" in a trace, whether it is true."""
        found = re.findall(r"\b(\d{1,6} [-+*/] \d{1,6}) = (\d{1,6})\b", self.plain(text))
        values = ((value_of(expression), int(c)) for expression, c in found)
        return [value is not None and value[0] == c for value, c in values]


def _apply(items: list[tuple[int, str]], move: tuple) -> list[tuple[int, str]]:
    """The (value, expression) items after a move: its result first, then what was left."""
    a, op, b, c, _ = move
    rest, pair = list(items), []
    for value in (a, b):
        i = [v for v, _ in rest].index(value)
        expression = rest.pop(i)[1]
        pair.append(f"( {expression} )" if " " in expression else expression)
    return [(c, f"{pair[0]} {op} {pair[1]}"), *rest]


def _left(items: list[tuple[int, str]], goal: int) -> list[str]:
    return ["left", *(str(v) for v, _ in items), "goal", str(goal), ";"]


def value_of(text: str) -> tuple[Fraction, list[int]] | None:
    """Value of an arithmetic expression and the sorted numbers it uses, exact rationals, or None
    for all but numbers of up to 6 digits, + - * / and parentheses, and for a division by zero."""
    if len(text) > MAX_ANSWER or text.count("(") > MAX_DEPTH:
        return None
    if re.fullmatch(r"(?:[0-9]{1,6}(?![0-9])|[-+*/() ])*", text) is None:
        return None
    used = []

    def value(node: ast.AST) -> Fraction:
        if isinstance(node, ast.Constant):
            used.append(node.value)
            return Fraction(node.value)
        return OPERATORS[type(node.op)](value(node.left), value(node.right))

    try:  # no sign, no power, no call: they have no operator here, or no two sides
        plain = re.sub(r"\b0+(?=[0-9])", "", text.strip())  # Python reads no 07
        return value(ast.parse(plain, mode="eval").body), sorted(used)
    except (SyntaxError, AttributeError, KeyError, ZeroDivisionError):
        return None


if __name__ == "__main__":
    countdown = Countdown()
    splits = countdown.splits()
    print(countdown, {name: len(problems) for name, problems in splits.items()})
    problem = splits["train"][0]
    for i in range(3):
        print(problem.prompt, countdown.trace(problem, Random(i), skill=0.4))

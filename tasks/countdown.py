"""Countdown, a world in which search can be seen.

    python -m tasks.countdown            # sizes of the splits, a problem, three search traces

A problem gives numbers and a goal: combine all the numbers, each once, into the goal.  A *search
trace* tries, and "." ends it:

    use 8 3 goal 24 ; try 8 + 3 = 11 no wait left 8 3 goal 24 ; try 8 * 3 = 24 yes answer 8 * 3 .

After a "no" it may `wait` (start over), go `back` (to the last numbers with a try left) or `stop`.
Which operands and which operation are a free choice, a fork; the arithmetic and the bookkeeping are
determined.  The goal is restated before each choice: a model this small never learns to compare
with a number far behind it.

A world is what the loop asks of a task: `tokenizer()`, `encode(problem)` -> prompt ids,
`reward(problem, text)` -> 1.0 or 0.0, `answer(problem, text)` -> what was answered or None,
`asked(problem)` -> the question and the right answer, `name(problem)`, `cluster(problem)` -> what
it shares with others that are as hard, and `statements(text)` -> of every statement that can be
checked, whether it is true.
"""

import random
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, reduce
from itertools import combinations, combinations_with_replacement

from infra.files import UserError
from tasks.tokenizer import Tokenizer, word_tokenizer

EOS = "."
WORDS = [EOS, *"use goal ; try = left no yes wait back stop answer ( )".split()]
# characters and parentheses of an answer that is read: far more than 8 numbers need
MAX_ANSWER, MAX_DEPTH = 400, 30


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

    def __post_init__(self) -> None:
        if not self.ops or any("+-*/".count(o) != self.ops.count(o) for o in self.ops):
            raise UserError(f"--ops {self.ops!r}: it must be some of +-*/, each once")
        if self.max_number > self.max_value:
            raise UserError(f"--max-value {self.max_value}: it must be at least --max-number")

    def tokenizer(self) -> Tokenizer:
        return _tokenizer(self)

    def encode(self, problem: Problem) -> list[int]:
        """The prompt's ids."""
        return self.tokenizer().encode(problem.prompt)

    def name(self, problem: Problem) -> str:
        """What tells this problem from all others of the world."""
        return problem.prompt

    def cluster(self, problem: Problem) -> tuple[int, ...]:
        """What problems share that are hard or easy together: the numbers."""
        return problem.numbers

    def asked(self, problem: Problem) -> tuple[str, str]:
        """The question and the right answer, as text."""
        return problem.prompt, str(problem.goal)

    def moves(self, numbers: tuple[int, ...]) -> list[tuple[int, str, int, int, tuple[int, ...]]]:
        """Every (a, op, b, result, numbers left) from here, larger operand first, without
        repetition."""
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

    def reachable(self, numbers: tuple[int, ...]) -> frozenset[int]:
        """All values that using every number once can make."""
        return _reachable(self, tuple(sorted(numbers)))

    def problems(self) -> list[Problem]:
        """Every solvable problem of this world, in a fixed order."""
        sets = combinations_with_replacement(range(self.max_number, 0, -1), self.n_numbers)
        return [
            Problem(s, g) for s in sets for g in sorted(self.reachable(s)) if g >= self.min_goal
        ]

    def splits(self, test: float = 0.15, val: float = 0.15) -> dict[str, list[Problem]]:
        """Disjoint "train", "val" and "test" problems, the same on every machine and for every seed
        of a run.

        No number multiset of the test split occurs in the other two; validation problems are only
        new as (numbers, goal) pairs.  Validation is for choosing settings, test for the final table
        alone.
        """
        rng = random.Random(0)
        out = {"train": [], "val": [], "test": []}
        held_out = {}
        for p in self.problems():
            if p.numbers not in held_out:
                held_out[p.numbers] = rng.random() < test
            split = "test" if held_out[p.numbers] else "val" if rng.random() < val else "train"
            out[split].append(p)
        for problems in out.values():
            rng.shuffle(problems)
        return out

    def trace(
        self,
        problem: Problem,
        rng: random.Random,
        skill: float,
        attempts: int = 6,
        p_stop: float = 0.3,
    ) -> str:
        """A search trace for `problem`, prompt excluded, ending in ".".

        `skill` is the chance that the whole trace prefers moves after which the goal can still be
        reached; otherwise its moves are uniform.  No finished attempt is repeated.  After a "no" it
        stops with chance `p_stop` (always after `attempts`), else it starts over or goes back one
        try.
        """
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

    def reward(self, problem: Problem, response: str) -> float:
        """1.0 when the response ends in "." and the text after its last "answer" is an expression
        over exactly the given numbers that equals the goal, else 0.0.  Never raises, whatever the
        text."""
        answer = self.answer(problem, response)
        return float(
            answer is not None and value_of(answer) == (problem.goal, sorted(problem.numbers))
        )

    def answer(self, problem: Problem, response: str) -> str | None:
        """The text between the last "answer" and the final ".", or None where one is missing."""
        _, found, answer = response.rstrip().rpartition("answer ")
        if not found or not answer.endswith(EOS):
            return None
        return answer.removesuffix(EOS).strip()

    def same(self, a: str, b: str) -> bool:
        """Whether two answers are one vote."""
        return a == b

    def statements(self, text: str) -> list[bool]:
        """Of every statement "a op b = c" in a trace, whether it is true."""
        found = re.findall(r"\b(\d{1,6} [-+*/] \d{1,6}) = (\d{1,6})\b", text)
        values = ((value_of(expression), int(c)) for expression, c in found)
        return [value is not None and value[0] == c for value, c in values]


def _apply(items: list[tuple[int, str]], move: tuple) -> list[tuple[int, str]]:
    """The (value, expression) items after a move: its result first, then what was left, in
    order."""
    a, op, b, c, _ = move
    rest = list(items)
    pair = []
    for value in (a, b):
        i = next(i for i, (v, _) in enumerate(rest) if v == value)
        expression = rest.pop(i)[1]
        pair.append(f"( {expression} )" if " " in expression else expression)
    return [(c, f"{pair[0]} {op} {pair[1]}"), *rest]


def _left(items: list[tuple[int, str]], goal: int) -> list[str]:
    return ["left", *(str(v) for v, _ in items), "goal", str(goal), ";"]


@cache
def _tokenizer(world: Countdown) -> Tokenizer:
    return word_tokenizer([*WORDS, *world.ops, *map(str, range(world.max_value + 1))])


@cache
def _reachable(world: Countdown, numbers: tuple[int, ...]) -> frozenset[int]:
    if len(numbers) == 1:
        return frozenset(numbers)
    after = (tuple(sorted(m[4])) for m in world.moves(numbers))
    return frozenset().union(*(_reachable(world, rest) for rest in after))


def value_of(text: str) -> tuple[Fraction, list[int]] | None:
    """Value of an arithmetic expression and the sorted numbers it uses, or None when it is not one.

    Exact rationals, + - * / and parentheses, usual precedence; anything else, a division by zero,
    numbers of more than 6 digits, more than MAX_ANSWER characters or MAX_DEPTH parentheses are
    None.
    """
    if len(text) > MAX_ANSWER or text.count("(") > MAX_DEPTH:
        return None
    if re.fullmatch(r"(?:[0-9]{1,6}(?![0-9])|[-+*/() ])*", text) is None:
        return None
    tokens = re.findall(r"[0-9]+|[-+*/()]", text)[::-1]  # a stack: its end is the next token
    used = []

    def operand() -> Fraction:
        token = tokens.pop()
        if token == "(":
            value = total()
            if tokens.pop() != ")":
                raise ValueError
            return value
        used.append(int(token))
        return Fraction(used[-1])

    def product() -> Fraction:
        value = operand()
        while tokens and tokens[-1] in "*/":
            value = value * operand() if tokens.pop() == "*" else value / operand()
        return value

    def total() -> Fraction:
        value = product()
        while tokens and tokens[-1] in "+-":
            value = value + product() if tokens.pop() == "+" else value - product()
        return value

    try:
        value = total()
    # not a number where one must stand; the text ends early; x / 0
    except (ValueError, IndexError, ZeroDivisionError):
        return None
    return None if tokens else (value, sorted(used))


if __name__ == "__main__":
    countdown = Countdown()
    splits = countdown.splits()
    print(countdown, {name: len(problems) for name, problems in splits.items()})
    problem = splits["train"][0]
    for i in range(3):
        print(problem.prompt, countdown.trace(problem, random.Random(i), skill=0.4))

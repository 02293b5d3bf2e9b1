"""Countdown: the splits, the traces and the rewards, each against a slow and obvious version."""

import hashlib
import random
import re
import subprocess
import sys
from fractions import Fraction
from itertools import combinations, product

import pytest
from common import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks import countdown
from tasks.countdown import Countdown, Problem, value_of

WORLD, PROBLEM = Countdown(), Problem((8, 4, 3), 20)
WORLDS = [
    WORLD, Countdown(max_number=5, ops="+-", max_value=12, min_goal=0),
    Countdown(2, 12, "+-*/", 40), Countdown(3, 6, "+-*/", 24), Countdown(4, 4, "+-*/", 20),
    Countdown(4, 3, "/*", 9),
]  # fmt: skip
names = dict(ids=lambda w: f"{w.n_numbers}x{w.max_number}{w.ops}{w.max_value}")


# ------------------------------------------------------------------ splits


@pytest.mark.parametrize("world", [WORLDS[0], WORLDS[3], WORLDS[4]], **names)
def test_splits_are_disjoint_and_the_test_multisets_are_new(world):
    splits = world.splits()
    assert splits.keys() == {"train", "val", "test"}
    assert sorted(p for problems in splits.values() for p in problems) == sorted(world.problems())
    sets = {name: {tuple(sorted(p.numbers)) for p in problems} for name, problems in splits.items()}
    assert not sets["test"] & (sets["train"] | sets["val"])
    assert {world.cluster(p) for p in splits["test"]} == {p.numbers for p in splits["test"]}


def test_the_split_of_the_published_results_is_this_one():
    """Another seed, share or order is another test set, and no number there can be compared; and it
    is the same in every process, whatever Python's own seeds are."""
    here = Countdown().splits()
    assert {k: len(x) for k, x in here.items()} == dict(train=1536, val=273, test=381)
    assert len({p.numbers for p in here["test"]}) == 64
    assert hashlib.sha256(repr(here).encode()).hexdigest()[:16] == "a0e03ece9ad257f6"
    code, env = (
        "from tasks.countdown import *; print(Countdown().splits())",
        dict(PYTHONHASHSEED="2"),
    )
    there = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=env, text=True)
    assert there.strip() == repr(here)


# ------------------------------------------------------------------ the rules


def slow_result(op: str, a: int, b: int, world: Countdown) -> int | None:
    if op == "/" and (b == 0 or a % b):
        return None
    c = {"+": a + b, "-": a - b, "*": a * b, "/": a // (b or 1)}[op]
    return c if 0 <= c <= world.max_value else None


def slow_moves(world: Countdown, numbers: tuple[int, ...]) -> set:
    """(a, op, b, result, what is left as a sorted multiset)."""
    out = set()
    for i, j in combinations(range(len(numbers)), 2):
        a, b = sorted((numbers[i], numbers[j]), reverse=True)
        rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
        for op in world.ops:
            c = slow_result(op, a, b, world)
            if c is not None:
                out.add((a, op, b, c, tuple(sorted([c, *rest]))))
    return out


def slow_reachable(world: Countdown, numbers: tuple[int, ...]) -> set[int]:
    if len(numbers) == 1:
        return {numbers[0]}
    return set().union(*(slow_reachable(world, m[4]) for m in slow_moves(world, numbers)))


@pytest.mark.parametrize("world", WORLDS, **names)
def test_moves_and_reachable_equal_brute_force(world):
    rng = random.Random(0)
    for n in (n for n in range(1, world.n_numbers + 1) for _ in range(25)):
        numbers = tuple(rng.choice((0, 1, 2, 3, rng.randint(0, world.max_value))) for _ in range(n))
        moves = world.moves(numbers)
        assert {(*m[:4], tuple(sorted(m[4]))) for m in moves} == slow_moves(world, numbers)
        assert len(moves) == len(set(moves))
        assert all(m[4][0] == m[3] for m in moves)  # the result comes first
        assert world.reachable(numbers) == slow_reachable(world, numbers)
        assert world.reachable(numbers[::-1]) == world.reachable(numbers)


@pytest.mark.parametrize("world", WORLDS, **names)
def test_problems_are_all_solvable_ones_once(world):
    sets = product(range(1, world.max_number + 1), repeat=world.n_numbers)
    sets = {tuple(sorted(s, reverse=True)) for s in sets}
    slow = {Problem(s, g) for s in sets for g in slow_reachable(world, s) if g >= world.min_goal}
    assert sorted(world.problems()) == sorted(slow)
    assert Problem((8, 4, 3), 20).prompt == "use 8 4 3 goal 20 ;"


# ------------------------------------------------------------------ traces


def python_value(text: str) -> tuple[Fraction, list[int]]:
    """Value and sorted numbers of an expression by Python itself."""
    value = eval(re.sub(r"\d+", r"Fraction(int('\g<0>'))", text.strip()))
    return value, sorted(map(int, re.findall(r"\d+", text)))


def check_trace(world: Countdown, problem: Problem, trace: str, attempts: int) -> tuple[int, bool]:
    """Reads a trace word by word with no help from the world: (finished tries, whether solved)."""
    words, states, path, tries, dead = trace.split(" "), [problem.numbers], (), 0, set()

    def take(*expected: str) -> str:
        word = words.pop(0)
        assert not expected or word in expected, (trace, word, words, expected)
        return word

    def take_left() -> None:
        take("left")
        assert sorted(int(take()) for _ in states[-1]) == sorted(states[-1]), (trace, words)
        for word in ("goal", str(problem.goal), ";"):
            take(word)

    def failed(n: int) -> bool:
        """Everything that can be tried after the first n moves has failed."""
        return {(*path[:n], m[:4]) for m in slow_moves(world, states[n])} <= dead

    while (word := take("try", "back", "stop")) != "stop":
        if word == "back":  # only after a finished try: to the last numbers with a try left
            states, path = states[:-1], path[:-1]
            while path in dead:
                states, path = states[:-1], path[:-1]
            assert path and not failed(len(path)), (trace, words)
            take_left()
            continue
        a, op, b, _, c = int(take()), take(*world.ops), int(take()), take("="), int(take())
        state = list(states[-1])
        state.remove(a)  # raises when the number is not there
        state.remove(b)
        assert a >= b and slow_result(op, a, b, world) == c, (trace, words)
        states, path = [*states, (c, *state)], (*path, (a, op, b, c))
        assert path not in dead, (trace, path)
        if len(states[-1]) > 1:
            take_left()
            continue
        tries += 1
        dead.add(path)
        if c == problem.goal:
            take("yes")
            take("answer")
            assert python_value(" ".join(words[:-1])) == (problem.goal, sorted(problem.numbers))
            assert words[-1] == "." and tries <= attempts
            return tries, True
        take("no")
        n = len(path) - 1
        while n and failed(n):  # the last way below a node failed: so did the node
            dead.add(path[:n])
            n -= 1
        if words[0] == "wait":
            take()
            states, path = states[:1], ()
            take_left()
    assert words == ["."] and tries <= attempts
    return tries, False


@pytest.mark.parametrize("skill", (0.0, 0.5, 1.0))
@pytest.mark.parametrize("world, attempts, p_stop", [
    (Countdown(), 6, 0.3), (Countdown(2, 9, "+-*", 30), 4, 0.1),
    (Countdown(4, 6, "+-*/", 40), 6, 0.1), (Countdown(4, 3, "+-", 9), 40, 0.0),
    (Countdown(5, 3, "+-", 12), 200, 0.0),
])  # fmt: skip
def test_every_statement_of_a_trace_is_true(world, attempts, p_stop, skill):
    rng, ends = random.Random(0), set()
    for problem in rng.choices(world.problems(), k=400 if attempts < 10 else 60):
        trace = world.trace(problem, rng, skill, attempts, p_stop)
        finished, found = check_trace(world, problem, trace, attempts)
        assert world.reward(problem, trace) == float(found)
        assert world.statements(trace) == [True] * trace.split(" ").count("try")
        ends.add((finished, found))
    if skill == 1:  # the goal stays reachable, so the first finished try is right
        assert ends == {(1, True)}
    else:
        assert max(ends)[0] > 1


def test_skill_is_the_share_of_guided_traces():
    rng = random.Random(1)

    def share(skill: float) -> float:
        """Of 1,500 searches of one attempt, those that are right."""
        drawn = rng.choices(WORLD.problems(), k=1500)
        return sum(WORLD.reward(p, WORLD.trace(p, rng, skill, 1)) for p in drawn) / 1500

    luck, some, guided = map(share, (0.0, 0.4, 1.0))
    assert guided == 1 and luck < 0.25
    assert some == pytest.approx(0.4 + 0.6 * luck, abs=0.06)  # 1,500 draws are within that


@pytest.mark.parametrize("world", (Countdown(3, 5, "+-*", 20), Countdown(2, 6, "+-*/", 30)))
def test_a_search_that_never_gives_up_tries_everything_once(world):
    def paths(numbers: tuple[int, ...]) -> int:
        if len(numbers) == 1:
            return 1
        return sum(paths(m[4]) for m in slow_moves(world, numbers))

    rng = random.Random(2)
    for problem in rng.sample(world.problems(), 40):
        trace = world.trace(problem, rng, 0.0, attempts=10**6, p_stop=0.0)
        assert check_trace(world, problem, trace, 10**6)[1]
        hopeless = Problem(problem.numbers, world.max_value + 1)
        trace = world.trace(hopeless, rng, 0.5, attempts=10**6, p_stop=0.0)
        finished, found = check_trace(world, hopeless, trace, 10**6)
        assert not found and finished == paths(problem.numbers)


def test_equal_numbers_apart_from_each_other_make_no_try_twice():
    """Of 2 4 3 2, "4 + 2" leaves 3 2 or 2 3: two moves, one text, and the search repeats itself."""
    world, rng = Countdown(5, 4, "+-", 12), random.Random(0)
    hopeless = Problem((4, 3, 3, 2, 1), 99)
    for _ in range(4):
        trace = world.trace(hopeless, rng, 0.0, attempts=300, p_stop=0.0)
        assert check_trace(world, hopeless, trace, 300) == (300, False)


def test_p_stop_and_attempts_end_a_search():
    hopeless = Problem((9, 8, 7), 5)
    for seed in range(30):
        for attempts, p_stop, most in ((6, 1.0, 1), (1, 0.0, 1), (3, 0.0, 3)):
            trace = WORLD.trace(hopeless, random.Random(seed), 0.5, attempts, p_stop)
            assert check_trace(WORLD, hopeless, trace, attempts) == (most, False)
            assert trace.endswith("no stop .")
    one, two, other = (WORLD.trace(PROBLEM, random.Random(s), 0.3) for s in (3, 3, 4))
    assert one == two != other


# ------------------------------------------------------------------ rewards

RIGHT = [
    "answer ( 4 * 3 ) + 8 .", "answer 4 * 3 + 8 .", "answer 8 + 3 * 4 .", "answer 8+4*3.",
    "answer ( ( 8 ) + ( ( 3 * 4 ) ) ) .", "answer 8 + 4 * 3 .\n",
    " try 4 * 3 = 12 left 12 8 goal 20 ; try 12 + 8 = 20 yes answer ( 4 * 3 ) + 8 .",
    "answer 8 + 4 . answer 4 * 3 + 8 .",  # the last answer counts
    "try 1 + 1 = 3 answer 4 * 3 + 8 .",  # only the answer is graded
]  # fmt: skip
WRONG = [
    "", ".", " ", "answer", "answer ", "answer .", "answer . .", "answer answer .",
    # no answer, one that does not end, more after it
    "( 4 * 3 ) + 8 .", "answer ( 4 * 3 ) + 8", "answer ( 4 * 3 ) + 8 ;",
    "answer ( 4 * 3 ) + 8 . and more", "answer ( 4 * 3 ) + 8 . .", "answer ( 4 * 3 ) + 8 yes .",
    "answer ( 4 * 3 ) + .", "answer ( 4 * 3 + 8 .", "answer 4 * 3 ) + 8 .",
    "answer ( answer 4 * 3 ) + 8 .", "answer ( 4 * 3 ) answer + 8 .",
    "answer 4 * 3 + 8 . answer 4 + 8 .",
    # another value, other numbers, one used twice, one too many
    "answer 8 + 4 + 3 .", "answer 20 .", "answer 5 * 4 .", "answer 8 + 8 + 4 .",
    "answer 4 * 3 + 8 + 8 - 8 .", "answer 4 * 4 + 4 .", "answer 4 + 8 + 8 .",
    "answer 4 * 3 + 8 + 0 .", "answer 4 * 3 + 8 * 1 .", "answer 8 + 4 * 3 = 20 .",
    # no expression of ours
    "answer +8 + 4 * 3 .", "answer 8 - -4 * 3 .", "answer 8 4 3 .", "answer 84 3 .", "answer () .",
    "answer ( ) 8 + 4 * 3 .", "answer 8 + 4 ** 3 .", "answer 4 * 3 + 8 // 1 .",
    "answer 8 + 4 x 3 .", "answer 8 + 4 * 3.0 .", "answer 8 + 4 * 3e0 .", "answer 8 + 4 * 0x3 .",
    "answer 8 + 4\n* 3 .", "answer 8_0 .", "answer 8\u00a0+ 4 * 3 .", "answer 8 + 4 \u00d7 3 .",
    # Arabic digits, a superscript that isdigit() and int() judge differently, full width
    "answer \u0668 + \u0664 * \u0663 .", "answer 8 + 4 * 3\u0663 .", "answer 8 + 4 * 3 \u0663 .",
    "answer 8 + 4 * \u00b3 .", "answer 8 + 4 * \uff13 .",
    # nothing to divide by, numbers and nesting without end
    "answer 1/0 .", "answer 8 / ( 4 - 4 ) + 3 .", "answer 8 + 4 * 3 / ( 3 - 3 ) .",
    "answer 9 ** 9 ** 9 ** 9 .", "answer 99999999999999999999 * 3 .", f"answer {'9' * 5000} .",
    f"answer {'9*' * 5000}9 .", f"answer {'(' * 5000}8{')' * 5000} .", f"answer {'(' * 10_000} .",
    f"answer {')' * 10_000} .", f"answer {'()' * 5000} .",
    f"answer {'(' * 31}8 + 4 * 3{')' * 31} .", f"answer {'-' * 300}8 .",
    # hostile
    "answer 8 + 4 * 3 .\x00", "answer 8 + 4 * 3 \x00.", "answer import os .",
    "answer __import__('os').getpid() .", "\ud800 answer \ud800 .", "answer " * 3000,
]  # fmt: skip


OTHER = [
    ((9, 9, 9), 9, "9 + 9 - 9", 1.0), ((9, 9, 9), 9, "9", 0.0), ((9, 9, 1), 0, "(9 - 9) * 1", 1.0),
    # the value on the way may be a fraction: the answer is arithmetic, not a search
    ((8, 4, 3), 6, "8 * 3 / 4", 1.0), ((8, 4, 3), 6, "3 / 4 * 8", 1.0), ((3, 2), 1, "3 / 2", 0.0),
]  # fmt: skip


@pytest.mark.parametrize("problem, response, reward", [
    *((PROBLEM, x, 1.0) for x in RIGHT), *((PROBLEM, x, 0.0) for x in WRONG),
    *((Problem(numbers, goal), f"answer {x} .", reward) for numbers, goal, x, reward in OTHER),
], ids=lambda x: ascii(x)[:40])  # fmt: skip
def test_a_right_answer_is_worth_1_anything_else_0_and_nothing_raises(problem, response, reward):
    assert WORLD.reward(problem, response) == reward


pieces = st.sampled_from(
    [*"0123456789+-*/(). ", "answer ", "8", "4", "3", "8 + 4 * 3", "goal", "\n", "\u0663", "**"]
)


@settings(max_examples=400)
@given(st.one_of(st.text(), st.lists(pieces, max_size=30).map("".join)))
@example("8 + 4 * 3")
def test_no_text_breaks_the_reward_or_the_parsers(text):
    for response in (text, f"answer {text}", f"answer {text} ."):
        reward = WORLD.reward(PROBLEM, response)
        assert type(reward) is float and reward in (0.0, 1.0)
        if reward:
            answer = response.rpartition("answer ")[2].rstrip().removesuffix(".")
            assert python_value(answer) == (20, [3, 4, 8])
    assert all(type(truth) is bool for truth in WORLD.statements(text))
    parsed = value_of(text)
    assert parsed is None or python_value(text) == parsed


# ------------------------------------------------------------------ the parser


def longer(inner):
    """Of expressions: two with an operator between them, or one in parentheses."""
    two = st.tuples(inner, st.sampled_from("+-*/"), inner).map(" ".join)
    return st.one_of(two, inner.map("( {} )".format))


@settings(max_examples=400)
@given(st.recursive(st.integers(0, 30).map(str), longer, max_leaves=10))
@example("8 - ( 4 - 3 )")
@example("8 / ( 4 * 2 )")
@example("8 - 4 - 3")
@example("8 / 4 * 2")
@example("1 / ( 3 - 3 )")
def test_evaluate_equals_pythons_fractions(text):
    try:
        expected = python_value(text)
    except ZeroDivisionError:
        expected = None
    assert value_of(text) == value_of(text.replace(" ", "")) == expected


def test_evaluate_has_limits():
    most, deep = countdown.MAX_ANSWER, countdown.MAX_DEPTH
    nested = "(" * deep + "7" + ")" * deep
    for text, over in (("999999", "1000000"), ("7".ljust(most), "7".ljust(most + 1))):
        assert value_of(text) == (int(text), [int(text)]) and value_of(over) is None
    assert value_of(nested) == (7, [7]) and value_of(f"({nested})") is None


@pytest.mark.parametrize("text, truths", [
    ("try 4 * 3 = 12 left 12 8 goal 20 ; try 12 + 8 = 21 no stop .", [True, False]),
    ("try 9 - 4 = 5 try 4 - 9 = 5 try 0 + 0 = 0", [True, False, True]),
    ("try 6 / 2 = 3 try 7 / 2 = 3 try 1 / 0 = 0", [True, False, False]),
    ("try 100 + 200 = 300 try 9 * 111 = 1000 try 600000 - 1 = 599999", [True, False, True]),
    ("", []), ("try 4 * 3 = left 12", []), ("use 4 3 goal 12 ;", []),
])  # fmt: skip
def test_a_world_says_which_statements_are_true(text, truths):
    assert WORLD.statements(text) == truths

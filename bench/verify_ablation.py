"""What each rule of the grader wins: cases graded wrongly without it, beside those with it.

    python bench/verify_ablation.py CASES.jsonl > results/verify_ablation.md

A case has `response`, `gold`, `expected` and `scope`; with a `policy` it is counted apart.  A rule
is a row of the tables in algebra.py, or a function or pattern that is replaced by one which does
nothing.  Rules that change no grade are listed at the end.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import algebra
import verify

NEVER = re.compile("(?!)")
KEPT = """
They stay for what the table at the head of verify.py promises: a box taken back, sets of numbers,
floors, binomials, units (with °C, `\\text{h}`, "4 dozen" has none), money, 1 1/2, |x|, the reals;
for signs as people write them, `{-}`, `3 + -2i`, `3\\cdot -8`; plain numbers first for speed alone.
"""


def rows(table: str, kept) -> tuple:
    """A table of algebra.py with the rows for which `kept(old, new)`."""
    return algebra, table, {k: v for k, v in getattr(algebra, table).items() if kept(k, v)}


def renamed(kept) -> tuple:
    return rows("RENAMED", lambda old, new: old == new or kept(old, new))


def rules() -> dict[str, list[tuple]]:
    """Name of the rule: what is replaced by what."""
    found = {
        "several boxes joined": [(verify, "_joined_boxes", lambda text: None)],
        "claims taken back": [(verify, "TAKEN_BACK", NEVER), (verify, "DENIED", ("\0",))],
        "answer phrases": [(verify, "CLAIM", NEVER)],
        "end of a claim": [(verify, "STOP", NEVER)],
        "labels of choices": [(verify, "_label", lambda text: ("", ""))],
        "rounding": [(verify, "_rounds", lambda g, a: False)],
        "percent": [(verify, "PERCENT", verify.ZERO)],
        "degrees": [(algebra, "DEGREE", verify.ZERO)],
        "sets of numbers": [(verify, "OPERATIONS", {})],
        "equations": [(verify, "_zero", lambda x: None)],
        "letters": [(algebra, "symbol", lambda name: algebra.exact(7))],
        "floor with letters": [(algebra, "floor", lambda x: algebra.exact(7))],
        "factorials": [(algebra, "factorial", lambda x: x)],
        "functions": [(algebra, "CALLS", set())],
        "matrices, tuples": [(algebra, "combine", lambda f, x, y: algebra.lift(f, x, y))],
        "plain numbers first": [(algebra, "PLAIN", NEVER)],
        "named constants, scales": [(algebra, "CONSTANTS", {})],
        "infinity, reals, empty set": [(algebra, "NAMED", {})],
        "words that are no units": [(algebra, "NO_UNITS", {})],
        "units": [(algebra, "_unit", lambda token, before: "")],
        "decoration": [(algebra, "DROPPED", {})],
        "number words": [renamed(lambda old, new: not (old.isalpha() and new.isdigit()))],
        "money": [renamed(lambda old, new: new not in ("dollar", "euro", "pound", "yen"))],
        "names of functions": [renamed(lambda old, new: "\\" + old != new)],
        "other spellings": [renamed(lambda old, new: False)],
    }
    for _, pattern, _ in algebra.REWRITTEN:
        table = [row for row in algebra.REWRITTEN if row[1] is not pattern]
        found[f"`{pattern.pattern[:60].replace('`', '')}`"] = [(algebra, "REWRITTEN", table)]
    return found


def wrong(cases: list[dict], replaced: list[tuple] = ()) -> set[int]:
    """The cases graded wrongly when these things are replaced."""
    with ExitStack() as stack:
        for module, name, value in replaced:
            stack.enter_context(patch.object(module, name, value))
        for cached in (algebra.tokens, algebra.read, *[algebra.symbol][: not replaced]):
            cached.cache_clear()
        return {
            n
            for n, case in enumerate(cases)
            if verify.grade(case["response"], case["gold"]) is not case["expected"]
        }


def main(path: str) -> None:
    cases = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    cases = [case for case in cases if case["expected"] is not None]
    kinds = ["policy" if case.get("policy") else case["scope"] for case in cases]
    columns = list(dict.fromkeys(kinds))
    base, idle = wrong(cases), []
    print("# What each rule of the grader wins\n\n`python bench/verify_ablation.py CASES.jsonl`:")
    print(
        f"{len(cases)} cases; wrongly accepted + wrongly refused, with all rules and without one."
    )
    print(f"\n| without | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for rule, replaced in [("nothing", []), *rules().items()]:
        missed = wrong(cases, replaced)
        if rule != "nothing" and missed == base:
            idle.append(rule)
            continue
        count = Counter((kinds[n], cases[n]["expected"]) for n in missed)
        cells = [f"{count[kind, False]} + {count[kind, True]}" for kind in columns]
        print(f"| {rule.replace('|', chr(92) + '|')} | {' | '.join(cells)} |")
    print("\nThese win nothing here:\n\n" + "\n".join(f"- {rule}" for rule in idle))
    print(KEPT)


if __name__ == "__main__":
    main(sys.argv[1])

"""Grades per second, this grader beside another commit's, in one process and in turns.

    git worktree add ../old COMMIT
    python bench/verify_speed.py CASES.jsonl ../old/verify.py

A case has `response` and `gold`.  Each case is graded with cold caches ROUNDS times by either, in
turns; its time is the least of them.  All of it runs twice: the difference is the noise.  "Slower"
are the cases where a grader needs more than 1.5 times as long as the other, and 0.1 ms more.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 9


def load(path: Path, name: str):
    """The module at `path`, and the caches to clear before each grade."""
    known = sys.modules.pop("algebra", None)
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(path.parent))
    modules = [module, sys.modules.pop("algebra", module)]
    if known:
        sys.modules["algebra"] = known
    caches = {f for m in modules for f in vars(m).values() if hasattr(f, "cache_clear")}
    return module, [f for f in caches if f.__name__ != "symbol"]


def times(cases: list[dict], graders: list) -> list[list[float]]:
    """Milliseconds of each case, for each grader."""
    best = [[float("inf")] * len(cases) for _ in graders]
    for turn in range(ROUNDS):
        for n, case in enumerate(cases):
            for k in range(len(graders)):
                k = (k + turn + n) % len(graders)  # who comes later finds warmer memory
                module, caches = graders[k]
                for cache in caches:
                    cache.cache_clear()
                start = time.perf_counter()
                module.grade(case["response"], case["gold"])
                best[k][n] = min(best[k][n], 1e3 * (time.perf_counter() - start))
    return best


def main(cases_path: str, other_path: str) -> None:
    lines = Path(cases_path).read_text(encoding="utf-8").splitlines()
    cases = [case for case in map(json.loads, lines) if isinstance(case["response"], str)]
    paths = [ROOT / "verify.py", Path(other_path).resolve()]
    graders = [load(path, f"grader{k}") for k, path in enumerate(paths)]
    print(f"{len(cases)} cases, cold caches, least of {ROUNDS}, milliseconds\n")
    print("| grader | median | grades/s | mean | p95 | p99 | max | slower than the other |")
    print("|---|---|---|---|---|---|---|---|")
    for _ in range(2):
        best = times(cases, graders)
        for name, found, others in zip(("this", "other"), best, best[::-1], strict=True):
            cut = statistics.quantiles(found, n=100)
            pairs = enumerate(zip(found, others, strict=True))
            slower = [n for n, (a, b) in pairs if a > 1.5 * b and a > b + 0.1]
            print(
                f"| {name} | {cut[49]:.4f} | {1e3 / cut[49]:,.0f} | {statistics.mean(found):.4f} | "
                f"{cut[94]:.3f} | {cut[98]:.3f} | {max(found):.2f} | {len(slower)} |"
            )
    this, other = best
    for n in sorted(range(len(cases)), key=lambda n: other[n] - this[n])[:12]:
        gold, said = cases[n]["gold"][:40], cases[n]["response"][-50:]
        print(f"{this[n]:.2f} ms, the other {other[n]:.2f}: {gold!r} <- {said!r}")


if __name__ == "__main__":
    main(*sys.argv[1:3])

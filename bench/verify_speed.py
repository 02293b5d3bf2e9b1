"""Grades per second, this grader beside another commit's, in one process and in turns.

    git worktree add ../old COMMIT
    python bench/verify_speed.py CASES.jsonl ../old/verify.py

A case has `response` and `gold`.  Each case is graded with cold caches ROUNDS times by either, in
turns; its time is the least of them.  "Slower" are the cases where this grader needs more than
1.5 times as long as the other and 0.1 ms more; a second run of the same file shows the noise.
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
    paths = {"this": ROOT / "verify.py", "other": Path(other_path), "other again": Path(other_path)}
    graders = [load(path.resolve(), f"grader{k}") for k, path in enumerate(paths.values())]
    best = times(cases, graders)
    print(f"{len(cases)} cases, cold caches, least of {ROUNDS}, milliseconds\n")
    print("| grader | median | grades/s | mean | p95 | p99 | max | slower than the other |")
    print("|---|---|---|---|---|---|---|---|")
    for name, found in zip(paths, best, strict=True):
        cut = statistics.quantiles(found, n=100)
        pairs = zip(found, best[1], strict=True)
        slower = [n for n, (a, b) in enumerate(pairs) if a > 1.5 * b and a > b + 0.1]
        print(
            f"| {name} | {cut[49]:.4f} | {1e3 / cut[49]:,.0f} | {statistics.mean(found):.4f} | "
            f"{cut[94]:.3f} | {cut[98]:.3f} | {max(found):.2f} | {len(slower)} |"
        )
        if name == "this":
            listed = [(cases[n], best[0][n], best[1][n]) for n in slower]
    for case, a, b in sorted(listed, key=lambda row: row[2] - row[1])[:12]:
        print(
            f"slower: {a:.2f} ms after {b:.2f}: {case['gold'][:60]!r} <- {case['response'][-60:]!r}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:3])

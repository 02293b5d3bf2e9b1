"""Signs of life of a phase that may take minutes: a line on the terminal that is gone when it ends.

    with Bar("rollout", "tok") as bar:
        while ...:
            if bar.due():
                bar.show(done, total, "12 of 64 responses to go")

A phase of a few seconds shows nothing.  Where nobody watches, in a log file, a line stands every
half minute.
"""

import sys
import time

from tqdm import tqdm

PATIENCE = 4.0  # seconds after which a phase shows itself


class Bar:
    """How much of what is at most `total` units is done, units a second and the time left; `now`:
    from the beginning on."""

    def __init__(self, what: str, unit: str, now: bool = False):
        self.what, self.unit, self.line = what, unit, None
        self.next = time.perf_counter() + PATIENCE * (not now)
        self.start = time.time()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_) -> None:
        if self.line:
            self.line.close()

    def due(self) -> bool:
        """Whether it is time to show something: what that takes may be worth saving."""
        return time.perf_counter() >= self.next

    def show(self, done: int, total: int, note: str = "") -> None:
        if not self.line:
            form = "{desc}: {n_fmt} of {total_fmt} {unit} at most, {rate_fmt}"
            form += ", {elapsed} and {remaining} to go{postfix}"
            how = dict(unit=self.unit, unit_scale=True, leave=False, bar_format=form)
            self.line = tqdm(desc=self.what, **how)
            self.line.start_t = self.start
        self.line.n, self.line.total = done, total
        self.line.set_postfix_str(note, refresh=True)
        self.next = time.perf_counter() + (1 if sys.stderr.isatty() else 30)

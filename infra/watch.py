"""Keeps the processes of one run together: when one ends, all do, and one line says which and why.

Each process tells a common store every second that it lives and what it is doing.  A process that
fails notes the cause there; one that falls silent is noted by the others.  Whoever notes it first
prints the line, and every process leaves at once: none waits in a sum for one that is gone.
"""

import os
import re
import sys
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from infra.files import UserError

PULSE = 1.0  # seconds between signs of life
SILENCE = 20.0  # seconds without one, after which a process counts as dead
BEHIND = 300.0  # seconds in a phase that others have left, after which a process is named


class Watch(threading.Thread):
    """Rank `rank` of `world`; `doing(what)` notes a new phase."""

    def __init__(self, rank: int, world: int):
        super().__init__(daemon=True)
        self.rank, self.world = rank, world
        self.phase, self.what, self.broken = 0, "starting", False
        self.over, self.lock = threading.Event(), threading.Lock()
        self.least, self.since = -1, 0.0  # the phase of the last rank, and since when
        self.named = -1  # the last phase in which a rank that is behind was named
        # torchrun's own store, which outlives every rank
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=30))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = dist.PrefixStore(f"fork_gpt/{attempt}", store)
        self.sign()  # at once: who dies within the first second must be missed, too
        self.start()

    def doing(self, what: str) -> None:
        self.phase, self.what = self.phase + 1, what

    def sign(self) -> None:
        self.store.set(f"{self.rank}", f"{time.time()}|{self.phase}|{self.what}")

    def end(self) -> None:
        """All is well: stop watching."""
        self.over.set()
        self.join()

    def fail(self, rank: int, why: str) -> None:
        """Note the cause of a failure, print it if nobody was faster, and leave."""
        mine = f"rank {rank}: {why}"
        with self.lock:
            first = self.store.compare_set("failed", "", mine).decode() == mine
        if first:
            print(f"\nfork_gpt: {mine}", file=sys.__stderr__, flush=True)  # below the bar
        time.sleep(3 * PULSE)  # until the others have read it
        os._exit(2)  # threads of a broken group may never end

    def stuck(self, why: str) -> None:
        """A sum failed here: somebody else's death, most likely.  Leave with its cause, or with
        `why` when none is found."""
        self.broken = True
        time.sleep(SILENCE)
        self.fail(self.rank, why)

    def run(self) -> None:
        """Until `end`: give signs of life, and look for the others'."""
        seen = {}  # rank -> (its last sign, when it came)
        while not self.over.wait(PULSE):
            with self.lock:
                self.sign()
                failed = self.store.check(["failed"])
                there = [r for r in range(self.world) if self.store.check([f"{r}"])]
                signs = {r: self.store.get(f"{r}").decode().split("|", 2) for r in there}
            if failed:
                os._exit(2)
            now = time.monotonic()
            for r, sign in signs.items():
                if r not in seen or seen[r][0] != sign:
                    seen[r] = sign, now
                silent = now - seen[r][1]
                if silent > (SILENCE / 4 if self.broken else SILENCE):
                    self.fail(r, f"gave no sign of life for {silent:.0f} s ({sign[2]}); killed?")
            if self.rank == 0:
                self.name_who_is_behind(signs)

    def name_who_is_behind(self, signs: dict[int, list[str]]) -> None:
        """A line about the ranks that others have waited for since BEHIND seconds."""
        phases = {r: int(phase) for r, (_, phase, _) in signs.items()}
        least, now = min(phases.values()), time.monotonic()
        if least != self.least:
            self.least, self.since = least, now
        if max(phases.values()) > least > self.named and now - self.since > BEHIND:
            self.named = least
            late = [r for r, phase in phases.items() if phase == least]
            names, what = ", ".join(map(str, late)), signs[late[0]][2]
            print(f"\nfork_gpt: the others wait for rank {names}: {what}", file=sys.__stderr__)


def cause(e: BaseException) -> str:
    """An exception in one line, with its place where it is no mistake of the user's."""
    line = (str(e) or repr(e)).splitlines()[0]
    if isinstance(e, UserError):
        return line
    last = traceback.extract_tb(e.__traceback__)[-1]
    return f"{type(e).__name__}: {line} ({Path(last.filename).name}:{last.lineno})"


def is_lost_peer(e: BaseException) -> bool:
    """Whether a sum failed because another process is gone."""
    words = "(?i)gloo|nccl|connection|socket|peer|timed out"
    return isinstance(e, RuntimeError) and re.search(words, str(e)) is not None

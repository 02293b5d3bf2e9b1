"""What outlives a process or spans several: checkpoints, and sums over ranks.

Every write is atomic (temp file, fsync, rename): after a kill at any instant the file on disk is
the old one or the new one, whole.
"""

import io
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from model import Config, Transformer, fsync


class UserError(Exception):
    """A mistake of the user's: `main` prints its one line, without a traceback."""


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, entirely or not at all.  UserError when the disk refuses."""
    path = Path(path)
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temp, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temp, path)
        fsync(path.parent)  # the rename itself must survive a power cut
    except OSError as e:
        if temp.exists():
            temp.unlink()
        raise UserError(f"cannot write {path}: {e.strerror}; what was there is untouched") from None


def save(path: Path, state: dict) -> None:
    """Write a dict of tensors, numbers and strings, atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getbuffer())


def load(path: Path, device: str | torch.device = "cpu") -> dict:
    """Read what `save` wrote; no code in the file is run.  UserError when it is missing or
    damaged."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path}") from None
    except Exception:  # a damaged file raises anything: struct.error, IndexError, UnpicklingError
        raise UserError(f"{path} is damaged; delete it to start again without it") from None


def save_model(folder: Path, model: Transformer, words: Sequence[str]) -> None:
    """A small-world model with its vocabulary as FOLDER/model.pt."""
    save(
        Path(folder) / "model.pt",
        dict(config=asdict(model.config), words=list(words), weights=model.state_dict()),
    )


def load_model(folder: Path, device: str | torch.device = "cpu") -> tuple[Transformer, list[str]]:
    """The model that `save_model` wrote and the words of its tokenizer.  UserError when missing or
    damaged."""
    path = Path(folder) / "model.pt"
    saved = load(path, device)
    try:
        model = Transformer(Config(**saved["config"])).to(device)
        model.load_state_dict(saved["weights"])
        return model, saved["words"]
    except (KeyError, TypeError, RuntimeError) as e:
        raise UserError(f"{path} does not hold a model: {str(e).splitlines()[0]}") from None


def write_json(path: Path, record: dict) -> None:
    """A JSON file, atomically, one key a line."""
    write_atomic(path, (json.dumps(record, indent=1) + "\n").encode())


def cut_lines(path: Path, n: int) -> None:
    """Keep the first `n` lines of a log, atomically; a half-written last line goes too."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    write_atomic(path, b"".join(lines[:n]))


def stop_on_signal() -> Callable[[], bool]:
    """A function that says whether Ctrl-C or SIGTERM came; a second one stops at once, unsaved."""
    caught = []

    def note(number: int, _) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        os.write(2, b"\nstopping after this step\n")  # print may be interrupted by itself

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return lambda: bool(caught)


class Clock:
    """CPU and wall seconds since it was made, and those that were added to it."""

    def __init__(self):
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def add(self, cpu_seconds: float, wall_seconds: float) -> "Clock":
        self.cpu, self.wall = self.cpu - cpu_seconds, self.wall - wall_seconds
        return self

    def seconds(self) -> dict[str, float]:
        cpu, wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
        return dict(cpu_seconds=cpu, wall_seconds=wall)


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of `x` over all processes, in place; `x` itself when there is one process."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x


def ranks() -> tuple[int, int]:
    """(this process's rank, number of processes)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def kth_largest(x: Tensor, k: int, total: Callable = sum_over_ranks) -> Tensor:
    """The k-th largest (k >= 1) of all ranks' `x` (n,) fp32 >= 0, exactly, by radix select on the
    float bits.

    Non-negative floats sort like their bits: three rounds count 2,048 or 1,024 bins each and sum
    the counts over the ranks.  Nothing is gathered or sorted, an empty rank is fine, and there is
    no limit of 2^24 values.
    """
    bits = x.contiguous().view(torch.int32)
    prefix = 0
    for shift, width in ((21, 11), (10, 11), (0, 10)):
        digit = (bits >> shift) & (2**width - 1)
        counts = total(torch.bincount(digit, minlength=2**width))
        above = counts.flip(0).cumsum(0).flip(0)  # how many have this digit or a larger one
        chosen = int((above >= k).sum()) - 1
        k -= int(above[chosen] - counts[chosen])
        bits = bits[digit == chosen]
        prefix |= chosen << shift
    return torch.tensor(prefix, dtype=torch.int32, device=x.device).view(torch.float32)

"""Files that outlive a process, and the ways in which it ends.

Every write is atomic (temp file, fsync, rename): after a kill at any instant the file on disk is
the old one or the new one, whole.  No torch here: who needs none need not load it.
"""

import fcntl
import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from tqdm import tqdm

SIZE_LIMIT = 2**28  # bytes of a text or JSON file; Qwen3's tokenizer.json has 11 MB
POINTER = b"version https://git-lfs"  # what a clone without git-lfs has in place of a large file
WRITES = True  # false in all but one of several processes that do the same


class UserError(ValueError):
    """A mistake of the user's, or a file that is not what it should be: `main` prints its one line,
    without a traceback."""


def need(good: object, path: Path, message: str) -> None:
    """UserError, "path: message", unless `good`."""
    if not good:
        raise UserError(f"{path}: {message[:200]}")


def write_atomic(path: Path, data: bytes | Callable) -> None:
    """Replace `path` by `data`, or by what `data(file)` writes, entirely or not at all.  UserError
    when the disk refuses."""
    if not WRITES:
        return
    path = Path(path)
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temp, "wb") as f:
                data(f) if callable(data) else f.write(data)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temp, path)
            fsync(path.parent)  # the rename itself must survive a power cut
        except BaseException:
            if temp.exists():  # a file in the way has no such path
                temp.unlink()  # also after a second Ctrl-C: a checkpoint has gigabytes
            raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, the disk's refusal is a UserError that names the path."""
    try:
        yield
    except (OSError, RuntimeError) as e:  # torch.save has the latter for a full disk
        why = getattr(e, "strerror", None) or str(e).splitlines()[0]
        raise UserError(f"cannot write {path}: {why}; what was there is untouched") from None


def fsync(path: Path) -> None:
    """Have a file or folder on the disk, should the power go."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def is_number(x: object) -> bool:
    """Whether a value that was read from a file is a number of use: finite, and no flag."""
    return type(x) in (int, float) and abs(x) < 1e300


def unique(pairs: list[tuple]) -> dict:
    """For json's `object_pairs_hook`.  ValueError for a name twice: json keeps the last."""
    if len(pairs) != len(dict(pairs)):
        raise ValueError("a name stands twice in one object")
    return dict(pairs)


def parse_json(text: bytes) -> object:
    """UTF-8 JSON.  ValueError, in a line, for anything else."""
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=unique)
    except UnicodeDecodeError as e:
        raise ValueError(f"is not UTF-8 at byte {e.start}") from None
    except json.JSONDecodeError as e:
        raise ValueError(f"is no JSON at character {e.pos}: {e.msg}") from None
    except RecursionError:
        raise ValueError("is nested too deep") from None


def read_bytes(path: Path) -> bytes:
    """A file of at most SIZE_LIMIT bytes.  UserError where it cannot be read."""
    try:
        if os.path.getsize(path) > SIZE_LIMIT:
            raise UserError(f"{path} is larger than {SIZE_LIMIT >> 20} MiB")
        data = Path(path).read_bytes()
        if data.startswith(POINTER):
            raise UserError(f"{path} is a git-lfs pointer, not the file: git lfs pull gets it")
        return data
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from None


def read_json(path: Path) -> dict:
    """The object in a JSON file.  UserError, naming the file, when it is anything else."""
    data = read_bytes(path)
    try:
        if isinstance(value := parse_json(data), dict):
            return value
        raise ValueError("is no JSON object")
    except ValueError as e:
        raise UserError(f"{path}: {e}") from None


def write_json(path: Path, record: dict) -> None:
    """A JSON file, atomically, one key a line."""
    write_atomic(path, (json.dumps(record, indent=1) + "\n").encode())


def read_log(path: Path, steps: int | None = None) -> list[dict]:
    """The lines of a metrics.jsonl, one a step from 1 on: `steps` of them, or all that are whole.
    UserError naming the first that is missing or something else."""
    raw, lines = read_bytes(path) if path.exists() else b"", []
    whole = raw.split(b"\n")[:-1]  # of a last one that was cut by a kill nothing is known
    for n in range(1, 1 + (len(whole) if steps is None else steps)):
        try:
            if n > len(whole):
                raise ValueError("is missing")
            lines.append(parse_json(whole[n - 1]))
            if not isinstance(lines[-1], dict) or lines[-1].get("step") != n:
                raise ValueError(f"is not step {n}'s")
            if odd := [k for k, x in lines[-1].items() if not is_number(x)]:
                raise ValueError(f"{odd[0]} is no number")
        except ValueError as e:
            raise UserError(f"{path}, line {n}: {e}; put it back, or start anew") from None
    return lines


HELD = {}  # folder -> its open lock


def lock(folder: Path, wait: bool = False) -> int:
    """Make a folder this command's until it ends, in whatever way; what earlier ones were writing
    when they were killed is removed.  UserError while another is at work there, or wait for it.
    The lock's file descriptor: it lasts until the last process that has it ends."""
    if folder.resolve() not in HELD:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = open(folder / ".lock", "w")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise UserError(f"{folder}: another process is at work there") from None
            print(f"waiting for the process at work in {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as e:
            raise UserError(f"cannot write {folder}: {e.strerror}") from None
        HELD[folder.resolve()] = file
        for left in folder.rglob(".*.tmp"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    return HELD[folder.resolve()].fileno()


def unlock(folder: Path) -> None:
    """Give back what `lock` took."""
    HELD.pop(folder.resolve()).close()


def read_config(folder: Path, kind: type) -> dict:
    """A run's config.json, which has exactly the fields of `kind` but for out and resume."""
    path = Path(folder) / "config.json"
    found, known = read_json(path), {f.name for f in fields(kind)} - {"out", "resume"}
    if odd := found.keys() ^ known:
        raise UserError(f"{path}: unknown or missing: {', '.join(sorted(odd))}; another version's?")
    return found


def claim(folder: Path, mine: dict, write: bool = True, free: Collection[str] = ()) -> None:
    """Note what is done in a folder as its config.json, or find the same there but for `free`.
    UserError when something else was done there, whose files would be overwritten."""
    path = folder / "config.json"
    if path.exists():
        theirs = read_json(path)
        if odd := theirs.keys() ^ mine.keys():
            names = ", ".join(sorted(odd))
            raise UserError(f"{path}: unknown or missing: {names}; another version's, or no run's?")
        changed = [k for k in mine if mine[k] != theirs[k] and k not in free]
        other = [f"--{k.replace('_', '-')} {theirs[k]} there, {mine[k]} here" for k in changed]
        # one that got no line of results gives way: it may be for memory that --rows was lowered
        if other and any(p.stat().st_size for p in folder.glob("*.jsonl")):
            flags = "; ".join(other)
            raise UserError(f"{folder} was made with other flags ({flags}); choose another --out")
    elif not write and any(folder.glob("[!.]*")):
        raise UserError(f"{folder} holds files but no config.json of ours; choose another --out")
    if write and WRITES:
        lock(folder)
        write_json(path, mine)


def command(program: str, work: Callable[[list[str]], int], argv: list[str]) -> int:
    """The exit status of a command line: what `work(argv)` returns, 2 after one line about a
    mistake, 130 when it was stopped."""
    try:
        status = work(argv)
        sys.stdout.flush()
        return status
    except UserError as e:
        why = str(e)
    except BrokenPipeError:  # `| head` has seen enough; Python would flush once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as e:  # of a log, where an append cannot be atomic: going on drops a half line
        why = f"{e.filename or 'a log'}: {e.strerror}"
    except RuntimeError as e:  # infra/memory.py's table is an estimate
        if not re.search("out of memory|allocate memory|overflow", str(e)):
            raise
        why = f"{str(e).splitlines()[0]}: lower --rows or --microbatch, or --recompute"
    except KeyboardInterrupt:
        world = os.environ.get("LOCAL_WORLD_SIZE")
        start = f"torchrun --nproc-per-node {world}" if world else "python"
        print(f"\nstopped; to continue: {start} {program} {shlex.join(argv)}", file=sys.stderr)
        return 130
    finally:
        for folder in [*HELD]:
            unlock(folder)
    print(f"{program}: {why}", file=sys.stderr)
    return 2


class Stopped(KeyboardInterrupt):
    """A signal to stop that something long did not outlast."""


CAUGHT: list[float] = []  # when a signal to stop came


def overdue() -> bool:
    """Whether a signal to stop came seconds ago: what takes longer is not ended first."""
    return bool(CAUGHT) and time.monotonic() > CAUGHT[0] + 3


def bar(what: str, total: int, unit: str, delay: float = 4) -> tqdm:
    """A line on the terminal about what takes longer than `delay` seconds, gone when it ends; in a
    log file, one every half minute."""
    every = 1 if sys.stderr.isatty() else 30
    return tqdm(
        desc=what, total=total, unit=unit, delay=delay, leave=False, mininterval=every, miniters=0
    )


def stop_on_signal() -> Callable[[], bool]:
    """A function that says whether Ctrl-C or SIGTERM came; a second one stops at once, unsaved."""

    def note(number: int, _) -> None:
        if CAUGHT:
            raise KeyboardInterrupt
        CAUGHT.append(time.monotonic())
        os.write(2, b"\nstopping; once more: at once\n")  # print may be interrupted by itself

    CAUGHT.clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return lambda: bool(CAUGHT)


class Clock:
    """CPU and wall seconds since it was made, and those that were added to it; `of_process`: since
    the process began."""

    def __init__(self, of_process: bool = False):
        self.cpu, self.wall = time.process_time(), time.perf_counter()
        if of_process:  # what it did until now took about as long on the wall
            self.add(self.cpu, self.cpu)

    def add(self, cpu_seconds: float, wall_seconds: float) -> "Clock":
        self.cpu, self.wall = self.cpu - cpu_seconds, self.wall - wall_seconds
        return self

    def seconds(self) -> dict[str, float]:
        cpu, wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
        return dict(cpu_seconds=cpu, wall_seconds=wall)


class Log:
    """metrics.jsonl, a line a step, the loggers that get the same lines, and the progress bar."""

    SHOWN = "reward kept_fraction tau grad_norm rollout_tok_s update_tok_s".split()

    def __init__(self, folder: Path, wandb: bool, tensorboard: bool):
        self.folder, self.path = folder, folder / "metrics.jsonl"
        self.also = loggers(folder, wandb, tensorboard) if WRITES else []

    def begin(self, step: int, steps: int, title: str) -> None:
        """Keep the lines up to `step`, atomically: what came after the checkpoint is done again."""
        lines = [json.dumps(line) + "\n" for line in read_log(self.path, step)]
        write_atomic(self.path, "".join(lines).encode())
        if step:
            print(f"continuing after step {step} of {steps}")
        self.bar = tqdm(total=steps, initial=step, desc=title, unit="step")
        self.file = open(self.path if WRITES else os.devnull, "a")

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()
        self.file.close()

    def write(self, line: dict, remark: str = "") -> None:
        """Append a line, and give it to the loggers and the bar, with a remark above it.  UserError
        for what is not finite: the policy's weights overflowed."""
        if odd := [k for k, x in line.items() if not math.isfinite(x)]:
            where = f"step {line['step']}: {odd[0]} is not finite"
            raise UserError(f"{where}; start again with a lower --lr")
        self.file.write(json.dumps(line, allow_nan=False) + "\n")
        self.file.flush()
        for write in self.also:
            write(line)
        self.bar.set_postfix({k: f"{line[k]:.3g}" for k in self.SHOWN}, refresh=False)
        self.bar.update()
        if remark:
            self.bar.write(f"step {line['step']}: {remark}", file=sys.stderr)

    def sync(self) -> None:
        """Have every line on the disk."""
        if WRITES:
            os.fsync(self.file.fileno())


def loggers(folder: Path, wandb: bool, tensorboard: bool) -> list[Callable[[dict], None]]:
    """Functions that log a line of metrics elsewhere as well.  UserError when one was asked for
    whose package is not installed, or refuses to start."""
    out, name = [], "wandb"
    try:
        if wandb:
            import wandb as library

            folder.mkdir(parents=True, exist_ok=True)
            run = library.init(project="fork-gpt", name=folder.name, dir=folder)
            out.append(lambda line: run.log(line, step=line["step"]))
        name = "tensorboard"
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            board = SummaryWriter(folder)
            out.append(lambda line: [board.add_scalar(k, line[k], line["step"]) for k in line])
            out.append(lambda _: board.flush())  # its thread dies with the process, and what it has
    except ImportError:  # also torch's own, for a tensorboard that is too old
        raise UserError(f"--{name}: not installed, or too old: pip install -U {name}") from None
    except Exception as e:  # wandb's own kinds: not logged in, no network
        raise UserError(f"--{name}: {(str(e) or repr(e)).splitlines()[0]}") from None
    return out

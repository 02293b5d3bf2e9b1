"""Checkpoints that any number of processes write together, and any other number goes on from.

A checkpoint is a folder with a file for each process: its parts of every tensor, each with its
place in the whole and a digest.  A process that loads takes from all files what meets its own
parts, so a run of one process continues on many, cut otherwise, and back: exactly.
"""

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from infra.files import UserError, fsync, read_json, writing
from infra.weights import Place, crc

KEPT = 2  # checkpoints of a run: the last, and one to go back to
Parts = dict[str, tuple[Place, Tensor]]  # by name, this process's part of it and where it stands


def save_parts(
    folder: Path, step: int, tensors: Parts, more: dict, rank: int, wait: Callable[[], object]
) -> None:
    """FOLDER/STEP, a file for each rank: its parts of the tensors with their places and digests,
    and `more` numbers and texts.  It has its name when all ranks have written (`wait` returns when
    all have called it).  UserError when the disk refuses."""
    new, name = folder / ".new", folder / f"{step:06}"
    with writing(name):
        if rank == 0:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
    wait()  # which fails where a process is gone: no fault of the disk's
    held = {k: (list(place), crc(t), t.detach()) for k, (place, t) in tensors.items()}
    with writing(name), open(new / f"{rank:05}.pt", "wb") as f:
        torch.save(dict(tensors=held, more=more), f)
        f.flush()
        os.fsync(f.fileno())
    wait()
    with writing(name):
        if rank == 0:
            fsync(new)
            shutil.rmtree(name, ignore_errors=True)  # a damaged one that was gone back behind
            os.rename(new, name)
            fsync(folder)
            for old in found(folder)[:-KEPT]:
                shutil.rmtree(old, ignore_errors=True)
    wait()


def found(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the last one last.  OSError where it may not be read: `glob`
    would find none, and the run would begin anew."""
    return sorted(p for p in folder.iterdir() if p.name.isdecimal()) if folder.exists() else []


def done(folder: Path, steps: int) -> dict | None:
    """The summary of a run that has done so many steps, which is said; else None."""
    last = max((int(p.name) for p in found(folder / "checkpoints")), default=0)
    if last < steps or not (folder / "summary.json").exists():
        return None
    if not any((folder / name).exists() for name in ("model.pt", "model")):
        return None  # a damaged one was deleted, to be made again
    print(f"{folder} has done its {last} steps: see {folder}/report.html")
    print(f"to go on: python fork_gpt.py --resume {folder} --steps {2 * steps}")
    return read_json(folder / "summary.json")


def load_parts(path: Path, tensors: Parts) -> dict:
    """Fill the tensors, each the part at its place, from what any number of ranks wrote; returns
    what else they did.  UserError when something is missing, damaged, or of another shape."""
    again = f"delete {path} to go on from the checkpoint before it"
    try:
        files = sorted(p for p in path.iterdir() if p.suffix == ".pt")
        saved = [torch.load(f, mmap=True, weights_only=True, map_location="cpu") for f in files]
        more, parts = dict(saved[0]["more"]), {}
        for name, (place, digest, t) in (x for f in saved for x in f["tensors"].items()):
            size = [len(range(a, a + n)) for a, n in place]
            if size != [*t.shape] or t.is_sparse or not t.is_cpu:
                raise ValueError
            parts.setdefault(name, {})[tuple(map(tuple, place))] = digest, t  # twins are one
    except PermissionError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from None
    except Exception:  # a damaged file raises anything
        raise UserError(f"{path} is damaged; {again}") from None
    for name, (place, out) in tensors.items():
        filled = 0
        for there, (digest, t) in parts.get(name, {}).items():
            common = [meet(a, b) for a, b in zip(place, there, strict=False)]
            if len(there) != len(place) or t.dtype != out.dtype or not all(n for _, n in common):
                continue
            if crc(t) != digest:
                raise UserError(f"{path}: {name} has changed on the disk; {again}")
            if not t.isfinite().all() or name.startswith("exp_avg_sq") and (t < 0).any():
                raise UserError(f"{path}: {name} has impossible values; {again}")
            mine, theirs = (within(common, outer) for outer in (place, there))
            out.data[mine] = t[theirs].to(out.device)
            filled += math.prod(n for _, n in common)
        if filled != out.numel():
            raise UserError(f"{path} does not belong to this configuration: see {name}")
    return more


def meet(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """What two (start, size) have in common; size 0 if nothing."""
    start, end = max(a[0], b[0]), min(sum(a), sum(b))
    return start, max(0, end - start)


def within(inner: Place, outer: Place) -> tuple[slice, ...]:
    """Where a part of a part stands in it."""
    return tuple(slice(a - b, a - b + n) for (a, n), (b, _) in zip(inner, outer, strict=True))

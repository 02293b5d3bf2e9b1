"""Run folders that a disk, a person or another program has damaged: one line each, and nothing
lost; a second process is kept out, and what a killed one left is swept."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from common import ROOT, SMALL

import fork_gpt
import rollout
from infra import checkpoint, weights


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of two of three steps."""
    here = tmp_path_factory.mktemp("damage")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert fork_gpt.main([*SMALL, "--steps", "3", "--save-every", "1", "--out", "runs/x"]) == 0
    run = here / "runs/x"
    shutil.rmtree(checkpoint.found(run / "checkpoints")[-1])
    (run / "summary.json").unlink()
    return run


@pytest.fixture
def run(stopped, tmp_path, monkeypatch):
    shutil.copytree(stopped.parent, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return Path("runs/x")


def refused(capsys, argv: list[str], *words: str) -> None:
    """The command ends with status 2 and one line that has these words."""
    before = capsys.readouterr() and sorted(map(str, Path("runs/x").rglob("*.pt")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        code = rollout.main() if argv[0] == "rollout" else fork_gpt.main(argv)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and "Traceback" not in line and all(w in line for w in words), line
    assert sorted(map(str, Path("runs/x").rglob("*.pt"))) == before


LINES = {
    "half": lambda a, b: a[: len(a) // 2] + b"\n" + b,
    "blank": lambda a, b: b"\n" + a + b"\n" + b,
    "zeros": lambda a, b: b"\0" * len(a) + b"\n" + b,
    "UTF-16": lambda a, b: a.decode().encode("utf-16") + b"\n" + b,
    "foreign": lambda a, b: b'{"loss": 1}\n' + b,
    "swapped": lambda a, b: b + b"\n" + a,
    "joined": lambda a, b: a + b,
}


@pytest.mark.parametrize("how", LINES)
def test_a_damaged_log_is_found_before_the_training_goes_on(run, how, capsys):
    """Once a JSONDecodeError when all steps were done, the study lost."""
    a, b, *_ = (run / "metrics.jsonl").read_bytes().splitlines()
    (run / "metrics.jsonl").write_bytes(LINES[how](a, b) + b"\n")
    refused(capsys, ["--resume", "runs/x"], "metrics.jsonl, line 1", "put it back")


def rewrite(path: Path, change) -> None:
    """A checkpoint's one file, changed, whose digests are true."""
    saved = torch.load(path / "00000.pt", weights_only=True)
    change(saved)
    for name, (place, _, t) in saved["tensors"].items():
        saved["tensors"][name] = place, weights.crc(t), t
    torch.save(saved, path / "00000.pt")


def cast(dtype: torch.dtype):
    def change(saved):
        saved["tensors"] = {k: (p, d, t.to(dtype)) for k, (p, d, t) in saved["tensors"].items()}

    return change


CHECKPOINTS = {
    "step -1": (lambda s: s["more"].update(step=-1), "step"),
    "step of another": (lambda s: s["more"].update(step=1), "step"),
    "a text as step": (lambda s: s["more"].update(step="2"), "step"),
    "position 10^18": (lambda s: s["more"].update(position=10**18), "position"),
    "no n_updates": (lambda s: s["more"].pop("n_updates"), "n_updates"),
    "other problems": (lambda s: s["more"].update(problems="0"), "problems"),
    "no clock": (lambda s: s["more"].pop("clock"), "clock"),
    "a clock of texts": (lambda s: s["more"].update(clock="now"), "clock"),
    "weights in bf16": (cast(torch.bfloat16), "weight"),
    "whole numbers": (cast(torch.int64), "weight"),
    "no moments": (
        lambda s: [s["tensors"].pop(k) for k in [*s["tensors"]] if k.startswith("exp_avg ")],
        "exp_avg",
    ),
}


@pytest.mark.parametrize("how", CHECKPOINTS)
def test_a_checkpoint_of_other_kinds_or_ranges_is_refused(run, how, capsys):
    """Once taken over as it was."""
    change, word = CHECKPOINTS[how]
    rewrite(checkpoint.found(run / "checkpoints")[-1], change)
    refused(capsys, ["--resume", "runs/x"], "does not belong to this configuration", word)


def flip(path: Path) -> None:
    """One bit in the middle of a file."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def test_a_flipped_bit_is_found_and_the_checkpoint_before_it_is_offered(run, capsys):
    last = checkpoint.found(run / "checkpoints")[-1]
    flip(last / "00000.pt")
    refused(capsys, ["--resume", "runs/x"], str(last), "go on from the checkpoint before it")
    flip(run / "model.pt")
    refused(capsys, ["rollout", "--model", "runs/x", "use 1 2 goal 3 ;"], "model.pt is damaged")


MODELS = {
    "numbers": lambda s: s.update(words=[1, 2]),
    "none": lambda s: s.update(words=[]),
    "doubled": lambda s: s["words"].__setitem__(1, s["words"][2]),
    "half a character": lambda s: s["words"].__setitem__(1, "\ud800"),
    "too few": lambda s: s["words"].pop(),
    "10^9 layers": lambda s: s["config"].update(n_layer=10**9),
    "a text as width": lambda s: s["config"].update(n_embd="64"),
    "no heads": lambda s: s["config"].update(n_head=0),
    "not finite": lambda s: s["weights"]["model.norm.weight"].fill_(float("nan")),
    "whole numbers": lambda s: s.update(weights={k: t.long() for k, t in s["weights"].items()}),
    "no weights": lambda s: s.pop("weights"),
}


@pytest.mark.parametrize("how", MODELS)
def test_a_model_file_that_holds_no_model_is_refused(run, how, capsys):
    """Once a KeyError, AssertionError or IndexError, or 4 GB before anything was said."""
    saved = weights.load(run / "model.pt")
    MODELS[how](saved)
    weights.save(run / "model.pt", saved)
    refused(capsys, ["rollout", "--model", "runs/x", "use 1 2 goal 3 ;"], "model.pt")


@pytest.mark.parametrize("name, change", [
    ("config.json", lambda p: p.write_text('{"recipe": {}}')),
    ("config.json", lambda p: p.write_text("[" * 10000)),
    ("model.pt", flip),
])  # fmt: skip
def test_a_damaged_base_folder(run, name, change, capsys):
    base = next(Path("runs").glob("base-*"))
    change(base / name)
    refused(capsys, ["--resume", "runs/x"], name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read(run, capsys):
    for path in (run / "metrics.jsonl", run / "config.json", run / "model.pt"):
        mode = path.stat().st_mode
        path.chmod(0)
        argv = ["rollout", "--model", "runs/x", "use"] if path.suffix == ".pt" else ["--resume"]
        refused(capsys, argv if argv[1:] else ["--resume", "runs/x"], "ermission")
        path.chmod(mode)


HOLD = """import sys
from pathlib import Path
from infra import files
files.lock(Path(sys.argv[1]))
print("held", flush=True)
input()"""


def test_one_process_at_a_time_and_what_a_killed_one_left_is_swept(run, capsys):
    """Once two processes wrote one folder, and a kill left gigabytes under another name."""
    left = run / "snapshots" / ".000002.pt.4711.tmp"
    left.write_bytes(b"half")
    argv = [sys.executable, "-c", HOLD, run]
    env = os.environ | dict(PYTHONPATH=str(ROOT))
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    other = subprocess.Popen(argv, **pipes)
    assert other.stdout.readline() == b"held\n" and not left.exists()
    refused(capsys, ["--resume", "runs/x"], "another process is at work there")
    other.kill()  # the lock dies with it
    other.wait()
    assert fork_gpt.main(["--resume", "runs/x"]) == 0
    steps = [json.loads(line)["step"] for line in open(run / "metrics.jsonl")]
    assert steps == [1, 2, 3]

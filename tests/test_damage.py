"""Run folders that a disk, a person or another program has damaged: one line each, and nothing
lost; a second process is kept out, and what a killed one left is swept."""

import json
import os
import shutil
import subprocess
import sys
from math import nan
from pathlib import Path

import pytest
import torch
from common import ROOT, SMALL

import fork_gpt
import rollout
from infra import checkpoint, files, weights
from infra.files import UserError
from study import findings, report
from tasks import pretrain
from tasks.countdown import Countdown


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


LINE = dict(resume=["--resume", "runs/x"], study=["study", "runs/x"], report=["report", "runs/x"])
LINE |= dict(rollout=["rollout", "--model", "runs/x", "use 1 2 goal 3 ;"])
LINE |= dict(eval=["--eval", "--model", "runs/x", "--out", "runs/eval"])
MAIN = dict(study=findings.main, report=report.main)


def refused(capsys, argv: list[str], *words: str) -> None:
    """The command ends with status 2 and one line that has these words."""
    before = capsys.readouterr() and sorted(map(str, Path("runs/x").rglob("*.pt")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        if argv[0] in MAIN:
            code = files.command(argv[0], MAIN[argv[0]], argv[1:])
        else:
            code = rollout.main() if argv[0] == "rollout" else fork_gpt.main(argv)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and "Traceback" not in line and all(w in line for w in words), line
    assert sorted(map(str, Path("runs/x").rglob("*.pt"))) == before


LINES = {
    "half": lambda a, b: a[: len(a) // 2] + b"\n" + b,
    "blank": lambda a, b: b"\n" + a + b"\n" + b,
    "foreign": lambda a, b: b'{"loss": 1}\n' + b,
    "swapped": lambda a, b: b + b"\n" + a,
    "no number": lambda a, b: a.replace(b'"entropy": ', b'"entropy": NaN, "x": ') + b"\n" + b,
    "no finite one": lambda a, b: a.replace(b'"entropy": ', b'"entropy": 1e999, "x": ') + b"\n" + b,
}


@pytest.mark.parametrize("how", LINES)
def test_a_damaged_log_is_found_before_the_training_goes_on(run, how, capsys):
    """Once a JSONDecodeError when all steps were done, the study lost."""
    a, b, *_ = (run / "metrics.jsonl").read_bytes().splitlines()
    (run / "metrics.jsonl").write_bytes(LINES[how](a, b) + b"\n")
    refused(capsys, LINE["resume"], "metrics.jsonl, line 1", "put it back")


def rewrite(path: Path, change) -> None:
    """A checkpoint's one file, changed, whose digests are true."""
    saved = torch.load(path / "00000.pt", weights_only=True)
    change(saved)
    for name, (place, _, t) in saved["tensors"].items():
        saved["tensors"][name] = place, weights.crc(t), t
    torch.save(saved, path / "00000.pt")


def parts(change):
    """Every tensor and its place in a checkpoint, changed."""

    def all_parts(saved):
        for name, (place, digest, t) in saved["tensors"].items():
            place, t = change(place, t)
            saved["tensors"][name] = place, digest, t

    return all_parts


def more(name, x):
    """Another number or text, or none, under one of a checkpoint's names."""
    return lambda saved: saved["more"].pop(name) if x is None else saved["more"].update({name: x})


MORE = [("step", 1), ("step", "2"), ("position", -1), ("position", 10**18), ("n_updates", None)]
MORE += [("problems", "0"), ("clock", None), ("clock", "now")]
CHECKPOINTS = {
    **{f"{name} {x}": (more(name, x), name) for name, x in MORE},
    "a text in the clock": (lambda s: s["more"]["clock"].update(cpu_seconds="x"), "clock"),
    "a clock that stands nowhere": (lambda s: s["more"]["clock"].update(wall_seconds=nan), "clock"),
    "no numbers": (lambda s: s.update(more=None), "is damaged"),
    "a place of texts": (parts(lambda place, t: ([("0", n) for _, n in place], t)), "is damaged"),
    "a matrix on its side": (parts(lambda place, t: (place, t.t().contiguous())), "is damaged"),
    "texts for tensors": (parts(lambda place, t: (place, "x")), "is damaged"),
    "not finite": (parts(lambda place, t: (place, t * nan)), "has impossible values"),
    "weights in bf16": (parts(lambda place, t: (place, t.bfloat16())), "weight"),
    "no moments": (lambda s: [s["tensors"].pop(k) for k in [*s["tensors"]] if "exp" in k], "exp_"),
}


@pytest.mark.parametrize("how", CHECKPOINTS)
def test_a_checkpoint_of_other_kinds_or_ranges_is_refused(run, how, capsys):
    """Once taken over as it was."""
    change, word = CHECKPOINTS[how]
    rewrite(checkpoint.found(run / "checkpoints")[-1], change)
    says = word if " " in word else f"does not belong to this configuration: see {word}"
    refused(capsys, LINE["resume"], "checkpoints/000002", says)


def flip(path: Path) -> None:
    """One bit in the middle of a file."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def test_a_run_is_done_when_its_study_is(run):
    """--arms took a run for done whose study had failed."""
    shutil.rmtree(run / "data")
    (run / "data").write_text("in the way")
    assert fork_gpt.main(LINE["resume"]) == 2
    assert (run / "model.pt").exists() and not (run / "summary.json").exists()


def test_a_flipped_bit_is_found_and_what_is_offered_helps(run, capsys):
    """Once a deleted model.pt was not made again: the run was done."""
    last = checkpoint.found(run / "checkpoints")[-1]
    flip(last / "00000.pt")
    refused(capsys, LINE["resume"], f"delete {last} to go on from the checkpoint before it")
    shutil.rmtree(last)
    assert fork_gpt.main(LINE["resume"]) == 0
    good = weights.load_model(run)[0].state_dict()
    flip(run / "model.pt")
    refused(capsys, LINE["rollout"], "model.pt is damaged", "delete it to start again")
    (run / "model.pt").unlink()
    assert fork_gpt.main(LINE["resume"]) == 0
    again = weights.load_model(run)[0].state_dict()
    assert all(torch.equal(again[k], p) for k, p in good.items())


MODELS = {
    "numbers": lambda s: s.update(words=[1, 2]),
    "none": lambda s: s.update(words=[]),
    "doubled": lambda s: s["words"].__setitem__(1, s["words"][2]),
    "empty": lambda s: s["words"].__setitem__(1, ""),
    "by name": lambda s: s.update(words=dict.fromkeys(s["words"])),
    "half a character": lambda s: s["words"].__setitem__(1, "\ud800"),
    "too few": lambda s: s["words"].pop(),
    "10^9 layers": lambda s: s["config"].update(n_layer=10**9),
    "a text as width": lambda s: s["config"].update(n_embd="64"),
    "no number to divide by": lambda s: s["config"].update(norm_eps=nan),
    "no heads": lambda s: s["config"].update(n_head=0),
    "not finite": lambda s: s["weights"]["model.norm.weight"].fill_(float("nan")),
    "whole numbers": lambda s: s.update(weights={k: t.long() for k, t in s["weights"].items()}),
}


@pytest.mark.parametrize("how", MODELS)
def test_a_model_file_that_holds_no_model_is_refused(run, how, capsys):
    """Once a KeyError, AssertionError or IndexError, or 4 GB before anything was said."""
    saved = weights.load(run / "model.pt")
    MODELS[how](saved)
    weights.save(run / "model.pt", saved)
    refused(capsys, LINE["rollout"], "model.pt")


@pytest.mark.parametrize("name, change", [
    ("config.json", lambda p: p.write_text('{"recipe": {}}')),
    ("config.json", lambda p: p.write_text("[" * 10000)),
    ("model.pt", flip),
])  # fmt: skip
def test_a_damaged_base_folder(run, name, change, capsys):
    base = next(Path("runs").glob("base-*"))
    change(base / name)
    refused(capsys, LINE["resume"], name)


NORM = "model.norm.weight"
PRETRAINED = {
    "step -1": lambda s: s.update(step=-1),
    "a text as step": lambda s: s.update(step="3"),
    "a norm in fp16": lambda s: s["model"].update({NORM: s["model"][NORM].half()}),
    "no moments": lambda s: s["optimizer"].update(state={}),
}


@pytest.mark.parametrize("how", PRETRAINED)
def test_a_base_that_was_half_made_by_something_else(how, tmp_path):
    """Once it went on without moments or from another step, or ended in a TypeError."""
    world, recipe = Countdown(max_number=4, max_value=8), pretrain.Pretrain(steps=3)
    looks = iter([False, False, True])
    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain(recipe, world, tmp_path / "p.pt", lambda: next(looks))
    saved = weights.load(tmp_path / "p.pt")
    PRETRAINED[how](saved)
    weights.save(tmp_path / "p.pt", saved)
    with pytest.raises(UserError, match="p.pt is of another model; delete it"):
        pretrain.pretrain(recipe, world, tmp_path / "p.pt", lambda: False)


@pytest.mark.parametrize("change", [
    lambda s: s.pop("samples"), lambda s: s["found"].pop("accuracy"), lambda s: s.update(found=3)
])  # fmt: skip
def test_what_another_version_measured(run, change, capsys):
    saved = weights.load(run / "base.pt")
    change(saved)
    weights.save(run / "base.pt", saved)
    refused(capsys, LINE["resume"], "runs/x/base.pt is another version's; delete it")


@pytest.fixture
def mortal(run):
    """Root may read everything: be somebody else."""
    root = os.geteuid() == 0
    for path in [Path(), *Path().rglob("*")] * root:
        os.chown(path, 65534, 65534)
    os.seteuid(65534 if root else os.geteuid())
    yield run
    os.seteuid(0 if root else os.geteuid())


UNREAD = dict(
    # once checkpoints were taken for none, and the run began anew; or the advice was to delete one
    resume="metrics.jsonl config.json checkpoints checkpoints/000002 checkpoints/000002/00000.pt .",
    study="metrics.jsonl config.json model.pt snapshots snapshots/000000.pt .",
    eval="config.json model.pt .",
    rollout="model.pt .",
    report="data data/run.json .",
)


@pytest.mark.parametrize("who", UNREAD)
def test_files_and_folders_that_may_not_be_read(mortal, who, capsys):
    before = (mortal / "metrics.jsonl").read_bytes()
    for name in UNREAD[who].split():
        (mortal / name).chmod(0)
        refused(capsys, LINE[who], "runs/x", "Permission denied")
        (mortal / name).chmod(0o700)
    assert (mortal / "metrics.jsonl").read_bytes() == before


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
    how = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    how |= dict(env=os.environ | dict(PYTHONPATH=str(ROOT)))
    other = subprocess.Popen([sys.executable, "-c", HOLD, run], **how)
    assert other.stdout.readline() == b"held\n" and not left.exists()
    refused(capsys, LINE["resume"], "another process is at work there")
    other.kill()  # the lock dies with it
    other.wait()
    assert fork_gpt.main(["--resume", "runs/x"]) == 0
    steps = [json.loads(line)["step"] for line in open(run / "metrics.jsonl")]
    assert steps == [1, 2, 3]

"""Whole runs by the command line: what they leave, and that a kill anywhere loses nothing."""

import io
import json
import math
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import chdir, nullcontext, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from common import PATIENCE, ROOT, SMALL, TIMING, config, die_at
from tqdm import tqdm

import fork_gpt
import parallel
from infra import checkpoint, files, weights
from infra.files import UserError
from tasks import ask, pretrain
from tasks.ask import countdown_of
from tasks.countdown import Countdown

SEVEN = [*SMALL, "--steps", "7", "--snapshot-every", "3"]


def metrics(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in open(folder / "metrics.jsonl")]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def saved(folder: Path) -> dict:
    """The last one of one process: {what, name -> tensor}, and its other numbers."""
    path = checkpoint.found(folder / "checkpoints")[-1]
    there = torch.load(path / "00000.pt", weights_only=True)
    return {name: t for name, (_, _, t) in there["tensors"].items()} | there["more"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An uninterrupted run of 7 steps, base included."""
    folder = tmp_path_factory.mktemp("whole")
    with chdir(folder), redirect_stdout(io.StringIO()) as said:
        fork_gpt.run(config(*SEVEN, "--out", "runs/x"), lambda: False)
    for words in ("base model, test split", "after RLVR", "most forking", "a trace"):
        assert words in said.getvalue()
    return folder


@pytest.fixture
def here(whole, tmp_path, monkeypatch) -> Path:
    """An empty folder that has the cached base; signals of the test process left as they are."""
    (tmp_path / "runs").symlink_to(whole / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "stop_on_signal", lambda: lambda: False)
    return tmp_path


def same(a: Path, b: Path) -> None:
    assert metrics(a) == metrics(b)
    x, y = saved(a), saved(b)
    assert x.keys() == y.keys() and x["n_updates"] > 0
    for name, value in x.items():
        if torch.is_tensor(value):
            assert torch.equal(value, y[name]), name
        elif name != "clock":
            assert value == y[name], name
    one, two = (json.loads((f / "summary.json").read_text()) for f in (a, b))
    for clock in ("cpu_seconds", "wall_seconds"):
        assert one.pop(clock) > 0 and two.pop(clock) > 0
    assert one == two


def test_what_a_run_leaves(whole):
    folder = whole / "runs/x"
    lines = metrics(folder)
    assert [line["step"] for line in lines] == list(range(1, 8))
    assert any(line["groups"] for line in lines), "a weak test"
    learned = [line["kept_fraction"] for line in lines if line["groups"]]
    assert learned == pytest.approx([0.2] * len(learned), abs=0.02)
    assert all(line["max_dlogp"] < 1e-4 for line in lines)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["kept_fraction"] == pytest.approx(sum(learned) / len(learned))
    assert (summary["keep"], summary["rho"], summary["seed"]) == ("top", 0.2, 5)
    model, words = weights.load_model(folder)
    trained = saved(folder)
    assert all(torch.equal(p, trained[f"weight {n}"]) for n, p in model.state_dict().items())
    assert set(words) >= {".", "use", "goal", "8"}
    kept = sorted(p.name for p in (folder / "snapshots").iterdir())
    assert kept == ["000000.pt", "000003.pt", "000006.pt"]


def test_what_was_measured_of_which_model_on_which_split(whole):
    """It once trained on validation, validated on test, and named the base final, all unseen."""
    folder, c = whole / "runs/x", config(*SMALL)
    splits, lines = countdown_of(c).splits(), metrics(folder)
    summary = json.loads((folder / "summary.json").read_text())

    def found(step: int, split: str) -> dict:
        model, _ = weights.load_model(folder)
        state = folder / "snapshots" / f"{step:06}.pt"
        model.load_state_dict(weights.load(state)["weights"] if step < 7 else model.state_dict())
        return ask.measure(model, countdown_of(c), splits[split], c)[0]

    base, final, val = found(0, "test"), found(7, "test"), found(7, "val")
    assert base["accuracy"] != final["accuracy"] and val != final
    for name, look in (("_base", base), ("", final)):
        assert summary[f"test_accuracy{name}"] == look["accuracy"]
        assert summary[f"test_accuracy{name}_interval"] == list(look["interval"])
        assert summary[f"arithmetic{name}"] == look["arithmetic"]
    assert (summary["length"], summary["truncated"]) == (final["length"], final["truncated"])
    assert summary["val_accuracy"] == val["accuracy"] == lines[6]["val_accuracy"]
    seen = [lines[6]["val_low"], lines[6]["val_high"]]
    assert summary["val_interval"] == seen == list(val["interval"])
    assert lines[2]["val_accuracy"] == found(3, "val")["accuracy"]
    assert summary["test_problems"] == len(splits["test"])
    # the problems trained on are those of the digest, in the order that the seed gives
    assert saved(folder)["problems"] == ask.digest(splits["train"], c)


def dying(n: int, whole):
    """`whole`, whose call number n ends in StopIteration."""
    left = iter(range(n - 1))
    return lambda *a, **k: (next(left), whole(*a, **k))[1]


# `fork_gpt.py` again and again, which is stopped in updates 2 and 6, of four a step, and dies in 14
STRUCK = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import fork_gpt
signals, whole, n = {{2: signal.SIGINT, 6: signal.SIGTERM, 14: signal.SIGKILL}}, fork_gpt.update, 0
def update(*args, **more):
    global n
    n += 1
    os.kill(os.getpid(), signals.get(n, 0))
    return whole(*args, **more)
fork_gpt.update = update
while True:
    print("status", fork_gpt.main(sys.argv[1:]))
"""


def test_stopped_and_killed_it_resumes_bit_for_bit(whole, here, monkeypatch):
    """Repeated or skipped batches after a resume are the field's commonest silent defect.  Both
    signals save the step they came in and say how to resume.  With a checkpoint every second step
    it dies with lines in the log that no checkpoint has, before the first line after a resume, and
    half a line is there as well: once killed by the system, then by an exception."""
    out, logged, update = here / "y", [], fork_gpt.update
    flags = [*SEVEN, "--out", str(out)]
    line = [sys.executable, "-u", "-c", STRUCK, *flags]
    done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == -signal.SIGKILL, done.stderr
    said = re.findall(r"^status (\d+)$|^continuing after step (\d)", done.stdout, re.M)
    assert said == [("130", ""), ("", "1"), ("130", ""), ("", "2")]
    assert done.stderr.count(shlex.join(flags)) == 2 and "Traceback" not in done.stderr
    for at in (7, 3, 999, 0):
        kept = [int(p.name) for p in checkpoint.found(out / "checkpoints")]
        logged.append((len(metrics(out)), kept[-1:]))
        if at:
            (out / "metrics.jsonl").open("a").write('{"step": 99, "rew' * (logged[-1][0] < 7))
            monkeypatch.setattr(fork_gpt, "update", dying(at, update))
            with pytest.raises(StopIteration) if at < 999 else nullcontext():
                fork_gpt.run(config("--resume", str(out)), lambda: False)
    assert logged == [(3, [2]), (3, [2]), (2, [2]), (7, [7])], "a weak test"
    same(whole / "runs/x", out)


# of each kind of file event, how many there are at least in a third of a run
MOST = dict(write=1000, rename=4, open=5, fsync=10, mkdir=5, remove=1)
CHAINS = [[*MOST], [*MOST][3:] + [*MOST][:3]]  # the first on a new run, the others on resume
CHAINS += [pytest.param([k] * 2, marks=pytest.mark.slow) for k in MOST]


@pytest.mark.parametrize("kinds", CHAINS, ids=lambda kinds: f"{kinds[0]}-{kinds[-1]}")
def test_killed_at_any_file_event_it_resumes_bit_for_bit(whole, tmp_path, monkeypatch, kinds):
    """Killed by the system, time after time, at an event of each of these kinds: in checkpoints,
    snapshots, the log, the model, summary and page; a write is half done then."""
    (tmp_path / "runs").symlink_to(whole / "runs")
    monkeypatch.chdir(tmp_path)
    c = config(*SMALL, "--steps", "7", "--snapshot-every", "3", "--out", "y")
    rng = random.Random(str(kinds))
    for kind in kinds:
        n = rng.randint(1, MOST[kind])
        if not (pid := os.fork()):
            with suppress(BaseException):
                tqdm.set_lock(threading.RLock())  # another thread may have had the old one
                die_at(kind, n)
                fork_gpt.run(c, lambda: False)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL, f"a weak test: no {kind} {n}"
    fork_gpt.run(c, lambda: False)
    same(whole / "runs/x", Path("y"))
    assert not [*Path("y").rglob(".*.tmp"), *Path("y").rglob(".new")]


def test_the_log_is_cut_by_whole_lines(tmp_path):
    log = files.Log(tmp_path, False, False)
    three = "".join(json.dumps(dict(step=n, loss=0.1 / n)) + "\n" for n in (1, 2, 3))
    two, half = three[: three.index('{"step": 3')], three[:-9]
    for text, n, kept in (("", 0, ""), (three, 2, two), (three, 0, ""), (half, 2, two)):
        log.path.write_text(text)
        log.begin(n, 9, "")
        assert log.path.read_text() == kept
    for text, n in ((half, 3), (two, 9)):  # a checkpoint is never ahead of the log
        log.path.write_text(text)
        with pytest.raises(UserError, match="line 3: is missing"):
            log.begin(n, 9, "")
        assert log.path.read_text() == text


@pytest.mark.parametrize("evaluate, keep, save, last, measured, kept, saved", [
    (3, 2, 4, 7, {3, 6, 7}, {2, 4, 6}, {4, 7}), (0, 0, 7, 7, {}, {}, {7}),
    (7, 9, 9, 7, {7}, {}, {7}), (2, 5, 2, 5, {2, 4}, {5}, {2, 4, 5}),
])  # fmt: skip
def test_which_steps_are_measured_kept_and_saved(
    evaluate, keep, save, last, measured, kept, saved, monkeypatch, tmp_path
):
    """--eval-every, --snapshot-every, --save-every of seven steps; the last is always measured,
    unless none is, and always saved; when stopped, that step is saved too.  The log is never behind
    a checkpoint."""
    done = []

    def step(state, world, problems, c):
        done.append(("trained", problems))
        state.step += 1
        return dict.fromkeys([*files.Log.SHOWN, "groups"], 0.5) | dict(step=state.step)

    def measure(policy, world, problems, c):
        done.append(("measured", problems))
        return dict(accuracy=0.5, interval=(0.25, 0.75)), None

    monkeypatch.setattr(fork_gpt, "step", step)
    monkeypatch.setattr(ask, "measure", measure)
    monkeypatch.setattr(weights, "save_snapshot", lambda folder, at, _: done.append(("kept", at)))
    monkeypatch.setattr(parallel, "state_of", lambda model: None)
    monkeypatch.setattr(files.Log, "sync", lambda log: done.append(("synced", metrics(tmp_path))))
    monkeypatch.setattr(parallel, "save_state", lambda folder, s: done.append(("saved", s.step)))
    c = replace(config(), eval_every=evaluate, snapshot_every=keep, save_every=save, steps=7)
    state, splits = SimpleNamespace(step=0, policy=None), dict(train="t", val="v", test="x")
    log = files.Log(tmp_path, False, False)
    log.begin(0, 7, "")
    with pytest.raises(KeyboardInterrupt) if last < 7 else nullcontext():
        fork_gpt.train(state, None, splits, c, log, lambda: state.step == last < 7)
    lines, want = metrics(tmp_path), []
    looks = dict(val_accuracy=0.5, val_low=0.25, val_high=0.75)
    for n in range(1, last + 1):
        found = {k: x for k, x in lines[n - 1].items() if k.startswith("val_")}
        assert found == (looks if n in measured else {})
        want += [("trained", "t"), *[("measured", "v")] * (n in measured)]
        want += [("kept", n)] * (n in kept)
        want += [("synced", lines[:n]), ("saved", n)] * (n in saved)
    assert done == want


def test_a_second_signal_stops_at_once():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    try:
        stop = files.stop_on_signal()
        assert stop() is False
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop() is True
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)  # delivered between two lines of Python
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
        files.CAUGHT.clear()


def test_stopping_in_pretraining_saves_there(tmp_path):
    world, recipe = Countdown(max_number=4, max_value=8), pretrain.Pretrain(steps=6)
    straight, _ = pretrain.pretrain(recipe, world, tmp_path / "q.pt", lambda: False)
    calls = iter([False, False, False, True])
    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain(recipe, world, tmp_path / "p.pt", lambda: next(calls))
    assert weights.load(tmp_path / "p.pt")["step"] == 3
    resumed, _ = pretrain.pretrain(recipe, world, tmp_path / "p.pt", lambda: False)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


# ---------------------------------------------------------------------- bad luck


def fail_with(capsys, argv: list[str]) -> str:
    assert fork_gpt.main(argv) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture
def copied(here, whole) -> Path:
    """The folder y of a run that ended, without its last two files."""
    (here / "y/checkpoints/000006").mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl", "checkpoints/000006/00000.pt"):
        (here / "y" / name).write_bytes((whole / "runs/x" / name).read_bytes())
    return here / "y"


def test_a_damaged_checkpoint_or_one_of_another_shape_is_named(copied, capsys):
    path, name = copied / "checkpoints/000006/00000.pt", "weight model.norm.weight"
    data, saved = path.read_bytes(), torch.load(path, weights_only=True)
    for bad in (data[: len(data) // 2], b"", b"no checkpoint", data[:100] + bytes(99) + data[199:]):
        path.write_bytes(bad)
        assert "checkpoints/000006 is damaged; delete" in fail_with(capsys, ["--resume", "y"])
    _, _, t = saved["tensors"][name]
    for other in (t[:-1], t.double(), t[None]):
        place = [(0, n) for n in other.shape]
        saved["tensors"][name] = place, checkpoint.crc(other), other.clone()
        torch.save(saved, path)
        said = fail_with(capsys, ["--resume", "y"])
        assert f"000006 does not belong to this configuration: see {name}" in said


@pytest.mark.parametrize("bad, words", [
    (dict(kl_coef=0.1), "kl_coef"),
    (dict(keep="foo"), "--keep 'foo'"),  # argparse does not see a config.json: it was bottom
    (dict(steps="7"), "--steps '7'"), ("[", "y/config.json"),
])  # fmt: skip
def test_a_config_with_an_unread_key_or_a_wrong_value(copied, capsys, bad, words):
    path = copied / "config.json"
    text = bad if bad == "[" else json.dumps(json.loads(path.read_text()) | bad)
    path.write_text(text)
    assert words in fail_with(capsys, ["--resume", "y"])


def test_a_disk_that_is_full_under_the_log(here, capsys, monkeypatch):
    """Appending to the log is the one write that is not a rename."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    flags = [*SMALL, "--steps", "2", "--out", "y"]
    fork_gpt.claim_folder(config(*flags))
    monkeypatch.setattr(files, "json", SimpleNamespace(dumps=full, loads=json.loads))
    monkeypatch.setattr(files, "write_json", lambda *_: None)  # claimed above
    assert "a log: No space left" in fail_with(capsys, flags)


def test_loss_that_is_not_finite_stops_before_the_weights_are_touched(here, capsys, monkeypatch):
    flags = [*SMALL, "--steps", "3", "--out", "y"]
    update, stepped = fork_gpt.update, []
    monkeypatch.setattr(fork_gpt, "update", lambda *a, **k: Counter(update(*a, **k), loss=math.nan))
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *a, **k: stepped.append(1))
    said = fail_with(capsys, flags)
    assert "not finite" in said and "--lr" in said and "step" in said and not stepped


@pytest.mark.parametrize("updates", [1, 4])
def test_weights_that_became_nan_end_the_run(here, capsys, updates):
    """They sampled garbage to the end and left a summary, or crashed in the threshold."""
    flags = [*SMALL, "--steps", "9", "--lr", "1e38", "--updates", str(updates), "--out", "y"]
    said = fail_with(capsys, flags)
    assert "finite" in said and "--lr" in said and not (here / "y/summary.json").exists()


def test_a_finished_run_says_what_it_found_again(here):
    before = Path("runs/x/metrics.jsonl").read_bytes()
    assert fork_gpt.run(config("--resume", "runs/x"), lambda: False)["keep"] == "top"
    assert Path("runs/x/metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("keep, share", [("random", 0.2), ("all", 1.0)])
def test_other_arms_keep_their_share_of_the_same_first_samples(here, whole, keep, share):
    """Lots that came from the sampler's generator made its samples other than those of the arms
    that draw none."""
    flags = [*SMALL, "--steps", "3", "--eval-every", "0", "--eval-problems", "5", "--keep", keep]
    fork_gpt.run(config(*flags, "--out", "y"), lambda: False)
    lines = metrics(here / "y")
    learned = [line["kept_fraction"] for line in lines if line["groups"]]
    assert learned and learned == pytest.approx([share] * len(learned), abs=0.02)
    sampled = ("reward", "accuracy", "truncated", "length", "sampled_tokens", "groups")
    mine, first = ([x[k] for k in sampled] for x in (lines[0], metrics(whole / "runs/x")[0]))
    assert mine == first
    assert json.loads((here / "y/summary.json").read_text())["test_problems"] == 5


def test_threads_are_those_asked_for(monkeypatch):
    monkeypatch.setattr(fork_gpt, "claim_folder", lambda *_, **__: 1 / 0)
    for n in (2, 1):
        with pytest.raises(ZeroDivisionError):
            fork_gpt.run(config("--threads", str(n), "--device", "cpu"), lambda: False)
        assert torch.get_num_threads() == n

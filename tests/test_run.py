"""Whole runs by the command line: what they leave, and that a kill anywhere loses nothing."""

import json
import math
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import fork_gpt
from infra import files, flags, weights
from tasks import pretrain
from tasks.countdown import Countdown

ROOT = Path(__file__).resolve().parent.parent
# a base that searches badly, and a world small enough to learn something in seconds
SMALL = "--n-numbers 2 --max-number 6 --max-value 12 --pretrain-steps 120 --prompts 4 --group 4 "
SMALL += "--max-new 24 --overlong 8 --eval-k 1 --eval-every 3 --save-every 2 --seed 5"
SMALL = SMALL.split()


# columns that the clock decides
TIMING = ("seconds", "cpu_seconds", "rollout_tok_s", "update_tok_s")


def config(argv: list[str]) -> fork_gpt.Config:
    """The config of a command line."""
    return fork_gpt.configure(flags.parse((fork_gpt.Config,), argv, "fork_gpt.py", ""))


def command(*flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "fork_gpt.py"), *flags]


def run(folder: Path, *flags: str, code: int = 0) -> str:
    done = subprocess.run(command(*flags), cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def metrics(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in open(folder / "metrics.jsonl")]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An uninterrupted run of 7 steps, base included."""
    folder = tmp_path_factory.mktemp("whole")
    out = run(folder, *SMALL, "--steps", "7", "--out", "runs/x")
    assert "base model, test split" in out and "most forking" in out and "a trace" in out
    return folder


def same(a: Path, b: Path) -> None:
    assert metrics(a) == metrics(b)
    x, y = weights.load(a / "checkpoint.pt"), weights.load(b / "checkpoint.pt")
    assert x["position"] == y["position"] and torch.equal(x["generator"], y["generator"])
    for name, p in x["model"].items():
        assert torch.equal(p, y["model"][name]), name
    assert str(x["optimizer"]) == str(y["optimizer"])
    one, two = (json.loads((f / "summary.json").read_text()) for f in (a, b))
    for clock in ("cpu_seconds", "wall_seconds"):
        assert one.pop(clock) > 0 and two.pop(clock) > 0
    assert one == two


def test_what_a_run_leaves(whole):
    folder = whole / "runs/x"
    lines = metrics(folder)
    assert [line["step"] for line in lines] == list(range(1, 8))
    assert any("kept_fraction" in line for line in lines), "nothing was learned from: weak test"
    for line in lines:
        assert line.keys() >= lines[0].keys()
        assert {"reward", "accuracy", "truncated", "length", "group_pass_rate"} <= line.keys()
        if line["groups"]:
            assert line["kept_fraction"] == pytest.approx(0.2, abs=0.02)
            assert line["entropy_kept"] >= line["tau"] >= 0 and line["max_dlogp"] < 1e-4
            assert line["entropy_dropped"] <= line["entropy"] <= line["entropy_kept"]
    assert [line["step"] for line in lines if "val_accuracy" in line] == [3, 6]
    summary = json.loads((folder / "summary.json").read_text())
    learned = [line["kept_fraction"] for line in lines if line["groups"]]
    assert summary["kept_fraction"] == pytest.approx(sum(learned) / len(learned))
    assert summary["keep"] == "top" and summary["rho"] == 0.2 and summary["seed"] == 5
    low, high = summary["test_accuracy_interval"]
    assert low <= summary["test_accuracy"] <= high
    assert summary["cpu_seconds"] > 0
    model, words = weights.load_model(folder)
    trained = weights.load(folder / "checkpoint.pt")["model"]
    assert all(torch.equal(p, trained[n]) for n, p in model.state_dict().items())
    assert set(words) >= {".", "use", "goal", "8"}


def test_killed_at_random_points_resumes_bit_for_bit(whole, tmp_path):
    """Repeated or skipped batches after a resume are the field's commonest silent defect.

    SIGKILL after a random time, over and over, from the first second of pretraining on."""
    rng, kills = random.Random(0), 0
    flags = [*SMALL, "--steps", "7", "--out", "runs/x"]
    while True:
        patience = 1 + 3 * rng.random() if kills < 4 else 300
        p = subprocess.Popen(
            command(*flags), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            assert p.wait(timeout=patience) == 0
            break
        except subprocess.TimeoutExpired:
            p.send_signal(signal.SIGKILL)
            p.wait()
            kills += 1
        if (tmp_path / "runs/x/config.json").exists():
            flags = ["--resume", "runs/x"]
    assert kills >= 1
    same(whole / "runs/x", tmp_path / "runs/x")


def test_killed_at_every_step_resumes_bit_for_bit(whole, tmp_path):
    """The same, sure to hit every place between two checkpoints: the process dies inside step n."""
    script = tmp_path / "die.py"
    script.write_text(
        "import os, sys, fork_gpt\n"
        "at, whole = int(sys.argv.pop(1)), fork_gpt.update\n"
        "def update(*args, **kw):\n"
        "    global at\n"
        "    out, at = whole(*args, **kw), at - 1\n"
        "    if not at: os.kill(os.getpid(), 9)\n"
        "    return out\n"
        "fork_gpt.update = update\n"
        "sys.exit(fork_gpt.main(sys.argv[1:]))\n"
    )
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    (tmp_path / "runs").symlink_to(whole / "runs")  # the cached base
    flags = [*SMALL, "--steps", "7", "--out", str(tmp_path / "y")]
    for at in (3, 3, 1, 2, 999):
        done = subprocess.run(
            [sys.executable, script, str(at), *flags], cwd=tmp_path, env=env, capture_output=True
        )
        assert done.returncode in (-signal.SIGKILL, 0), done.stderr.decode()
        flags = ["--resume", str(tmp_path / "y")]
    assert done.returncode == 0
    same(whole / "runs/x", tmp_path / "y")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_resume(whole, tmp_path, number):
    (tmp_path / "runs").symlink_to(whole / "runs")
    flags = [*SMALL, "--steps", "500", "--save-every", "400", "--out", str(tmp_path / "y")]
    p = subprocess.Popen(command(*flags), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "y/metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= 2):
        assert p.poll() is None
        time.sleep(0.05)
    p.send_signal(number)
    err = p.communicate(timeout=60)[1]
    assert p.returncode == 130 and shlex.join(flags) in err and "Traceback" not in err
    saved = weights.load(tmp_path / "y/checkpoint.pt")["step"]
    assert saved == len(metrics(tmp_path / "y")) >= 2


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


# ---------------------------------------------------------------------------------- bad luck


def fail_with(capsys, argv: list[str]) -> str:
    assert fork_gpt.main(argv) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture
def here(whole, tmp_path, monkeypatch) -> Path:
    """An empty folder that has the cached base; signals of the test process left as they are."""
    (tmp_path / "runs").symlink_to(whole / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "stop_on_signal", lambda: lambda: False)
    return tmp_path


def test_corrupt_checkpoint(here, whole, capsys):
    (here / "y").mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (here / "y" / name).write_bytes((whole / "runs/x" / name).read_bytes())
    data = (whole / "runs/x/checkpoint.pt").read_bytes()
    for bad in (
        data[: len(data) // 2],
        b"",
        b"not a checkpoint",
        data[:100] + bytes(99) + data[199:],
    ):
        (here / "y/checkpoint.pt").write_bytes(bad)
        line = fail_with(capsys, ["--resume", "y"])
        assert "y/checkpoint.pt" in line and "damaged" in line


def test_checkpoint_of_another_shape(here, whole, capsys):
    config = json.loads((whole / "runs/x/config.json").read_text())
    (here / "y").mkdir()
    files.write_json(here / "y/config.json", config)
    weights.save(here / "y/checkpoint.pt", {"model": {"a": torch.zeros(2)}})
    assert "y/checkpoint.pt does not belong" in fail_with(capsys, ["--resume", "y"])


def test_config_with_an_unread_key(here, whole, capsys):
    config = json.loads((whole / "runs/x/config.json").read_text())
    (here / "y").mkdir()
    files.write_json(here / "y/config.json", config | {"kl_coef": 0.1})
    assert "kl_coef" in fail_with(capsys, ["--resume", "y"])
    (here / "y/config.json").write_text("[")
    assert "y/config.json" in fail_with(capsys, ["--resume", "y"])


def test_full_disk(here, capsys, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    flags = [*SMALL, "--steps", "2", "--out", "y"]
    fork_gpt.claim_folder(config(flags))
    monkeypatch.setattr(files.os, "fsync", full)
    line = fail_with(capsys, flags)
    assert "No space left" in line and "y/" in line
    assert not list((here / "y").glob("*.tmp")) and not list((here / "y").glob(".*"))


def test_loss_that_is_not_finite_stops_before_the_weights_are_touched(here, capsys, monkeypatch):
    flags = [*SMALL, "--steps", "3", "--out", "y"]
    whole_update, stepped = fork_gpt.update, []
    monkeypatch.setattr(
        fork_gpt, "update", lambda *a, **k: whole_update(*a, **k)._replace(loss=math.nan)
    )
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *a, **k: stepped.append(1))
    line = fail_with(capsys, flags)
    assert "not finite" in line and "--lr" in line and "step" in line and not stepped


@pytest.mark.parametrize("updates", [1, 4])
def test_weights_that_became_nan_end_the_run(here, capsys, updates):
    """They sampled garbage to the end and left a summary, or crashed in the threshold."""
    flags = [*SMALL, "--steps", "9", "--lr", "1e38", "--updates", str(updates), "--out", "y"]
    line = fail_with(capsys, flags)
    assert "finite" in line and "--lr" in line and not (here / "y/summary.json").exists()


def test_full_disk_under_the_log(here, capsys, monkeypatch):
    """Appending to the log is the one write that is not a rename."""
    from types import SimpleNamespace

    def dumps(*args, **kw):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "json", SimpleNamespace(dumps=dumps, loads=json.loads))
    line = fail_with(capsys, [*SMALL, "--steps", "2", "--out", "y"])
    assert "a log: No space left" in line


def test_config_with_a_wrong_type_or_word(here, whole, capsys):
    """argparse does not see a config.json: keep = "foo" meant bottom."""
    config = json.loads((whole / "runs/x/config.json").read_text())
    (here / "y").mkdir()
    for bad, words in ((dict(keep="foo"), "--keep 'foo'"), (dict(steps="7"), "--steps '7'")):
        files.write_json(here / "y/config.json", config | bad)
        assert words in fail_with(capsys, ["--resume", "y"])


def test_a_finished_run_says_what_it_found_again(here, whole):
    before = (whole / "runs/x/metrics.jsonl").read_bytes()
    summary = fork_gpt.run(config(["--resume", "runs/x"]), lambda: False)
    assert (whole / "runs/x/metrics.jsonl").read_bytes() == before
    assert summary["keep"] == "top"


@pytest.mark.parametrize("keep, share", [("bottom", 0.8), ("random", 0.2), ("all", 1.0)])
def test_other_arms_keep_their_share(here, whole, keep, share):
    fork_gpt.run(config([*SMALL, "--steps", "7", "--keep", keep, "--out", "y"]), lambda: False)
    learned = [line for line in metrics(here / "y") if line["groups"]]
    assert learned
    for line in learned:
        assert line["kept_fraction"] == pytest.approx(share, abs=0.02)

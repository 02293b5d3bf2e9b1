"""The comparison: its runs are the single commands', nothing is lost, the numbers are right."""

import fcntl
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import pytest
from common import PATIENCE, ROOT, SMALL, config
from test_run import metrics, same, saved

import fork_gpt
from fork_gpt import Config
from infra import files
from infra.flags import parse, take
from study import arms, report
from study.arms import Comparison, Job, jobs_of
from study.stats import pooled
from tasks import pretrain
from tasks.ask import countdown_of

ARMS = ["--arms", "top rho=0.3, bottom optimizer=sgd lr=0.5", "--seeds", "2", "--jobs", "2"]
NAMES = ["top-rho-0.3-base0-seed5", "bottom-optimizer-sgd-lr-0.5-base0-seed5"]
NAMES += [name[:-1] + "6" for name in NAMES]


def planned(*argv: str) -> tuple:
    """What a command line with --arms would do."""
    given = parse((Config, Comparison), argv, "", "")
    return jobs_of(take(Comparison, given), given)


# ---------------------------------------------------------------------------------- whole commands


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Four runs, one of which dies in step 3 with its last checkpoint after step 2; the command
    once more.  (folder, what each command returned and printed to stderr)."""
    folder = tmp_path_factory.mktemp("arms")
    (folder / "die.py").write_text(
        "import os, sys, fork_gpt\n"
        "at = 2 if '--seed=6' in sys.argv and 'optimizer=sgd' in str(sys.argv) else 99\n"
        "def step(state, *args):\n"
        "    if state.step == at: os.kill(os.getpid(), 9)\n"
        "    return whole(state, *args)\n"
        "fork_gpt.step, whole = step, fork_gpt.step\n"
        "sys.exit(fork_gpt.main(sys.argv[1:]))\n"
    )
    drawn, printed = [], []
    with pytest.MonkeyPatch.context() as m:
        m.chdir(folder)
        m.setenv("PYTHONPATH", str(ROOT))
        m.setattr(arms, "PROGRAM", folder / "die.py")
        m.setattr(files, "stop_on_signal", lambda: lambda: False)
        m.setattr(report, "write", lambda out: drawn.append(out))
        for _ in range(2):
            with redirect_stderr(io.StringIO()) as err:
                code = fork_gpt.main([*ARMS, *SMALL, "--steps", "3", "--out", "cmp"])
            record = json.loads(Path("cmp/data/comparison.json").read_text())
            printed.append((code, err.getvalue(), len(record["arms"][1]["seed"])))
    assert drawn == [Path("cmp")] * 2
    return folder, printed


def test_a_child_that_dies_is_named_and_the_others_go_on(compared):
    _, ((code, err, count), _) = compared
    assert code == 2 and count == 1
    assert f"{NAMES[3]} failed (signal 9)" in err and f"see cmp/{NAMES[3]}.log" in err
    assert "1 of 4 runs failed; to try again: python fork_gpt.py --arms 'top rho=0.3" in err
    assert err.count("failed (") == 1


def test_the_same_command_again_finishes_as_if_nothing_had_happened(compared, monkeypatch):
    """Runs equal those of single commands, bit for bit: the one that died, too."""
    folder, (_, (code, err, count)) = compared
    assert code == 0 and count == 2 and "failed" not in err
    assert "continuing after step 2 of 3" in (folder / f"cmp/{NAMES[3]}.log").read_text()
    for name in NAMES:
        log = (folder / f"cmp/{name}.log").read_text()
        assert "pretrain:" not in log  # two children at once would both make the base
        assert log.count("base model, test split") == 1 + (name == NAMES[3])  # finished: left alone
    monkeypatch.chdir(folder)
    alone = ("top --rho 0.3 --seed 5", "bottom --optimizer sgd --lr 0.5 --seed 6")
    for flags, name in zip(alone, (NAMES[0], NAMES[3]), strict=True):
        line = [*SMALL, "--steps", "3", "--keep", *flags.split(), "--out", f"one/{name}"]
        fork_gpt.run(config(*line), lambda: False)
        same(folder / "one" / name, folder / "cmp" / name)
        learned = [line["groups"] > 0 for line in metrics(folder / "one" / name)]
        assert sum(learned) > 1, "nothing was learned from: a weak test"


def test_the_record_is_that_of_the_runs(compared):
    folder = compared[0] / "cmp"
    record = json.loads((folder / "data/comparison.json").read_text())
    # the page had the comparison alone, and said "missing" of everything else
    both = (folder / f / "data/training.json" for f in ("", NAMES[0]))
    assert len({path.read_bytes() for path in both}) == 1
    one = json.loads((folder / NAMES[0] / "summary.json").read_text())
    assert record["base"]["accuracy"] == one["test_accuracy_base"]
    assert record["n_problems"] == len(countdown_of(config(*SMALL)).splits()["test"])
    flags = [arm["flags"] for arm in record["arms"]]
    assert record["k"] == 2 and flags == ["", "optimizer=sgd lr=0.5"]
    for i, arm in enumerate(record["arms"]):
        both = [folder / NAMES[i], folder / NAMES[i + 2]]
        logs = [[json.loads(x) for x in open(f / "metrics.jsonl")] for f in both]
        summaries = [json.loads((f / "summary.json").read_text()) for f in both]
        assert arm["seed"] == [5, 6] and arm["base_seed"] == [0, 0]
        assert "difference" not in arm  # no arm "all"
        assert arm["curve"] == arms.curve(logs) and arm["curve"]["step"] == [1, 2, 3]
        spent = arm["curve"]["cpu_seconds"][-1]
        assert spent > 0
        sd, df = pooled([a["test"]["per_seed"] for a in record["arms"]])
        assert arm["test"] == arms.results(summaries, spent, sd, df) and df == 2
    assert (folder / "comparison.md").read_text() == arms.comparison_table(record)


@pytest.mark.parametrize("name, bad, why", [
    ("summary.json", b"{}", "summary.json: no number test_accuracy; delete it"),
    ("metrics.jsonl", b'{"step": 1', "metrics.jsonl, line 1: is missing; put it back"),
])  # fmt: skip
def test_a_finished_run_that_was_damaged_is_named(compared, monkeypatch, name, bad, why):
    """Once a KeyError, or a curve of runs of unequal length."""
    monkeypatch.chdir(compared[0])
    runs = planned(*ARMS, *SMALL, "--steps", "3", "--out", "cmp")[2]
    whole = (path := runs[1].path(name)).read_bytes()
    path.write_bytes(bad)
    with pytest.raises(files.UserError, match=f"{NAMES[1]}/{why}"):
        arms.compare(runs)
    path.write_bytes(whole)


def test_ctrl_c_saves_every_child_and_says_how_to_go_on(compared, tmp_path):
    """Children in the terminal's process group had two signals, and stopped unsaved."""
    (tmp_path / "runs").symlink_to(compared[0] / "runs")
    line = [sys.executable, ROOT / "fork_gpt.py", "--arms", "all,top", "--seeds=1", "--jobs=2"]
    line += [*SMALL, "--steps", "900", "--save-every", "800", "--out", "cmp"]
    to = dict(cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    p = subprocess.Popen(line, **to)
    logs = [tmp_path / f"cmp/{arm}-base0-seed5/metrics.jsonl" for arm in ("all", "top")]
    while not all(log.exists() and log.read_text().count("\n") >= 2 for log in logs):
        assert p.poll() is None, p.stderr.read()
        time.sleep(0.05)
    os.killpg(p.pid, signal.SIGINT)
    err = p.communicate(timeout=PATIENCE)[1]
    assert p.returncode == 130 and "Traceback" not in err and "failed" not in err
    assert "to continue: python fork_gpt.py --arms all,top --seeds=1" in err
    for log in logs:
        assert saved(log.parent)["step"] == len(log.read_text().splitlines()) >= 2
        assert "to continue: python fork_gpt.py" in Path(f"{log.parent}.log").read_text()
    with open(tmp_path / "cmp/.lock") as lock:  # free: no child is left
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(files.UserError, match="cmp: another process is at work there"):
            arms.run_all(planned("--arms=all")[2], 1, tmp_path / "cmp", lambda: False)


def test_the_lock_lasts_as_long_as_any_child(tmp_path, monkeypatch):
    """A killed parent leaves children at work: the command again would run them twice."""
    monkeypatch.setattr(arms, "PROGRAM", tmp_path / "sleep.py")
    (tmp_path / "sleep.py").write_text("import time; time.sleep(60)")
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        child = arms.launch(Job("top", Config(out=str(tmp_path / "x")), (), 1), lock.fileno())
    with pytest.raises(files.UserError, match="another process is at work"):
        arms.run_all(planned("--arms=all")[2], 1, tmp_path, lambda: False)
    child.kill()
    child.wait()
    assert arms.run_all([], 1, tmp_path, lambda: False) == []


# ---------------------------------------------------------------------------------- the grammar


def test_arms_become_command_lines():
    names = "--arms=top,top\trho=0.1,bottom optimizer=sgd\nlr=5"
    out, jobs, runs = planned(names, *"--steps 9 --seeds 2 --jobs 3 --seed 7 --lr 1e-3".split())
    assert jobs == 3 and [r.config.seed for r in runs] == [7, 7, 7, 8, 8, 8]
    assert [r.arm for r in runs[:3]] == ["top", "top rho=0.1", "bottom optimizer=sgd lr=5"]
    first, second, third = (r.config for r in runs[:3])
    assert first == Config(out=str(out / "top-base0-seed7"), steps=9, seed=7, lr=1e-3)
    assert second == replace(first, rho=0.1, out=str(out / "top-rho-0.1-base0-seed7"))
    folder = str(out / "bottom-optimizer-sgd-lr-5-base0-seed7")
    assert third == replace(first, keep="bottom", optimizer="sgd", lr=5.0, out=folder)
    for run in runs:
        assert config(*run.argv) == run.config
    assert out == Path("runs/arms-top-top-rho-0.1-bottom-optimizer-sgd-lr-5")
    assert len(planned("--arms", "top")[2]) == 3
    two = [r.config for r in planned(*"--arms top --bases 2 --seeds 2 --base-seed 4".split())[2]]
    each = [(4, 0), (4, 1), (5, 0), (5, 1)]
    assert [(c.base_seed, c.seed) for c in two] == each
    assert [c.out for c in two] == [f"runs/arms-top/top-base{b}-seed{s}" for b, s in each]
    assert planned("--arms", "top", "--threads", "999")[1] == 1


WRONG = [
    ("--arms tpo", "--arms 'tpo': --keep 'tpo': it must be a text, one of top"),
    ("--arms top,", "--arms '': --keep ''"), ("--arms top_lr", "'lr' is not field=value"),
    ("--arms top_lrr=3", "--arms 'top lrr=3': 'lrr=3' is not field=value with one of rho, entropy"),
    ("--arms top_steps=3", "'steps=3' is not"),  # unequal training is no comparison
    ("--arms top_seed=3", "'seed=3' is not"),
    ("--arms all_rho=0.1", "'all rho=0.1': --rho would be ignored: it needs --keep top or bottom"),
    ("--arms top_lr=x", "--arms 'top lr=x': --lr 'x': it must be a number"),
    ("--arms top_rho=2", "--arms 'top rho=2': --rho 2.0: it must be a number, in (0, 1]"),
    ("--arms bottom_rho=1", "--rho 1.0: it must be below 1 with --keep bottom"),
    ("--arms top,all,top", "'top' stands there twice"),
    ("--arms top --seeds 0", "--seeds 0: it must be an integer, at least 1"),
    ("--arms top --seeds two", "--seeds 'two': it must be an integer"),
    ("--arms top --bases 2 --model m", "drop --model"),
    ("--arms top --jobs -1", "--jobs -1: it must be an integer, at least 0"),
    ("--arms", "argument --arms: expected one argument"), ("--arms top --keep all", "drop --keep"),
    ("--arms top --stepz 3", "--stepz"),
    ("--arms top --model m --data d --holdout 0", "--holdout 0 leaves no test split"),
]  # fmt: skip


@pytest.mark.parametrize("line, words", WRONG)
def test_a_wrong_command_is_one_line_and_runs_nothing(line, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrain, "base_model", None)  # nothing may run
    argv = [a.replace("_", " ") for a in line.split()]
    assert fork_gpt.main(argv) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and words in err and not out
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_comparison_is_refused(tmp_path):
    """Children would refuse one by one, in their logs."""
    line = ["--arms", "top", "--out", str(tmp_path)]
    first = planned(*line, "--steps", "8")[2][0]
    fork_gpt.claim_folder(first.config)
    first.path("metrics.jsonl").write_text("{}\n")
    with pytest.raises(files.UserError, match="--steps 8 there, 9 here"):
        planned(*line, "--steps", "9")


# ---------------------------------------------------------------------------------- the numbers


def test_a_curve_by_hand():
    columns = ("step", "accuracy", "cpu_seconds")
    logs = [(1, 0.4, 2), (2, 0.54321, 3), (3, 0.6, 4)], [(1, 0.5, 1), (2, 0.2, 1), (3, 0.7, 2)]
    found = arms.curve([[dict(zip(columns, row, strict=True)) for row in log] for log in logs])
    assert found.pop("runs") == [[0.4, 0.5432, 0.6], [0.5, 0.2, 0.7]]
    means = dict(accuracy=[0.45, 0.371605, 0.65], cpu_seconds=[1.5, 3.5, 6.5])
    assert found.pop("step") == [1, 2, 3]
    assert {k: pytest.approx(v) for k, v in means.items()} == found


def summary(accuracy: float, interval=(0.4, 0.6)) -> dict:
    about = dict(arithmetic=accuracy / 2, length=100 * accuracy, truncated=0.1)
    return about | dict(test_accuracy=accuracy, test_accuracy_interval=list(interval))


def test_results_by_hand():
    found = arms.results([summary(0.5), summary(0.7), summary(0.6)], 12.0, 0.1, 4)
    half = 2.77645 * 0.1 / math.sqrt(3)
    means = dict(accuracy=0.6, low=0.6 - half, high=0.6 + half, arithmetic=0.3, length=60)
    means |= dict(truncated=0.1, cpu_seconds=12.0)
    assert found.pop("per_seed") == [0.5, 0.7, 0.6] and found == pytest.approx(means, abs=1e-5)
    alone = arms.results([summary(0.5)], 1.0, math.nan, 0)
    assert (alone["low"], alone["high"]) == (0.4, 0.6)  # over problems: one run has no spread
    assert arms.results([summary(0.5) | dict(arithmetic=None)], 1.0, 0.1, 0)["arithmetic"] is None
    wide = arms.results([summary(0.1), summary(0.9)], 1.0, 0.6, 1)
    assert (wide["low"], wide["high"]) == (0, 1)


def test_table_puts_the_paper_beside_only_its_own_arms():
    test = arms.results([summary(0.5), summary(0.7)], 12.0, 0.6, 1)
    difference = dict(mean=-0.01, low=-0.1, high=0.08, verdict="undecided")
    alone = dict(mean=-0.01, low=None, high=None, verdict="too few runs")
    rows = [dict(name="all"), dict(name="top", difference=difference)]
    rows += [dict(name="top rho=0.1", rho=0.1), dict(name="top lr=1", flags="lr=1")]
    rows += [dict(name="random", difference=alone)]
    rows = [dict(keep=r["name"].split()[0], rho=0.2, flags="", test=test) | r for r in rows]
    base = dict(accuracy=0.4, per_base=[0.39, 0.41], interval=None)
    text = arms.comparison_table(dict(base=base, n_problems=381, k=4, arms=rows))
    assert text.startswith("Base model 0.390 0.410; 381 test problems, 4 samples each.\n")
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()[2:9]]
    assert cells[2][0] == "all" and cells[2][-1] == "53.71 / 61.40 / 66.59" and cells[2][3] == ""
    row = "top|0.600 [0.000, 1.000]|0.500 0.700|-0.010 [-0.100, +0.080]|undecided"
    assert cells[3] == [*f"{row}|60.0|0.100|0.300|12".split("|"), "54.23 / 64.39 / 70.69"]
    assert [row[-1] for row in cells[4:]] == ["none"] * 3 and cells[6][3] == "-0.010"
    assert len({len(line) for line in text.splitlines()[2:9]}) == 1

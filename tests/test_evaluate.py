"""Evaluation: the estimators against brute force, and that neither a kill nor a mistake costs or
mixes up a response."""

import itertools
import json
import math
import os
import shutil
import signal
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from common import random_model, save_small

import fork_gpt
import rollout
from infra import files, flags
from model import SIZES
from study import evaluate
from study.evaluate import Evaluation, majority, pass_at, score, set_table, summarise
from tasks import ask
from tasks.ask import interval
from tasks.countdown import Countdown

WORLD = Countdown()


# ---------------------------------------------------------------------- the estimators


def test_pass_at_is_the_chance_that_of_j_drawn_one_by_one_not_all_are_wrong():
    """In floats C(1024, 512) is near 1e307 and its neighbours overflow: nan instead of a chance."""
    cases = [(n, c, j) for n in range(1, 8) for c in range(n + 1) for j in range(1, n + 1)]
    cases += itertools.product([1024], (0, 1, 2, 100, 900, 1024), (1, 2, 512, 1023, 1024))
    for n, c, j in cases:
        wrong = math.prod(Fraction(max(n - c - i, 0), n - i) for i in range(j))
        assert pass_at(n, c, j) == float(1 - wrong), (n, c, j)


@pytest.mark.parametrize("answers, grades, expected", [
    (["7", "8", "8"], [1, 0, 0], 0), (["8", "7", "8"], [1, 0, 1], 1),
    (["7", "8"], [1, 0], 1),  # a tie: the first seen
    (["7", "8"], [0, 1], 0),
    (["9", "8", "7", "8", "7"], [0, 1, 0, 1, 0], 1),  # of the two that tie, 8 was first
    ([None, None, None, "7"], [0, 0, 0, 1], 1),  # no answer has no vote
    ([None, "8", None, "7", "7"], [0, 0, 0, 1, 1], 1), ([None, None], [0, 0], 0),
    (["", "", "7"], [0, 0, 1], 0),  # an empty answer is an answer, and wrong
])  # fmt: skip
def test_majority(answers, grades, expected):
    assert majority(answers, grades) == expected


def record(text="", answer=None, grade=0.0, tokens=1, finished=True) -> dict:
    return dict(text=text, answer=answer, grade=grade, tokens=tokens, finished=finished)


def test_score_of_one_problem():
    records = [
        record("try 8 + 3 = 11 no try 8 * 3 = 25", "a", 0.0, 10),
        record("try 8 * 3 = 24 yes", "b", 1.0, 7, False),
        record("nothing", None, 0.0, 4),
        record("try 2 - 2 = 0", "b", 1.0, 3),
        record("", None, 0.0, 6, False),
        record("", "c", 0.0, 6, False),
    ]
    found = score(records, WORLD)
    names = "avg@6 maj@6 pass@1 pass@2 pass@4 pass@6 length truncated arithmetic".split()
    values = [2 / 6, 1, 2 / 6, 1 - (4 / 6) * (3 / 5), 1 - 1 / 15, 1, 6, 0.5, 3 / 4]
    assert list(found) == names and list(found.values()) == pytest.approx(values)
    assert score(records[2:3], WORLD)["arithmetic"] is None  # no statement: not 0
    assert score(records, Letters())["arithmetic"] is None  # nor where all is prose


def test_summary_of_a_set():
    scores = [{"avg@2": x, "arithmetic": y} for x, y in ((0.5, None), (1.0, 0.75), (0.0, None))]
    found = summarise(scores, ["a", "b", "a"])
    assert found["avg@2"] == dict(mean=0.5, interval=interval([0.5, 1.0, 0.0], "aba"))
    assert found["arithmetic"] == dict(mean=0.75, interval=None)  # one problem: no interval
    assert summarise(scores[::2], ["a", "a"])["avg@2"]["interval"] is None  # one set of numbers
    assert summarise(scores[:1], ["a"]) == {"avg@2": dict(mean=0.5, interval=None)}
    assert summarise([], []) == {}


def test_table():
    length = dict(mean=12345.67, interval=(9000, 15000))
    aime = {"avg@4": dict(mean=0.25, interval=(0.125, 0.3754)), "length": length}
    sets = {
        "aime": {"problems": 30, "too long": 2, "metrics": aime},
        "none": {"problems": 0, "too long": 1, "metrics": {}},
        "average": {"metrics": {"avg@4": dict(mean=1 / 3, interval=None)}},
    }
    assert set_table(sets).splitlines() == [
        "|          | aime                         | none | average |",
        "| ---      | ---                          | ---  | ---     |",
        "| problems | 30                           | 0    |         |",
        "| too long | 2                            | 1    |         |",
        "| avg@4    | 0.250 [0.125, 0.375]         | -    | 0.333   |",
        "| length   | 12,345.7 [9,000.0, 15,000.0] | -    | -       |",
    ]


# ---------------------------------------------------------------------- whole evaluations


@dataclass(frozen=True)
class Puzzle:
    prompt: str
    goal: int


class Letters(Countdown):
    """A world that a random model sometimes solves: the answer is the text's length modulo 3, and
    there is none for texts of 4 q + 3 characters."""

    kinds = None
    name = staticmethod(lambda p: "name of " + p.prompt)
    cluster = staticmethod(lambda p: p.prompt)
    statements = staticmethod(lambda text: [])

    def tokenizer(self):
        return replace(WORLD.tokenizer(), words=())

    def answer(self, p: Puzzle, text: str) -> str | None:
        return None if len(text) % 4 == 3 else str(len(text) % 3)

    def reward(self, p: Puzzle, text: str) -> float:
        return float(self.answer(p, text) == str(p.goal))


PUZZLES = {
    "one.jsonl": [Puzzle(f"use {i} 7", i % 3) for i in range(7)],
    "dir/two.jsonl": [Puzzle("goal 8 ;", 2)],
    "none.jsonl": [Puzzle("goal " * 30, 2)],
}
PUZZLES["one.jsonl"] += [Puzzle("use " * 40, 0), Puzzle("use 9", 1)]
DATA = ["--data", ",".join(PUZZLES)]
QUICK = "--model model --k 4 --rows 9 --max-new 7 --max-prompt 20 --seed 3".split()


def save_random_model(folder: Path, seed: int = 0) -> None:
    tokenizer = WORLD.tokenizer()
    shape = replace(SIZES["tiny"], n_layer=1, n_embd=32, vocab_size=tokenizer.n_vocab)
    save_small(folder, random_model(shape, seed), tokenizer.words)


@pytest.fixture
def maths(tmp_path, monkeypatch):
    """An empty folder to work in, beside a random model, where --data names PUZZLES."""
    opened = ask.open_model

    def open_model(folder, device, eos, dtype):
        model, tokenizer = opened(folder, device, None, dtype)
        return model, replace(tokenizer, words=())  # as a published folder's

    save_random_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ask, "Maths", lambda *_: Letters())
    monkeypatch.setattr(ask, "open_model", open_model)
    read = lambda paths, skip_bad: (PUZZLES[paths[0]], dict(lines=9, bad=0))  # noqa: E731
    monkeypatch.setattr("tasks.maths.read_problems", read)
    monkeypatch.setattr(files, "stop_on_signal", lambda: lambda: False)
    return tmp_path


def run(argv: list[str]) -> int:
    return fork_gpt.main(["--eval", *argv])


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in open(path)]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_what_an_evaluation_leaves(maths, capsys):
    assert run([*QUICK, *DATA]) == 0
    out, folder = capsys.readouterr().out, Path("runs/eval-model-one-two-none-k4")
    assert str(folder) in out
    sets = json.loads((folder / "results.json").read_text())["sets"]
    world, fitting = Letters(), [p for p in PUZZLES["one.jsonl"] if len(p.prompt) < 40]
    texts, averages = [], []
    for name, problems in (("one", fitting), ("two", PUZZLES["dir/two.jsonl"]), ("none", [])):
        records, found = lines(folder / f"{name}.jsonl"), sets[name]["metrics"]
        places = [(i, s) for i in range(len(problems)) for s in range(4)]
        assert [(r["problem"], r["sample"]) for r in records] == places
        for r in records:
            p, text = problems[r["problem"]], r["text"]
            assert (r["name"], r["question"], r["gold"]) == (world.name(p), p.prompt, str(p.goal))
            assert (r["answer"], r["grade"]) == (world.answer(p, text), world.reward(p, text))
            assert r["finished"] == (text.endswith(" .") or text == ".")
            assert 1 <= r["tokens"] <= 7 and r["finished"] | (r["tokens"] == 7)
        assert sets[name]["problems"] == len(problems)
        texts += [r["text"] for r in records]
        if not problems:
            assert found == {}
            continue
        grades = [[r["grade"] for r in records[i : i + 4]] for i in range(0, len(records), 4)]
        means = [sum(g) / 4 for g in grades]
        want = {"avg@4": sum(means) / len(means), "pass@4": sum(map(any, grades)) / len(grades)}
        want["length"] = sum(r["tokens"] for r in records) / len(records)
        want["truncated"] = sum(not r["finished"] for r in records) / len(records)
        assert {k: found[k]["mean"] for k in want} == pytest.approx(want)
        of_problems = list(interval(means, range(len(means)))) if len(means) > 1 else None
        assert found["avg@4"]["interval"] == of_problems  # and not of responses
        averages.append(want["avg@4"])
    assert len(set(texts[:32])) > 28, "batches or groups share their randomness"
    assert 0 < averages[0] < 1, "a weak test: all responses have one grade"
    assert [s.get("too long") for s in sets.values()] == [1, 0, 1, None]
    average = sets["average"]["metrics"]["avg@4"]["mean"]
    assert average == pytest.approx(sum(averages) / 2)  # a set without problems is left out
    page = (folder / "results.md").read_text()
    assert set_table(sets) in page and set_table(sets) in out
    command = "python fork_gpt.py --eval " + " ".join([*QUICK, *DATA])
    for fact in (command, "model: `model`", "seed: `3`", torch.__version__, "hardware"):
        assert fact in page


def test_whatever_a_kill_leaves_the_same_command_completes(maths, monkeypatch):
    """A half line or half batch once stayed in the file, or whole batches were sampled again."""
    argv = [*QUICK, *DATA, "--out", "out"]
    assert run(argv) == 0
    whole = contents(Path("out"))
    data, firsts = whole["one.jsonl"], []
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]  # a batch is 2 problems of 4
    sampled = evaluate.sample_batch

    def counting(model, world, name, first, *rest):
        firsts.append((name, first))
        return sampled(model, world, name, first, *rest)

    monkeypatch.setattr(evaluate, "sample_batch", counting)
    batches = [0, 2, 4, 6]
    # of the first batch one response is missing, then only its last newline; half of the second
    sizes = [(0, 0), (1, 0), (ends[6], 0), (ends[7] - 1, 0), (ends[7], 1), (ends[7] + 40, 1)]
    sizes += [(ends[11], 1), (ends[15] + 1, 2), (len(data) - 1, 3), (len(data), 4)]
    for size, kept in sizes:
        Path("out/one.jsonl").write_bytes(data[:size])
        Path("out/results.json").unlink()
        firsts.clear()
        assert run(argv) == 0
        assert firsts == [("one", first) for first in batches[kept:]], size
        assert contents(Path("out")) == whole, size
    odd = [data[ends[9] :]]  # a line is missing, or is another
    holes = b"\0" * 30, b"[1, 2]\n" * 4, data[: ends[0]], b'{"problem": 2, "sample": 1}\n'
    for hole in (*holes, b"[" * 10**5 + b"\n"):  # the last was a RecursionError
        odd.append(hole + data[ends[8] + len(hole) :])
    for rest in odd:
        Path("out/one.jsonl").write_bytes(data[: ends[8]] + rest)
        assert run(argv) == 0
        assert contents(Path("out")) == whole
    asked = json.loads(Path("out/config.json").read_text())
    Path("out/config.json").write_text(json.dumps(asked | dict(rows="x")))
    assert run(argv) == 2  # it was a TypeError


def test_sigkill_in_the_middle_of_a_write(tmp_path, monkeypatch):
    """The real thing, in the small world: death with half a batch written."""
    save_random_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "stop_on_signal", lambda: lambda: False)
    argv = "--model model --k 3 --rows 6 --limit 5 --max-new 9 --out out".split()
    assert run(argv) == 0
    whole, path, calls = contents(Path("out")), Path("out/countdown-test.jsonl"), itertools.count(1)
    firsts, test = lines(path)[::3], WORLD.splits()["test"][:5]
    shutil.rmtree("out")

    def die(fd: int) -> None:
        if next(calls) == 4:  # after two of the config's and one of the first batch
            os.truncate(path, path.stat().st_size - 500)
            os.kill(os.getpid(), signal.SIGKILL)

    if not (pid := os.fork()):
        with suppress(BaseException):
            os.fsync = die
            run(argv)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    half = path.read_bytes()
    assert 6 < half.count(b"\n") < 12 and half[-1:] != b"\n"
    assert run(argv) == 0 and contents(Path("out")) == whole
    assert [(r["question"], r["gold"]) for r in firsts] == [(p.prompt, str(p.goal)) for p in test]


def test_ctrl_c_says_how_to_go_on(maths, monkeypatch, capsys):
    argv = [*QUICK, "--data", "one.jsonl", "--out", "my out"]
    looks = iter([False, False, True])
    monkeypatch.setattr(files, "stop_on_signal", lambda: lambda: next(looks))
    assert fork_gpt.main(["--eval", *argv]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    command = "python fork_gpt.py --eval " + " ".join(argv[:-1]) + " 'my out'"
    assert said == f"stopped; to continue: {command}"
    assert len(lines(Path("my out/one.jsonl"))) == 16  # two batches, whole
    assert not Path("my out/results.json").exists()
    monkeypatch.setattr(files, "stop_on_signal", lambda: lambda: False)
    assert run(argv) == 0
    assert len(lines(Path("my out/one.jsonl"))) == 32


def test_never_more_rows_than_asked(maths, monkeypatch):
    """`generate` decodes all G samples of a prompt at once: k above --rows once meant k rows."""
    calls = []

    def spy(model, prompts, G, max_new, eos, how, seed, numbers, max_rows, progress):
        calls.append((len(prompts) * G, G, max_rows, how.temperature, how.top_p))
        return rollout.generate(model, prompts, G, max_new, eos, how, seed, numbers, max_rows)

    monkeypatch.setattr(ask, "generate", spy)
    argv = [*QUICK, "--data", "dir/two.jsonl", "--temperature", "0.7", "--top-p", "0.9"]
    for k, rows, G in ((6, 4, 3), (7, 4, 1), (4, 4, 4), (4, 9, 4)):
        more = ["--k", str(k), "--rows", str(rows), "--out", f"{k}-{rows}"]
        assert run([*argv, *more]) == 0
        assert calls.pop() == (k, G, rows, 0.7, 0.9) and not calls
        texts = [r["text"] for r in lines(Path(f"{k}-{rows}/two.jsonl"))]
        assert len(texts) == k and len(set(texts)) > k // 2


def test_seeds_sets_and_batches_have_their_own_randomness(maths, monkeypatch):
    """Two sets, or two batches, that share a generator's seed repeat each other's draws."""
    monkeypatch.setitem(PUZZLES, "twin.jsonl", PUZZLES["one.jsonl"])
    for seed in "1", "2":
        data = ["--data", "one.jsonl,twin.jsonl", "--out", seed]
        assert run([*QUICK, *data, "--seed", seed]) == 0
    paths = (Path(f"{s}/{n}.jsonl") for s in "12" for n in ("one", "twin"))
    texts = [[r["text"] for r in lines(path)] for path in paths]
    for a, b in itertools.combinations(texts, 2):
        assert sum(x == y for x, y in zip(a, b, strict=True)) < len(a) / 4
    monkeypatch.setitem(PUZZLES, "same.jsonl", [Puzzle("use 9", 1)] * 6)
    assert run([*QUICK, "--data", "same.jsonl", "--out", "same"]) == 0
    texts = [r["text"] for r in lines(Path("same/same.jsonl"))]  # batches of two problems of four
    assert texts[:8] != texts[8:16] != texts[16:] and len(set(texts)) > 20


def test_greedy_does_not_depend_on_the_seed(maths):
    for seed in "1", "2":
        argv = [*QUICK, "--data", "one.jsonl", "--temperature", "0", "--k", "1"]
        assert run([*argv, "--seed", seed, "--out", seed]) == 0
    assert contents(Path("1"))["one.jsonl"] == contents(Path("2"))["one.jsonl"]


def config(*argv: str) -> fork_gpt.Config:
    given = flags.parse((fork_gpt.Config, Evaluation), argv, "", "")
    return evaluate.configure(flags.take(Evaluation, given), given)


def test_what_a_run_says_is_the_default(tmp_path):
    trained = dict(max_new=77, max_value=40, ops="+-", template="chat", dtype="bfloat16", rows=64)
    record = asdict(fork_gpt.Config(**trained))
    (tmp_path / "config.json").write_text(json.dumps(record))
    c = config("--model", str(tmp_path), "--max-value", "50")
    # as many rows as fit where it is measured, not where it was trained
    assert (c.dtype, c.rows) == ("bfloat16", 0)
    assert (c.max_new, c.max_value, c.ops) == (77, 50, "+-")
    assert config("--model", str(tmp_path), "--data", "x.jsonl").template == "chat"
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "dtype": "float16"}')
    c = config("--model", str(tmp_path), "--data", "x.jsonl")
    assert (c.max_new, c.template, c.dtype) == (20480, "boxed", "bfloat16")
    assert config("--model", "elsewhere").max_new == 160


# ---------------------------------------------------------------------- mistakes


def mistake(capsys, *argv: str) -> str:
    capsys.readouterr()
    assert fork_gpt.main(["--eval", *argv]) == 2
    said = capsys.readouterr().err.splitlines()
    said = [line for line in said if "problem/s" not in line and line]
    assert len(said) == 1 and said[0].startswith("fork_gpt.py: "), said
    return said[0]


def test_a_folder_of_something_else_is_refused_and_left_alone(maths, monkeypatch, capsys):
    """Responses of two models or two settings in one file would be averaged without a word."""
    argv = [*QUICK, "--data", "one.jsonl", "--out", "out"]
    assert run(argv) == 0
    whole = contents(Path("out"))
    for flag, there, here in (("k", 4, 5), ("seed", 3, 4), ("limit", 0, 2)):
        said = mistake(capsys, *argv, f"--{flag}", str(here))
        assert f"{flag} {there} there, {here} here" in said
    save_random_model(maths / "model", seed=1)
    assert "weights " in mistake(capsys, *argv)
    save_random_model(maths / "model")
    puzzles = [*PUZZLES["one.jsonl"][:-1], Puzzle("use 9", 2)]  # another gold answer
    monkeypatch.setitem(PUZZLES, "one.jsonl", puzzles)
    assert "problems " in mistake(capsys, *argv)
    monkeypatch.undo()
    assert contents(maths / "out") == whole


def test_the_data_file_itself_is_never_taken_for_responses(maths, capsys):
    """--out FOLDER-OF-THE-DATA would cut aime24.jsonl, which holds no response, to nothing."""
    Path("sets").mkdir()
    Path("sets/one.jsonl").write_text('{"problem": "1 + 1"}\n')
    argv = [*QUICK, "--data", "one.jsonl", "--out", "sets"]
    assert "sets holds files but no config.json of ours" in mistake(capsys, *argv)
    for config in ("{}", "[]", "3", "{", '{"rho": 0.2}'):  # a training run's, or damaged
        Path("sets/config.json").write_text(config)
        assert "sets/config.json" in mistake(capsys, *argv)
        assert Path("sets/config.json").read_text() == config
    assert [*contents(Path("sets"))] == ["config.json", "one.jsonl"]
    assert Path("sets/one.jsonl").read_text() == '{"problem": "1 + 1"}\n'


def test_out_of_memory_is_one_line_and_another_try_is_open(maths, capsys, monkeypatch):
    """The config of an evaluation that never got to a response barred --rows from being lowered."""
    argv = [*QUICK, "--data", "dir/two.jsonl", "--out", "out"]
    assert "cannot fit; " in mistake(capsys, *argv, "--max-new", "10000000000")
    monkeypatch.setattr("infra.memory.room", lambda device: None)  # where nothing says what is free
    for enormous, why in (("10000000000", "allocate memory"), (f"1{'0' * 17}", "overflow")):
        said = mistake(capsys, *argv, "--max-new", enormous)
        assert why in said and "lower --rows" in said
    assert run(argv) == 0


@pytest.mark.parametrize("flags, said", [
    ("", "--model"), ("--model nowhere", "nowhere: no model of the small world there"),
    ("--model nowhere --data a.jsonl", "nowhere: no such folder"),
    ("--model model --data a.jsonl", "it cannot read --data"),
    ("--model model --ops +-", "speaks of another world"), ("--model model --k 0", "--k 0"),
    ("--model model --k two", "--k"), ("--model model --temperature 0", "--k 16"),
    ("--model model --temperature -1", "--temperature -1"),
    ("--model model --temperature nan", "--temperature nan"),
    ("--model model --top-p 0", "--top-p 0"), ("--model model --top-p 1.5", "--top-p 1.5"),
    ("--model model --limit -1", "--limit -1"), ("--model model --max-new -5", "--max-new -5"),
    ("--model model --rows -1", "--rows -1"), ("--model model --seed -1", "--seed -1"),
    ("--model model --ops +%", "--ops"), ("--model model --ops ++", "--ops"),
    ("--model model --max-value 5", "--max-value 5"), ("--model model --split train", "--split"),
    ("--model model --template poem", "--template"), ("--model model --dtype int8", "--dtype"),
    ("--model model --rho 0.2", "--rho"),
    ("--model model --data a/x.jsonl,b/x.jsonl", "a name of its own, not 'x'"),
    ("--model model --data a.jsonl,", "'' in a.jsonl,: a set needs"),
    ("--model model --data average.jsonl", "average"), ("--model broken", "broken/config.json"),
    ("--model odd", "--max-value '30'"), ("--model damaged", "damaged/model.pt is damaged"),
    ("--model model --limit 1 --max-new 2 --k 1 --out taken", "cannot write taken"),
])  # fmt: skip
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, monkeypatch, capsys, flags, said):
    monkeypatch.chdir(tmp_path)
    save_random_model(tmp_path / "model")
    for name, content in (("broken", "{"), ("odd", '{"max_value": "30"}'), ("damaged", "{}")):
        Path(name).mkdir()
        Path(name, "config.json").write_text(content)
    Path("damaged/model.pt").write_bytes(b"PK\3\4 no")
    Path("taken").write_text("a file")
    Path("a.jsonl").write_text('{"problem": "1 + 1", "answer": 2}')
    before = sorted(p for p in tmp_path.rglob("*"))
    assert said in mistake(capsys, *flags.split())
    assert sorted(p for p in tmp_path.rglob("*")) == before


def test_intervals_of_the_small_world_are_over_sets_of_numbers(tmp_path, monkeypatch):
    """Its problems share them, and an interval over problems is too narrow."""
    monkeypatch.chdir(tmp_path)
    save_random_model(tmp_path / "model")
    monkeypatch.setattr(Countdown, "reward", lambda self, p, text: float(p.numbers[-1] % 2))
    argv = "--eval --model model --k 1 --max-new 2 --limit 60 --device cpu --out out".split()
    assert fork_gpt.main(argv) == 0
    found = next(iter(json.loads(Path("out/results.json").read_text())["sets"].values()))
    problems = WORLD.splits()["test"][:60]
    values = [p.numbers[-1] % 2 for p in problems]
    over_sets = ask.interval(values, [p.numbers for p in problems])
    assert found["metrics"]["avg@1"]["mean"] == pytest.approx(sum(values) / 60)
    assert found["metrics"]["avg@1"]["interval"] == pytest.approx(over_sets)
    assert ask.interval(values, range(60)) != pytest.approx(over_sets)

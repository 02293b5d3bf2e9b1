"""Wrong folders, configs, data files and flags of a run on published weights: each gives one clear
line that names the file, and leaves nothing behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_road import write_random

import fork_gpt
from infra import files

GOOD = [dict(problem=f"{a} + 4 = ?", answer=a + 4) for a in range(20)]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("good")
    write_random(place / "model")
    return place / "model"


@pytest.fixture
def here(good, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(good, tmp_path / "model")
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(p) + "\n" for p in GOOD))
    return tmp_path


def edit(file: str, **changes) -> Callable:
    """Change keys of a JSON file of the model's folder."""

    def damage(here: Path) -> None:
        path = here / "model" / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def write(file: str, content: bytes | str) -> Callable:
    content = content.encode() if isinstance(content, str) else content
    return lambda here: (here / file).write_bytes(content)


def cut(file: str) -> Callable:
    return lambda here: (here / file).write_bytes((here / file).read_bytes()[:-9])


def remove(file: str) -> Callable:
    return lambda here: (here / file).unlink()


def lines(*extra: object) -> Callable:
    """The good lines and some more, JSON or text."""
    texts = [x if isinstance(x, str) else json.dumps(x) for x in (*GOOD, *extra)]
    return write("d.jsonl", "".join(t + "\n" for t in texts))


def tensors(change: Callable[[dict], dict]) -> Callable:
    def damage(here: Path) -> None:
        path = here / "model/model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return damage


def index(file: str) -> Callable:
    def damage(here: Path) -> None:
        (here / "model/model.safetensors").rename(here / "model/a.safetensors")
        names = load_file(here / "model/a.safetensors").keys()
        text = json.dumps(dict(weight_map=dict.fromkeys(names, file)))
        (here / "model/model.safetensors.index.json").write_text(text)

    return damage


def tokenizer(change: Callable[[dict], None]) -> Callable:
    def damage(here: Path) -> None:
        path = here / "model/tokenizer.json"
        whole = json.loads(path.read_text())
        change(whole)
        path.write_text(json.dumps(whole))

    return damage


def huge_line(here: Path) -> None:
    with open(here / "d.jsonl", "wb") as f:
        f.write(b'{"problem": "')
        f.truncate(2**31)  # sparse: no disk is used


def huge_header(here: Path) -> None:
    with open(here / "model/model.safetensors", "r+b") as f:
        f.write((2**40).to_bytes(8, "little"))


def small_run(here: Path) -> None:
    shutil.rmtree(here / "model")
    (here / "model").mkdir()
    torch.save({}, here / "model/model.pt")


def nan(state: dict) -> dict:
    state["model.norm.weight"][3] = float("nan")
    return state


MANY = dict(added_tokens=[], x=1)
NORM = "model.norm.weight"
CASES = {
    # the folder
    "no folder": (lambda h: shutil.rmtree(h / "model"), [], ["model", "config.json"]),
    "config missing": (remove("model/config.json"), [], ["model", "config.json"]),
    "config truncated": (cut("model/config.json"), [], ["config.json"]),
    "config empty": (write("model/config.json", ""), [], ["config.json"]),
    "config a list": (write("model/config.json", "[]"), [], ["config.json"]),
    "config not UTF-8": (write("model/config.json", b'{"a": "\xff"}'), [], ["config.json"]),
    "wrong type": (edit("config.json", hidden_size="64"), [], ["hidden_size"]),
    "llama": (edit("config.json", model_type="llama"), [], ["model_type", "llama"]),
    "rope scaling": (edit("config.json", rope_scaling={"type": "yarn"}), [], ["rope_scaling"]),
    "mixture": (edit("config.json", num_experts=8), [], ["num_experts"]),
    "window": (edit("config.json", use_sliding_window=True), [], ["use_sliding_window"]),
    "quantised": (edit("config.json", quantization_config={"bits": 4}), [], ["quantization"]),
    "weights truncated": (cut("model/model.safetensors"), [], ["model.safetensors"]),
    "weights empty": (write("model/model.safetensors", ""), [], ["model.safetensors"]),
    "weights missing": (remove("model/model.safetensors"), [], ["model.safetensors"]),
    "header of a terabyte": (huge_header, [], ["model.safetensors"]),
    "NaN weights": (tensors(nan), [], [NORM, "not finite"]),
    "tensor missing": (tensors(lambda s: s.pop(NORM) is None or s), [], ["missing", NORM]),
    "tensor surplus": (tensors(lambda s: s | {"x": torch.zeros(1)}), [], ["surplus", "'x'"]),
    "misshapen": (tensors(lambda s: s | {NORM: torch.ones(3)}), [], [NORM, "[3]"]),
    "path traversal": (index("../model/a.safetensors"), [], ["index", "../model"]),
    "absent shard": (index("b.safetensors"), [], ["b.safetensors"]),
    "no tokenizer": (remove("model/tokenizer.json"), [], ["tokenizer.json"]),
    "tokenizer truncated": (cut("model/tokenizer.json"), [], ["tokenizer.json"]),
    "tokenizer not UTF-8": (write("model/tokenizer.json", b"\xff{}"), [], ["UTF-8"]),
    "tokenizer unlike": (tokenizer(lambda t: t.update(normalizer=None)), [], ["normalizer"]),
    "no end": (tokenizer(lambda t: t.update(added_tokens=[])), [], ["<|endoftext|>"]),
    "more tokens than rows": (edit("config.json", vocab_size=4000), [], ["4000"]),
    # the data
    "no file": (remove("d.jsonl"), [], ["d.jsonl"]),
    "a folder": (lambda h: (h / "d.jsonl").unlink() or (h / "d.jsonl").mkdir(), [], ["d.jsonl"]),
    "empty file": (write("d.jsonl", ""), [], ["d.jsonl"]),
    "half a line": (lines('{"problem": "1 + 1 = ?", "ans'), [], ["d.jsonl", "21"]),
    "a list": (lines([1, 2]), [], ["d.jsonl", "21"]),
    "no answer": (lines(dict(problem="1 + 1 = ?")), [], ["d.jsonl", "21", "answer"]),
    "null answer": (lines(dict(problem="1 + 1 = ?", answer=None)), [], ["d.jsonl", "21"]),
    "no question": (lines(dict(answer="2")), [], ["d.jsonl", "21", "problem"]),
    "empty question": (lines(dict(problem=" ", answer="2")), [], ["d.jsonl", "21"]),
    "a number asked": (lines(dict(problem=7, answer="2")), [], ["d.jsonl", "21"]),
    "NaN answer": (lines('{"problem": "1 + 1 = ?", "answer": NaN}'), [], ["d.jsonl", "21"]),
    "not UTF-8": (write("d.jsonl", b'{"problem": "\xff", "answer": "1"}\n'), [], ["1", "UTF-8"]),
    "a line of 2 GB": (huge_line, [], ["d.jsonl", "1"]),
    "equal ids": (
        lines(dict(id=5, problem="1+1=?", answer=2), dict(id=5, problem="1+2=?", answer=3)),
        [],
        ["d.jsonl", "22", "id"],
    ),
    "two answers": (lines(dict(problem="4 + 4 = ?", answer="9")), [], ["d.jsonl", "21", "5"]),
    "all too long": (lines(), ["--max-prompt", "3"], ["d.jsonl", "no problem left"]),
    "parquet": (
        lambda h: (h / "d.jsonl").rename(h / "d.parquet"),
        ["--data", "d.parquet"],
        ["pyarrow"],
    ),
    # the flags
    "verifier": (lines(), ["--verifier", "dapo"], ["boxed", "dapo"]),
    "no model": (lines(), ["--model", ""], ["--model"]),
    "small world's": (small_run, [], ["model"]),
    "holdout": (lines(), ["--holdout", "0.7"], ["--holdout 0.7"]),
    "positions": (lines(), ["--max-new", "5000"], ["4096"]),
    "rows": (lines(), ["--rows", "0"], ["--rows 0"]),
    "tensorboard": (lines(), ["--tensorboard"], ["pip install -U tensorboard"]),
    "ignored": (lines(), ["--size", "mini"], ["--size", "ignored"]),
    "temperature": (lines(), ["--temperature", "inf"], ["--temperature inf"]),
    "positions a text": (
        edit("config.json", max_position_embeddings="4096"),
        [],
        ["config.json: max_position_embeddings is '4096'"],
    ),
    "no data": (lines(), ["--data", ""], ["small world", "--data"]),
    "run not ended": (write("model/metrics.jsonl", ""), [], ["not ended", "--resume model"]),
    # a run trained for days and then left without export, since something stood in its place
    "export in the way": (
        lambda h: (h / "run/model").mkdir(parents=True),
        ["--out", "run"],
        ["run holds files but no config.json"],
    ),
}


def contents(folder: Path) -> set:
    return {(str(p.relative_to(folder)), p.stat().st_size) for p in folder.rglob("*")}


@pytest.mark.parametrize("case", CASES)
def test_one_clear_line_and_nothing_left(case, here, capsys):
    damage, flags, words = CASES[case]
    damage(here)
    before = contents(here)
    argv = ["--model", "model", "--data", "d.jsonl", "--max-new", "8", "--device", "cpu", *flags]
    assert fork_gpt.main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("fork_gpt.py: ") and len(error) < 600, error
    assert all(word in error for word in words), error
    assert contents(here) == before


SAME = (
    "no folder,NaN weights,no end,half a line,two answers,positions,positions a text,run not ended"
)


@pytest.mark.parametrize("case", SAME.split(","))
def test_the_evaluation_says_the_same(case, here, capsys):
    damage, flags, words = CASES[case]
    damage(here)
    before = contents(here)
    argv = ["--eval", "--model", "model", "--data", "d.jsonl", "--max-new", "8", "--device", "cpu"]
    assert fork_gpt.main([*argv, *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in words), error
    assert contents(here) == before


def test_a_run_goes_on_with_its_own_problems_only(here, capsys, monkeypatch):
    """After an edit of the file it went on, at its old place among other problems."""
    monkeypatch.setattr(files, "stop_on_signal", lambda: lambda: True)  # after one step
    flags = "--model model --data d.jsonl --holdout 0 --prompts 1 --rounds 1 --group 2 --max-new 4"
    assert fork_gpt.main([*flags.split(), "--device", "cpu", "--out", "run"]) == 130
    assert fork_gpt.main(["--resume", "run"]) == 130
    lines(dict(problem="1 + 1 = ?", answer=2))(here)
    capsys.readouterr()
    assert fork_gpt.main(["--resume", "run"]) == 2
    assert "checkpoint.pt was trained on other problems" in capsys.readouterr().err


def test_a_full_gpu_is_one_line(monkeypatch, capsys):
    """It was a traceback."""

    def full(c, stop):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.\nGPU 0 has")

    monkeypatch.setattr(fork_gpt, "run", full)
    monkeypatch.setattr(files, "stop_on_signal", lambda: lambda: False)
    assert fork_gpt.main([]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "out of memory" in error and "--microbatch" in error

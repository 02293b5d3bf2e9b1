"""Wrong folders, configs, data files and flags of a run on published weights: each gives one clear
line that names the file, and leaves nothing behind.  What is wrong inside a file is refused, and
tested, where it is read: test_weights.py, test_qwen_tokenizer.py, test_maths.py."""

import json
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_road import write_random

import fork_gpt
from infra import files
from infra.weights import check_room
from tasks.ask import fitting, open_world
from tasks.maths import read_problems

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
    add()
    return tmp_path


def add(*lines: object) -> None:
    """The good lines and some more, JSON or text, as d.jsonl."""
    texts = [x if isinstance(x, str) else json.dumps(x) for x in (*GOOD, *lines)]
    Path("d.jsonl").write_text("".join(t + "\n" for t in texts))


def edit(file: str, **changes) -> None:
    """Change keys of a JSON file of the model's folder."""
    path = Path("model", file)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(file: str) -> None:
    Path("model", file).write_bytes(Path("model", file).read_bytes()[:-9])


def spoil(name: str, value: float) -> None:
    """One weight becomes another."""
    path = Path("model/model.safetensors")
    state = load_file(path)
    state[name][3] = value
    save_file(state, path, metadata={"format": "pt"})


def small_run() -> None:
    shutil.rmtree("model")
    Path("model").mkdir()
    torch.save({}, "model/model.pt")


def removed(path: str) -> None:
    shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


# name: what happens to the folder, more flags, words of the line
CASES = {
    "no folder": (lambda: removed("model"), "", "model|hf download"),
    "config truncated": (lambda: cut("config.json"), "", "config.json"),
    "llama": (lambda: edit("config.json", model_type="llama"), "", "model_type|llama"),
    "weights truncated": (lambda: cut("model.safetensors"), "", "model.safetensors"),
    "NaN weights": (lambda: spoil("model.norm.weight", torch.nan), "", "norm.weight|not finite"),
    "no tokenizer": (lambda: removed("model/tokenizer.json"), "", "tokenizer.json"),
    "another tokenizer": (lambda: edit("tokenizer.json", normalizer=None), "", "normalizer"),
    "no end": (lambda: edit("tokenizer.json", added_tokens=[]), "", "<|endoftext|>"),
    "more tokens than rows": (lambda: edit("config.json", vocab_size=4000), "", "4000"),
    "no file": (lambda: removed("d.jsonl"), "", "d.jsonl"),
    "half a line": (lambda: add('{"problem": "1 + 1 = ?", "ans'), "", "d.jsonl|21"),
    "two answers": (lambda: add(dict(problem="4 + 4 = ?", answer="9")), "", "d.jsonl|21|5"),
    "all too long": (add, "--max-prompt 3", "d.jsonl|no problem left"),
    "parquet": (lambda: Path("d.jsonl").rename("d.parquet"), "--data d.parquet", "pyarrow"),
    "verifier": (add, "--verifier dapo", "boxed|dapo"),
    "no model": (add, "--model=", "--model"),
    "small world's": (small_run, "", "model"),
    "holdout": (add, "--holdout 0.7", "--holdout 0.7"),
    "positions": (add, "--max-new 5000", "4096"),
    "rows": (add, "--rows -1", "--rows -1|auto"),
    "tensorboard": (add, "--tensorboard", "pip install -U tensorboard"),
    "wandb": (add, "--wandb", "pip install -U wandb"),
    "ignored": (add, "--size mini", "--size|ignored"),
    "temperature": (add, "--temperature inf", "--temperature inf"),
    "positions a text": (
        lambda: edit("config.json", max_position_embeddings="4096"),
        "", "config.json: max_position_embeddings is '4096'",
    ),
    "no data": (add, "--data=", "small world|--data"),
    "run not ended": (lambda: Path("model/metrics.jsonl").touch(), "", "not ended|--resume model"),
    # a run trained for days and then left without export, since something stood in its place
    "export in the way": (
        lambda: Path("run/model").mkdir(parents=True), "--out run", "run holds files but no config"
    ),
}  # fmt: skip


def contents(folder: Path) -> set:
    return {(str(p.relative_to(folder)), p.stat().st_size) for p in folder.rglob("*")}


SAME = "no folder,NaN weights,no end,half a line,two answers,positions,positions a text"
EVALUATED = [("--eval", case) for case in [*SAME.split(","), "run not ended"]]  # which say the same


@pytest.mark.parametrize("what, case", [*(("", case) for case in CASES), *EVALUATED])
def test_one_clear_line_and_nothing_left(what, case, here, capsys, monkeypatch):
    for name in ("tensorboard", "wandb", "torch.utils.tensorboard"):  # as if not installed
        monkeypatch.setitem(sys.modules, name, None)
    damage, flags, words = CASES[case]
    damage()
    before = contents(here)
    line = f"{what} --model model --data d.jsonl --max-new 8 --device cpu {flags}"
    assert fork_gpt.main(line.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("fork_gpt.py: ") and len(error) < 600, error
    assert all(word in error for word in words.split("|")), error
    assert contents(here) == before


def test_the_longest_prompt_and_the_last_position_are_used(here):
    """`--max-prompt` tokens are not too long, and as many positions as there are suffice."""
    c = fork_gpt.Config(model="model", data="d.jsonl", max_new=4096 - 2048)
    world = open_world(c, torch.device("cpu"))[1]
    problems = read_problems(["d.jsonl"])[0]
    lengths = [len(world.encode(p)) for p in problems]
    for most in (min(lengths) - 1, min(lengths), max(lengths)):
        assert len(fitting(world, problems, most)) == sum(n <= most for n in lengths)
    check_room("model", 4096)
    with pytest.raises(files.UserError, match="4097, but model has 4096 positions"):
        check_room("model", 4097)


def test_a_run_goes_on_with_its_own_problems_only(here, capsys, monkeypatch):
    """After an edit of the file it went on, at its old place among other problems."""
    monkeypatch.setattr(files, "stop_on_signal", lambda: lambda: True)  # after one step
    flags = "--model model --data d.jsonl --holdout 0 --prompts 1 --rounds 1 --group 2 --max-new 4"
    assert fork_gpt.main([*flags.split(), "--device", "cpu", "--out", "run"]) == 130
    assert fork_gpt.main(["--resume", "run"]) == 130
    add(dict(problem="1 + 1 = ?", answer=2))
    capsys.readouterr()
    assert fork_gpt.main(["--resume", "run"]) == 2
    assert "000002 does not belong to this configuration: see problems" in capsys.readouterr().err


def test_a_full_gpu_is_one_line(monkeypatch, capsys):
    """It was a traceback."""

    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.\nGPU 0 has")
    monkeypatch.setattr(fork_gpt, "run", Mock(side_effect=full))
    monkeypatch.setattr(files, "stop_on_signal", lambda: lambda: False)
    assert fork_gpt.main([]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "out of memory" in error and "--microbatch" in error

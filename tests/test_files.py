"""What outlives a process: atomic writes, checkpoints that come back or are refused."""

import errno
import io
import os
import pickle
import random
import sys
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from common import save_small
from torch.testing import assert_close

from infra import files
from infra.checkpoint import save_parts
from infra.files import UserError, loggers, write_atomic, write_json
from infra.weights import load, load_model, save
from model import Shape, Transformer

STATE = dict(weights=torch.arange(6.0).view(2, 3), step=3, lr=0.1, rng=torch.get_rng_state())
same = partial(assert_close, rtol=0, atol=0)


@contextmanager
def refused(*words: str):
    """A UserError of one line that has these words."""
    with pytest.raises(UserError) as error:
        yield
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text


# ------------------------------------------------------------------ checkpoints


def test_save_and_load_round_trip(tmp_path):
    path = tmp_path / "new" / "folder" / "x.pt"  # folders are made
    save(path, STATE)
    same(load(path), STATE)
    save(path, dict(step=4, note="x"))
    assert load(path) == dict(step=4, note="x")
    assert os.listdir(path.parent) == ["x.pt"]
    write_json(path, dict(a=1, b="x"))  # a key a line
    assert path.read_text() == '{\n "a": 1,\n "b": "x"\n}\n'


@pytest.mark.parametrize("broken", ("write", "fsync", "replace"))
def test_a_full_disk_leaves_the_old_file_whole(broken, tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    save(path, STATE)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full(io.FileIO):
        def write(self, data):
            super().write(bytes(data)[:100])  # some of it fits
            full()

    with monkeypatch.context() as m:
        if broken == "write":
            m.setattr(files, "open", lambda *a: Full(*a) if "wb" in a else open(*a), raising=False)
        else:
            m.setattr(os, broken, full)
        with refused("x.pt", os.strerror(errno.ENOSPC)):
            save(path, dict(step=4))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.pt"]


def test_the_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """Renamed before fsync, a power cut leaves an empty checkpoint where an old one was."""
    done = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append("fsync"), real_fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("replace"), real_replace(a, b))[1])
    write_atomic(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert done == ["fsync", "replace", "fsync"]  # the content, the name, the folder


def test_a_second_ctrl_c_in_a_write_leaves_nothing(tmp_path):
    """It left a hidden file of a checkpoint's size."""
    write_atomic(tmp_path / "x", b"old")

    def interrupted(f):
        f.write(b"new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x", interrupted)
    assert os.listdir(tmp_path) == ["x"] and (tmp_path / "x").read_bytes() == b"old"


def test_a_process_that_is_lost_during_a_save_is_no_full_disk(tmp_path):
    """Those who waited for it said `cannot write`, each of itself, before its loss was noticed."""

    def wait():
        raise RuntimeError("Connection closed by peer")

    with pytest.raises(RuntimeError, match="^Connection closed by peer$"):
        save_parts(tmp_path, 1, {}, {}, 0, wait)


def test_a_path_that_cannot_be_written_is_the_users_error(tmp_path):
    """The clean-up of the temp file raised in its turn, and the user saw a traceback."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder" / "x.pt").mkdir(parents=True)
    for path in (tmp_path / "file" / "x.pt", tmp_path / "folder" / "x.pt"):
        with refused("x.pt"):
            save(path, STATE)
    assert os.listdir(tmp_path / "folder") == ["x.pt"]


class Code:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_missing_or_damaged_checkpoint_is_the_users_error(tmp_path):
    """A damaged pickle raises anything: IndexError and struct.error came through as tracebacks."""
    path = tmp_path / "x.pt"
    save(path, STATE)
    whole = path.read_bytes()
    ruins = {f"cut at {n}": whole[:n] for n in (0, 1, 4, 100, len(whole) // 2, len(whole) - 1)}
    ruins |= {"text": b"not a checkpoint\n", "zeros": bytes(1000), "zip": b"PK\x03\x04" + bytes(99)}
    ruins |= {"short number": b"\x80\x02J\x01", "empty stack": b"\x80\x02."}
    rng = random.Random(0)
    ruins |= {f"noise {i}": rng.randbytes(rng.randrange(1, 400)) for i in range(60)}
    ruins |= {f"pickle {i}": b"\x80\x02" + rng.randbytes(30) for i in range(60)}
    for name, ruin in ruins.items():
        path.write_bytes(ruin)
        print(name, ruin[:40])
        with refused("x.pt"):
            load(path)
    for other in (tmp_path / "nowhere.pt", tmp_path):  # a folder
        with refused(other.name):
            load(other)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path, trace = tmp_path / "x.pt", tmp_path / "ran"
    buffer = io.BytesIO()
    torch.save(dict(step=Code(str(trace))), buffer)
    for data in (pickle.dumps(Code(str(trace))), buffer.getvalue()):
        path.write_bytes(data)
        with refused():
            load(path)
        assert not trace.exists()
    torch.load(path, weights_only=False)  # the trap works
    assert trace.exists()


@pytest.mark.parametrize("tied", (True, False))
def test_a_model_comes_back_with_its_weights_and_words(tied, tmp_path):
    model = Transformer(Shape(16, 2, 2, 1, 8, 24, 31, tied)).init_weights()
    save_small(tmp_path / "run", model, ("one", "two"))
    found, words = load_model(tmp_path / "run")
    assert words == ["one", "two"] and found.shape == model.shape
    same(found.state_dict(), model.state_dict())


def test_what_is_no_model_is_the_users_error(tmp_path):
    model = Transformer(Shape(16, 1, 2, 1, 8, 24, 31))
    save_small(tmp_path, model, ["x"])
    good = load(tmp_path / "model.pt")
    without = {k: v for k, v in good.items() if k != "words"}
    odd = [{}, good["config"] | dict(n_embd=17), good["config"] | dict(unknown=1)]
    bad = [dict(step=3), without, good | dict(weights={}), good | dict(weights=3)]
    for saved in (*bad, *(good | dict(config=c) for c in odd)):
        save(tmp_path / "model.pt", saved)
        with refused("model.pt"):
            load_model(tmp_path)
    with refused("nowhere"):
        load_model(tmp_path / "nowhere")


# ------------------------------------------------------------------ loggers

LINE = dict(step=3, reward=0.5, groups=2, val_accuracy=0.25)


def test_lines_arrive_at_the_loggers(tmp_path, monkeypatch):
    said = []

    def init(project: str, name: str, dir: object) -> SimpleNamespace:
        said.append((project, name, dir))
        return SimpleNamespace(log=lambda line, step: said.append((line, step)))

    def writer(folder: object) -> SimpleNamespace:
        said.append(("open", folder))
        return SimpleNamespace(
            add_scalar=lambda *x: said.append(x), flush=lambda: said.append("end")
        )

    board = SimpleNamespace(SummaryWriter=writer)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    assert loggers(tmp_path, False, False) == [] and said == []
    writers = loggers(tmp_path, True, True)
    assert said == [("fork-gpt", tmp_path.name, tmp_path), ("open", tmp_path)]
    said.clear()
    for write in writers:
        write(LINE)
    # without `flush` the last two minutes are lost at the end
    assert said == [(LINE, 3), *((k, v, 3) for k, v in LINE.items()), "end"]


def refuse(**_):
    raise RuntimeError("api_key not configured\nuse wandb login")


@pytest.mark.parametrize("name, there, says", [
    ("wandb", None, "pip install -U wandb$"),  # an import of it fails
    ("tensorboard", None, "pip install -U tensorboard$"),
    # torch's ImportError for one that is too old has no name: the advice was `pip install None`
    ("tensorboard", SimpleNamespace(__version__="1.0"), "pip install -U tensorboard$"),
    ("wandb", SimpleNamespace(init=refuse), "^--wandb: api_key not configured$"),
])  # fmt: skip
def test_a_logger_that_cannot_start_is_one_line(name, there, says, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, there)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(UserError, match=says):
        loggers(tmp_path, name == "wandb", name == "tensorboard")

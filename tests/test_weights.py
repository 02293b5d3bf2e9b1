"""Weights in and out: folders of transformers load and come back, and broken ones are refused."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from common import PATIENCE, ROOT, all_logits, peer, peer_config, stream, tiny
from safetensors.torch import load_file, save_file
from test_model import FP32
from test_qwen_tokenizer import BROKEN
from test_road import write_random
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen3ForCausalLM

from infra import weights as module
from infra.files import SIZE_LIMIT, UserError
from infra.weights import INDEX, SINGLE, export, from_pretrained, pieces, read_header, read_shape
from model import SIZES, Transformer
from rollout import Sampling, generate
from tasks.ask import open_model


def written(folder: Path, tied: bool = True, shards: int = 1) -> Path:
    """The folder that transformers writes of our random model, of several shards or one."""
    total = 4 * sum(p.numel() for p in tiny(tied).parameters())
    peer(tiny(tied)).save_pretrained(folder, max_shard_size=total if shards == 1 else total // 3)
    several = len(list(folder.glob("*.safetensors"))) > 2
    assert several == (folder / INDEX).exists() == (shards > 1)
    return folder


def exported(model: Transformer, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The folder, written with the settings of one that says nothing, "source" beside it."""
    source = folder.with_name("source")
    source.mkdir(parents=True, exist_ok=True)
    (source / "config.json").write_text("{}")
    export(model, source, folder, dict(eos_token_id=[66, 5]), dtype)
    return folder


def same(one: Transformer, two: Transformer) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit(path: Path, **changes) -> None:
    """Change keys of a JSON file; ... removes one."""
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))


def refusal(folder: Path, **arguments) -> str:
    """The one line of the UserError with which a folder is refused."""
    with pytest.raises(UserError) as e:
        from_pretrained(folder, **arguments)
    line = str(e.value)
    assert "\n" not in line and len(line) < 500 and str(folder) in line, line
    assert e.value.__cause__ is None
    return line.replace(str(folder), "")


# ------------------------------------------------------------------ against transformers


@pytest.mark.parametrize("shards", (1, 4))
@pytest.mark.parametrize("tied", (True, False))
def test_a_folder_of_transformers_loads_with_its_logits(tied, shards, tmp_path):
    ours = from_pretrained(written(tmp_path, tied, shards))
    assert ours.shape == tiny(tied).shape and same(ours, tiny(tied))
    theirs = Qwen3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = stream([9])[0]
    with torch.no_grad():
        assert_close(all_logits(ours, tokens), theirs(tokens[None]).logits[0], rtol=0, atol=FP32)
    assert all(p.requires_grad and not p.is_meta for p in ours.parameters())


@pytest.mark.parametrize("tied", (True, False))
def test_folders_come_back_byte_for_byte(tied, tmp_path, monkeypatch):
    folder = written(tmp_path / "in", tied)
    out = exported(from_pretrained(folder), tmp_path / "out")
    assert (out / SINGLE).read_bytes() == (folder / SINGLE).read_bytes()
    monkeypatch.setattr(module, "SHARD", 15_000)
    for dtype in (torch.float32, torch.bfloat16):  # bf16 through an fp32 master loses nothing
        one = exported(tiny(tied), tmp_path / "one", dtype)
        two = exported(from_pretrained(one), tmp_path / "two", dtype)
        assert contents(one) == contents(two) and len(list(one.glob("*.safetensors"))) >= 3
        assert json.loads((one / "config.json").read_text())["dtype"] == str(dtype)[6:]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16, torch.float64))
def test_files_equal_the_librarys_both_ways(dtype, tmp_path):
    tensors = {"b": torch.randn(3, 5, 2), "a.weight": torch.randn(7), "é\n": torch.randn(1, 1)}
    tensors = {name: x.to(dtype) for name, x in tensors.items()}
    sizes = {name: x.shape for name, x in tensors.items()}
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    for name, entry in read_header(tmp_path / "theirs").items():
        assert entry.dtype == dtype
        found = torch.cat([x for _, x in pieces(entry, module.full_place(entry.shape))])
        assert torch.equal(found, tensors[name])
    module.write_safetensors(tmp_path / "ours", sizes, tensors.get, dtype)
    assert all(torch.equal(x, tensors[n]) for n, x in load_file(tmp_path / "ours").items())
    # how JSON escapes is a choice; without escapes the bytes are equal
    del tensors["é\n"], sizes["é\n"]
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    module.write_safetensors(tmp_path / "ours", sizes, tensors.get, dtype)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_tensors_of_many_pieces_and_odd_alignment_are_read_exactly(tmp_path, monkeypatch):
    path = written(tmp_path) / SINGLE
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    for pad in (1, 2, 3):  # the header ends at an odd byte: legal, and no view of fp32 fits
        header = raw[8 : 8 + n] + b" " * pad
        path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + n :])
        for size in (104, 4096):
            monkeypatch.setattr(module, "PIECE", size)
            assert same(from_pretrained(tmp_path), tiny())
    assert (exported(tiny(), tmp_path / "out") / SINGLE).read_bytes() == raw


# ------------------------------------------------------------------ config and dtypes


@pytest.mark.parametrize("name", [name for name in SIZES if name.startswith("Qwen3")])
def test_every_published_size_reads_from_both_forms_of_config(name, tmp_path):
    path = tmp_path / "config.json"
    peer_config(SIZES[name]).save_pretrained(tmp_path)
    assert "rope_theta" not in json.loads(path.read_text())
    assert read_shape(path) == SIZES[name]
    # the published form: rope_theta at the top, an integer; a sliding window, not in use; then what
    # other programs write of the same: nothing of it changes an angle
    rest, default = dict(rope_scaling=None, layer_types=...), dict(rope_type="default")
    window = dict(sliding_window=4096, max_window_layers=28)
    for said in (
        dict(rope_parameters=..., rope_theta=1000000) | rest | window,
        dict(rope_parameters=default | dict(rope_theta=1e6), rope_theta=None),
        dict(rope_parameters=None, rope_theta=1e6, rope_scaling=default),
    ):
        edit(path, **said)
        assert read_shape(path) == SIZES[name] and type(read_shape(path).rope_theta) is float


def test_what_is_not_a_weight_file_is_said_with_the_way_out(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match="to convert pytorch_model.bin: .* save_pretrained"):
        module.read_entries(tmp_path)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    with pytest.raises(UserError, match="is a git-lfs pointer, not the file: git lfs pull"):
        module.read_entries(tmp_path)


def test_bf16_weights_make_an_fp32_master_or_stay(tmp_path):
    folder = exported(tiny(), tmp_path / "bf16", torch.bfloat16)
    master, half = from_pretrained(folder), from_pretrained(folder, torch.bfloat16)
    assert same(half, tiny().bfloat16()) and same(master, tiny().bfloat16().float())
    assert same(from_pretrained(exported(tiny(), tmp_path / "fp32"), torch.bfloat16), half)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_a_tied_folder_may_hold_the_shared_matrix_twice(tmp_path):
    path = written(tmp_path) / SINGLE
    weights = load_file(path)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, path)
    assert same(from_pretrained(tmp_path), tiny())
    assert same(from_pretrained(tmp_path, torch.bfloat16), tiny().bfloat16())
    weights["lm_head.weight"][3, 4] += 1
    for other in (weights["lm_head.weight"], torch.zeros(5, 48)):
        save_file(weights | {"lm_head.weight": other}, path)
        assert "lm_head.weight is not the embedding" in refusal(tmp_path)


def test_the_model_outlives_its_files(tmp_path):
    path = written(tmp_path) / SINGLE
    loaded = from_pretrained(tmp_path)
    path.write_bytes(b"\xff" * path.stat().st_size)  # in place
    assert same(loaded, tiny())


UNSUPPORTED = [
    ("model_type", "qwen3_moe"), ("model_type", "llama"), ("num_experts", 8),
    ("hidden_act", "gelu"), ("attention_bias", True), ("use_sliding_window", True),
    ("quantization_config", {"quant_method": "fp8"}), ("rope_parameters", [1]),
    ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
    ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}),
    ("rope_parameters", {"factor": 4.0, "rope_theta": 1e4}),
]  # fmt: skip
ODD = [
    ("hidden_size", "48"), ("num_hidden_layers", 2.0), ("vocab_size", True), ("vocab_size", 10**18),
    ("intermediate_size", -80), ("num_key_value_heads", 0), ("rms_norm_eps", math.nan),
    ("tie_word_embeddings", "yes"),
]  # fmt: skip
BAD_CONFIGS = [
    *[({key: x}, f"{key} {x!r} is not supported") for key, x in UNSUPPORTED],
    *[({key: x}, f"{key} is {x!r}") for key, x in ODD],
    (dict(model_type=...), "model_type None"), (dict(head_dim=...), "head_dim is None"),
    (dict(rope_parameters=...), "rope_theta is None"),
    (dict(rope_theta=5e5), "two values of rope_theta"),
    (dict(layer_types=["full_attention", "sliding_attention"]), "layer_types is not full"),
    (dict(num_hidden_layers=10**6, layer_types=...), "1000000 layers, but 24 tensors"),
    (dict(num_attention_heads=5), "must divide"), (dict(head_dim=15), "must divide"),
    (dict(intermediate_size=81), "gate_proj.weight is [80, 48], by config.json [81, 48]"),
    (dict(tie_word_embeddings=False), "missing tensors: 'lm_head.weight'"),
]  # fmt: skip


@pytest.mark.parametrize("changes, expected", BAD_CONFIGS, ids=str)
def test_a_config_that_is_wrong_or_unsupported_is_refused_by_name(changes, expected, tmp_path):
    edit(written(tmp_path) / "config.json", **changes)
    assert expected in refusal(tmp_path)


@pytest.mark.parametrize("file", ("config.json", INDEX))
@pytest.mark.parametrize("why", [*BROKEN, "larger than 256 MiB"])
def test_a_json_file_that_is_no_object_is_refused(why, file, tmp_path):
    path = written(tmp_path, shards=4) / file
    path.write_bytes(BROKEN.get(why, b""))
    if "larger" in why:
        os.truncate(path, SIZE_LIMIT + 1)  # a hole on the disk
    line = refusal(tmp_path)
    assert why in line and file in line


# ------------------------------------------------------------------ tensors and indexes


def test_missing_surplus_and_non_finite_tensors_are_named(tmp_path):
    path = written(tmp_path) / SINGLE
    weights = load_file(path)
    save_file({k: x for k, x in weights.items() if k != "model.norm.weight"}, path)
    assert "missing tensors: 'model.norm.weight'" in refusal(tmp_path)
    save_file(weights | {f"model.layers.{i}.mlp.bias": torch.ones(9) for i in (2, 3, 4, 5)}, path)
    line = refusal(tmp_path)
    assert "surplus tensors: 'model.layers.2.mlp.bias', 'model.layers.3" in line
    assert line.endswith(", ...") and "layers.5" not in line
    name = "model.layers.1.mlp.up_proj.weight"
    for bad in (math.nan, math.inf, -math.inf):
        weights[name][-1, -1] = bad
        save_file(weights, path)
        for dtype in (torch.float32, torch.bfloat16):
            line = refusal(tmp_path, dtype=dtype)
            assert f"{SINGLE}: {name} has values that are not finite" in line


EVIL = (
    "../evil.safetensors", "/etc/passwd", "a/b.safetensors", "..", "a\\b", "", "a\0b", "a\nb",
    "\ud800", 7, None, ["x"],
)  # fmt: skip


def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path):
    """And none reaches another folder."""
    folder = written(tmp_path / "in", shards=4)
    (tmp_path / "evil.safetensors").write_bytes((folder / "config.json").read_bytes())
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    name = "model.norm.weight"
    here = weight_map[name]
    elsewhere = next(x for x in weight_map.values() if x != here)
    for changed, expected in (
        (..., "no weight_map"), ([1], "no weight_map"), ({}, "2 layers, but 0 tensors"),
        (weight_map | {"x": here}, f"{INDEX}: 'x' not in the shard it names"),
        (weight_map | {name: elsewhere}, f"{here} holds '{name}' against the index"),
        ({k: v for k, v in weight_map.items() if k != name}, f"{here} holds '{name}' against"),
        (weight_map | {name: "gone.safetensors"}, "gone.safetensors: No such file"),
        (weight_map | {name: "config.json"}, "/config.json: is truncated"),
        *((weight_map | {name: x}, f"{INDEX}: {x!r} is not the name of a file") for x in EVIL),
    ):  # fmt: skip
        edit(folder / INDEX, weight_map=changed)
        assert expected in refusal(folder)


def test_a_folder_without_its_files_is_refused(tmp_path):
    assert "/config.json: No such file" in refusal(tmp_path / "nowhere")
    (written(tmp_path) / INDEX).write_text("{}")
    assert "exactly one of" in refusal(tmp_path)
    (tmp_path / INDEX).unlink()
    (tmp_path / SINGLE).unlink()
    assert "exactly one of" in refusal(tmp_path)
    (tmp_path / SINGLE).mkdir()
    assert "cannot read" in refusal(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    assert "cannot read" in refusal(tmp_path)


# ------------------------------------------------------------------ malformed safetensors

GOOD = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def one(data: int = 24, **changes) -> bytes:
    return packed({"x": {k: v for k, v in (GOOD | changes).items() if v is not ...}}, data)


def packed(header, data: int = 24) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(data)


def two(a: list[int], b: list[int], data: int = 48) -> bytes:
    return packed({"x": GOOD | {"data_offsets": a}, "y": GOOD | {"data_offsets": b}}, data)


ENTRY = json.dumps(GOOD).encode()
ODD_ENTRIES = dict(  # ... is a key that is missing
    dtype=(..., "F33", ["F32"]), shape=(..., 6, "23", [-2, -3], [2.0, 3], [None, 3]),
    data_offsets=(..., [False, 24], [-24, 0], [24], [0, 12, 24], [24, 0]), stride=([3, 1],),
)  # fmt: skip
MALFORMED = {
    "empty": b"", "7 bytes": b"\2\0\0\0\0\0\0", "8 bytes": (2).to_bytes(8, "little"),
    "header beyond the limit": (100_000_001).to_bytes(8, "little"),
    "header beyond the file": (1000).to_bytes(8, "little") + b"{}" + bytes(24),
    "header length near 2^64": b"\xff" * 8 + b"{}", "header length 0": bytes(32),
    "not UTF-8": packed(b'{"\xff\xfe": 1}'), "not JSON": packed(b"{x}"), "a list": packed([1, 2]),
    "a number": packed(b"1", 0),
    "deep nesting": packed(b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "duplicate keys": packed(b'{"x":' + ENTRY[:-1] + b',"dtype":"F32"}}'),
    "metadata no map": packed({"__metadata__": [1], "x": GOOD}),
    "metadata no strings": packed({"__metadata__": {"a": 1}, "x": GOOD}),
    "entry no object": packed({"x": [1, 2, 3]}), "entry a string": packed({"x": "F32"}),
    "dtype quantised": one(6, dtype="I8", data_offsets=[0, 6]),
    "shape an object": one(4, shape={}, data_offsets=[0, 4]),
    "boolean size": one(12, shape=[True, 3], data_offsets=[0, 12]),
    "size too small for the shape": one(20, data_offsets=[0, 20]),
    "size too large for the shape": one(28, data_offsets=[0, 28]),
    "shape beyond 64 bits": one(0, shape=[2**40, 2**40], data_offsets=[0, 0]),
    "hole at the start": one(28, data_offsets=[4, 28]), "hole between": two([0, 24], [28, 52], 52),
    "overlap": two([0, 24], [20, 44], 44), "the same bytes twice": two([0, 24], [0, 24], 24),
    "trailing byte": one(25), "trailing bytes, no tensors": packed({}, 4),
    "truncated by a byte": one(23), "no data": one(0),
    **{f"{key} {x}": one(**{key: x}) for key, odd in ODD_ENTRIES.items() for x in odd},
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused_in_one_line(case, tmp_path):
    path = tmp_path / SINGLE
    path.write_bytes(one())
    assert read_header(path)["x"].shape == [2, 3]  # the unspoilt one is read
    peer_config(tiny().shape).save_pretrained(tmp_path)
    path.write_bytes(MALFORMED[case])
    limit = case == "header beyond the limit"
    if limit:
        os.truncate(path, 200_000_000)  # a hole on the disk
    line = refusal(tmp_path)
    assert SINGLE in line and ("(200000000 bytes)" in line) == limit  # unread


def test_a_flipped_byte_of_the_header_is_refused_or_changes_no_shape(tmp_path):
    """Either one line or a model: never another exception."""
    path = written(tmp_path) / SINGLE
    whole = path.read_bytes()
    for at in range(0, 3000, 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :])
        try:
            from_pretrained(tmp_path)
        except UserError as e:
            assert "\n" not in str(e) and str(tmp_path) in str(e)


# ------------------------------------------------------------------ writing


def test_shards_keep_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD", 15_000)
    folder = exported(tiny(False), tmp_path / "out")
    shards = {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    n, index = len(shards), json.loads((folder / INDEX).read_text())
    assert [*shards] == [f"model-{i:05}-of-{n:05}.safetensors" for i in range(1, n + 1)] and n > 4
    sizes = {name: sum(x.nbytes for x in tensors.values()) for name, tensors in shards.items()}
    assert all(size <= 15_000 or len(shards[name]) == 1 for name, size in sizes.items())
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert index["weight_map"] == {name: file for file in shards for name in shards[file]}
    assert index["weight_map"].keys() == tiny(False).state_dict().keys()
    assert sorted(os.listdir(tmp_path)) == ["out", "source"]


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    before = contents(exported(tiny(), tmp_path / "out"))
    inside, said = tmp_path / "out" / SINGLE / "x", dict(eos_token_id=[66])
    with pytest.raises(UserError, match="cannot write .*Not a directory"):
        export(tiny(), tmp_path / "source", inside, said, torch.float32)

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        exported(tiny(seed=1), tmp_path / "out")
    assert contents(tmp_path / "out") == before
    assert sorted(os.listdir(tmp_path)) == ["out", "source"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    """A real refusal of the system, in the middle of a file."""
    resource = pytest.importorskip("resource", reason="POSIX alone has limits")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError) as e:
            exported(Transformer(SIZES["tiny"]), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(e.value) == f"cannot write {tmp_path / 'out'}: File too large"
    assert os.listdir(tmp_path) == ["source"]


PEAK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from infra import weights
from model import *
def peak():  # since the last look; ru_maxrss would be that of the parent, which a child inherits
    with open("/proc/self/status") as f:
        found = next(line for line in f if line.startswith("VmHWM"))
    open("/proc/self/clear_refs", "w").write("5")
    return int(found.split()[1]) * 1024
torch.set_num_threads(1)
weights.PIECE, weights.SHARD, said = 2**21, 10**9, dict(eos_token_id=[0])
count_parameters(SIZES["tiny"])  # the meta device imports 90 MB of Python at first use
shape = Shape(512, 2, 8, 4, 64, 1536, vocab_size=24_000)  # the embedding is 67% of it
for stored, dtype in (x.split("-") for x in sys.argv[3:]):
    folder = f"{sys.argv[2]}/{stored}-{dtype}"
    master = Transformer(shape).init_weights()
    weights.export(master, sys.argv[2], Path(folder), said, getattr(torch, stored))
    del master
    peak()
    before = peak()
    model = weights.from_pretrained(folder, getattr(torch, dtype))
    loaded = peak()
    weights.SHARD = 10_000_000
    weights.export(model, folder, Path(folder + "-again"), said, getattr(torch, dtype))
    weights.SHARD = 10**9
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    print(size, (loaded - before) / size, (peak() - before) / size)
    del model
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks: Linux's /proc")
def test_loading_and_saving_take_the_weights_once(tmp_path):
    """Peaks above what was there before, in units of the weights, of 36 MB at the least: Python and
    the allocator move by 2 MB or so, a piece of a file has 2, and a second embedding is 0.67."""
    kinds = "float32-float32", "bfloat16-bfloat16", "bfloat16-float32"
    (tmp_path / "config.json").write_text("{}")
    args = [sys.executable, "-c", PEAK, str(ROOT), str(tmp_path), *kinds]
    env = os.environ | dict(MALLOC_MMAP_THRESHOLD_="65536")  # what is freed leaves at once
    out = subprocess.check_output(args, text=True, timeout=PATIENCE, env=env)
    for line, kind in zip(out.splitlines(), kinds, strict=True):
        size, loaded, saved = map(float, line.split())
        print(f"{kind}: {size / 1e6:.0f} MB, peak {loaded:.3f}, {saved:.3f}")
        assert size > 36e6 and 0.9 < loaded <= 1.15 and saved <= 1.2


# ------------------------------------------------------------------ what a run exports


@pytest.mark.parametrize("tied, shard", [(True, 10**9), (False, 10**9), (False, 15_000)])
def test_the_export_is_what_transformers_loads(tied, shard, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD", shard)
    source, out = tmp_path / "source", tmp_path / "run" / "model"
    theirs = peer(tiny(tied))
    theirs.config.bos_token_id, theirs.config.eos_token_id = 1, 5
    theirs.config.max_position_embeddings = 777
    theirs.generation_config = GenerationConfig(eos_token_id=5)  # a chat template ends elsewhere
    theirs.save_pretrained(source)
    texts = dict.fromkeys(("tokenizer.json", "tokenizer_config.json", "vocab.json"), "{}")
    texts |= {"merges.txt": "a b\n", "chat_template.jinja": "x"}
    for name, text in {**texts, "notes.md": "not carried"}.items():
        (source / name).write_text(text)
    trained = tiny(tied, seed=2)
    export(trained, source, out, dict(eos_token_id=[66, 5], do_sample=True), torch.float32)
    found = contents(out)
    here = {name for name in found if "safetensors" not in name}
    assert here == {*texts, "config.json", "generation_config.json"}
    assert all(found[name] == text.encode() for name, text in texts.items())
    config = json.loads(found["config.json"])
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 66)
    assert (config["max_position_embeddings"], config["vocab_size"]) == (777, 67)
    assert config["sliding_window"] is None  # unsaid, transformers 4.51 masks what is 4,096 away
    how = dict(dtype=torch.float32, output_loading_info=True)
    loaded, info = AutoModelForCausalLM.from_pretrained(out, **how)
    assert not any(info.values()), info
    assert loaded.config.rope_parameters["rope_theta"] == 1e4
    assert loaded.generation_config.eos_token_id == [66, 5]
    for n in (1, 6):
        prompt = stream([n], seed=n)[0]
        text = loaded.eval().generate(prompt[None], max_new_tokens=12, do_sample=False)[0].tolist()
        mine = generate(trained, [prompt.tolist()], 1, 12, (66, 5), Sampling(0.0)).responses()[0]
        assert prompt.tolist() + mine == text and len(text) > n
    # a run's own folder is a source too; a run that went on overwrites what it had written
    last = tiny(tied, seed=5)
    for place, folder in ((tmp_path / "run", tmp_path / "again"), (source, out)):
        export(last, place, folder, dict(eos_token_id=[66]), torch.float32)
        assert (folder / "tokenizer.json").exists() and same(from_pretrained(folder), last)


def test_a_published_folder_opens_with_its_padding_known(tmp_path):
    write_random(tmp_path / "a", merges=0)
    theirs, n_vocab = load_file(tmp_path / "a" / SINGLE)["model.embed_tokens.weight"], 256 + 26
    for dtype in (torch.float32, torch.bfloat16):
        model, tokenizer = open_model(tmp_path / "a", dtype=dtype)
        assert (model.n_vocab, tokenizer.n_vocab) == (n_vocab, n_vocab)
        assert model.head_weight.dtype == dtype
        assert torch.equal(model.head_weight, theirs.to(dtype))
        assert tokenizer.token(tokenizer.eos) == "<|endoftext|>"
    said = dict(eos_token_id=[tokenizer.eos], do_sample=True)
    export(model, tmp_path / "a", tmp_path / "run" / "model", said, torch.float32)
    assert open_model(tmp_path / "run")[0].n_vocab == n_vocab
    other = open_model(tmp_path / "a", eos="<|im_end|>")[1]
    assert other.token(other.eos) == "<|im_end|>"

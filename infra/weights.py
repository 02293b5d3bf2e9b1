"""Weights in and out: our own files, one `torch.save` each, and published Qwen3 folders.

`from_pretrained` and `export` read and write config.json and safetensors files as transformers
does.  What is refused is a UserError of one line that names the file.
"""

import json
import math
import os
import platform
import re
import shutil
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from infra.files import POINTER, UserError, fsync, need, parse_json, read_json, write_atomic
from model import Shape, Transformer


def device(name: str) -> torch.device:
    """`auto`, the best there is, or one by name.  UserError when this machine has none."""
    there = dict(cuda=torch.cuda.is_available(), mps=torch.backends.mps.is_available(), cpu=True)
    name = next(k for k in there if there[k]) if name == "auto" else name
    if not there[name]:
        raise UserError(f"--device {name}: this machine or this build of torch has none; try auto")
    return torch.device(name)


def hardware(device: torch.device) -> str:
    """The GPU's or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"model name\s*: (.*)", info)
    return found[1] if found else platform.machine()


# ---------------------------------------------------------------------- our own files


def crc(x: object, start: int = 0) -> int:
    """A digest of nested dicts of tensors, numbers and texts: a change on the disk is found."""
    if isinstance(x, dict):
        for name, value in x.items():
            start = crc(value, crc(repr(name), start))
        return start
    if not isinstance(x, Tensor):
        return zlib.crc32(repr(x).encode(), start)
    return zlib.crc32(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy(), start)


def structure(x: object) -> object:
    """Of nested dicts and lists the names, dtypes, shapes and types, by which two can be told apart
    without their values."""
    if isinstance(x, dict):
        return {name: structure(value) for name, value in x.items()}
    if isinstance(x, list | tuple):
        return [structure(value) for value in x]
    return (x.dtype, x.shape) if isinstance(x, Tensor) else type(x)


def save(path: Path, state: dict) -> None:
    """Write a dict of tensors, numbers and texts, atomically, and their digest."""
    write_atomic(path, lambda f: torch.save(state | dict(digest=crc(state)), f))


def load(path: Path, device: str | torch.device = "cpu") -> dict:
    """What `save` wrote; no code in the file is run.  UserError when it is missing or damaged."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        if state.pop("digest") == crc(state):
            return state
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path}") from None
    except PermissionError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from None
    except Exception:  # a damaged file raises anything: struct.error, IndexError, UnpicklingError
        pass
    raise UserError(f"{path} is damaged, or another version's; delete it to start again without it")


def are_finite(weights: object) -> bool:
    """Whether this is a dict of tensors of finite numbers."""
    tensors = weights.values() if isinstance(weights, dict) else [None]
    kinds = all(isinstance(p, Tensor) and p.is_floating_point() for p in tensors)
    return kinds and all(p.isfinite().all() for p in tensors)


def save_model(folder: Path, shape: Shape, words: Sequence[str], weights: dict) -> None:
    """A small-world model with its vocabulary as FOLDER/model.pt."""
    state = dict(config=asdict(shape), words=list(words), weights=weights)
    save(Path(folder) / "model.pt", state)


def load_model(folder: Path, device: str | torch.device = "cpu") -> tuple[Transformer, list[str]]:
    """The model that `save_model` wrote and the words of its tokenizer.  UserError."""
    path = Path(folder) / "model.pt"
    saved = load(path, device)
    try:
        config, state, words = saved["config"], saved["weights"], saved["words"]
        if odd := config.keys() ^ (names := [f.name for f in fields(Shape)]):
            raise ValueError(f"unknown or missing: {', '.join(odd)}")
        shape = shape_of(path, names, [config[k] for k in names])
        if shape.n_layer > len(state):  # before a model of that depth is built
            raise ValueError(f"{shape.n_layer} layers, but {len(state)} tensors")
        with torch.device("meta"):
            model = Transformer(shape)
        if not are_finite(state) or {p.dtype for p in state.values()} != {torch.float32}:
            raise ValueError("weights that are not finite fp32")
        texts = all(isinstance(w, str) and w and w.isprintable() for w in words)
        if type(words) is not list or not (words and texts) or len({*words}) < len(words):
            raise ValueError("words that are no vocabulary of that model")
        model.load_state_dict(state, assign=True)
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as e:
        why = " ".join(str(e).split())
        raise UserError(f"{path} does not hold a model: {why:.200}") from None
    return model.requires_grad_(), words


def save_snapshot(folder: Path, step: int, weights: dict) -> None:
    """The weights after `step` steps as FOLDER/snapshots/STEP.pt, for the study."""
    save(Path(folder) / "snapshots" / f"{step:06}.pt", dict(step=step, weights=weights))


# ---------------------------------------------------------------------- published folders

HEADER_LIMIT = 100_000_000  # bytes of a safetensors header
PIECE = 2**24  # bytes of a weight file in memory at a time, beside the weights themselves
SHARD = 5_000_000_000  # bytes of a weight file that is written; a larger tensor has its own
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# config.json: the names of Shape's fields, in their order
KEYS = (
    "hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "intermediate_size vocab_size tie_word_embeddings rope_theta rms_norm_eps"
).split()
# what else it may say, and the one value that is implemented here
ONLY = dict(model_type="qwen3", hidden_act="silu", attention_bias=False, use_sliding_window=False)
ABSENT = dict.fromkeys(("quantization_config", "num_experts"))
# of a published folder: the settings that a Transformer does not keep, and the files beside it
CARRIED = (
    "bos_token_id pad_token_id max_position_embeddings max_window_layers "
    "initializer_range attention_dropout use_cache"
).split()
COMPANIONS = (
    "tokenizer.json tokenizer_config.json vocab.json merges.txt special_tokens_map.json "
    "added_tokens.json chat_template.jinja"
).split()

Place = Sequence[tuple[int, int]]  # (start, size) in every dimension of a full tensor


class Entry(NamedTuple):
    """A tensor in a file: its bytes start at `begin`."""

    path: Path
    begin: int
    dtype: torch.dtype
    shape: list[int]


def read_shape(path: Path) -> Shape:
    """A published config.json.  UserError for what is wrong and for what this file lacks."""
    raw = {"model_type": None} | read_json(path)
    for key, only in (ONLY | ABSENT).items():
        if raw.get(key, only) != only:
            kind = "" if key == "model_type" else f" (model_type {raw['model_type']!r:.40})"
            raise UserError(f"{path}: {key} {raw[key]!r:.90} is not supported, only {only!r}{kind}")
    # the published folders have rope_theta at the top, transformers 5 puts it in rope_parameters
    for name in ("rope_scaling", "rope_parameters"):
        rope = raw.get(name) or {}
        kinds = [rope.get("rope_type"), rope.get("type")] if isinstance(rope, dict) else ["?"]
        if not {*kinds} <= {None, "default"} or rope.keys() - {"rope_type", "type", "rope_theta"}:
            raise UserError(f"{path}: {name} {rope!r:.90} is not supported, only rope_theta")
        theta = rope.get("rope_theta")
        if raw.get("rope_theta") is None:
            raw["rope_theta"] = theta
        need(theta in (None, raw["rope_theta"]), path, "two values of rope_theta")
    shape = shape_of(path, KEYS, [raw.get(key) for key in KEYS])
    layers = raw.get("layer_types") in (None, ["full_attention"] * shape.n_layer)
    need(layers, path, "layer_types is not full_attention in every layer")
    return shape


def shape_of(path: Path, names: Sequence[str], values: Sequence) -> Shape:
    """The shape of these values, which a file calls so.  UserError for what no model has."""
    for key, x, field in zip(names, values, fields(Shape), strict=True):
        kind = field.type
        fits = type(x) is kind or (kind is float and type(x) is int)  # a bool is no int
        need(fits, path, f"{key} is {x!r:.90}, a {kind.__name__} expected")
        sane = kind is bool or 0 < x <= (2**20 if kind is int else 1e30)
        need(sane, path, f"{key} is {x!r:.90}, no model has that")
    shape = Shape(*(f.type(x) for f, x in zip(fields(Shape), values, strict=True)))
    divides = shape.n_head % shape.n_kv_head == 0 == shape.head_dim % 2
    need(divides, path, "key-value heads must divide the heads, and 2 the head_dim")
    return shape


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file.  UserError unless they cover its data exactly once."""
    try:
        with open(path, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            if f.read(len(POINTER)) == POINTER:
                raise ValueError("is a git-lfs pointer, not the file: git lfs pull gets it")
            f.seek(0)
            length = int.from_bytes(f.read(8), "little")
            if size < 8 or length > min(HEADER_LIMIT, size - 8):
                raise ValueError(f"is truncated or not what its name says ({size} bytes)")
            header, start = parse_json(f.read(length)), 8 + length
        if not isinstance(header, dict):
            raise ValueError("has a header that is no JSON object")
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from None
    except ValueError as e:
        raise UserError(f"{path}: {e}") from None
    metadata = header.pop("__metadata__", {})
    strings = isinstance(metadata, dict) and all(isinstance(x, str) for x in metadata.values())
    need(strings, path, "__metadata__ is not a map of strings")
    entries, spans = {}, []
    for name, e in header.items():
        try:
            dtype, shape, (begin, end) = DTYPES[e["dtype"]], e["shape"], e["data_offsets"]
            numbers = all(type(x) is int and x >= 0 for x in (*shape, begin, end))
            fits = numbers and end - begin == math.prod(shape) * dtype.itemsize
            if not fits or not isinstance(shape, list) or len(e) != 3:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}: malformed tensor {name!r:.90}: {e!r:.120}") from None
        entries[name] = Entry(path, start + begin, dtype, shape)
        spans.append((begin, end))
    covered = 0
    for begin, end in [*sorted(spans), (size - start, 0)]:
        need(begin == covered, path, f"data with a hole, an overlap or a wrong end at {covered}")
        covered = end
    return entries


def some(names: Collection[str]) -> str:
    """A few names for a message, quoted: a file may call its tensors anything."""
    return ", ".join(f"{x!r:.90}" for x in sorted(names)[:3]) + ", ..." * (len(names) > 3)


def read_entries(folder: Path) -> dict[str, Entry]:
    """The tensors of the one weight file or of the shards in the index.  UserError."""
    single, index = folder / SINGLE, folder / INDEX
    if single.exists() == index.exists():
        why = f"exactly one of {SINGLE} and {INDEX} must be there"
        if any(folder.glob("pytorch_model*.bin*")):
            why += "; to convert pytorch_model.bin: transformers' from_pretrained, save_pretrained"
        raise UserError(f"{folder}: {why}")
    if single.exists():
        return read_header(single)
    shard_of = read_json(index).get("weight_map")
    need(isinstance(shard_of, dict), index, "no weight_map")
    for file in shard_of.values():
        beside = isinstance(file, str) and re.fullmatch(r"[\w.-]+", file) and ".." not in file
        need(beside, index, f"{file!r:.90} is not the name of a file beside it")
    entries = {}
    for file in sorted(set(shard_of.values())):
        found = read_header(folder / file)
        if unlisted := [name for name in found if shard_of.get(name) != file]:
            raise UserError(f"{folder / file} holds {some(unlisted)} against the index")
        entries |= found
    if absent := shard_of.keys() - entries.keys():
        raise UserError(f"{index}: {some(absent)} not in the shard it names")
    return entries


def pieces(entry: Entry, place: Place) -> Iterator[tuple[slice, Tensor]]:
    """The part of a file's tensor at `place`, some rows at a time, each with where they go in it
    and a memory map of its own: one that stayed open would grow to a second copy."""
    size, width = entry.dtype.itemsize, math.prod(entry.shape[1:])
    (first, rows), columns = place[0], [slice(a, a + n) for a, n in place[1:]]
    step = max(1, PIECE // (size * width))
    for i in range(0, rows, step):
        j = min(rows, i + step)
        begin, end = (entry.begin + (first + k) * width * size for k in (i, j))
        raw = torch.from_file(str(entry.path), size=end, dtype=torch.uint8)[begin:]
        # the format aligns nothing, a clone is aligned
        flat = (raw.clone() if begin % size else raw).view(entry.dtype)
        yield slice(i, j), flat.view(j - i, *entry.shape[1:])[:, *columns]


def full_place(shape: Sequence[int]) -> Place:
    """The place of a full tensor of this shape."""
    return [(0, n) for n in shape]


def from_pretrained(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    build: Callable[[Shape], Transformer] | None = None,
) -> Transformer:
    """The model of a published folder in `dtype` on `device`; or what `build` makes of its shape, a
    part of it at `regions`: then only that part is read.  UserError naming the file when something
    is malformed, unsupported, missing, surplus, misshapen or not finite.

    Every weight is copied once, out of the map: one that stayed mapped would change with the file,
    and the alignment in the file would change the last bits of products."""
    folder = Path(folder)
    shape, entries = read_shape(folder / "config.json"), read_entries(folder)
    few = f"{shape.n_layer} layers, but {len(entries)} tensors"
    need(shape.n_layer <= len(entries), folder, few)  # before a model of that depth is built
    with torch.device("meta"):
        model = Transformer(shape)
    full = {name: p.shape for name, p in model.named_parameters()}
    # a tied folder may hold the shared matrix under both names, as the published 0.6B does
    twin = entries.pop("lm_head.weight", None) if shape.tie_embeddings else None
    if missing := full.keys() - entries.keys():
        raise UserError(f"{folder}: missing tensors: {some(missing)}")
    if surplus := entries.keys() - full.keys():
        raise UserError(f"{folder}: surplus tensors: {some(surplus)}")
    for name, size in full.items():
        path, found = entries[name].path, entries[name].shape
        need(found == list(size), path, f"{name} is {found}, by config.json {list(size)}")
    if build:
        model = build(shape)
        places, out = model.regions, dict(zip(full, model.masters, strict=True))
    else:
        places = {name: full_place(size) for name, size in full.items()}
        out = {name: torch.empty(size, dtype=dtype, device=device) for name, size in full.items()}
        model.load_state_dict(out, assign=True)
    for name, target in out.items():
        for rows, piece in pieces(entries[name], places[name]):
            copied = target.data[rows].copy_(piece)
            finite = not copied.numel() or torch.stack(copied.aminmax()).isfinite().all()
            need(finite, entries[name].path, f"{name} has values that are not finite")
    if twin:
        name = "model.embed_tokens.weight"
        embed, parts = out[name].data, pieces(twin, places[name])
        same = twin.shape == list(full[name])
        same = same and all(torch.equal(embed[rows], piece.to(embed)) for rows, piece in parts)
        need(same, twin.path, "lm_head.weight is not the embedding it is tied to")
    return model


def write_safetensors(
    path: Path, sizes: dict, tensor: Callable[[str], Tensor], dtype: torch.dtype, first: bool = True
) -> None:
    """The tensors of these names and sizes in `dtype`, byte for byte as the safetensors library
    writes them, one at a time in memory.  Only the `first` of several ranks writes.  OSError."""
    header, end = {"__metadata__": {"format": "pt"}}, 0  # transformers insists on "pt"
    code = {value: key for key, value in DTYPES.items()}[dtype]
    for name, size in sorted(sizes.items()):
        begin, end = end, end + math.prod(size) * dtype.itemsize
        header[name] = dict(dtype=code, shape=list(size), data_offsets=[begin, end])
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    buffer = bytearray(PIECE)
    with open(path if first else os.devnull, "wb") as f:
        f.write(len(raw).to_bytes(8, "little") + raw)
        for name in sorted(sizes):
            for piece in tensor(name).detach().flatten().split(PIECE // dtype.itemsize):
                if first:
                    torch.frombuffer(buffer, dtype=dtype, count=len(piece)).copy_(piece)
                    f.write(memoryview(buffer)[: len(piece) * dtype.itemsize])


def in_shards(sizes: dict[str, Sequence[int]], dtype: torch.dtype) -> list[dict]:
    """The names and sizes in the order of the model, cut into files of at most SHARD bytes."""
    shards, room = [], 0
    for name, size in sizes.items():
        need = math.prod(size) * dtype.itemsize
        if need > room:
            shards.append({})
            room = SHARD
        shards[-1][name] = size
        room -= need
    return shards


def export(
    model: Transformer,
    source: str | Path,
    folder: Path,
    generation: dict,
    dtype: torch.dtype,
    full: Callable[[str], Tensor] | None = None,
    first: bool = True,
) -> None:
    """Write what transformers and vLLM load, in `dtype`: config.json, one weight file or shards
    with their index, and of the published folder `source` that the model came from the tokenizer's
    files and the settings, but for `generation`: the tokens at which a text ends (the first is the
    one that it has learned to end with) and how it was sampled.

    Of a model cut over ranks all call this: `full(name)` gathers a parameter, and the `first`
    writes.  The folder appears whole, in the place of one that is there, or not at all.  UserError
    when the disk refuses.
    """
    source, folder, shape = published(source), Path(folder).resolve(), model.full_shape
    temp = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    with torch.device("meta"):
        sizes = {name: p.shape for name, p in Transformer(shape).named_parameters()}
    shards = in_shards(sizes, dtype)
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    files = dict(zip(names if len(shards) > 1 else [SINGLE], shards, strict=True))
    try:
        if first:
            shutil.rmtree(temp, ignore_errors=True)
            temp.mkdir(parents=True)
        for name, shard in files.items():
            write_safetensors(temp / name, shard, full or model.get_parameter, dtype, first)
        if not first:
            return
        texts = configs(read_json(source / "config.json"), shape, generation, dtype)
        if len(files) > 1:
            total = sum(map(math.prod, sizes.values())) * dtype.itemsize
            places = {name: file for file, shard in files.items() for name in shard}
            texts[INDEX] = {"metadata": {"total_size": total}, "weight_map": places}
        for name, value in texts.items():
            (temp / name).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
        for name in COMPANIONS:
            if (source / name).exists():
                shutil.copyfile(source / name, temp / name)
        for path in (*temp.iterdir(), temp):
            fsync(path)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temp, folder)
        fsync(folder.parent)
    except BaseException as e:
        shutil.rmtree(temp, ignore_errors=True)
        if isinstance(e, OSError):
            why = f"{e.strerror} {e.filename or ''}".rstrip()
            raise UserError(f"cannot write {folder}: {why}") from None
        raise


def configs(old: dict, shape: Shape, generation: dict, dtype: torch.dtype) -> dict[str, dict]:
    """The config.json and generation_config.json of a model trained on from one of the `old`."""
    kept = {k: old[k] for k in CARRIED if k in old}
    code = str(dtype).removeprefix("torch.")
    new = dict(
        architectures=["Qwen3ForCausalLM"],
        dtype=code,
        torch_dtype=code,  # its older name
        sliding_window=None,  # unsaid, transformers 4.51 masks what is 4,096 tokens away
        rope_parameters=dict(rope_type="default", rope_theta=shape.rope_theta),
        eos_token_id=generation["eos_token_id"][0],
    )
    new |= kept | ONLY | dict(zip(KEYS, astuple(shape), strict=True))
    ends = {k: kept[k] for k in ("bos_token_id", "pad_token_id") if k in kept}
    return {"config.json": new, "generation_config.json": ends | generation}


def published(folder: str | Path) -> Path:
    """The published folder meant: itself, or the one that a run exported."""
    inner = Path(folder) / "model"
    return inner if (inner / "config.json").exists() else Path(folder)


def check_room(folder: str | Path, tokens: int) -> None:
    """UserError when sequences of `tokens` have more positions than the published folder's model
    was made for; a folder that says none has no limit."""
    path = published(folder) / "config.json"
    said = read_json(path) if path.exists() else {}
    room = said.get("max_position_embeddings") or math.inf
    number = type(room) in (int, float)
    need(number, path, f"max_position_embeddings is {room!r:.90}, a number expected")
    if tokens > room:
        raise UserError(f"--max-prompt + --max-new is {tokens}, but {folder} has {room} positions")

"""The whole road of a published folder, by the command line: a folder that transformers and
`tokenizers` wrote is trained on a file of sums, evaluated, exported, and read by transformers."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from common import PATIENCE, ROOT, config, peer_config, rounding
from test_qwen_tokenizer import train
from test_run import metrics, same, saved
from torch.testing import assert_close

import fork_gpt
from infra import files, weights
from infra.weights import from_pretrained
from model import Shape
from rollout import generate, pack
from tasks.ask import open_model
from tasks.maths import TEMPLATES, Maths, read_problems
from tasks.pretrain import make_optimizer

FLAGS = """--model model --data sums.jsonl --steps 3 --prompts 4 --group 4 --updates 2 --max-new 12
    --microbatch 512 --rows 32 --lr 1e-3 --eval-k 2 --eval-every 2 --save-every 1 --warmup 0
    --snapshot-every 1 --holdout 0.2 --dtype float32 --dual-clip 0 --overlong 0 --rounds 2"""
FLAGS = [*FLAGS.split(), "--device", "cpu"]
FP32 = rounding(20, 60)  # of log-probs: logits below 20, sixty operations on the way


def write_random(folder: Path, merges: int = 3900, more_rows: int = 100) -> None:
    """A Qwen3 folder as it is published, of random weights, with more rows than tokens."""
    tokenizer = train(merges)
    end = tokenizer.token_to_id("<|endoftext|>")
    shape = Shape(64, 2, 4, 2, 16, 128, vocab_size=tokenizer.get_vocab_size() + more_rows)
    more = dict(max_position_embeddings=4096, eos_token_id=end)
    torch.manual_seed(0)
    transformers.Qwen3ForCausalLM(peer_config(shape, **more)).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = dict(tokenizer_class="Qwen2Tokenizer", eos_token="<|endoftext|>")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def teach_to_answer(folder: Path, data: Path, out: Path) -> None:
    """A random model never answers: a few steps teach it the form of an answer, any digit."""
    model, tokenizer = open_model(folder, eos=TEMPLATES["boxed"].eos)
    world, problems = Maths(tokenizer), read_problems([data])[0]
    optimizer = make_optimizer([*model.parameters()], 1e-2, 0.0, 0.95)
    rng = random.Random(0)
    for _ in range(30):
        texts, rows, end = [], [], 0
        for p in rng.choices(problems, k=8):
            answer = tokenizer.encode(rf"\boxed{{{rng.randrange(4)}}}")
            texts.append([*world.encode(p), *answer, tokenizer.eos])
            end += len(texts[-1])
            rows += range(end - len(answer) - 2, end - 1)
        tokens, cu_seqlens = pack(texts, torch.device("cpu"))
        rows = torch.tensor(rows)
        (-model(tokens, cu_seqlens, rows, tokens[rows + 1])[0].mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    weights.export(model, folder, out, world.generation(1.0), torch.float32)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with model/, sums.jsonl and an uninterrupted run of three steps."""
    place = tmp_path_factory.mktemp("road")
    sums = [(a, b) for a in range(4) for b in range(4 - a)]
    sums = [dict(problem=f"{n}. {a} + {b} = ?", answer=a + b) for n in range(6) for a, b in sums]
    (place / "sums.jsonl").write_text("".join(json.dumps(p) + "\n" for p in sums))
    write_random(place / "random")
    teach_to_answer(place / "random", place / "sums.jsonl", place / "model")
    argv = [sys.executable, str(ROOT / "fork_gpt.py"), *FLAGS, "--out", "runs/x"]
    done = subprocess.run(argv, cwd=place, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "base model, test split" in done.stdout and "60 lines" in done.stdout
    return place


def test_the_command_trains(place):
    lines = metrics(place / "runs/x")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert sum(line["groups"] for line in lines) > 0 and "val_accuracy" in lines[1]
    for line in lines:
        if line["groups"]:
            assert 0.2 <= line["kept_fraction"] < 0.25 and line["max_dlogp"] < FP32
            assert 0 < line["entropy_dropped"] < line["entropy_kept"] and line["grad_norm"] > 0
    summary = json.loads((place / "runs/x/summary.json").read_text())
    assert 0 < summary["test_accuracy"] <= 1
    before = from_pretrained(place / "model").state_dict()
    after = from_pretrained(place / "runs/x/model").state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)
    stems = sorted(p.stem for p in (place / "runs/x/snapshots").iterdir())
    assert stems == [f"{i:06}" for i in range(4)]


def test_transformers_loads_the_export_and_agrees(place):
    """The log-probs that the sampler noted, by transformers."""
    exported = place / "runs/x/model"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    model, tokenizer = open_model(place / "runs/x", eos="<|endoftext|>")
    ends = [tokenizer.eos, tokenizer.added["<|im_end|>"]]
    assert theirs.generation_config.eos_token_id == ends and theirs.generation_config.top_k == 0
    world, problems = Maths(tokenizer), read_problems([place / "sums.jsonl"])[0]
    prompts = [world.encode(p) for p in problems[:3]]
    fast = transformers.AutoTokenizer.from_pretrained(exported)
    text = TEMPLATES["boxed"].text.format(problem=problems[0].question)
    assert fast(text)["input_ids"] == prompts[0]
    samples = generate(model, prompts, 4, 12, tokenizer.eos)
    for i in range(12):
        one = samples.sequences([i])
        with torch.no_grad():
            logits = theirs(one.tokens[None]).logits[0, :-1, : tokenizer.n_vocab]
        logp = logits.log_softmax(-1).gather(-1, one.tokens[1:, None])[:, 0]
        assert_close(logp[one.response[1:]], one.logprobs, atol=FP32, rtol=0)


@pytest.fixture
def here(place, monkeypatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setattr(files, "stop_on_signal", lambda: lambda: False)
    return place


def test_a_stopped_run_resumes_bit_for_bit(here):
    looks = iter((False, True))
    with pytest.raises(KeyboardInterrupt):
        fork_gpt.run(config(*FLAGS, "--out", "runs/y"), lambda: next(looks))
    assert len(metrics(here / "runs/y")) == 2 and not (here / "runs/y/summary.json").exists()
    assert fork_gpt.main(["--resume", "runs/y"]) == 0
    same(here / "runs/x", here / "runs/y")
    one, two = (Path(f"runs/{r}/model/model.safetensors").read_bytes() for r in "xy")
    assert one == two


def test_the_run_is_evaluated(here, capsys):
    flags = "--eval --model runs/x --data sums.jsonl --k 4 --limit 5 --max-new 12 --device cpu"
    assert fork_gpt.main([*flags.split(), "--out", "eval"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name}@4" in out for name in ("avg", "pass", "maj"))
    assert len([json.loads(line) for line in open("eval/sums.jsonl")]) == 20


def test_bf16_trains_with_fp32_masters_and_says_how_far_the_sampler_is(here):
    fork_gpt.run(config(*FLAGS, "--out", "runs/h", "--dtype", "bfloat16"), lambda: False)
    # logits are below 20 here, and bf16 has 8 bits: see test_precision.py
    assert all(line["max_dlogp"] < 2 * 20 * 20**0.5 * 2**-8 for line in metrics(here / "runs/h"))
    assert json.loads(Path("runs/h/model/config.json").read_text())["dtype"] == "bfloat16"
    assert saved(here / "runs/h")["weight model.norm.weight"].dtype == torch.float32


def test_ones_own_template_two_stops_an_array_another_set_and_more_steps(here, capsys):
    """The model ends its answers by <|endoftext|>, the template by <|im_end|>: both stop a text."""
    own = TEMPLATES["boxed"].text.format(problem="{problem}") + "{response}<|im_end|>\n"
    Path("own.txt").write_text(own)
    lines = Path("sums.jsonl").read_text().splitlines()
    Path("sums.json").write_text(json.dumps([*map(json.loads, lines)], indent=1))
    Path("aime").mkdir()
    Path("aime/test.jsonl").write_text("\n".join([*lines[:2], '{"question": "?", "answer": 1}']))
    flags = [*FLAGS, "--steps", "2", "--template", "own.txt", "--out", "runs/o"]
    flags += ["--data", "sums.json", "--eval-data", "aime/test.jsonl", "--rows", "auto"]
    assert fork_gpt.main(flags) == 0
    out = capsys.readouterr().out
    assert "2 problems of --data are in --eval-data: not trained on" in out
    assert "defaults for --data: " in out and "--snapshot-every" not in out
    assert "arithmetic" not in out and "at most with --rows" in out
    flags = ["--resume", "runs/o", "--steps", "3", "--save-every", "7", "--microbatch", "99"]
    assert fork_gpt.main(flags) == 0
    assert "base model, test split: accuracy" in capsys.readouterr().out  # not sampled again
    assert fork_gpt.main(flags) == 0
    out = capsys.readouterr().out
    assert out.startswith("runs/o has done its 3 steps") and out.count("\n") == 2
    assert fork_gpt.main(["--resume", "runs/o", "--lr", "1"]) == 2
    assert "--lr cannot change in a run that has begun" in capsys.readouterr().err
    found = metrics(here / "runs/o")
    assert [line["step"] for line in found] == [1, 2, 3] and "aime_accuracy" in found[1]
    assert all(line["truncated"] < 0.5 for line in found) and sum(x["groups"] for x in found)
    said = json.loads(Path("runs/o/model/generation_config.json").read_text())
    added = open_model(here / "model")[1].added
    assert said["eos_token_id"] == [added["<|im_end|>"], added["<|endoftext|>"]]
    flags = "--eval --model runs/o --data sums.json --k 2 --limit 3 --max-new 12 --device cpu"
    assert fork_gpt.main([*flags.split(), "--out", "eval-o"]) == 0
    assert json.loads(Path("eval-o/config.json").read_text())["template"] == "own.txt"

"""Precision and what surrounds it: the bf16 compute copy, recomputation, padding ids, the nucleus,
bit-exact resuming, loggers, and models that come and go by folder."""

import json
import math
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from test_memory import bench
from test_model import all_logits, peer, stream, tiny
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GenerationConfig

import fork_gpt
from infra.files import Clock, UserError, loggers
from infra.weights import export, from_pretrained
from model import Shape, Transformer
from parallel import compute_copy, copy_weights
from rollout import Sampling, generate, nucleus, sample
from tasks.ask import open_model
from tasks.pretrain import make_optimizer

N_VOCAB = 4100
SHAPE = Shape(64, 2, 4, 2, 16, 128, vocab_size=4224)
PROMPTS = [[5, 6, 7], [4099] * 9, [1, 2]]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def padded(tied: bool = True) -> Transformer:
    """A random model with Qwen's kind of padding rows; they are so large that half the tokens would
    be padding, were it not excluded."""
    model = Transformer(replace(SHAPE, tie_embeddings=tied)).init_weights(seeded())
    model.n_vocab = N_VOCAB
    with torch.no_grad():
        model.head_weight[N_VOCAB:] *= 40
    return model


def largest_dlogp(model: Transformer, how: Sampling) -> float:
    samples = generate(model, PROMPTS, 4, 48, None, how, seeded())
    with torch.no_grad():
        logprobs, entropy = model(*samples.scored(), how.temperature)
    assert logprobs.dtype == entropy.dtype == torch.float32
    assert_close(entropy, samples.entropy, rtol=0, atol=0.05)
    return (logprobs - samples.logprobs).abs().max().item()


# ------------------------------------------------------------------ sampler = trainer


@pytest.mark.parametrize("temperature", (1.0, 0.7))
@pytest.mark.parametrize("tied", (True, False))
def test_the_samplers_logprobs_are_the_trainers(tied, temperature):
    how = Sampling(temperature)
    master = padded(tied)
    assert largest_dlogp(master, how) <= 1e-4
    assert largest_dlogp(master, how) <= 1e-5  # what it is
    policy = compute_copy(master, torch.bfloat16)
    # bf16 activations have 8 bits, and a row alone is summed in another order than in its stream
    assert 1e-4 < largest_dlogp(policy, how) < 0.1


@pytest.mark.parametrize(
    "how",
    (Sampling(), Sampling(0.0), Sampling(3.0), Sampling(top_p=0.9), Sampling(0.6, 2.0, 1.5)),
    ids=("T1", "greedy", "T3", "top_p", "two"),
)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_padding_ids_are_never_sampled(dtype, how):
    model = compute_copy(padded(), dtype)
    assert model.n_vocab == N_VOCAB  # the copy must know it too
    tokens = generate(model, PROMPTS, 4, 24, None, how, seeded())
    assert tokens.tokens.max() < N_VOCAB
    model.n_vocab = SHAPE.vocab_size
    wide = generate(model, PROMPTS, 4, 24, None, how, seeded())
    assert (wide.tokens >= N_VOCAB).sum() > 20  # and without the bound they are


def test_padding_rows_take_no_part_in_the_trainers_distribution():
    model, (tokens, cu) = padded().double(), stream()
    rows = torch.arange(20)
    logp, entropy = model(tokens, cu, rows, tokens[rows + 1], 0.7)
    expected = (all_logits(model, tokens, cu)[:20, :N_VOCAB] / 0.7).log_softmax(-1)
    assert_close(logp, expected.gather(-1, tokens[rows + 1][:, None])[:, 0])
    assert_close(entropy, -(expected.exp() * expected).sum(-1))
    logp.sum().backward()
    embedded = tokens.unique()
    touched = model.head_weight.grad[N_VOCAB:]
    assert not touched.any() and embedded.max() < N_VOCAB


# ------------------------------------------------------------------ the bf16 compute copy


def loss_of(model: Transformer, seed: int) -> torch.Tensor:
    tokens, cu = stream(seed=seed)
    rows = torch.arange(0, len(tokens) - 1, 3)
    return model(tokens, cu, rows, tokens[rows + 1])[0].sum()


def test_fp32_needs_no_copy():
    master = padded()
    assert compute_copy(master, torch.float32) is master
    before = {k: p.clone() for k, p in master.state_dict().items()}
    copy_weights(master, master)
    assert all(torch.equal(p, before[k]) for k, p in master.state_dict().items())


@pytest.mark.parametrize("tied", (True, False))
def test_gradients_are_summed_in_fp32(tied):
    """Summed in bf16, the 64th of equal gradients would be lost: 8 bits hold no 64 + 1/4."""
    master = tiny(tied)
    policy = compute_copy(master, torch.bfloat16)
    alone = tiny(tied).to(torch.bfloat16)  # the same weights, torch's own gradients
    sums = {k: torch.zeros_like(p) for k, p in master.named_parameters()}
    for seed in range(8):
        loss_of(policy, seed).backward()
        assert all(p.grad is None for p in policy.parameters())  # handed over, and freed
        alone.zero_grad()
        loss_of(alone, seed).backward()
        for name, p in alone.named_parameters():
            assert p.grad.dtype == torch.bfloat16
            sums[name] += p.grad.float()
    for name, p in master.named_parameters():
        assert p.grad.dtype == torch.float32 and p.grad.any()
        assert torch.equal(p.grad, sums[name]), name
    master.zero_grad()
    for _ in range(64):
        loss_of(policy, 0).backward()
    alone.zero_grad()
    loss_of(alone, 0).backward()
    for (name, p), q in zip(master.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(p.grad, 64 * q.grad.float()), name  # the error of one, not of 64


@pytest.mark.parametrize("tied", (True, False))
def test_the_copy_follows_the_master(tied):
    master = tiny(tied)
    policy = compute_copy(master, torch.bfloat16)
    optimizer = make_optimizer(master, 1e-2, 0.1, 0.999)
    policy.recompute = True
    ids = [id(p) for p in policy.parameters()]
    for seed in range(3):
        before = [p.clone() for p in policy.parameters()]
        loss_of(policy, seed).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        copy_weights(master, policy)
        for p, q, old in zip(master.parameters(), policy.parameters(), before, strict=True):
            assert p.dtype == torch.float32 and q.dtype == torch.bfloat16
            assert torch.equal(q, p.detach().bfloat16()) and not torch.equal(q, old)
    assert ids == [id(p) for p in policy.parameters()]  # the hooks live on these
    assert len(ids) == len(list(master.parameters())) and tied == (not hasattr(policy, "lm_head"))


def test_small_steps_are_not_lost():
    """A bf16 weight of 1 stays 1 when 0.001 is added; its fp32 master arrives after many."""
    master = tiny()
    policy = compute_copy(master, torch.bfloat16)
    norm, copied = master.model.norm.weight, policy.model.norm.weight
    with torch.no_grad():
        norm.fill_(1.0)
        for _ in range(10):
            norm += 0.001
            copy_weights(master, policy)
    assert copied[0].item() == torch.tensor(1.01).bfloat16().item() != 1.0


# ------------------------------------------------------------------ recomputation


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_recomputation_changes_no_bit_of_the_gradient_and_keeps_less(dtype):
    kept, grads = [], []
    for recompute in (False, True):
        model = tiny().to(dtype)
        model.recompute, seen = recompute, {}

        def note(t: torch.Tensor, seen: dict = seen) -> torch.Tensor:
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            loss = loss_of(model, 0)
        loss.backward()
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept.append(sum(n for at, n in seen.items() if at not in weights))
        grads.append({k: p.grad for k, p in model.named_parameters()})
    assert kept[1] < kept[0] / 2
    for name, grad in grads[0].items():
        assert grad.any() and torch.equal(grad, grads[1][name]), name


def test_sampling_and_scoring_do_not_recompute(monkeypatch):
    model = tiny()
    model.recompute = True
    monkeypatch.setattr("model.checkpoint", lambda *_, **__: pytest.fail("recomputed"))
    with torch.no_grad():
        loss_of(model, 0)
    generate(model, [[1, 2]], 1, 3, None)


# ------------------------------------------------------------------ the nucleus


def slow_nucleus(logp: list[float], top_p: float) -> list[float]:
    """Take the likeliest until their sum reaches top_p."""
    kept, total = [], 0.0
    for i in sorted(range(len(logp)), key=lambda i: -logp[i]):
        if total >= top_p and kept:
            break
        kept.append(i)
        total += math.exp(logp[i])
    total = sum(math.exp(logp[i]) for i in kept)
    return [logp[i] - math.log(total) if i in kept else -math.inf for i in range(len(logp))]


@pytest.mark.parametrize("top_p", (0.0, 0.05, 0.3, 0.7, 0.95, 0.999))
def test_the_nucleus_is_that_of_a_slow_version(top_p):
    """At top_p 0 nothing was left, and all of the vocabulary was drawn from alike."""
    logp = (3 * torch.randn(40, 50, generator=seeded(), dtype=torch.float64)).log_softmax(-1)
    found = nucleus(logp, top_p)
    expected = torch.tensor([slow_nucleus(x, top_p) for x in logp.tolist()], dtype=logp.dtype)
    assert_close(found.exp(), expected.exp(), rtol=0, atol=1e-12)
    inside = expected > -math.inf
    assert_close(found[inside], expected[inside])
    assert (found[~inside] < -1e29).all()  # and finite: 0 log 0 is 0


def test_nucleus_closed_forms():
    logp = torch.tensor([[0.1, 0.5, 0.15, 0.25]], dtype=torch.float64).log()
    for top_p, expected in (
        (0.4, [0, 1, 0, 0]),
        (0.6, [0, 2 / 3, 0, 1 / 3]),
        (0.8, [0, 5 / 9, 1.5 / 9, 2.5 / 9]),
        (0.95, [0.1, 0.5, 0.15, 0.25]),
    ):
        expected = torch.tensor([expected], dtype=torch.float64)
        assert_close(nucleus(logp, top_p).exp(), expected)


def test_the_nucleus_has_its_frequencies_and_is_what_is_recorded():
    n, how = 40_000, Sampling(temperature=0.8, top_p=0.8)
    logits = torch.randn(1, 24, generator=seeded(3))
    token, logprob, entropy = sample(logits.expand(n, -1), how, seeded(4))
    row = (logits[0].double() / 0.8).log_softmax(-1)
    expected = torch.tensor(slow_nucleus(row.tolist(), 0.8), dtype=row.dtype).exp()  # (24,)
    counts = token.bincount(minlength=24)
    inside = expected > 0
    assert 3 <= inside.sum() < 20 and not counts[~inside].any()
    chi = ((counts - n * expected)[inside] ** 2 / (n * expected[inside])).sum().item()
    freedom = int(inside.sum()) - 1
    assert chi < freedom + 5 * math.sqrt(2 * freedom) + 10  # far beyond the 1e-5 quantile
    assert_close(logprob.double(), expected.log()[token], rtol=0, atol=1e-5)
    p = expected[inside]
    assert_close(entropy[0].double(), -(p * p.log()).sum(), rtol=0, atol=1e-5)


# ------------------------------------------------------------------ resuming


TIMING = ("seconds", "cpu_seconds", "rollout_tok_s", "update_tok_s")


@pytest.mark.parametrize("tied", (True, False))
def test_a_bf16_run_resumes_bit_for_bit(tied, tmp_path):
    """The checkpoint holds the fp32 master: rounded to bf16, or without the copy, the next step
    would differ."""
    c = fork_gpt.Config(
        dtype="bfloat16", recompute=True, prompts=4, group=4, updates=2, max_new=8, oversample=1.0,
        lr=1e-3, microbatch=64,
    )  # fmt: skip
    problems = [torch.randint(0, 60, (3,), generator=seeded(i)).tolist() for i in range(12)]
    path = tmp_path / "checkpoint.pt"
    straight = fork_gpt.begin(tiny(tied), problems, c, Clock())
    for _ in range(2):
        fork_gpt.step(straight, bench.FixedWorld(), problems, c)
    straight.save(path)
    other = tiny(tied, seed=7)  # everything is another than it should be
    resumed = fork_gpt.begin(other, problems, c, Clock())
    resumed.load(path)
    lines = []
    for state in (straight, resumed):
        line = fork_gpt.step(state, bench.FixedWorld(), problems, c)
        lines.append({k: v for k, v in line.items() if k not in TIMING})
    assert lines[0] == lines[1] and lines[0]["step"] == 3 and lines[0]["grad_norm"] > 0
    for kind in ("model", "policy"):
        a, b = (getattr(s, kind).state_dict() for s in (straight, resumed))
        assert all(torch.equal(a[k], b[k]) for k in a)
    rounded = straight.model.head_weight.detach().bfloat16().float()
    assert not torch.equal(straight.model.head_weight, rounded)
    a, b = (s.optimizer.state_dict()["state"] for s in (straight, resumed))
    assert all(torch.equal(a[i][k], b[i][k]) for i in a for k in a[i])


# ------------------------------------------------------------------ loggers

LINE = dict(step=3, reward=0.5, groups=2, val_accuracy=0.25)


def test_lines_arrive_at_the_loggers(tmp_path, monkeypatch):
    said = []
    fake = ModuleType("wandb")
    run = SimpleNamespace(log=lambda line, step: said.append(("wandb", dict(line), step)))
    fake.init = lambda **kw: (said.append(("init", kw["project"], kw["name"])), run)[1]

    class SummaryWriter:
        def __init__(self, folder):
            said.append(("open", folder))

        def add_scalar(self, key, value, step):
            said.append((key, value, step))

        def flush(self):
            said.append("flush")  # without it the last two minutes are lost at the end

    board = ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    assert loggers(tmp_path, False, False) == [] and said == []
    both = loggers(tmp_path, True, True)
    assert said == [("init", "fork-gpt", tmp_path.name), ("open", tmp_path)]
    said.clear()
    for write in both:
        write(LINE)
    assert said == [("wandb", LINE, 3), *((k, v, 3) for k, v in LINE.items()), "flush"]


@pytest.mark.parametrize("name", ("wandb", "tensorboard"))
def test_a_logger_that_is_not_installed_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(UserError, match=f"pip install -U {name}$"):
        loggers(tmp_path, name == "wandb", name == "tensorboard")


def test_a_tensorboard_that_is_too_old_is_named(tmp_path, monkeypatch):
    """torch's ImportError for it has no name: the advice was `pip install None`."""
    old = ModuleType("tensorboard")
    old.__version__ = "1.0"
    monkeypatch.setitem(sys.modules, "tensorboard", old)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(UserError, match="pip install -U tensorboard$"):
        loggers(tmp_path, False, True)


def test_a_logger_that_refuses_to_start_is_one_line(tmp_path, monkeypatch):
    fake = ModuleType("wandb")

    def init(**_):
        raise RuntimeError("api_key not configured\nuse wandb login")

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(UserError, match="^--wandb: api_key not configured$"):
        loggers(tmp_path, True, False)


# ------------------------------------------------------------------ folders


def test_the_export_is_what_transformers_loads(tmp_path):
    ours, source = tiny(), tmp_path / "source"
    theirs = peer(ours)
    theirs.config.bos_token_id, theirs.config.eos_token_id = 1, 5
    theirs.config.max_position_embeddings = 777
    theirs.generation_config = GenerationConfig(eos_token_id=5)  # a chat template ends elsewhere
    theirs.save_pretrained(source)
    texts = {"tokenizer.json": "{}", "merges.txt": "a b\n", "chat_template.jinja": "x"}
    for name, text in {**texts, "notes.md": "not carried"}.items():
        (source / name).write_text(text)
    trained = from_pretrained(source)
    with torch.no_grad():
        for p in trained.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=seeded(2)))
    out = tmp_path / "run" / "model"
    export(trained, source, out, eos=66)
    names = {*texts, "config.json", "model.safetensors"}
    assert {p.name for p in out.iterdir()} == names
    for name in texts:
        assert (out / name).read_bytes() == (source / name).read_bytes()
    a, b = (json.loads((folder / "config.json").read_text()) for folder in (source, out))
    for key in ("bos_token_id", "max_position_embeddings", "vocab_size"):
        assert b[key] == a[key]
    assert (b["eos_token_id"], b["max_position_embeddings"]) == (66, 777)
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    for n in (1, 6):
        prompt = stream([n], seed=n)[0]
        text = loaded.generate(prompt[None], max_new_tokens=12, do_sample=False)[0].tolist()
        mine = generate(trained, [prompt.tolist()], 1, 12, 66, Sampling(0.0)).responses()[0]
        assert prompt.tolist() + mine == text and len(text) > n
    # a run's own folder is a source too; what is there already stays
    again = tmp_path / "again"
    export(tiny(seed=5), tmp_path / "run", again, 66)
    assert (again / "tokenizer.json").exists()
    before = (out / "model.safetensors").read_bytes()
    export(tiny(seed=5), source, out, 66)
    assert (out / "model.safetensors").read_bytes() == before


def test_a_failed_export_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    peer(tiny()).save_pretrained(tmp_path / "source")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("infra.weights.write_safetensors", full)
    with pytest.raises(UserError, match="No space left") as e:
        export(tiny(), tmp_path / "source", tmp_path / "out", 66)
    assert "\n" not in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def qwen_folder(path, vocab_size: int):
    """A random model of `vocab_size` rows beside a tokenizer of 260 ids."""
    from test_qwen_tokenizer import train

    model = Transformer(replace(tiny().shape, vocab_size=vocab_size)).init_weights(seeded())
    peer(model).save_pretrained(path)
    made = train(0)
    made.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return model, made.get_vocab_size()


def test_a_published_folder_opens_with_its_padding_known(tmp_path):
    theirs, n_vocab = qwen_folder(tmp_path / "a", 320)
    assert n_vocab < 320
    for folder, dtype in ((tmp_path / "a", None), (tmp_path / "a", torch.bfloat16)):
        model, tokenizer = open_model(folder, dtype=dtype)
        assert (model.n_vocab, tokenizer.n_vocab) == (n_vocab, n_vocab)
        assert model.head_weight.dtype == (dtype or torch.float32)
        assert torch.equal(model.head_weight, theirs.head_weight.to(model.head_weight.dtype))
        assert tokenizer.token(tokenizer.eos) == "<|im_end|>"
    export(model, tmp_path / "a", tmp_path / "run" / "model", tokenizer.eos)
    assert open_model(tmp_path / "run")[0].n_vocab == n_vocab
    other = open_model(tmp_path / "a", eos="<|endoftext|>")[1]
    assert other.token(other.eos) == "<|endoftext|>"


def test_what_cannot_be_opened_is_one_line(tmp_path):
    _, n_vocab = qwen_folder(tmp_path / "short", 200)
    cases = {"nowhere": "no model there", "short": f"{n_vocab} tokens, but the model has 200 rows"}
    for name, why in cases.items():
        with pytest.raises(UserError, match=why) as e:
            open_model(tmp_path / name)
        assert str(tmp_path / name) in str(e.value) and "\n" not in str(e.value)

"""What must hold on whatever computes: attention in its kernels, decoding as training, bf16, the
preflight against the allocator.  On a GPU: pytest -m cuda."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from common import ROOT, SMALL, random_model, seeded
from torch.utils._python_dispatch import TorchDispatchMode

import fork_gpt
from bench import gpu
from bench import memory as bench
from infra import memory
from model import SIZES, Shape, attend
from rollout import Sampling, Slots, generate, streams

SHAPE = Shape(64, 2, 4, 2, 16, 128, 320)
EPS = {torch.float32: 2**-24, torch.bfloat16: 2**-9}  # of one rounding


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.mark.parametrize("dtype", EPS)
def test_attention_is_that_of_each_sequence_alone(device, dtype):
    """Forward and backward, against fp64: an average of values below 4, of which the weights and
    the result are rounded, and for a gradient sums of 33 of them."""
    lengths, S, heads = [1, 33, 33, 7], 74, (4, 2, 2)
    cu = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int().to(device)
    noise = (torch.randn(S, n, 16, generator=seeded(n + i)) for i, n in enumerate(heads))
    given = [x.to(dtype).to(device).requires_grad_() for x in noise]
    exact = [x.detach().double().cpu().requires_grad_() for x in given]
    out = attend(*given, cu, lengths)
    parts = []
    for q_, k_, v_ in zip(*(x.split(lengths) for x in exact), strict=True):
        k_, v_ = (x.repeat_interleave(2, 1) for x in (k_, v_))
        scores = torch.einsum("ihd,jhd->hij", q_, k_) / 4
        later = torch.ones(len(q_), len(q_), dtype=torch.bool).triu(1)
        shares = scores.masked_fill(later, -1e9).softmax(-1)
        parts.append(torch.einsum("hij,jhd->ihd", shares, v_))
    expected = torch.cat(parts)
    assert (out.double().cpu() - expected).abs().max() < 8 * 4 * EPS[dtype]
    weight = torch.randn(out.shape, generator=seeded(9), dtype=torch.float64)
    (out.double() * weight.to(device)).sum().backward()
    (expected * weight).sum().backward()
    for a, b in zip(given, exact, strict=True):
        assert (a.grad.double().cpu() - b.grad).abs().max() < 33 * 8 * EPS[dtype]


@pytest.mark.parametrize("dtype", EPS)
def test_the_trainer_finds_the_log_probs_that_the_sampler_noted(device, dtype):
    """A logit is a sum of 64 products of size about 1, in each of two layers' widths."""
    model = random_model(SHAPE).to(dtype).to(device)
    samples = generate(model, [[5, 6, 7], [8]], 3, 20, None)
    with torch.no_grad():
        logprobs, entropy = model(*samples.sequences(range(6), device).scored(), 1.0)
    for mine, theirs in ((logprobs, samples.logprobs), (entropy, samples.entropy)):
        assert (mine.cpu() - theirs).abs().max() < 64 * 4 * EPS[dtype]


class Waits(TorchDispatchMode):
    """Names the operations after which the host must know what the device computed."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique"):
            self.found.append(name)
        return op(*args, **(kwargs or {}))


HOWS = [Sampling(), Sampling(0.7, top_p=0.9), Sampling(0.5, threshold=1.0)]


def buffers(slots: Slots) -> dict[str, int]:
    return {k: x.data_ptr() for k, x in vars(slots).items() if isinstance(x, torch.Tensor)}


@pytest.mark.parametrize("how", HOWS)
def test_a_decode_step_asks_the_host_nothing_and_keeps_nothing(device, how):
    """What it takes it gives back, and its buffers stay where they are: a graph could hold it."""
    model = random_model(SHAPE).to(device)
    stream = streams(0, torch.arange(3, device=device), 2)
    slots = Slots(model, how, 1, stream, 6, 40, 30)
    with torch.no_grad():
        slots.admit([[5, 6, 7], [8], [9, 9]], 0, 2)
        slots.step()
        before = buffers(slots)
        with Waits() as waits:
            slots.step()
    assert not waits.found and buffers(slots) == before
    assert int(slots.count.max()) == 3


def test_another_device_passes_through_model_sampler_and_loss():
    """A tensor left on the CPU fails here.  The device is "meta", which computes nothing: a build
    without CUDA cannot index a fake CUDA tensor."""
    with torch.device("meta"):
        model = fork_gpt.Transformer(SHAPE).to(torch.bfloat16)
        stream, ids, rows = (torch.zeros(n, dtype=torch.long) for n in (6, 24, 4))
        advantages, cu = torch.ones(4), torch.zeros(3, dtype=torch.int32)
    slots = Slots(model, Sampling(), 1, stream, 6, 40, 30)
    slots.n, slots.longest = 6, 3
    with torch.no_grad():
        slots.step()

    def packed(_, q, k, v):
        return attend(q, k, v, cu, [12, 12])

    h = model.backbone(ids, ids, packed)
    logprobs, entropy = model.head(h[rows], ids[rows], 1.0)
    terms, _ = fork_gpt.surrogate(logprobs, logprobs.detach(), advantages, fork_gpt.Config())
    (-terms.sum()).backward()
    found = [slots.tokens, slots.entropy, logprobs, entropy, *(p.grad for p in model.parameters())]
    assert all(x.device.type == "meta" for x in found)


@pytest.mark.cuda
def test_the_allocators_peak_is_what_the_preflight_said():
    c = fork_gpt.Config(prompts=16, group=8, max_prompt=64, max_new=256, dtype="bfloat16")
    expected = memory.peaks(memory.preflight(SIZES["mini"], c, torch.device("cuda")))
    found = bench.measure(SIZES["mini"], c, 64, torch.device("cuda"))
    for phase in ("rollout", "update"):
        assert found[phase] == pytest.approx(expected[phase], rel=0.15)


@pytest.mark.cuda
def test_one_rank_of_torchrun_is_no_torchrun(tmp_path):
    """Under NCCL, bit for bit."""
    flags = [*SMALL[:-2], "--device", "cuda", "--steps", "2"]
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    for name, start in (("alone", []), ("ranks", many)):
        argv = [sys.executable, *start, str(ROOT / "fork_gpt.py"), *flags, "--out", name]
        subprocess.run(argv, cwd=tmp_path, check=True, capture_output=True, env=dict(os.environ))
    a, b = (torch.load(tmp_path / x / "model.pt")["weights"] for x in ("alone", "ranks"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_gpu_script_works_at_toy_sizes(tmp_path, monkeypatch, capsys):
    """So that it does on the day a GPU comes; a section that is there already is kept."""
    a = SimpleNamespace(toy=True, model="", device="cpu", minutes=5, out=tmp_path / "gpu.md")
    for section in ("decode", "mix", "update", "entropy"):
        rows = gpu.SECTIONS[section](a, torch.device("cpu")).splitlines()[-1].split("|")
        numbers = [float(x.strip(" %").replace(",", "")) for x in rows[-3:-1]]
        assert rows[1].strip() == "micro" and all(x >= 0 for x in numbers)
    monkeypatch.setattr(gpu, "SECTIONS", dict(mix=gpu.mix))
    for calls in (1, 0):
        assert gpu.every(a) == 0
        assert capsys.readouterr().out.count("mix: ") == calls
    text = a.out.read_text()
    assert "toy sizes" in text and "`python bench/gpu.py mix --device cpu --toy`" in text
    assert text.count("| micro | 8 |") == 1

"""AdamW in 8 bit: near AdamW, without bias, and the same again after a resume."""

import pytest
import torch
from common import seeded

from infra.adam8 import AdamW8, decode, encode


def groups(*parameters: torch.Tensor) -> list[dict]:
    return [dict(params=[p], weight_decay=0.1 * (p.ndim - 1)) for p in parameters]


def trained(kind: type, steps: int = 200) -> list[torch.Tensor]:
    """How far it moves a matrix whose columns have gradients of 1e-7 to 1e-3, and a vector."""
    matrix, vector = torch.randn(64, 96, generator=seeded(0)), torch.ones(50)
    p, q = torch.nn.Parameter(matrix.clone()), torch.nn.Parameter(vector.clone())
    optimizer, g = kind(groups(p, q), lr=1e-3, betas=(0.9, 0.999)), seeded(1)
    for _ in range(steps):
        p.grad = (torch.randn(64, 96, generator=g) + 0.3 * matrix.sign()) * 1e-3
        p.grad *= torch.logspace(-4, 0, 96)
        q.grad = torch.randn(50, generator=g) * 1e-3
        optimizer.step()
    return [p.detach() - matrix, q.detach() - vector]


def test_it_goes_where_adamw_goes():
    """A second moment rounded to the nearest code stood still; a vector is exact."""
    (matrix, vector), (theirs, exact) = trained(AdamW8), trained(torch.optim.AdamW)
    assert (matrix - theirs).norm() < 0.1 * theirs.norm()
    assert torch.allclose(vector, exact, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind, low", [(torch.int8, -1.0), (torch.uint8, 0.0)])
def test_a_code_means_what_it_stands_for(kind, low):
    """Its mean is the cube root itself, and each is within a code of it."""
    x = torch.linspace(low, 1, 101)[None]
    code, scale = torch.zeros(1, 101, dtype=kind), torch.zeros(1, 1)
    found = torch.zeros(4000, 101)
    for i in range(4000):
        encode(x, code, scale, seeded(i))
        found[i] = decode(code, scale).sign() * decode(code, scale).abs().pow(1 / 3)
    root = x.sign() * x.abs().pow(1 / 3)
    width = 1 / torch.iinfo(kind).max
    # of 4,000 lots of a sd below half a code, five sd
    assert ((found.mean(0) - root).abs() < 5 * width / 2 / 4000**0.5).all()
    assert ((found - root).abs() <= width * 1.001).all()


def test_a_byte_a_moment_and_the_same_again():
    p = torch.nn.Parameter(torch.randn(32, 512, generator=seeded(0)))
    state = AdamW8(groups(p), 1e-3, (0.9, 0.999)).state[p]
    assert sum(x.numel() * x.element_size() for x in state.values()) < 2.02 * p.numel()
    assert all(torch.equal(a, b) for a, b in zip(trained(AdamW8), trained(AdamW8), strict=True))

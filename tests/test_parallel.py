"""What spans several processes: sums, and the k largest of all ranks."""

import math
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import parallel
from fork_gpt import top_entropy
from parallel import sum_over_ranks


def test_one_process_sums_nothing():
    x = torch.tensor([1.0, 2.0])
    assert sum_over_ranks(x) is x and x.tolist() == [1.0, 2.0]
    assert parallel.ranks() == (0, 1)


def pools() -> list[list[torch.Tensor]]:
    """Entropies of two ranks: uneven, with an empty rank or two, with ties, with zeros."""
    generator = torch.Generator().manual_seed(0)
    out = []
    for sizes in ((7, 3), (1, 20), (5, 0), (0, 5), (0, 0), (1, 0), (64, 64)):
        smooth = [3 * torch.rand(n, generator=generator) for n in sizes]
        ties = [torch.randint(3, (n,), generator=generator) / 2 for n in sizes]
        out += [smooth, ties, [torch.zeros(n) for n in sizes]]
    return out


RHOS = (0.1, 0.2, 0.5, 1.0)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    try:
        x = torch.tensor([1.0, 10.0]) * (rank + 1)
        y = sum_over_ranks(x)
        out = dict(ranks=parallel.ranks(), sum=y, in_place=x)
        out["masks"] = [top_entropy(pool[rank], rho) for pool in pools() for rho in RHOS]
        torch.save(out, f"{folder}/rank{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


def test_two_processes_sum_in_place(two_ranks):
    for rank, out in enumerate(two_ranks):
        assert out["ranks"] == (rank, 2)
        assert out["sum"].tolist() == out["in_place"].tolist() == [3.0, 30.0]


def test_two_ranks_keep_what_one_process_keeps_of_both(two_ranks):
    """A threshold per rank keeps the wrong tokens; gathers of unequal length hang."""
    cases = [(pool, rho) for pool in pools() for rho in RHOS]
    for (pool, rho), *found in zip(cases, *(out["masks"] for out in two_ranks), strict=True):
        both = torch.cat(pool)
        mask, tau = top_entropy(both, rho)
        assert torch.equal(torch.cat([m for m, _ in found]), mask), (pool, rho)
        assert [t for _, t in found] == [tau, tau]
        # and both are the first k of a stable sort
        k = math.ceil(round(rho * len(both), 6))
        order = both.sort(descending=True, stable=True).indices[:k]
        assert sorted(order.tolist()) == mask.nonzero()[:, 0].tolist()
        assert tau == (float(both[order[-1]]) if k else math.inf)

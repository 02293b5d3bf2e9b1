"""The k largest of all ranks, and who trains on what: ranks here are threads that meet to sum."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from types import SimpleNamespace

import pytest
import torch
from common import tiny

import parallel
from parallel import Ranks, largest, microbatches
from rollout import generate
from tasks.ask import exchange


def on_ranks(work, parts: list) -> list:
    """work(part, total) of every rank at once; `total` adds up what all of them bring."""
    meet, brought = threading.Barrier(len(parts)), [None] * len(parts)

    def rank(r: int):
        def total(x: torch.Tensor) -> torch.Tensor:
            brought[r] = x.clone()
            meet.wait(60)
            out = torch.stack(brought).sum(0)
            meet.wait(60)
            return out

        return work(parts[r], total)

    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(rank, range(len(parts))))


def hostile_pools(n: int) -> Iterator[tuple]:
    """Entropies, numbers and rank of each token, and how many ranks: ties, zeros, neighbours in the
    last bit, empty ranks, one token, orders that have nothing to do with the numbers."""
    rng = Random(0)
    values = [0.0, 0.25, 0.25 + 2**-26, 1.0, 2**-149, 3e38]
    for _ in range(n):
        size, ranks = rng.choice((1, 2, 3, 7, 40, 300)), rng.choice((1, 2, 3, 5))
        few = rng.sample(values, rng.randint(1, 3))
        x = [rng.choice((rng.choice(few), rng.choice((rng.random(), few[0])))) for _ in range(size)]
        number = rng.sample(range(10 * size), size)
        busy = rng.sample(range(ranks), rng.randint(1, ranks))
        yield *map(torch.tensor, (x, number, [rng.choice(busy) for _ in x])), ranks


def test_ranks_keep_what_one_process_keeps_of_all():
    """A threshold per rank keeps the wrong tokens; gathers of unequal length hang."""
    rng, ties = Random(1), 0
    for x, number, rank, ranks in hostile_pools(300):
        k = rng.choice((1, len(x), rng.randint(1, len(x)), -(-len(x) // 5)))
        parts = [(x[rank == r], number[rank == r]) for r in range(ranks)]
        found = on_ranks(lambda part, total, k=k: largest(part[0], k, part[1], total), parts)
        order = sorted(zip((-x).tolist(), number.tolist(), strict=True))
        ties += k < len(x) and order[k - 1][0] == order[k][0]
        kept = [part[1][mask].tolist() for part, (mask, _) in zip(parts, found, strict=True)]
        assert sorted(sum(kept, [])) == sorted(n for _, n in order[:k])
        assert {-float(tau) for _, tau in found} == {order[k - 1][0]}
    assert ties > 60, "a weak test"


@pytest.mark.parametrize("budget, parts", [
    (1, [[2], [0], [4], [1], [3]]), (7, [[2], [0], [4, 1, 3]]), (8, [[2], [0, 4], [1, 3]]),
    (12, [[2, 0], [4, 1, 3]]), (19, [[2, 0, 4, 1, 3]]),
])  # fmt: skip
def test_micro_batches_are_full_and_the_longest_come_first(budget, parts):
    """Samples of 5, 2, 7, 2 and 3 tokens; equally long ones in their order."""
    assert microbatches([5, 2, 7, 2, 3], range(5), budget) == parts


def test_ranks_share_a_mini_batch_by_tokens(monkeypatch):
    """Cut in order, one rank would have all long answers: whoever has the least takes the next.
    Every rank makes as many passes, since each is a sum over all; the last of some are empty."""
    rng = Random(2)
    for ranks in (2, 3, 8):
        for _ in range(50):
            lengths = [rng.choice((1, 9, rng.randint(1, 100))) for _ in range(rng.randint(1, 40))]
            which = rng.sample(range(len(lengths)), rng.randint(1, len(lengths)))
            found = []
            for r in range(ranks):
                monkeypatch.setattr(parallel, "HERE", Ranks(dp=ranks, dp_rank=r))
                found.append(microbatches(lengths, which, 60))
            assert sorted(i for parts in found for p in parts for i in p) == sorted(which)
            assert len({len(parts) for parts in found}) == 1
            assert any(all(parts) for parts in found), "an empty pass that nobody needs"
            for parts in found:
                assert all(sum(lengths[i] for i in p) <= 60 or len(p) == 1 for p in parts)
            loads = [sum(lengths[i] for p in parts for i in p) for parts in found]
            assert max(loads) - min(loads) <= max(lengths[i] for i in which)


def test_what_the_ranks_asked_comes_together_in_the_order_of_the_problems(monkeypatch):
    """Rank r asks problems r, r + 2, ...; texts and rewards must go with their samples."""
    prompts, k = [[i + 1] * (i % 3 + 1) for i in range(5)], 2
    whole = generate(tiny(), prompts, k, 6, 5, seed=1)
    parts = [whole.sequences([i * k + g for i in range(r, 5, 2) for g in (0, 1)]) for r in (0, 1)]
    said = [[(str(ids), float(len(ids))) for ids in part.responses()] for part in parts]
    names = iter(["tokens", "response", "logprobs", "entropy", "kinds", "finished"])

    def gathered(x: torch.Tensor) -> list[torch.Tensor]:
        sizes = [part.cu_seqlens.diff() for part in parts]
        if torch.equal(x, sizes[0]):
            return sizes
        name = next(names)
        return [getattr(part, name) for part in parts]

    monkeypatch.setattr(parallel, "gathered", gathered)
    monkeypatch.setattr(parallel, "HERE", SimpleNamespace(dp=2, gather=lambda _: said))
    texts, rewards = zip(*said[0], strict=True)
    joined, texts, rewards = exchange(parts[0], list(texts), torch.tensor(rewards), 5, k)
    for name in ("tokens", "cu_seqlens", "logprobs", "entropy", "finished"):
        assert torch.equal(getattr(joined, name), getattr(whole, name))
    assert texts == [str(ids) for ids in whole.responses()]
    assert rewards.tolist() == whole.lengths().tolist()

"""What spans several processes, or a model and its compute copy: sums and thresholds over ranks."""

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from model import Transformer


def compute_copy(master: Transformer, dtype: torch.dtype) -> Transformer:
    """The model that samples and computes: `master` itself, or its copy in `dtype`, whose
    gradients are added to the master's in fp32, and freed, as each appears."""
    if dtype == master.head_weight.dtype:
        return master
    with torch.device("meta"):
        policy = Transformer(master.shape)
    weights = {k: p.detach().to(dtype) for k, p in master.state_dict().items()}
    policy.load_state_dict(weights, assign=True)
    policy.n_vocab, policy.recompute = master.n_vocab, master.recompute

    def hand_over(target: torch.nn.Parameter, p: torch.nn.Parameter) -> None:
        grad = p.grad.to(target.dtype)
        target.grad = grad if target.grad is None else target.grad.add_(grad)
        p.grad = None

    for target, p in zip(master.parameters(), policy.parameters(), strict=True):
        p.register_post_accumulate_grad_hook(partial(hand_over, target))
    return policy


@torch.no_grad()
def copy_weights(master: Transformer, policy: Transformer) -> None:
    """Cast the master's weights into its compute copy; nothing to do where they are one."""
    if policy is not master:
        for source, target in zip(master.parameters(), policy.parameters(), strict=True):
            target.copy_(source)


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of `x` over all processes, in place; `x` itself when there is one process."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x


def ranks() -> tuple[int, int]:
    """(this process's rank, number of processes)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def largest(x: Tensor, k: int, total: Callable = sum_over_ranks) -> tuple[Tensor, Tensor]:
    """Exactly k of all ranks' `x` (n,) fp32 >= 0, the largest: (mask (n,) bool, the k-th largest).
    Of equal numbers the first in position are taken, rank after rank.  k = 0: none, inf."""
    if k == 0:
        return torch.zeros_like(x, dtype=torch.bool), x.new_tensor(torch.inf)
    least = kth_largest(x, k, total)
    above, tied = x > least, x == least
    rank, world = ranks() if total is sum_over_ranks else (0, 1)
    counts = torch.zeros(world + 1, dtype=torch.long, device=x.device)
    counts[rank], counts[world] = tied.sum(), above.sum()
    total(counts)
    left = k - counts[world] - counts[:rank].sum()  # ties still to take at this rank's turn
    return above | (tied & (tied.cumsum(0) <= left)), least


def kth_largest(x: Tensor, k: int, total: Callable = sum_over_ranks) -> Tensor:
    """The k-th largest (k >= 1) of all ranks' `x` (n,) fp32 >= 0, exactly, by radix select on the
    float bits.

    Non-negative floats sort like their bits: three rounds count 2,048 or 1,024 bins each and sum
    the counts over the ranks.  Nothing is gathered or sorted, an empty rank is fine, and there is
    no limit of 2^24 values.
    """
    bits = x.contiguous().view(torch.int32)
    prefix = 0
    for shift, width in ((21, 11), (10, 11), (0, 10)):
        digit = (bits >> shift) & (2**width - 1)
        counts = total(torch.bincount(digit, minlength=2**width))
        above = counts.flip(0).cumsum(0).flip(0)  # how many have this digit or a larger one
        chosen = int((above >= k).sum()) - 1
        k -= int(above[chosen] - counts[chosen])
        bits = bits[digit == chosen]
        prefix |= chosen << shift
    return torch.tensor(prefix, dtype=torch.int32, device=x.device).view(torch.float32)

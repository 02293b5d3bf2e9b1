"""AdamW whose two moments have a byte each instead of four: 10 bytes a parameter with weights and
gradients in fp32 where AdamW has 16, so that a 1.7B model trains on one GPU of 24 GB.

Every row of a matrix has a scale s, and a number x of it the code c = 127 (x / s)^(1/3) (255 for
the second moment, of which the root is kept), rounded up or down by lot with the chances that keep
its mean: the second moment moves by a thousandth a step, and rounded to the nearest code it would
stand still.  The parameters themselves stay fp32.  results/optimizers.md has what was measured.
"""

import torch
from torch import Tensor

PIECE = 2**24  # numbers in fp32 at a time, beside the codes


def encode(x: Tensor, code: Tensor, scale: Tensor, lots: torch.Generator) -> None:
    """x (rows, n) fp32 -> its integer codes (rows, n) and scales (rows, 1), in place."""
    most = torch.iinfo(code.dtype).max
    scale.copy_(x.abs().amax(-1, keepdim=True).clamp(min=1e-30))
    exact = x.sign() * (x / scale).abs().pow(1 / 3) * most
    lot = torch.rand(x.shape, generator=lots, device=x.device)
    code.copy_((exact + lot).floor().clamp(-most, most))


def decode(code: Tensor, scale: Tensor) -> Tensor:
    """What `encode` stands for, fp32."""
    return (code.float() / torch.iinfo(code.dtype).max) ** 3 * scale


class AdamW8(torch.optim.Optimizer):
    """Parameters in groups with `params` and `weight_decay`, as torch's AdamW takes them.  The
    lots are a function of the step alone: a resumed run draws the same."""

    def __init__(self, groups: list[dict], lr: float, betas: tuple[float, float]):
        super().__init__(groups, dict(lr=lr, betas=betas))
        for p in (p for group in self.param_groups for p in group["params"]):
            flat = p.detach().view(len(p), -1)  # of a vector every number is a row: exact
            for name, kind in (("mean", torch.int8), ("root", torch.uint8)):
                self.state[p][name] = torch.zeros_like(flat, dtype=kind)
                self.state[p][f"{name} scale"] = torch.zeros_like(flat[:, :1])
            self.state[p]["step"] = torch.zeros((), device=p.device)

    @torch.no_grad()
    def step(self) -> None:
        """AdamW (Loshchilov and Hutter 2019), some rows of a parameter at a time."""
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                t = int(self.state[p]["step"].add_(1))
                lots, flat = torch.Generator(p.device).manual_seed(t), p.view(len(p), -1)
                parts = flat, p.grad.view_as(flat), *(x for x in self.state[p].values() if x.ndim)
                pieces = (x.split(max(1, PIECE // flat.shape[1])) for x in parts)
                for w, g, mean, mean_scale, root, root_scale in zip(*pieces, strict=True):
                    m = decode(mean, mean_scale).lerp_(g, 1 - beta1)
                    v = decode(root, root_scale).square_().lerp_(g.square(), 1 - beta2)
                    w.mul_(1 - lr * group["weight_decay"])
                    w.addcdiv_(m, (v / (1 - beta2**t)).sqrt_() + 1e-8, value=-lr / (1 - beta1**t))
                    encode(m, mean, mean_scale, lots)
                    encode(v.sqrt_(), root, root_scale, lots)

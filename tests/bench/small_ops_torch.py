"""small_ops_torch.py: the cases of small_ops.lua in PyTorch."""
import time

import torch

torch.set_num_threads(1)
CALLS, ROUNDS = 5000, 60
a, b = torch.randn(4), torch.zeros(4)
leaf = torch.randn(4, requires_grad=True)
m, n = torch.randn(4, 4), torch.randn(4, 4)


def best(fn):
    least = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(CALLS):
            fn()
        least = min(least, time.perf_counter() - start)
    return least / CALLS * 1e6


CASES = [
    ("a + b, 4 floats", lambda: a + b),
    ("a + b, recorded", lambda: leaf + b),
    ("a * 2", lambda: a * 2),
    ("a:add_(b)", lambda: a.add_(b)),
    ("view 4 -> 2x2", lambda: a.view(2, 2)),
    ("narrow", lambda: a.narrow(0, 1, 2)),
    ("sum of 4", lambda: a.sum()),
    ("matmul 4x4", lambda: torch.matmul(m, n)),
]
for name, fn in CASES:
    print(f"small_ops torch  {name:16} {best(fn):7.3f} us", flush=True)

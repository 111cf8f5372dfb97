"""cuda_ops_torch.py small|attention|matmul|grouped [scale]: the cases of cuda_ops.lua in PyTorch.

One line a case: its name, a tab, and the number in the unit of cuda_ops.lua, which reads them.
"""
import math
import sys
import time

import torch
import torch.nn.functional as F

SECTION, SCALE = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 1
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS, ROUND = 7, 0.02
BF16 = torch.bfloat16
torch.manual_seed(1)
grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm


def wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(fn):
    fn()
    start = wait()
    fn()
    launches = max(1, min(1000, math.ceil(ROUND / (wait() - start))))
    rounds = []
    for _ in range(ROUNDS):
        start = wait()
        for _ in range(launches):
            fn()
        rounds.append((wait() - start) / launches)
    return sorted(rounds)[ROUNDS // 2]


def sized(n):
    return max(64, int(n / SCALE) // 64 * 64)


def rand(*shape, dtype=BF16):
    return torch.randn(*shape, dtype=dtype, device=DEVICE)


def backward(fn, inputs):
    for t in inputs:
        t.requires_grad_(True)
    y = fn()
    dy = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


def show(name, value):
    print(f"{name}\t{value:.6g}", flush=True)


def small():
    a, b = torch.randn(4, device=DEVICE), torch.zeros(4, device=DEVICE)
    leaf = torch.randn(4, device=DEVICE, requires_grad=True)
    for name, fn in [("a + b", lambda: a + b), ("a + b, recorded", lambda: leaf + b), ("a.add_(b)", lambda: a.add_(b))]:
        best = math.inf
        for _ in range(5):
            start = wait()
            for _ in range(10000):
                fn()
            best = min(best, time.perf_counter() - start)
            wait()
        show(name, best / 10000 * 1e6)


def attention():
    b, t, h = int(max(1, 16 / SCALE)), sized(1024), 16
    for d in (64, 128):
        q, k, v = (rand(b, t, h, d).transpose(1, 2).detach() for _ in range(3))

        def run():
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        flops = 4 * b * h * t * t * d / 2
        show(f"forward, head size {d}", flops / seconds(run) / 1e12)
        show(f"backward, head size {d}", 2.5 * flops / seconds(backward(run, [q, k, v])) / 1e12)


def matmul():
    n, tokens = sized(8192), sized(16384)
    for name, dtype in [("bf16", BF16), ("fp32", torch.float32), ("tf32", torch.float32)]:
        a, b = rand(n, n, dtype=dtype), rand(n, n, dtype=dtype)
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        show(f"8192^3 {name}", 2 * n ** 3 / seconds(lambda: a @ b) / 1e12)
    for name, k, m in [("qkv", 1024, 3072), ("o", 1024, 1024), ("head", 1024, 32000)]:
        k, m = sized(k), sized(m)
        x, w, dy = rand(tokens, k), rand(m, k), rand(tokens, m)
        flops = 2 * tokens * k * m
        show(f"{name} forward", flops / seconds(lambda: F.linear(x, w)) / 1e12)
        show(f"{name} dgrad", flops / seconds(lambda: dy @ w) / 1e12)
        show(f"{name} wgrad", flops / seconds(lambda: dy.t() @ x) / 1e12)


def grouped():
    e, m, k, n = 32, sized(65536), sized(1024), sized(2048)
    x, dy, w = rand(m, k), rand(m, n), rand(e, n, k)
    flops = 2 * m * k * n
    harmonic = sum(1 / (i + 1) for i in range(e))
    for kind in ("even", "zipf"):
        splits = [int(m / e if kind == "even" else m / (i + 1) / harmonic) for i in range(e - 1)]
        splits.append(m - sum(splits))
        ends = torch.tensor(splits, device=DEVICE).cumsum(0).to(torch.int32)
        cases = {
            "forward": lambda: grouped_mm(x, w.transpose(-2, -1), offs=ends),
            "dgrad": lambda: grouped_mm(dy, w, offs=ends),
            "wgrad": lambda: grouped_mm(dy.t(), x, offs=ends),
        }
        for name, fn in cases.items():
            value = flops / seconds(fn) / 1e12
            show(f"{name}, {kind} splits, device", value)
            show(f"{name}, {kind} splits, host", value)


with torch.no_grad() if SECTION in ("matmul", "grouped") else torch.enable_grad():
    {"small": small, "attention": attention, "matmul": matmul, "grouped": grouped}[SECTION]()

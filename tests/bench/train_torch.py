"""train_torch.py [steps] [batch]: the net of train.lua in PyTorch, with as many threads.

Dropless experts: slots are sorted by expert, each expert multiplies its rows, index_add_ brings them back.
Reads the text that train.lua has put into the cache.
"""
import math
import os
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 100
BATCH = int(sys.argv[2]) if len(sys.argv) > 2 else 8
WARM_UP, CONTEXT, WIDTH, HEADS, EXPERTS, TOP_K, HIDDEN = 20, 128, 128, 4, 8, 2, 128

torch.set_num_threads(int(os.environ.get("MASCON_NUM_THREADS", len(os.sched_getaffinity(0)))))
torch.manual_seed(1)


class RMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


def rope_table():
    half = WIDTH // HEADS // 2
    angle = torch.arange(CONTEXT)[:, None] * 10000 ** (-torch.arange(half) / half)
    return angle.cos(), angle.sin()


COS, SIN = rope_table()
MASK = torch.full((CONTEXT, CONTEXT), float("-inf")).triu(1)


def rope(x):  # [B, H, T, d]
    a, b = x.chunk(2, -1)
    return torch.cat((a * COS - b * SIN, b * COS + a * SIN), -1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.o = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        q, k = rope(q), rope(k)
        if hasattr(F, "scaled_dot_product_attention"):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + MASK, -1) @ v
        return self.o(y.transpose(1, 2).reshape(b, t, WIDTH))


class MoE(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.gate_up = nn.ParameterList([nn.Parameter(torch.empty(2 * HIDDEN, WIDTH)) for _ in range(EXPERTS)])
        self.down = nn.ParameterList([nn.Parameter(torch.empty(WIDTH, HIDDEN)) for _ in range(EXPERTS)])

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, WIDTH)
        logits = self.router(x)
        top, ids = logits.topk(TOP_K, -1)
        weights = torch.softmax(top, -1).view(-1, 1)
        order = torch.argsort(ids.view(-1), stable=True)
        counts = torch.bincount(ids.view(-1), minlength=EXPERTS)
        token = order // TOP_K
        parts = []
        for rows, gate_up, down in zip(x[token].split(counts.tolist()), self.gate_up, self.down):
            gate, up = F.linear(rows, gate_up).chunk(2, -1)
            parts.append(F.linear(F.silu(gate) * up, down))
        y = torch.zeros_like(x).index_add_(0, token, torch.cat(parts) * weights[order])
        mean = torch.softmax(logits, -1).mean(0)
        self.aux = 0.01 * EXPERTS * (mean * counts / ids.numel()).sum()
        self.aux = self.aux + 0.001 * torch.logsumexp(logits, -1).pow(2).mean()
        return y.view(shape)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.attention, self.norm2, self.moe = RMSNorm(), Attention(), RMSNorm(), MoE()

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.moe(self.norm2(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(256, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = RMSNorm()

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embed.weight)


def text():
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    with open(os.path.join(cache, "mascon", "kjv.txt"), "rb") as f:
        data = torch.frombuffer(bytearray(f.read()), dtype=torch.uint8)
    return data[: len(data) * 9 // 10].long()


model = Model()
decay, plain = [], []
for name, p in model.named_parameters():
    is_plain = "norm" in name or "embed" in name
    nn.init.ones_(p) if "norm" in name else nn.init.normal_(p, 0, 0.02)
    (plain if is_plain else decay).append(p)
groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0}]
optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
train = text()
spent = dict.fromkeys(("forward", "backward", "clip", "step"), 0.0)


def step():
    at = torch.randint(len(train) - CONTEXT - 1, (BATCH, 1)) + torch.arange(CONTEXT + 1)
    window = train[at]
    times = [time.perf_counter()]
    logits = model(window[:, :-1])
    loss = F.cross_entropy(logits.view(-1, 256), window[:, 1:].reshape(-1))
    for block in model.blocks:
        loss = loss + block.moe.aux
    times.append(time.perf_counter())
    loss.backward()
    times.append(time.perf_counter())
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    times.append(time.perf_counter())
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    times.append(time.perf_counter())
    for i, part in enumerate(spent):
        spent[part] += times[i + 1] - times[i]
    return loss.item()


for _ in range(WARM_UP):
    step()
spent = dict.fromkeys(spent, 0.0)
start, cpu = time.perf_counter(), time.process_time()
for _ in range(STEPS):
    loss = step()
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
parts = "  ".join(f"{part} {t / STEPS * 1e3:.1f}" for part, t in spent.items())
print(f"train torch  {torch.get_num_threads()} threads {STEPS * BATCH * CONTEXT / seconds:7.0f} tokens/s  "
      f"{seconds / STEPS * 1e3:5.1f} ms/step (CPU {cpu / STEPS * 1e3:.1f})  {parts}  loss {loss:.4f}")

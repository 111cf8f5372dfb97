"""moe_lm_torch.py: training steps of moe_lm_model.lua's net in PyTorch: tokens a second and peak memory.

  python3 tests/bench/moe_lm_torch.py [--model 1.3b] [--steps 20] [--state bf16|fp32] [--mode eager|compiled]

Without --state or --mode: all of them, each in a process of its own. bf16: parameters, gradients and moments in
bfloat16; fp32: all three in float32, the net under bfloat16 autocast. Routers are float32. Experts are grouped_mm on
rows sorted by expert, nothing waits for the device, AdamW is the fused one, losses are computed from float32 logits.
One line a case: tokens/s, ms a step, TFLOP/s (6 x active parameters + 6 x layers x width x context a token), peak GiB.
"""
import argparse
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

SIZES = {
    "1.3b": dict(layers=12, width=1024, heads=16, experts=32, top_k=4, hidden=1024, vocab=32000, context=1024,
                 batch=16),
    "small": dict(layers=8, width=512, heads=8, experts=8, top_k=2, hidden=1024, vocab=4096, context=512, batch=64),
    "tiny": dict(layers=2, width=64, heads=2, experts=4, top_k=2, hidden=64, vocab=512, context=64, batch=8),
}
BF16 = torch.bfloat16
grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm


class RMSNorm(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(o.width))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), 1e-5)


class Attention(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.heads = o.heads
        self.qkv = nn.Linear(o.width, 3 * o.width, bias=False)
        self.o = nn.Linear(o.width, o.width, bias=False)

    def forward(self, x, cos, sin):
        b, t, d = x.shape
        qk, v = self.qkv(x).view(b, t, 3 * self.heads, -1).split((2 * self.heads, self.heads), 2)
        first, second = qk.chunk(2, -1)
        qk = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
        q, k = qk.chunk(2, 2)
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        return self.o(y.transpose(1, 2).reshape(b, t, d))


class MoE(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.experts, self.top_k = o.experts, o.top_k
        self.router = nn.Parameter(torch.empty(o.experts, o.width))
        self.gate_up = nn.Parameter(torch.empty(o.experts, 2 * o.hidden, o.width))
        self.down = nn.Parameter(torch.empty(o.experts, o.width, o.hidden))

    def forward(self, x):
        shape, k = x.shape, self.top_k
        x = x.reshape(-1, shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            logits = x.float() @ self.router.t()
            top, ids = logits.topk(k, -1)
            weights = top.softmax(-1)
            counts = torch.histc(ids.flatten().float(), bins=self.experts, min=0, max=self.experts)
            mean = logits.softmax(-1).mean(0)
            aux = 0.01 * self.experts * (mean * counts / ids.numel()).sum()
            aux = aux + 0.001 * torch.logsumexp(logits, -1).square().mean()
        order = ids.flatten().argsort(stable=True)
        ends = counts.cumsum(0).to(torch.int32)
        rows = x[order // k].to(BF16)
        gate, up = grouped_mm(rows, self.gate_up.to(BF16).transpose(-2, -1), offs=ends).chunk(2, -1)
        y = grouped_mm(F.silu(gate) * up, self.down.to(BF16).transpose(-2, -1), offs=ends)
        slots = torch.empty_like(y).index_copy(0, order, y).view(-1, k, shape[-1])
        return torch.bmm(weights.to(BF16).unsqueeze(1), slots).view(shape), aux


class Block(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.norm1, self.attention, self.norm2, self.moe = RMSNorm(o), Attention(o), RMSNorm(o), MoE(o)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.norm1(x), cos, sin)
        y, aux = self.moe(self.norm2(x))
        return x + y, aux


class Model(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.embed = nn.Embedding(o.vocab, o.width)
        self.blocks = nn.ModuleList(Block(o) for _ in range(o.layers))
        self.norm = RMSNorm(o)
        self.head = nn.Linear(o.width, o.vocab, bias=False)
        half = o.width // o.heads // 2
        angle = torch.arange(o.context)[:, None] * 10000 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angle.cos().to(BF16)[:, None], persistent=False)
        self.register_buffer("sin", angle.sin().to(BF16)[:, None], persistent=False)

    def forward(self, ids, target):
        x, losses = self.embed(ids).to(BF16), []
        for block in self.blocks:
            x, aux = block(x, self.cos, self.sin)
            losses.append(aux)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), target.flatten()) + sum(losses)


def run(o):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(1)
    with torch.device(device):
        model = Model(o)
    for name, p in model.named_parameters():
        if "norm" not in name:
            nn.init.normal_(p, 0, 0.02)
        if o.state == "bf16" and "router" not in name:
            p.data = p.data.to(BF16)
    plain = [p for name, p in model.named_parameters() if "norm" in name or "embed" in name]
    decay = [p for name, p in model.named_parameters() if not ("norm" in name or "embed" in name)]
    groups = [dict(params=plain, weight_decay=0.0), dict(params=decay, weight_decay=0.1)]
    optimizer = torch.optim.AdamW(groups, lr=4e-4, betas=(0.9, 0.95), fused=True)
    loss_of = torch.compile(model) if o.mode == "compiled" else model
    tokens = torch.randint(o.vocab, (2 ** 22,), device=device)
    places = torch.arange(o.context + 1, device=device)

    def step():
        window = tokens[torch.randint(len(tokens) - o.context, (o.batch, 1), device=device) + places]
        with torch.autocast(device, BF16, enabled=o.state == "fp32"):
            loss = loss_of(window[:, :-1], window[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    for _ in range(min(o.steps, 5)):
        step()
    start = wait()
    for _ in range(o.steps):
        loss = step()
    seconds = wait() - start
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    active = sum(p.numel() * (o.top_k / o.experts if p.dim() == 3 else 1) for p in model.parameters())
    active -= model.embed.weight.numel()
    rate = o.steps * o.batch * o.context / seconds
    tflops = rate * (6 * active + 6 * o.layers * o.width * o.context) / 1e12
    print(f"moe_lm torch {torch.__version__:12} {o.model} {o.state} {o.mode:8} {rate:9.0f} tokens/s  "
          f"{seconds / o.steps * 1e3:7.1f} ms/step  {tflops:5.0f} TFLOP/s  peak {peak / 2 ** 30:5.1f} GiB  "
          f"loss {loss.item():.4f}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="1.3b", choices=SIZES)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--state", choices=("bf16", "fp32"))
    parser.add_argument("--mode", choices=("eager", "compiled"))
    o = parser.parse_args()
    if o.state and o.mode:
        vars(o).update(SIZES[o.model])
        run(o)
        return
    for state in [o.state] if o.state else ["bf16", "fp32"]:
        for mode in [o.mode] if o.mode else ["eager", "compiled"]:
            subprocess.run([sys.executable, __file__, "--model", o.model, "--steps", str(o.steps), "--state", state,
                            "--mode", mode], check=False)


main()

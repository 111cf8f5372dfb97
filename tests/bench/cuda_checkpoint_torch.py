"""cuda_checkpoint_torch.py LIST FOLDER: the tensors of LIST (a line each: name dtype n1,n2,..) saved and loaded by
safetensors, where it is installed, and by torch. Saves are followed by fsync; loads end on the GPU, from the page
cache. Medians of 5 rounds, the first not counted."""
import os
import sys
import time

import torch

LIST, FOLDER = sys.argv[1:3]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = 5


def wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def median(fn):
    times = []
    for _ in range(ROUNDS + 1):
        start = wait()
        kept = fn()
        times.append(wait() - start)
        del kept
    return sorted(times[1:])[ROUNDS // 2]


def synced(fn, path):
    fn()
    with open(path, "rb+") as f:
        os.fsync(f.fileno())


tensors = {}
with open(LIST, encoding="utf-8") as lines:
    for line in lines:
        name, dtype, shape = line.split()
        sizes = [int(n) for n in shape.split(",")]
        tensors[name] = torch.randn(sizes, dtype=getattr(torch, dtype), device=DEVICE)
bytes_ = sum(t.numel() * t.element_size() for t in tensors.values())


def show(what, seconds):
    print(f"cuda_checkpoint {what:46} {bytes_ / seconds / 1e9:7.2f} GB/s  {seconds:7.3f} s", flush=True)


def race(name, path, save, load):
    try:
        show(f"{name} save + fsync", median(lambda: synced(save, path)))
        show(f"{name} load", median(load))
    finally:
        if os.path.exists(path):
            os.remove(path)


path = os.path.join(FOLDER, f"torch-bench-{os.getpid()}")
try:
    from safetensors.torch import load_file, save_file
    race("safetensors", path, lambda: save_file(tensors, path), lambda: load_file(path, device=DEVICE))
except ImportError:
    print("cuda_checkpoint safetensors: peer not installed")
race("torch", path, lambda: torch.save(tensors, path), lambda: torch.load(path, map_location=DEVICE))
race("torch mmap", path, lambda: torch.save(tensors, path),
     lambda: torch.load(path, map_location=DEVICE, mmap=True))

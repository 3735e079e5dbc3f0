"""VGGT's aggregator with random weights: forward time and peak memory of activations, one layer kept.

Beside it, in the same run: the same module keeping every layer, as the official code does, and as the bound a
plain matrix product of the same FLOPs, dtype and threads. Times are medians of interleaved repeats; memory is
measured in a process of its own, as the growth of the resident set (CPU) or of the allocator's peak (CUDA).
On a CPU in float32, and in bfloat16 where it has that; on CUDA in bfloat16 by flash attention alone.

python -m benchmarks.vggt [--frames 1 4 16 32] [--size large] [--dtypes float32] [--device cpu] [--threads 2]

A row takes 3 x repeats + 2 forwards, of 0.9, 3.6, 18 and 46 TFLOP. On two cores: --frames 1 4 --repeats 5, then
--frames 16 32 --repeats 1.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.measure import GIVE_BACK, peak_growth, timed
from zoo.geometry.vggt import VGGT
from zoo.geometry.vggt.aggregator import DINOV2

SIZES = {
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "patch_embed": "dinov2_vitl14_reg"},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6, "patch_embed": "dinov2_vits14_reg"},
    "tiny": {"embed_dim": 64, "depth": 4, "num_heads": 4, "patch_embed": "conv"},
}
COLUMNS = (
    "frames",
    "TFLOP",
    "ours s",
    "every layer s",
    "product s",
    "ours / product",
    "ours MiB",
    "every layer MiB",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--height", type=int, default=252)
    parser.add_argument("--width", type=int, default=336)
    parser.add_argument(
        "--dtypes", nargs="+", choices=("float32", "bfloat16"), help="by default what the device is for"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3, help="at least 1")
    parser.add_argument("--memory-of", choices=("one", "every"), help="print the memory of one forward, no more")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        (arguments.dtype,) = arguments.dtypes
        print(json.dumps(memory_of_one_forward(arguments)))
        return
    for dtype in arguments.dtypes or native_dtypes(arguments.device):
        arguments.dtype = dtype
        table(arguments)


def native_dtypes(device: str) -> list[str]:
    if device == "cuda":
        return ["bfloat16"]
    abilities = torch.cpu.get_capabilities()
    has_bfloat16 = abilities.get("amx_bf16") or abilities.get("avx512_bf16")
    return ["float32", "bfloat16"] if has_bfloat16 else ["float32"]


def table(arguments: argparse.Namespace) -> None:
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{arguments.threads} CPU threads"
    size = f"{arguments.size}, {arguments.height} x {arguments.width}"
    print(f"\n{size}, {arguments.dtype}, {where}, torch {torch.__version__}\n")
    print(f"| {' | '.join((*COLUMNS, 'ratio'))} |\n|{'---|' * (len(COLUMNS) + 1)}")
    # memory first: on a small machine the model of the timings would leave too little for a second one
    memory = {n: [memory_in_a_process(arguments, n, keep) for keep in ("one", "every")] for n in arguments.frames}
    model = build(arguments)
    for frames in arguments.frames:
        one_bytes, every_bytes = memory[frames]
        if one_bytes is None or every_bytes is None:
            print(f"| {frames} | doesn't fit into this machine's memory |{' |' * (len(COLUMNS) - 1)}", flush=True)
            continue
        one, every, bound = (statistics.median(each) for each in seconds_of(arguments, model, frames))
        flops = aggregator_flops(arguments, frames)
        row = (f"{flops / 1e12:.3g}", f"{one:.3f}", f"{every:.3f}", f"{bound:.3f}", f"{one / bound:.2f}")
        mib = f"{one_bytes / 2**20:.0f} | {every_bytes / 2**20:.0f} | {one_bytes / every_bytes:.2f}"
        print(f"| {frames} | {' | '.join(row)} | {mib} |", flush=True)


def seconds_of(arguments: argparse.Namespace, model: VGGT, frames: int) -> list[tuple[float, ...]]:
    """Of the module with one layer kept, with every layer kept, and of the product."""
    images = torch.rand(1, frames, 3, arguments.height, arguments.width, device=arguments.device)
    work = (
        lambda: model(images, layers=(-1,), heads=()),
        lambda: model(images, layers=range(model.aggregator.depth), heads=()),
        product(arguments, frames, aggregator_flops(arguments, frames)),
    )
    with torch.inference_mode(), attention(arguments):
        warm_up(arguments, model, work)
        rounds = [[timed(run, arguments.device) for run in work] for _ in range(arguments.repeats)]
    return list(zip(*rounds, strict=True))


def warm_up(arguments: argparse.Namespace, model: VGGT, work: Sequence[Callable[[], object]]) -> None:
    """A GPU chooses kernels by shape; a processor sets up threads, for which little is enough."""
    if arguments.device == "cuda":
        for run in work:
            run()
    else:
        model(torch.rand(1, 2, 3, 28, 28), layers=(-1,), heads=())


def attention(arguments: argparse.Namespace) -> AbstractContextManager:
    """Flash attention or an error, where there is one; else whatever SDPA takes."""
    if arguments.device == "cuda" and arguments.dtype == "bfloat16":
        return sdpa_kernel(SDPBackend.FLASH_ATTENTION)
    return nullcontext()


def build(arguments: argparse.Namespace) -> VGGT:
    with torch.device("meta"):
        model = VGGT({"img_size": 518, **SIZES[arguments.size]})
    model.to(getattr(torch, arguments.dtype)).to_empty(device=arguments.device)
    for parameter in model.requires_grad_(False).parameters():
        parameter.normal_(std=0.02) if parameter.ndim > 1 else parameter.fill_(0.5)
    return model


def aggregator_flops(arguments: argparse.Namespace, frames: int) -> float:
    """Two for a multiply-add; the products and the attention, which are all but a percent."""
    size = SIZES[arguments.size]
    width, patches = size["embed_dim"], (arguments.height // 14) * (arguments.width // 14)

    def block(tokens: int, context: int) -> float:
        return tokens * (24 * width**2 + 4 * context * width)

    tokens = 5 + patches
    flops = size["depth"] * (block(frames * tokens, tokens) + block(frames * tokens, frames * tokens))
    flops += 2 * frames * patches * 3 * 14 * 14 * width
    if size["patch_embed"] in DINOV2:  # it has a class token and four registers of its own
        flops += DINOV2[size["patch_embed"]][1] * block(frames * tokens, tokens)
    return flops


def product(arguments: argparse.Namespace, frames: int, flops: float) -> Callable[[], None]:
    """The first product of an MLP, on all tokens at once, as often as makes these FLOPs."""
    width = SIZES[arguments.size]["embed_dim"]
    tokens = frames * (5 + (arguments.height // 14) * (arguments.width // 14))
    options = {"dtype": getattr(torch, arguments.dtype), "device": arguments.device}
    a, b = torch.randn(tokens, width, **options), torch.randn(width, 4 * width, **options)
    out = torch.empty(tokens, 4 * width, **options)
    times = max(1, round(flops / (8 * tokens * width**2)))

    def run() -> None:
        for _ in range(times):
            torch.mm(a, b, out=out)

    return run


def memory_in_a_process(arguments: argparse.Namespace, frames: int, keep: str) -> int | None:
    """Bytes of activations, or None if there aren't as many."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.vggt",
        "--memory-of",
        keep,
        "--frames",
        str(frames),
        "--dtypes",
        arguments.dtype,
    ]
    for name in ("size", "height", "width", "device", "threads"):
        command += [f"--{name}", str(getattr(arguments, name))]
    done = subprocess.run(command, env=os.environ | GIVE_BACK, capture_output=True, text=True)
    if done.returncode == -signal.SIGKILL or "out of memory" in done.stderr or "can't allocate memory" in done.stderr:
        return None
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def memory_of_one_forward(arguments: argparse.Namespace) -> int:
    """Bytes by which a forward exceeds the model and the images."""
    model = build(arguments)
    images = torch.rand(1, arguments.frames[0], 3, arguments.height, arguments.width, device=arguments.device)
    layers = (-1,) if arguments.memory_of == "one" else range(model.aggregator.depth)
    with torch.inference_mode(), attention(arguments):
        # what is set up once: kernels, threads
        model(images[:, :1, :, :28, :28], layers=(-1,), heads=())
        return peak_growth(lambda: model(images, layers=layers, heads=()), arguments.device)


if __name__ == "__main__":
    main()

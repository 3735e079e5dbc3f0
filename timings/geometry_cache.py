"""The time that the geometry cache saves.

    python -m timings.geometry_cache --size small --frames 16 --height 476 --width 644

The command times three calls in turns and prints medians: VGGT with random weights on noise, writing its output, and
reading it again. docs/reference/files.md lists the errors of the cache's precisions.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

import torch

from timings.measure import timed
from timings.tables import markdown
from timings.vggt import SIZES
from zoo import GeometryCache
from zoo.geometry import VGGT, CachedGeometry, VGGTEncoder

DTYPES = ("bfloat16", "float8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--height", type=int, default=476)
    parser.add_argument("--width", type=int, default=644)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="dtype of VGGT")
    parser.add_argument("--folder", help="folder of the entries, on the disk to measure; by default a temporary one")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        measure_speed(arguments, folder)


@torch.no_grad()
def measure_speed(arguments: argparse.Namespace, folder: str) -> None:
    torch.manual_seed(0)
    head = {"dim_in": 2 * SIZES[arguments.size]["embed_dim"], "trunk_depth": 2}
    vggt = VGGT(SIZES[arguments.size], camera_head=head)
    vggt.aggregator.to(getattr(torch, arguments.dtype))
    encoder = VGGTEncoder(vggt).to(arguments.device).eval()
    size = (arguments.frames, 3, arguments.height, arguments.width)
    caches = {dtype: GeometryCache(f"{folder}/{dtype}", dtype=dtype) for dtype in DTYPES}
    times: dict[str, list[float]] = defaultdict(list)
    for repeat in range(arguments.repeats + 1):  # the first warms up
        frames = torch.randint(0, 256, size).to(arguments.device) / 255
        spent = {"VGGT": timed(lambda: encoder([frames], [None]), arguments.device)}  # noqa: B023
        for dtype, cache in caches.items():
            behind = CachedGeometry(lambda: encoder, cache)
            behind.keys.of(frames, None, tokens=True, cameras=True)  # fingerprint the weights, once a run
            made = timed(lambda: behind([frames], [None]), arguments.device)  # noqa: B023
            spent[f"{dtype}, written, VGGT included"] = made
            spent[f"{dtype}, read"] = timed(lambda: behind([frames], [None]), arguments.device)  # noqa: B023
        for name, seconds in spent.items():
            if repeat:
                times[name].append(seconds)
    print(f"VGGT {arguments.size}, {arguments.frames} x {arguments.height} x {arguments.width}, {arguments.device}\n")
    rows = []
    for name, each in times.items():
        dtype = name.partition(",")[0]
        files = list(Path(folder, dtype).glob("*.safetensors")) if dtype in DTYPES else []
        size_mb = f"{sum(f.stat().st_size for f in files) / (arguments.repeats + 1) / 1e6:.3g}" if files else ""
        rows.append({"": name, "s a scene": f"{statistics.median(each):.3f}", "MB a scene": size_mb})
    print(markdown(rows))


if __name__ == "__main__":
    main()

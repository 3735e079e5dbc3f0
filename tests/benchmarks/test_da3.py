"""The comparison of Depth Anything 3's trunk runs, and refuses trunks that differ; what it finds is no matter here."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import da3, trunks
from zoo.geometry.da3.trunk import Trunk

TINY = ["--sizes", "tiny", "--frames", "1", "2", "--height", "28", "--width", "42", "--threads", "1", "--repeats", "1"]


class StandIn(Trunk):
    """Called as the official trunk is."""

    shift = 0.0

    def __init__(self, patch_size: int, **size: Any) -> None:
        super().__init__("vits", da3.OUT_LAYERS, **size)

    def get_intermediate_layers(self, images: Tensor, layers: tuple[int, ...], ref_view_strategy: str) -> Any:
        outputs, _ = self(images + self.shift, layers, ref_view_strategy)
        return [(outputs[layer][:, :, 1:], outputs[layer][:, :, 0]) for layer in layers], []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_trunks_have_a_row(dtype: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["da3", *TINY, "--device", "cpu", "--dtypes", dtype])
    monkeypatch.setattr(da3, "official_class", lambda: StandIn)
    monkeypatch.setattr(trunks, "memory_in_a_process", lambda *_: 2**20)
    da3.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:3] in ("| 1", "| 2")]
    rows = [line.strip("|").split("|") for line in lines]
    assert [row[0].strip() for row in rows] == ["1", "2"] and all(len(row) == 10 for row in rows)
    assert all(float(cell) >= 0 for row in rows for cell in row[1:5]) and float(rows[0][-1]) == 1
    monkeypatch.setattr(StandIn, "shift", 0.3)
    with pytest.raises(SystemExit, match="differ: their times can't be compared"):
        da3.main()


def test_flops_are_those_of_the_matrix_products() -> None:
    arguments = da3.parse(None, da3.SIZES, frames=[2]).parse_args(["--height", "28", "--width", "42"])
    arguments.size, arguments.dtype, arguments.device = "tiny", "float32", "cpu"
    trunk = trunks.fill(
        Trunk("vits", da3.OUT_LAYERS, **dict.fromkeys(da3.STARTS, da3.START), **da3.SIZES["tiny"]), arguments
    )
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # which it counts
        da3.ours(trunk, trunks.random_images(arguments, 2))
    assert da3.trunk_flops(arguments, 2) == counter.get_total_flops()

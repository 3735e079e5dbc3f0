"""PRoPE's published layout: official numbers and symmetries."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zoo.encodings import prope_attention

# all golden cases if ZOO_GOLDEN is set, else the small ones of this repository
GOLDEN = Path(os.environ.get("ZOO_GOLDEN", Path(__file__).parents[2] / "golden")) / "prope"
CASES = sorted(path.stem for path in GOLDEN.glob("*.safetensors"))


def load(case: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    meta = json.loads((GOLDEN / f"{case}.json").read_text())
    names = ("patches_x", "patches_y", "image_width", "image_height")
    return load_file(GOLDEN / f"{case}.safetensors"), {name: meta[name] for name in names}


@pytest.mark.parametrize("kind", ["K", "gta"])
@pytest.mark.parametrize("case", CASES)
def test_matches_official_attention(case: str, kind: str) -> None:
    tensors, layout = load(case)
    K = tensors["Ks"] if kind == "K" else None
    q, k, v = (tensors[name].requires_grad_() for name in "qkv")
    out = prope_attention(q, k, v, tensors["viewmats"], K, **layout)
    torch.testing.assert_close(out, tensors[f"out_{kind}_f64"], rtol=0, atol=1e-12)
    gradients = torch.autograd.grad(out.square().sum() / 2, (q, k, v))
    for gradient, name in zip(gradients, "qkv", strict=True):
        torch.testing.assert_close(gradient, tensors[f"grad_{name}_{kind}_f64"], rtol=0, atol=1e-11)
    causal = prope_attention(q, k, v, tensors["viewmats"], K, is_causal=True, **layout)
    torch.testing.assert_close(causal, tensors[f"out_causal_{kind}_f64"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["K", "gta"])
@pytest.mark.parametrize("case", CASES)
def test_float32_matches_official_attention(case: str, kind: str) -> None:
    tensors, layout = load(case)
    q, k, v, V, K = (tensors[name].float() for name in ("q", "k", "v", "viewmats", "Ks"))
    out = prope_attention(q, k, v, V, K if kind == "K" else None, **layout)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), tensors[f"out_{kind}_f64"], rtol=0, atol=1e-5)


def test_bfloat16_does_not_round_poses() -> None:
    tensors, layout = load("square_b1")
    q, k, v = (tensors[name].bfloat16() for name in "qkv")
    exact = prope_attention(q.double(), k.double(), v.double(), tensors["viewmats"], tensors["Ks"], **layout)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = prope_attention(q, k, v, tensors["viewmats"], tensors["Ks"], **layout)
    assert out.dtype == torch.bfloat16
    assert (out.double() - exact).abs().max() < 0.03 * exact.abs().max()


def test_change_of_world_cancels() -> None:
    tensors, layout = load("wide_b2")
    q, k, v, V, K = (tensors[name] for name in ("q", "k", "v", "viewmats", "Ks"))
    out = prope_attention(q, k, v, V, K, **layout)
    moved = prope_attention(q, k, v, V @ V[:, :1], K, **layout)
    torch.testing.assert_close(out, moved, rtol=0, atol=1e-10)
    other = prope_attention(q, k, v, V.flip(1), K, **layout)  # control: other poses change the result
    assert (out - other).abs().max() > 1e-3


def test_permuted_views_permute_the_result() -> None:
    """Not with a causal mask, which is the control."""
    tensors, layout = load("wide_b2")
    q, k, v, V, K = (tensors[name] for name in ("q", "k", "v", "viewmats", "Ks"))
    V = V @ V[:, :1].inverse()
    order = torch.arange(V.shape[1]).roll(1)

    def permuted(x: Tensor) -> Tensor:
        return x.unflatten(2, (len(order), -1))[:, :, order].flatten(2, 3)

    for causal in (False, True):
        out = prope_attention(q, k, v, V, K, is_causal=causal, **layout)
        views = prope_attention(*map(permuted, (q, k, v)), V[:, order], K[:, order], is_causal=causal, **layout)
        assert torch.allclose(views, permuted(out), rtol=0, atol=1e-10) != causal


def test_ignores_skew() -> None:
    tensors, layout = load("onecam")
    q, k, v, V, K = (tensors[name] for name in ("q", "k", "v", "viewmats", "Ks"))
    skewed = K.clone()
    skewed[..., 0, 1] = 5.0
    assert torch.equal(prope_attention(q, k, v, V, K, **layout), prope_attention(q, k, v, V, skewed, **layout))


def test_gradients_of_tokens_and_poses() -> None:
    tensors, _ = load("onecam")
    layout: dict[str, Any] = {"patches_x": 2, "patches_y": 1, "image_width": 56, "image_height": 42}
    q, k, v = (tensors[name][:, :1, :4, :8] for name in "qkv")
    V = tensors["viewmats"].expand(-1, 2, -1, -1)
    change = torch.zeros(1, 2, 4, 4, dtype=torch.float64)

    def run(q: Tensor, k: Tensor, v: Tensor, change: Tensor) -> Tensor:
        return prope_attention(q, k, v, V + change, tensors["Ks"].expand(-1, 2, -1, -1), **layout)

    assert torch.autograd.gradcheck(run, [x.clone().requires_grad_() for x in (q, k, v, change)])


class Allocated(TorchDispatchMode):
    """Adds up the bytes of new tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        new = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.bytes += sum(leaf.nbytes for leaf in new if leaf.untyped_storage()._cdata not in given)
        return out


def test_takes_little_new_memory() -> None:
    """On a CPU that is most of what the layout costs: pieces that are put together take twice as much."""
    q, k, v = torch.randn(3, 1, 4, 16 * 64, 64)
    layout: dict[str, Any] = {"patches_x": 8, "patches_y": 8, "image_width": 56, "image_height": 56}
    with torch.no_grad(), Allocated() as allocated:
        prope_attention(q, k, v, torch.eye(4).repeat(1, 16, 1, 1), None, **layout)
    # copies of q, k, v and the output, products half as large, which are freed at once, and the output itself
    assert 4 * 1.5 + 1 < allocated.bytes / q.nbytes < 9


def test_wrong_shapes_raise() -> None:
    tensors, layout = load("onecam")
    q, V = tensors["q"], tensors["viewmats"]
    with pytest.raises(ValueError, match="1 cameras of 3 x 4 patches are 12 tokens, got 11"):
        prope_attention(q[:, :, 1:], q[:, :, 1:], q[:, :, 1:], V, None, **layout)
    with pytest.raises(ValueError, match="multiple of 8 channels, got 12"):
        prope_attention(q[..., :12], q[..., :12], q[..., :12], V, None, **layout)

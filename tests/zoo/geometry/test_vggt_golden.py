"""VGGT against golden cases of the official code, and changes that they must detect."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.geometry.official import CASES, HEADS, hash_model, load_case
from zoo.geometry.layers import normalize
from zoo.geometry.vggt import VGGT, ReluResidualUnit, VGGTOutput

LAYERS_ATOL, OUTPUTS_ATOL = 2e-5, 4e-5  # four times what float32 runs of the official code differ by


def run(model: VGGT, t: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> VGGTOutput:
    with torch.no_grad():
        return model(t["images_u8"].to(dtype) / 255, layers=range(model.aggregator.depth), heads=HEADS)


def errors(output: VGGTOutput, t: dict[str, Tensor], suffix: str = "") -> dict[str, float]:
    """The largest deviation of each tensor in the case, in units of its tolerance."""
    found = {f"layer_{i}": (tokens, LAYERS_ATOL) for i, tokens in output.tokens.items()}
    for name in ("pose_enc", "pose_enc_list", "depth", "depth_conf", "points", "points_conf"):
        found[name] = (getattr(output, name), OUTPUTS_ATOL)
    return {
        name: float((value - t[name + suffix]).abs().max()) / atol
        for name, (value, atol) in found.items()
        if name + suffix in t
    }


@pytest.mark.parametrize("case", CASES)
def test_equals_the_official_code(case: str) -> None:
    meta, t = load_case(case)
    model = hash_model(meta["config"])
    assert sum(tensor.numel() for tensor in model.official_state_dict().values()) == meta["num_params"]
    if isinstance(meta["param_names"], list):
        assert set(model.official_state_dict()) == set(meta["param_names"])
    output = run(model, t)
    assert output.patch_start == meta["patch_start_idx"]
    assert max(errors(output, t).values()) < 1, errors(output, t)
    if "patch_tokens" in t:
        with torch.no_grad():
            patches = model.aggregator.patch_embed(normalize(t["images_u8"] / 255).flatten(0, 1))
        assert torch.allclose(patches, t["patch_tokens"], atol=LAYERS_ATOL, rtol=0)


@pytest.mark.parametrize("case", ["conv_s1_56x56", "dino56_samecount_s1_28x112"])
def test_float64_stays_float64(case: str) -> None:
    meta, t = load_case(case)
    output = run(hash_model(meta["config"], torch.float64), t, torch.float64)
    assert output.pose_enc.dtype == output.depth.dtype == torch.float64
    found = errors(output, t, "_f64")
    assert found and max(found.values()) < 0.1, found


# ---- what the golden cases must detect ---------------------------------------------------------------------


def other_rope_base(model: VGGT) -> None:
    model.aggregator.rope_freq = 50.0


def swapped_first_frame(model: VGGT) -> None:
    for token in (model.aggregator.camera_token, model.aggregator.register_token):
        token.data = token.data.flip(1)


def larger_eps_in_the_aggregator(model: VGGT) -> None:
    set_eps(model.aggregator.frame_blocks, 1e-3)  # at tokens of rms 1, 1e-6 for 1e-5 is below float32's noise


def larger_eps_in_adaln(model: VGGT) -> None:
    set_eps(model.camera_head.adaln_norm, 1e-3)


def set_eps(module: nn.Module, eps: float) -> None:
    for norm in module.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.eps = eps


def no_query_norm(model: VGGT) -> None:
    for block in model.aggregator.global_blocks:
        block.attn.q_norm = nn.Identity()


CHANGES: dict[str, tuple[Callable[[VGGT], None], str]] = {
    "rope": (other_rope_base, "layer_3"),
    "camera token": (swapped_first_frame, "layer_0"),
    "eps": (larger_eps_in_the_aggregator, "layer_0"),
    "adaLN": (larger_eps_in_adaln, "pose_enc"),
    "qk norm": (no_query_norm, "layer_0"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_detected(change: str) -> None:
    meta, t = load_case("conv_s2_56x84")
    model = hash_model(meta["config"])
    apply, where = CHANGES[change]
    apply(model)
    assert errors(run(model, t), t)[where] > 3


def test_a_skip_of_x_instead_of_relu_x_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    meta, t = load_case("conv_s2_56x84")
    model = hash_model(meta["config"])

    def as_published_in_dpt(self: ReluResidualUnit, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.conv1(F.relu(x)))) + x

    monkeypatch.setattr(ReluResidualUnit, "forward", as_published_in_dpt)
    found = errors(run(model, t), t)
    assert found["depth"] > 100 and found["points"] > 100


def test_position_embeddings_without_interpolation_are_detected() -> None:
    meta, t = load_case("dino56_samecount_s1_28x112")
    model = hash_model(meta["config"])
    embeddings = model.aggregator.patch_embed.embeddings
    embeddings.interpolate_pos_encoding = lambda tokens, height, width: embeddings.position_embeddings
    assert errors(run(model, t), t)["layer_0"] > 100

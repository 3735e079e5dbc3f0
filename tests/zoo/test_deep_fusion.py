"""3D tokens in several decoder layers: equal to a walk over the layers, from the stock model at the start, on both
backbones. Packing, caches and padding are in the tests of all models (`asking.MODELS`, test_fused_models.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cases import each_once
from tests.zoo import asking, showing
from tests.zoo.showing import SAMPLES
from zoo import DeepFusion, LoRA, TinyVGGT, VideoQATask
from zoo.media import Media, batch_of_media
from zoo.scene_encoding import encode_geometry, encode_vision

FAMILIES = list(asking.BACKBONES)
VARIANTS: dict[str, dict[str, Any]] = {
    "bfloat16 and LoRA": {"dtype": "bfloat16", "lora": LoRA(r=4)},
    "checkpointing": {"gradient_checkpointing": True},
}


def task(family: str, fused: bool = True, dtype: str = "float32", **options: Any) -> VideoQATask:
    """The 3D tokens of layers 0, 1, 2 go into the decoder's 0, 2, 1; in Qwen3.5 the last of them is full attention."""
    sizes = dict(layers=6 if family == "Qwen3.5" else 4, hidden_size=64, heads=2, key_value_heads=1)
    backbone = asking.BACKBONES[family](**sizes, vision_hidden_size=32, seed=0, dtype=dtype)
    if fused:
        options["fusion"] = partial(DeepFusion, decoder_layers=[0, 2, 1])
        options["geometry"] = lambda: TinyVGGT(embed_dim=32, depth=3, num_heads=2, layers=[0, 1, 2], seed=0)
    torch.manual_seed(0)
    return VideoQATask(backbone=backbone, learning_rates=asking.RATES, **options)


def train(model: VideoQATask) -> None:
    """Connectors that say something, each its own."""
    for i, connector in enumerate(model.model.fusion.connectors):  # type: ignore[union-attr]
        weight = connector.mlp[2].weight
        weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)).to(weight.dtype)


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        *each_once(asking.MASKED_FAMILIES, list(VARIANTS)),
        *(pytest.param("Qwen3.5", variant, marks=pytest.mark.slow) for variant in VARIANTS),
    ],
)
def test_it_starts_as_the_stock_model_and_learns_by_its_connectors(family: str, variant: str) -> None:
    plain, model = task(family, fused=False, **VARIANTS[variant]), task(family, **VARIANTS[variant])
    given = showing.batch(model.model, [SAMPLES[name] for name in ("a video", "stills and videos", "text")])
    real = given["attention_mask"].bool()
    reference = plain.model.logits(**given)[real].detach()
    for each in (plain, model):  # nothing else learns
        each.requires_grad_(False)
    fusion = model.model.fusion.requires_grad_(True)  # type: ignore[union-attr]
    logits = model.model.logits(**given)[real]
    assert torch.equal(logits, reference)
    logits.float().square().mean().backward()
    learning = {name for name, p in fusion.named_parameters() if p.grad.any()}
    assert learning == {f"connectors.{i}.mlp.2.{kind}" for i in range(3) for kind in ("weight", "bias")}
    train(model)
    moved = model.model.logits(**given)
    assert (moved[real] - reference).abs().max() > 1e-2
    text = torch.zeros_like(real)
    text[2] = real[2]
    assert torch.equal(moved[text], plain.model.logits(**given)[text])  # a row without visual tokens
    model.zero_grad()
    moved[real].float().square().mean().backward()
    assert all(p.grad.abs().max() > 0 for p in fusion.parameters())
    assert all(p.grad is None for name, p in model.named_parameters() if ".fusion." not in name)
    if variant == "checkpointing":
        whole = task(family)
        train(whole)
        whole.model.logits(**given)[real].float().square().mean().backward()
        for mine, other in zip(fusion.parameters(), whole.model.fusion.parameters(), strict=True):  # type: ignore
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def walk(model: VideoQATask, given: dict[str, Any], later: int = 0, turned: bool = False) -> Tensor:
    """Hidden states of one sequence, layer by layer and token by token; the controls move or turn the features."""
    backbone, decoder = model.model.backbone, model.model.backbone.decoder
    media: Media = {k: v for k, v in given.items() if k not in ("input_ids", "attention_mask")}  # type: ignore
    asked = batch_of_media(model.model.sequence_builder, given["input_ids"], given["attention_mask"], media)
    sequences, ids = asked.sequences, given["input_ids"]
    assert sequences is not None and sequences.position_ids is not None
    (encoded,), (seen,) = model.model.encode_scenes(asked), encode_vision(backbone, asked)
    visual = seen.visual
    (geometry,) = encode_geometry(model.model.geometry, asked.scenes, backbone.patch_size, tokens=True, cameras=False)
    own = model.model.fusion.deep_features(geometry, asked.scenes[0].grid_thw, visual.tokens.dtype)  # type: ignore
    added: dict[int, Tensor] = {}
    for features in (visual.deepstack, own):
        for layer, each in enumerate(features.flatten(1, 2)):
            added[layer + later] = added.get(layer + later, 0) + (each.flip(0) if turned else each)
    places = (ids[0] == backbone.placeholders.video).nonzero()[:, 0].tolist()
    hidden = decoder.embed_tokens(ids).clone()
    for place, token in zip(places, encoded.visual.tokens.flatten(0, 1), strict=True):
        hidden[0, place] = token
    rotary = decoder.rotary_emb(hidden, sequences.position_ids)
    for i, layer in enumerate(decoder.layers):
        hidden = layer(hidden, attention_mask=None, position_embeddings=rotary).clone()
        for n, place in enumerate(places):
            hidden[0, place] += added[i][n] if i in added else 0
    return decoder.norm(hidden)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_added_behind_their_layers(family: str) -> None:
    model = task(family).eval()
    train(model)
    given = showing.batch(model.model, [SAMPLES["a video"]])
    with torch.no_grad():
        lm_head = model.model.backbone.lm_head
        found = model.model.logits(**given)
        assert torch.allclose(found, lm_head(walk(model, given)), atol=1e-5)
        for wrong in ({"later": 1}, {"turned": True}):
            assert (found - lm_head(walk(model, given, **wrong))).abs().max() > 1e-2


@torch.no_grad()
def test_the_branches_of_a_trained_model() -> None:
    """2D is the plain model; 3D does not depend on the pixels."""
    plain, model = task("Qwen2.5-VL", fused=False), task("Qwen2.5-VL")
    train(model)
    given = showing.batch(model.model, [SAMPLES["a video"]])
    other = {"pixel_values_videos": given["pixel_values_videos"].flip(0)}
    elsewhere = {"frames": [frames.flip(0) for frames in given["frames"]]}
    for branch, pixels_matter, frames_matter in (("2d", True, False), ("3d", False, True), ("both", True, True)):
        model.model.fusion.active_branches = branch  # type: ignore
        logits, *others = (showing.logits(model.model, given, **each)[0] for each in ({}, other, elsewhere))
        moves = [(each - logits).abs().max() > 1e-3 for each in others]
        assert moves == [pixels_matter, frames_matter], branch
        assert torch.equal(logits, showing.logits(plain.model, given)[0]) == (branch == "2d")

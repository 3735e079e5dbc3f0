"""Fused models as a whole: a batch is its samples, the forms of stills, appended tokens, several layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import OF_VIDEOS, RATES, tiny_backbone
from tests.zoo.released import build as build_case
from tests.zoo.released import load_case
from tests.zoo.showing import SAMPLES, STARTS, batch, check_start, logits
from zoo import (
    VGLLM,
    AddFusion,
    CameraTokenFusion,
    ConcatSplitFusion,
    ConcatSplitMLLM,
    DeepFusion,
    InputError,
    PatchMergerFusion,
    SpatialMLLM,
    SpatialStack,
    SpatialVLM,
    StackFusion,
    TinyVGGT,
)
from zoo.media import Media, batch_of_media
from zoo.scene_encoding import encode_geometry, encode_vision
from zoo.tasks import VideoQATask


def tiny(kind: Callable[..., VideoQATask], **parts: Any) -> SpatialVLM:
    """A small model whose fusion says something."""
    model = kind(backbone=tiny_backbone(), geometry=lambda: TinyVGGT(embed_dim=32, depth=4, num_heads=2), **parts).model
    with torch.no_grad():
        for i, parameter in enumerate(model.fusion.parameters()):
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return model


def on_the_token(width: int, channels: int) -> ConcatSplitFusion:
    return ConcatSplitFusion(width, channels, axis="token")


class MeanFusion(AddFusion):
    """Adds the mean 3D token of a scene to all of its 2D tokens."""

    mixes_views = True

    def embed_3d(self, merged: Tensor) -> Tensor:
        return super().embed_3d(merged.mean((0, 1), keepdim=True).expand_as(merged))


MODELS: dict[str, Callable[[], SpatialVLM]] = {
    "official": lambda: build_case(load_case("one_video")[0])[0],
    "concat on the channel": lambda: tiny(ConcatSplitMLLM),
    "concat on the token": lambda: tiny(ConcatSplitMLLM, fusion=on_the_token),
    "camera token": lambda: tiny(SpatialMLLM, fusion=CameraTokenFusion),
    "mean of the views": lambda: tiny(SpatialMLLM, fusion=MeanFusion),
    "deep": lambda: tiny(SpatialMLLM, fusion=partial(DeepFusion, decoder_layers=[0])),
    "patch merger": lambda: tiny(VGLLM, fusion=partial(PatchMergerFusion, hidden=16)),
    "stack": lambda: tiny(SpatialStack, fusion=partial(StackFusion, decoder_layers=[0, 0], hidden=16)),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> SpatialVLM:
    return MODELS[request.param]()


# 3D tokens added to 2D tokens, appended to them, and added after decoder layers
FEW = ["official", "concat on the token", "stack"]


def test_a_batch_is_its_samples(model: SpatialVLM) -> None:
    samples = list(SAMPLES.values())
    together = logits(model, batch(model, samples))
    for i, sample in enumerate(samples):
        (alone,) = logits(model, batch(model, [sample], first_seed=i))
        assert torch.allclose(together[i], alone, atol=3e-5), list(SAMPLES)[i]
    (other,) = logits(model, batch(model, samples[:1], first_seed=1))
    assert (other - together[0]).abs().max() > 0.05  # negative control: what is shown matters


@pytest.mark.parametrize("model", FEW, indirect=True)
def test_generation_of_a_batch_is_that_of_its_samples(model: SpatialVLM) -> None:
    samples = list(SAMPLES.values())
    together = model.generate_ids(**batch(model, samples), max_new_tokens=4)
    for i, sample in enumerate(samples):
        assert model.generate_ids(**batch(model, [sample], first_seed=i), max_new_tokens=4) == together[i : i + 1]


@pytest.mark.parametrize("model", FEW, indirect=True)
@pytest.mark.parametrize("sample", ["stills and videos"])
def test_stills_may_come_one_by_one_or_as_a_scene_once_or_twice_each(model: SpatialVLM, sample: str) -> None:
    given = batch(model, [SAMPLES[sample]] * 2)
    expected = logits(model, given)
    count = SAMPLES[sample].count(next(each for each in SAMPLES[sample] if each[0] == "i"))
    stills = [len(frames) == 2 * count and frames.shape[-1] == 56 for frames in given["frames"]]
    assert sum(stills) == 2  # a scene each
    pairs = list(zip(given["frames"], stills, strict=True))
    once = [frames[::2] if still else frames for frames, still in pairs]
    # an entry each comes in the order in which they are shown, a video between the stills included
    order = [kind for kind, *_ in SAMPLES[sample] if kind != "t"]
    doubled: list[torch.Tensor] = []
    for i in range(2):
        own = pairs[i * len(pairs) // 2 : (i + 1) * len(pairs) // 2]
        videos = iter([frames for frames, still in own if not still])
        parts = iter([part for frames, still in own if still for part in frames.split(2)])
        doubled += [next(videos if kind == "v" else parts) for kind in order]
    one_by_one = [frames[:1] if len(frames) == 2 and frames.shape[-1] == 56 else frames for frames in doubled]
    for form in (once, one_by_one, doubled):
        assert all(torch.equal(a, b) for a, b in zip(logits(model, given, frames=form), expected, strict=True))
    swapped = [frames.flip(0) if still else frames for frames, still in pairs]
    assert not torch.allclose(logits(model, given, frames=swapped)[0], expected[0], atol=1e-3)


def test_frames_of_a_wrong_number_size_or_range_are_errors() -> None:
    model = MODELS["concat on the channel"]()
    given = batch(model, [SAMPLES["two videos"]])
    first, second = given["frames"]
    for frames, why in (
        ([first], "1 entries of frames, and the sequences show 2 videos and images in 2 scenes"),
        ([first, second[:4]], "needs 6 frames, got 4"),
        ([first, second, second], "3 entries of frames"),
        ([first, 2 * second - 1], "floats in 0..1, or bytes: .*undo a normalization"),
        ([first, (255 * second).int()], "floats in 0..1, or bytes: divide by 255"),
        (None, "TinyVGGT needs the frames of each video"),
    ):
        with pytest.raises(InputError, match=why):
            logits(model, given, frames=frames)
    with pytest.raises(InputError, match="3D tokens of 2 x 2 patches a frame under 2D tokens of 2 x 4"):
        logits(model, given, frames=[first, second[..., :28]])
    stills = batch(model, [[("i", 4, 4), ("i", 2, 8), ("t", 2)]])
    with pytest.raises(InputError, match="need one size"):
        logits(model, stills)


# ---- several layers --------------------------------------------------------------------------------------------


def task(family: str, fused: bool = True, dtype: str = "float32", **options: Any) -> VideoQATask:
    """The 3D tokens of layers 0, 1, 2 go into the decoder's 0, 2, 1; in Qwen3.5 the last of them is full attention."""
    backbone = tiny_backbone(family, 6 if family == "Qwen3.5" else 4, dtype=dtype)
    if fused:
        options["fusion"] = partial(DeepFusion, decoder_layers=[0, 2, 1])
        options["geometry"] = lambda: TinyVGGT(embed_dim=32, depth=3, num_heads=2, layers=[0, 1, 2], seed=0)
    torch.manual_seed(0)
    return VideoQATask(backbone=backbone, learning_rates=RATES, **options)


def train(model: VideoQATask) -> None:
    """Connectors that say something, each its own."""
    for i, connector in enumerate(model.model.fusion.connectors):  # type: ignore[union-attr]
        weight = connector.mlp[2].weight
        weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)).to(weight.dtype)


@pytest.mark.parametrize(("family", "options"), STARTS)
def test_it_starts_as_the_stock_model_and_learns_by_its_connectors(family: str, options: dict[str, Any]) -> None:
    last = {f"connectors.{i}.mlp.2.{kind}" for i in range(3) for kind in ("weight", "bias")}
    check_start(task, train, last, family, options)


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
    (geometry,) = encode_geometry(
        model.model.geometry, asked.scenes, model.model.frame_rules, tokens=True, cameras=False
    )
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


@pytest.mark.parametrize("family", OF_VIDEOS)
def test_features_are_added_behind_their_layers(family: str) -> None:
    model = task(family).eval()
    train(model)
    given = batch(model.model, [SAMPLES["a video"]])
    with torch.no_grad():
        lm_head = model.model.backbone.lm_head
        found = model.model.logits(**given)
        assert torch.allclose(found, lm_head(walk(model, given)), atol=1e-5)
        for wrong in ({"later": 1}, {"turned": True}):
            assert (found - lm_head(walk(model, given, **wrong))).abs().max() > 1e-2

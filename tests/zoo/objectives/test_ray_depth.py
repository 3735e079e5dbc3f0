"""The supervised depth of RayRoPE, in the decoder's layers and the view mixer: by definition, packed, and learned."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import QUESTIONS, Learned, difference, learned, tiny_batch, tiny_model, tiny_scene, two_scenes
from zoo import (
    InputError,
    LayerSubset,
    PRoPE,
    RayAttention,
    RayDepthPrediction,
    RayRoPE,
    SpatialVLM,
    TinyDA3,
    URoPE,
    VideoQATask,
    ViewAttention,
)
from zoo.cameras import SceneGeometry
from zoo.objectives import Decoded
from zoo.scene_encoding import encode_vision
from zoo.sequences.batch import Batch
from zoo.sequences.loaded_scene import LoadedScene

PLACES: dict[str, dict[str, Any]] = {
    "decoder": {"name": "RayRoPE"},
    "view mixer": {"name": "plain", "view_mixer": RayAttention},
    "both": {"name": "RayRoPE", "view_mixer": RayAttention},
}

HEADS = {"decoder": 2, "view mixer": 1, "both": 3}  # that predict depth
TOKEN = 28  # pixels


def build_supervised(place: str, **more: Any) -> VideoQATask:
    return tiny_model(**PLACES[place], objectives=[RayDepthPrediction()], **more)


def decoded_of(task: VideoQATask, asked: Batch) -> Decoded:
    assert asked.sequences is not None
    return task.model.hidden_states(task.model.encode_scenes(asked), asked.sequences)


@pytest.mark.parametrize("place", PLACES)
def test_loss_is_the_likelihood_of_the_true_depths(place: str) -> None:
    task = build_supervised(place).eval()
    asked = tiny_batch(task, tiny_scene("a", QUESTIONS[:1]), training=True)
    with torch.no_grad():
        decoded = decoded_of(task, asked)
        found = RayDepthPrediction()(decoded)["log_depth"]
    depth, predicted = decoded.scenes[0].target_depth, list[Tensor]()
    assert depth is not None
    if isinstance(mixer := task.model.view_mixer, RayAttention):
        flat = encode_vision(task.model.backbone, asked)[0].visual.tokens.flatten(0, 1)
        predicted.append(mixer.encoding.layers["0"](mixer.norm(flat)))
    if decoded.camera_encoding is not None:
        assert list(decoded.camera_encoding.raw_depths) == [0, 1]
        places = decoded.sequences.visual_places
        predicted += [raw[0, places] for raw in decoded.camera_encoding.raw_depths.values()]
    assert len(predicted) == HEADS[place]
    losses = []
    for raw in predicted:
        for (middle, width), true in zip(raw.tolist(), depth.flatten().tolist(), strict=True):
            if true > 0:
                distribution = torch.distributions.Laplace(middle, math.hypot(width, 0.05))
                losses.append(-distribution.log_prob(torch.tensor(true).log()) - torch.tensor(2.0).log())
    torch.testing.assert_close(found, torch.stack(losses).mean())


@pytest.mark.parametrize("place", PLACES)
def test_tokens_without_depth_leave_gradients_finite(place: str) -> None:
    task, given = build_supervised(place).train(), tiny_scene("a", QUESTIONS[:1])
    assert given.geometry is not None and given.geometry.depth is not None
    given.geometry.depth[:, :, :40] = 0  # the left column of tokens
    _, gradients = learned(task, task.losses(tiny_batch(task, given, training=True))["RayDepthPrediction"])
    of_depth = [each for name, each in gradients.items() if ".encoding.layers." in name or "camera_encoding." in name]
    assert len(of_depth) == 2 * HEADS[place] and all(each.isfinite().all() and each.any() for each in of_depth)


def test_packed_and_checkpointed_losses_are_those_of_rows() -> None:
    def losses(checkpoints: bool = False, **packing: Any) -> Learned:
        task = build_supervised("both", gradient_checkpointing=checkpoints).train()
        return learned(task, task.loss(tiny_batch(task, *two_scenes(), training=True, **packing)))

    assert difference(losses(pack_scenes=True), losses()) < 2e-5
    assert difference(losses(checkpoints=True), losses()) < 2e-5


def planted(name: str, seed: int, is_shuffled: bool) -> LoadedScene:
    """Make a scene in which a token is as bright as it is far, or as another token is far."""
    given, generator = tiny_scene(name, QUESTIONS[:1], seed=seed), torch.Generator().manual_seed(seed)
    assert given.frames is not None and given.geometry is not None
    far = torch.rand(3, 2, 3, generator=generator)  # of each token of three temporal patches

    def pixels(of_tokens: Tensor) -> Tensor:
        return of_tokens.repeat_interleave(2, 0).repeat_interleave(TOKEN, 1).repeat_interleave(TOKEN, 2)

    true = far.flatten()[torch.randperm(far.numel(), generator=generator)].view_as(far) if is_shuffled else far
    frames = (255 * pixels(far)).byte()[:, None].expand(-1, 3, -1, -1).contiguous()
    given.geometry.depth = torch.exp(2 * pixels(true))
    return replace(given, frames=frames)


@pytest.mark.slow
@pytest.mark.parametrize("is_shuffled", [False, True])
def test_a_planted_depth_is_learned_and_a_shuffled_one_is_not(is_shuffled: bool) -> None:
    """The error on held-out scenes is compared with that of each scene's median depth."""
    task = build_supervised("decoder").train()
    optimizer = torch.optim.Adam(task.parameters(), lr=3e-3)
    for step in range(50):
        shown = [planted(f"{step}-{i}", 4 * step + i, is_shuffled) for i in range(4)]
        optimizer.zero_grad()
        task.losses(tiny_batch(task, *shown, training=True))["RayDepthPrediction"].backward()
        optimizer.step()
    others = [planted(f"test-{i}", 10**6 + i, is_shuffled) for i in range(8)]
    errors = [each["objectives"] for each in task.eval().predict_batch(tiny_batch(task, *others))]
    predicted, median = (
        sum(each[f"RayDepthPrediction/{name}"] for each in errors) / len(errors)
        for name in ("depth_relative", "unlearned/depth_relative")
    )
    assert (predicted < 0.5 * median) != is_shuffled


def test_a_width_has_a_gradient_however_small_it_is() -> None:
    """Without a gradient, a token that is certain of a wrong depth would stay certain."""
    task = build_supervised("decoder").train()
    assert isinstance(encoding := task.model.camera_encoding, RayRoPE) and encoding.layers is not None
    for linear in encoding.layers.values():
        linear.weight.data.zero_()
        linear.bias.data[1] = 0.03
    task.losses(tiny_batch(task, tiny_scene("a", QUESTIONS[:1]), training=True))["RayDepthPrediction"].backward()
    assert all(linear.bias.grad[1] < 0 for linear in encoding.layers.values())  # the width shall grow


def test_depth_in_another_unit_is_left_out() -> None:
    """The view mixer predicts meters, and is supervised; the decoder normalizes translations, and is not."""
    task = build_supervised("both")
    asked = tiny_batch(task, tiny_scene("a", QUESTIONS[:1]), training=True)
    assert len(list(decoded_of(task, asked).raw_depths())) == 3
    assert isinstance(task.model.camera_encoding, RayRoPE)
    task.model.camera_encoding.scale = "rms"
    assert len(list(decoded_of(task, asked).raw_depths())) == 1


@torch.no_grad()
@pytest.mark.parametrize("source", ["auto", "predicted"])
def test_meters_do_not_supervise_depth_in_the_encoders_unit(source: Any) -> None:
    """In training `predicted` also uses the encoder's depth, and `auto` has none. A test has the dataset's alone."""
    encoder = partial(TinyDA3, embed_dim=32, depth=4, num_heads=2, heads=("camera", "depth"))
    task = build_supervised("decoder", camera_source=source, geometry=encoder)
    given = tiny_scene("a", QUESTIONS[:1])
    assert given.geometry is not None
    alone = replace(given, geometry=SceneGeometry(depth=given.geometry.depth))
    for shown, has_meters in ((given, source == "auto"), (alone, False)):
        asked = tiny_batch(task, shown, training=True)
        trained, tested = decoded_of(task.train(), asked), decoded_of(task.eval(), asked)
        assert bool(RayDepthPrediction().errors(tested)) == has_meters
        assert bool(RayDepthPrediction()(trained)["log_depth"] > 0) == (has_meters or source == "predicted")


@pytest.mark.parametrize(
    ("encoding", "mixer"),
    [
        (None, None),
        (PRoPE(), ViewAttention),
        (RayRoPE(scale="rms"), partial(RayAttention, encoding=URoPE())),
        (RayRoPE("inf_pj+0_3d"), None),
        (LayerSubset(RayRoPE(depth="known")), partial(RayAttention, encoding=RayRoPE(depth="known"))),
    ],
)
def test_parts_without_such_depths_are_refused(encoding: Any, mixer: Any) -> None:
    with pytest.raises(InputError, match="RayRoPE or --model.view_mixer RayAttention"):
        SpatialVLM(camera_encoding=encoding, view_mixer=mixer, objectives=[RayDepthPrediction()])

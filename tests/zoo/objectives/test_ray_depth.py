"""The supervised depth of RayRoPE's layers: by definition, packed, checkpointed, and learned."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.zoo.asking import QUESTIONS, batch, build, scene
from tests.zoo.sequences.test_packed_training import difference, learned
from tests.zoo.sequences.test_scene_packing import asked_of
from zoo import LayerSubset, PRoPE, RayDepthPrediction, RayRoPE, SpatialVLM
from zoo.errors import InputError
from zoo.objectives import decode

build_supervised = partial(build, "RayRoPE", objectives=[RayDepthPrediction()])


def test_loss_is_the_likelihood_of_the_true_depths() -> None:
    task = build_supervised().eval()
    asked = batch(task, scene("a", QUESTIONS[:1]), training=True)
    assert asked.sequences is not None
    with torch.no_grad():
        scenes = task.model.encode_scenes(asked)
        inputs = task.model.decoder_inputs(scenes, asked.sequences)
        decoded = decode(task.model.backbone, (), inputs, scenes, asked.sequences)
        found = RayDepthPrediction()(decoded)["log_depth"]
    depth = scenes[0].targets.depth
    assert depth is not None and decoded.camera_encoding is not None
    raw_depths, losses = decoded.camera_encoding.raw_depths, []
    assert list(raw_depths) == [0, 1]
    places = asked.sequences.visual_places.tolist()
    for raw in raw_depths.values():
        for place, true in zip(places, depth.flatten().tolist(), strict=True):
            if true > 0:
                middle, width = raw[0, place].tolist()
                distribution = torch.distributions.Laplace(middle, max(abs(width), 0.05))
                losses.append(-distribution.log_prob(torch.tensor(true).log()) - torch.tensor(2.0).log())
    torch.testing.assert_close(found, torch.stack(losses).mean())


def test_tokens_without_depth_leave_gradients_finite() -> None:
    task, given = build_supervised().train(), scene("a", QUESTIONS[:1])
    assert given.geometry is not None and given.geometry.depth is not None
    given.geometry.depth[:, :, :40] = 0  # the left column of tokens
    _, gradients = learned(task, task.losses(batch(task, given, training=True))["RayDepthPrediction"])
    of_depth = [gradients[name] for name in gradients if "camera_encoding" in name]
    assert len(of_depth) == 4 and all(each.isfinite().all() and each.any() for each in of_depth)


def test_packed_and_checkpointed_losses_are_those_of_rows() -> None:
    plain = build_supervised().train()
    expected = learned(plain, plain.loss(asked_of(plain)))
    packed = learned(plain, plain.loss(asked_of(plain, pack_scenes=True)))
    assert difference(packed, expected) < 2e-5
    checkpointed = build_supervised(gradient_checkpointing=True).train()
    assert difference(learned(checkpointed, checkpointed.loss(asked_of(checkpointed))), expected) < 2e-5


def test_depth_is_learned_and_its_errors_are_recorded() -> None:
    task = build_supervised().train()
    asked = batch(task, scene("a", QUESTIONS[:1]), scene("b", QUESTIONS[:1], seed=1), training=True)
    optimizer = torch.optim.Adam(task.parameters(), lr=3e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        found = task.losses(asked)
        found["RayDepthPrediction"].backward()
        optimizer.step()
        losses.append(float(found["RayDepthPrediction"]))
    assert losses[-1] < losses[0] - 0.1
    (record,) = task.eval().predict_batch(batch(task, scene("a", QUESTIONS[:1])))
    errors = record["objectives"]
    assert {"RayDepthPrediction/depth_relative", "RayDepthPrediction/unlearned/depth_relative"} <= errors.keys()


@pytest.mark.parametrize(
    "encoding", [None, PRoPE(), RayRoPE(scale="rms"), RayRoPE("inf_pj+0_3d"), LayerSubset(RayRoPE(depth="known"))]
)
def test_an_encoding_without_such_depths_is_refused(encoding: RayRoPE | None) -> None:
    with pytest.raises(InputError, match="set --model.camera_encoding RayRoPE"):
        SpatialVLM(camera_encoding=encoding, objectives=[RayDepthPrediction()])

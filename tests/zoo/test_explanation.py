"""Effects of views and attention: equal to slow references, and unmoved by what a mask hides."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from datamodules.augmentations import told_poses, with_poses
from tests.tiny import QUESTIONS, tiny_batch, tiny_model, tiny_scene
from zoo import InputError
from zoo.explanation import Explanation, explain
from zoo.sequences.loaded_scene import LoadedScene
from zoo.tasks import VideoQATask

VIEWS, HIDDEN = 3, 1


def explained(task: VideoQATask, scene: LoadedScene, **options: object) -> Explanation:
    return explain(task.model, tiny_batch(task, scene, training=True), **options)  # type: ignore[arg-type]


def asked(**changes: str) -> LoadedScene:
    return tiny_scene("a", (replace(QUESTIONS[1], **changes),), steps=VIEWS)


def repainted(scene: LoadedScene, view: int) -> LoadedScene:
    """The scene with other pixels in both frames of a view."""
    assert scene.frames is not None
    frames = scene.frames.clone()
    frames[2 * view : 2 * view + 2] = 255 - frames[2 * view : 2 * view + 2]
    return replace(scene, frames=frames)


def test_the_log_probability_is_that_of_the_answer_as_a_candidate() -> None:
    task = tiny_model()
    texts = ["44", "7"]
    (reply,) = task.model.score_candidates(tiny_batch(task, asked()), [texts])
    found = [explained(task, asked(ground_truth=text)).log_prob for text in texts]
    assert found == pytest.approx([*reply.candidates], abs=1e-4) and abs(found[0] - found[1]) > 1e-2


def test_an_answer_that_was_cut_has_no_stop_token() -> None:
    task = tiny_model()
    batch = tiny_batch(task, asked(ground_truth="44"), training=True)
    whole, cut = explain(task.model, batch), explain(task.model, batch, ends=False)
    assert whole.log_prob < cut.log_prob - 1e-3


@pytest.mark.parametrize("family", ["Qwen2.5-VL", "Qwen3-VL"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_pixels_of_a_hidden_view_change_nothing(family: str, implementation: str) -> None:
    """Vision reads each view alone here. The control: they change the answer as long as the view is seen."""
    task = tiny_model(family=family, implementation=implementation)
    scene = tiny_scene("a", QUESTIONS[1:2], steps=VIEWS, family=family)
    before, after = explained(task, scene), explained(task, repainted(scene, HIDDEN))
    without = [each.log_prob + float(each.hidden[HIDDEN]) for each in (before, after)]
    assert without[0] == pytest.approx(without[1], abs=1e-4)
    for view in {*range(VIEWS)} - {HIDDEN}:
        with_it = [each.log_prob + float(each.hidden[view]) for each in (before, after)]
        assert abs(with_it[0] - with_it[1]) > 1e-3
    assert abs(before.log_prob - after.log_prob) > 1e-3
    alone = [[each.log_prob + float(each.alone[view]) for each in (before, after)] for view in range(VIEWS)]
    assert [abs(one - other) > 1e-4 for one, other in alone] == [view == HIDDEN for view in range(VIEWS)]


@pytest.mark.parametrize("name", ["plain", "prope.yaml", "PRoPE, ChannelRange", "PoseALiBi", "CameraPrediction"])
def test_attention_is_that_of_the_eager_backend(name: str) -> None:
    eager, other = (tiny_model(name, implementation=each) for each in ("eager", "sdpa"))
    other.load_state_dict(eager.state_dict())
    batch = tiny_batch(eager, asked(), training=True)
    sequences = batch.sequences
    assert sequences is not None
    with torch.no_grad():
        eager.model.eval()
        inputs = eager.model.decoder_inputs(eager.model.encode_scenes(batch), sequences)
        found = eager.model.backbone.decode({**inputs, "output_attentions": True}).attentions
    rows = sequences.answer_places[:-1]  # without the line break behind the stop token
    expected = torch.stack([each[0, :, rows].mean((0, 1)) for each in found])
    expected = expected[:, sequences.grid_places].unflatten(1, batch.scenes[0].token_grid)
    for task in (eager, other):
        own = explained(task, asked())
        assert own.layers == tuple(range(len(found))) and own.attention is not None
        torch.testing.assert_close(own.attention, expected, atol=1e-4, rtol=1e-3)
        shares = own.attention.sum((1, 2, 3))
        assert (shares > 0.01).all() and (shares < 1).all()
    assert (expected - expected.flip(1)).abs().max() > 1e-3  # the control: views differ


def test_recording_leaves_the_backend_as_it_was() -> None:
    before = {name: ALL_ATTENTION_FUNCTIONS.get(name) for name in ("eager", "sdpa", "grouped_sdpa")}
    for implementation in ("sdpa", "eager"):
        explained(tiny_model(implementation=implementation), asked())
    assert {name: ALL_ATTENTION_FUNCTIONS.get(name) for name in before} == before


def test_a_camera_that_is_not_told_is_that_of_a_scene_without_it() -> None:
    task, scene = tiny_model("PRoPE, ChannelRange"), asked()

    def without(view: int) -> LoadedScene:
        poses: Tensor = told_poses(scene)
        poses[2 * view : 2 * view + 2] = torch.nan
        return with_poses(scene, poses)

    others = [tiny_batch(task, without(view), training=True) for view in range(VIEWS)]
    found = explained(task, scene, without_camera=[*others[:2], None])
    expected = [explained(task, without(view)).log_prob - found.log_prob for view in range(2)]
    assert found.without_camera is not None and found.without_camera[2].isnan()
    assert found.without_camera[:2].tolist() == pytest.approx(expected, abs=1e-5)
    assert min(map(abs, expected)) > 1e-4
    assert explained(tiny_model(), scene).without_camera is None


def test_what_has_no_weights_or_no_masks_says_so() -> None:
    assert explained(tiny_model("RayRoPE"), asked()).attention is None
    hybrid = tiny_model(family="Qwen3.5")
    with pytest.raises(InputError, match="recurrent layers, and masks hide no view"):
        explained(hybrid, tiny_scene("a", QUESTIONS[1:2], family="Qwen3.5"))

"""Views that the decoder does not see: how they are drawn and read, and what is learned from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules import PanelRooms, PanelTurn, VideoQADataModule
from datamodules.video import Video
from tests.tiny import (
    MASKED_FAMILIES,
    QUESTIONS,
    VGGT,
    difference,
    learned,
    one_per_row,
    tiny_batch,
    tiny_model,
    tiny_scene,
    two_scenes,
)
from zoo import GTA, HeldOutViews, InputError, PoseALiBi, SpatialVLM, VideoQATask, ViewAttention
from zoo.cameras import SceneGeometry
from zoo.cameras.scene_geometry import PatchCameras
from zoo.objectives.held_out_views import nearest_views
from zoo.sequences.loaded_scene import LoadedScene
from zoo.sequences.target_views import TargetViews, frames_between, frames_inside

TABLES = json.loads((Path(__file__).parents[2] / "golden" / "novel_view" / "tables.json").read_text())


@pytest.mark.parametrize("case", TABLES["targets_between"], ids=lambda case: str(case["random_seed"]))
def test_a_frame_of_each_gap_is_the_published_one(case: dict[str, Any]) -> None:
    drawn = frames_between(case["inputs"], range(case["total"]), Random(case["random_seed"]))
    has_gap = any(high - low > 1 for low, high in zip(case["inputs"], case["inputs"][1:], strict=False))
    assert drawn == (case["targets"] if has_gap else [])  # published code then takes frames outside of all shown ones


@pytest.mark.parametrize("case", TABLES["targets_interior"], ids=lambda case: str(case["random_seed"]))
def test_frames_inside_are_the_published_ones(case: dict[str, Any]) -> None:
    drawn = frames_inside(case["inputs"], range(case["total"]), Random(case["random_seed"]))
    is_repeated = case["targets"][0] in case["inputs"]  # published code repeats a shown frame if there is no other
    assert drawn == ([] if is_repeated else case["targets"])


def test_targets_are_other_frames_with_a_camera_and_at_most_as_many_as_wanted() -> None:
    shown, posed = [0, 0, 9, 9, 20, 20], [0, 3, 4, 9, 12, 15, 20, 25]
    every = {frame for seed in range(50) for frame in TargetViews(1).draw(shown, posed, Random(seed))}
    assert every == {3, 4, 12, 15}  # not 25, which is behind all shown frames
    for drawn, number, expected in (("gaps", 9, 2), ("inside", 9, 3), ("inside", 2, 2), ("gaps", 1, 1)):
        assert len(TargetViews(number, drawn).draw(shown, posed, Random(0))) == expected
    assert TargetViews(2).draw([0, 1, 2], range(9), Random(0)) == []


# ---- Scenes with target views ----------------------------------------------------------------------------------------


def with_targets(scene: LoadedScene, views: int = 2, seed: int = 5, family: str = "Qwen2.5-VL") -> LoadedScene:
    """Add target views of noise, seen by random cameras."""
    other = tiny_scene(scene.name, (), steps=views, seed=seed, family=family)
    assert other.frames is not None and other.geometry is not None
    doubled = [2 * place for place in range(views) for _ in range(2)]
    return replace(
        scene,
        target_views=LoadedScene(
            scene.name,
            frames=other.frames[doubled],
            kind="image",
            frame_indices=tuple(doubled),
            geometry=other.geometry[doubled],
        ),
    )


def model(family: str = "Qwen2.5-VL", options: dict[str, Any] | None = None, **parts: Any) -> VideoQATask:
    objective = HeldOutViews(**{"width": 32, "weight": 1.0, **(options or {})})
    task = tiny_model("plain", family=family, objectives=[objective], **parts)
    generator = torch.Generator().manual_seed(3)
    for each in objective.predictor.attention:  # which start without an effect
        torch.nn.init.normal_(each.o.weight, std=0.2, generator=generator)
    return task.train()


def loss(task: VideoQATask, *scenes: LoadedScene) -> float:
    with torch.no_grad():
        return float(task.losses(tiny_batch(task, *scenes, training=True))["HeldOutViews"])


SCENES = tuple(with_targets(each, views, views) for each, views in zip(two_scenes(), (2, 1), strict=True))


@pytest.mark.parametrize("predicts", ["tokens", "pixels"])
def test_the_loss_is_that_of_a_slow_reference(predicts: Any) -> None:
    task = model(options={"predicts": predicts, "pixels_per_token": 7})
    found = task.losses(tiny_batch(task, *SCENES, training=True))
    scenes, objective = [], task.model.objectives["HeldOutViews"]
    for scene in SCENES:  # one scene at a time, its target views in a batch of their own
        views: Any = scene.target_views
        batch = one_per_row(task, scene)
        assert batch.sequences is not None
        decoded = task.model.hidden_states(task.model.encode_scenes(batch), batch.sequences)
        terms: dict[str, list[Tensor]] = {"cosine": [], "l2": []}
        for target, predicted in objective.predicted_views(decoded):  # type: ignore[operator]
            if predicts == "tokens":
                (alone,) = task.model.encode_scenes(tiny_batch(task, replace(views, questions=QUESTIONS[:1])))
                values = alone.visual.tokens
                cosine = (predicted * values).sum(-1) / predicted.norm(dim=-1) / values.norm(dim=-1)
                terms["cosine"].append(1 - cosine)
                share = (predicted - values).square().mean(-1) / values.square().mean((1, 2))[:, None]
                terms["l2"].append(share)
            else:
                shown = views.frames[::2] / 255
                rows, columns = target.size
                cells = shown.unflatten(3, (columns * 7, -1)).unflatten(2, (rows * 7, -1)).mean((3, 5))
                tokens = [
                    cells[:, :, y * 7 : y * 7 + 7, x * 7 : x * 7 + 7].permute(0, 2, 3, 1).flatten(1)
                    for y in range(rows)
                    for x in range(columns)
                ]
                terms["l2"].append((predicted - torch.stack(tokens, 1)).square().mean(-1))
        scenes.append({name: torch.cat(own).flatten(1).mean(1).sum() for name, own in terms.items() if own})
    questions = sum(len(scene.questions) for scene in SCENES)
    for name in scenes[0]:
        expected = sum(each[name] for each in scenes) / questions
        key = f"HeldOutViews/{name}" if predicts == "tokens" else "HeldOutViews"
        assert found[key].item() == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"attention": partial(ViewAttention, encoding=GTA())}, {"context_cameras": False}]
)
def test_the_world_of_the_cameras_changes_nothing_and_other_cameras_do(options: dict[str, Any]) -> None:
    task = model(options=options)
    world = tiny_scene("w", seed=9).geometry
    assert world is not None and world.world_to_camera is not None

    def changed(scene: LoadedScene, change: Tensor, *, targets_alone: bool = False) -> LoadedScene:
        def of(geometry: SceneGeometry) -> SceneGeometry:
            return SceneGeometry(**{**geometry.present(), "world_to_camera": geometry.world_to_camera @ change})

        views: Any = scene.target_views
        moved = replace(scene, target_views=replace(views, geometry=of(views.geometry)))
        return moved if targets_alone else moved.change_geometry(of)

    expected = loss(task, *SCENES)
    assert loss(task, *(changed(each, world.world_to_camera[0]) for each in SCENES)) == pytest.approx(
        expected, rel=2e-5
    )
    # the control: the same change of the target's camera alone
    other = loss(task, *(changed(each, world.world_to_camera[0], targets_alone=True) for each in SCENES))
    assert abs(other / expected - 1) > 1e-3


@pytest.mark.parametrize("predicts", ["tokens", "pixels"])
@pytest.mark.parametrize("family", MASKED_FAMILIES)
def test_packed_sequences_learn_as_a_row_each_and_answers_do_not_change(family: str, predicts: Any) -> None:
    shown = two_scenes(family)
    scenes = [with_targets(shown[0], family=family), shown[1]]  # one scene has none
    task = model(family, {"predicts": predicts})
    packed = learned(task, task.loss(tiny_batch(task, *scenes, training=True)))
    assert difference(packed, learned(task, task.loss(one_per_row(task, *scenes)))) < 1e-5
    plain = tiny_model("plain", family=family).eval()
    told, usual = tiny_batch(task.eval(), *scenes), tiny_batch(plain, *shown)
    answers = [{**record, "objectives": None} for record in task.predict_batch(told)]
    assert answers == [{**record, "objectives": None} for record in plain.predict_batch(usual)]


def test_no_gradient_reaches_a_target_and_the_decoder_and_vision_encoder_learn() -> None:
    task = model()
    batch = tiny_batch(task, *SCENES, training=True)
    gradients = learned(task, task.losses(batch)["HeldOutViews"])[1]
    names = {name for name, each in gradients.items() if each.any()}
    for part in ("visual", "language_model.layers.0", "predictor.attention.0", "predictor.embed_rays"):
        assert any(part in name for name in names), part
    encoded = task.model.encode_scenes(batch)
    assert all(each.target_tokens is not None and not each.target_tokens[0].requires_grad for each in encoded)


def test_errors_stand_beside_the_mean_of_the_views_and_the_nearest_one() -> None:
    task = model().eval()
    (record, *_) = task.predict_batch(tiny_batch(task, *SCENES))
    errors = record["objectives"]
    names = [
        f"HeldOutViews/{prefix}{name}" for prefix in ("", "nearest_view_", "unlearned/") for name in ("cosine", "l2")
    ]
    assert sorted(errors) == sorted(names)
    # a target that is a shown view has the copy without an error
    shown = SCENES[0]
    assert shown.frames is not None and shown.geometry is not None
    doubled = [2, 2]
    copy = LoadedScene("a", frames=shown.frames[doubled], kind="image", geometry=shown.geometry[doubled])
    scene = replace(shown, target_views=replace(copy, frame_indices=(1, 1)), frames=shown.frames[[0, 0, 2, 2, 4, 4]])
    (record, *_) = task.predict_batch(tiny_batch(task, replace(scene, geometry=shown.geometry[[0, 0, 2, 2, 4, 4]])))
    assert record["objectives"]["HeldOutViews/nearest_view_l2"] == pytest.approx(0, abs=1e-9)
    assert record["objectives"]["HeldOutViews/unlearned/l2"] > 1e-3


def test_the_nearest_view_has_a_camera() -> None:
    poses = torch.eye(4).repeat(3, 1, 1)
    poses[:, 0, 3] = torch.tensor([0.0, 1.0, 3.0])
    K = torch.eye(3).repeat(3, 1, 1)
    target = PatchCameras(poses[1:2] + 0.0, K[:1], torch.tensor([True]))
    assert nearest_views(PatchCameras(poses, K, torch.ones(3, dtype=torch.bool)), target).tolist() == [1]
    assert nearest_views(PatchCameras(poses, K, torch.tensor([True, False, True])), target).tolist() == [0]


def test_a_scene_without_cameras_is_left_out_and_one_without_a_gap_is_an_error_of_the_scene(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = model()
    bare = [replace(each, geometry=None, target_views=None) for each in SCENES]
    assert loss(task, *bare) == 0 < loss(task, *SCENES)
    data = VideoQADataModule(
        PanelRooms(PanelTurn(), root=str(tmp_path), scenes=(2, 1, 1), workers=1), num_frames=8, num_workers=0
    )
    data.source.prepare_splits(["train"])
    scenes, spec = data.source.scenes("train"), task.model_spec()
    loader = data.dataset(scenes, spec=spec)
    read, again = loader[0], loader[0]
    assert read.frames is not None and read.target_views is not None and again.target_views is not None
    frames, shown = read.target_views.frames, set(read.frame_indices or ())
    assert frames is not None and frames.shape == (4, *read.frames.shape[1:])  # two views, each twice
    assert not shown.intersection(read.target_views.frame_indices or ())
    assert again.target_views.frame_indices == read.target_views.frame_indices
    with monkeypatch.context() as patch:  # damage beside the shown frames, which answers do not need
        whole_video = Video.read

        def damaged(self: Video, frames: Sequence[int]) -> Tensor:
            if not shown.issuperset(frames):
                raise InputError("damaged")
            return whole_video(self, frames)

        patch.setattr(Video, "read", damaged)
        answered = loader[0]
    assert answered.error is None and answered.target_views is None and "damaged" in (answered.target_error or "")
    assert answered.frames is not None and torch.equal(answered.frames, read.frames)
    data.num_frames = loader.open(0).video.num_frames
    whole = data.dataset(scenes, spec=spec)[0]
    assert whole.target_views is None and "no frame with a camera lies between" in (whole.target_error or "")


WRONG: dict[str, tuple[Any, str]] = {
    "views": (lambda: HeldOutViews(views=0), "views 0"),
    "layer": (lambda: SpatialVLM(objectives=[HeldOutViews(layer=9)]), "layer 9"),
    "predicted": (
        lambda: SpatialVLM(camera_source="predicted", camera_encoding=PoseALiBi(), objectives=[HeldOutViews()], **VGGT),
        "camera_source predicted",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_errors(name: str) -> None:
    build, text = WRONG[name]
    with pytest.raises(InputError, match=text):
        build()


def test_shuffled_targets_are_those_of_another_scene() -> None:
    pair = [
        with_targets(tiny_scene(name, QUESTIONS[:1], seed=seed), seed=seed + 5) for name, seed in (("a", 0), ("b", 1))
    ]
    crossed = [replace(own, target_views=other.target_views) for own, other in zip(pair, pair[::-1], strict=True)]
    usual, shuffled = model(), model(options={"shuffled": True})
    assert loss(shuffled, *pair) == pytest.approx(loss(usual, *crossed), rel=1e-6) != loss(usual, *pair)
    assert loss(shuffled, pair[0]) == 0  # alone in its batch

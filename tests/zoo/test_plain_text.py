"""Rows of plain text train as text: a mixed batch is the sum of its parts, and no process waits for images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from datamodules.collate import Collate, TrainingCollate
from datamodules.scenes import RawQuestion
from tests.tiny import BACKBONES, QUESTIONS, Learned, difference, learned, tiny_model, tiny_scene
from zoo import CameraPrediction, DepthPrediction, MaskedViews
from zoo.objectives.base import weighted_losses
from zoo.sequences.batch import Batch
from zoo.sequences.loaded_scene import LoadedScene
from zoo.tasks import VideoQATask

TEXTS = (
    RawQuestion("t0", "", "What is two and three?", "5"),
    RawQuestion("t1", "", "Say it again.", "Again.", later_turns=(("And now?", "Once more."),)),
)


def text(*questions: RawQuestion) -> LoadedScene:
    return LoadedScene("text", questions)


def collated(task: VideoQATask, scenes: Sequence[LoadedScene], **packing: Any) -> Batch:
    return TrainingCollate(replace(task.model_spec(), geometry_reader=None), **packing)(scenes)


def learned_from(task: VideoQATask, scenes: Sequence[LoadedScene], **packing: Any) -> Learned:
    torch.manual_seed(0)
    batch = collated(task, scenes, **packing)
    return learned(task, task.model(batch)["loss"] * sum(batch.num_answers))


def sum_of(parts: Sequence[Learned]) -> Learned:
    """What parts teach together."""
    names = {name for _, gradients in parts for name in gradients}
    assert all(gradients.keys() == names for _, gradients in parts)  # as DDP requires
    return sum(loss for loss, _ in parts), {name: sum(gradients[name] for _, gradients in parts) for name in names}


@pytest.fixture(params=["plain", "prope.yaml", "GeoThinkerFusion", "Qwen3-VL", "Qwen3.5"])
def task(request: pytest.FixtureRequest) -> VideoQATask:
    named = request.param in BACKBONES
    options: dict[str, Any] = {"family": request.param} if named else {}
    return tiny_model("plain" if named else request.param, **options).double()


def scenes_for(task: VideoQATask) -> tuple[LoadedScene, LoadedScene]:
    family = next(name for name, kind in BACKBONES.items() if isinstance(task.model.backbone, kind.backbone_class))
    return tiny_scene("a", QUESTIONS[1:3], family=family), tiny_scene("b", QUESTIONS[:1], 2, seed=1, family=family)


def test_a_mixed_batch_is_the_sum_of_its_parts(task: VideoQATask) -> None:
    first, second = scenes_for(task)
    scenes = [text(TEXTS[0]), first, text(TEXTS[1]), second]
    mixed, parts = learned_from(task, scenes), [learned_from(task, [each]) for each in scenes]
    exact = 1e-9 if not task.model_spec().is_hybrid else 1e-5  # Gated DeltaNet computes in float32
    assert difference(mixed, sum_of(parts)) < exact
    assert difference(mixed, sum_of([parts[2], *parts[1:]])) > 1e-3  # the control: the other text twice


def test_scenes_and_texts_packed_into_sequences(task: VideoQATask) -> None:
    if not task.model_spec().packs_questions or task.model_spec().is_hybrid:
        pytest.skip("this decoder packs no scenes")
    first, second = scenes_for(task)
    together = [first, text(TEXTS[0]), second, text(TEXTS[1])]
    packed = learned_from(task, together, pack_scenes=True)
    assert collated(task, together, pack_scenes=True).sequences.packing is not None  # type: ignore[union-attr]
    assert difference(packed, learned_from(task, together)) < 1e-9


def test_text_alone_uses_every_part_and_teaches_the_vision_encoder_nothing(
    task: VideoQATask, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = learned_from(task, [scenes_for(task)[0]])[1].keys()
    loss, gradients = learned_from(task, [text(*TEXTS)])
    assert gradients.keys() == names
    parts = (".visual.", "model.fusion.", "model.geometry.", "model.camera_encoding.")
    unused = [gradient for name, gradient in gradients.items() if any(part in name for part in parts)]
    assert unused and not any(gradient.any() for gradient in unused)
    monkeypatch.setattr(TrainingCollate, "__call__", Collate.__call__)  # the control: no blank video
    without = learned_from(task, [text(*TEXTS)])
    assert without[0] == pytest.approx(loss, rel=1e-12) and not any(".visual." in name for name in without[1])
    assert all(torch.allclose(gradients[name], each, atol=1e-12) for name, each in without[1].items())


def test_objectives_learn_nothing_from_text() -> None:
    task = tiny_model("plain", objectives=[CameraPrediction(), DepthPrediction(layer=0), MaskedViews(mask_ratio=0.3)])
    batch = collated(task.train(), [text(*TEXTS)])
    decoded = task.model.hidden_states(task.model.encode_scenes(batch), batch.sequences)
    losses = weighted_losses(task.model.active_objectives, decoded)
    assert losses["CameraPrediction"] == losses["DepthPrediction"] == 0


def test_one_who_evaluates_text_gets_no_blank_video() -> None:
    task = tiny_model("plain")
    batch = collated(task, [text(*TEXTS), tiny_scene("a")])
    assert len(batch.scenes) == 1 and sum(batch.num_answers) == 3 + len(QUESTIONS)

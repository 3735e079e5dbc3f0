"""Hundreds of questions about rooms and a real scene, from a shared prefix as each by itself: for `pytest -m slow`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datamodules import PixelBounds, Rooms, SceneFolder, UniformSampler
from datamodules.dataset import SceneDataset
from datamodules.sources.annotations import read_questions
from tests.conftest import ROOMS
from tests.test_real_scenes import red_kitchen
from tests.zoo.asking import MODELS, batch, build, one_by_one, replies
from zoo.model_spec import ModelSpec
from zoo.sequences.loaded_scene import LoadedScene

SMALL = PixelBounds(784, 9408, legacy_folder_resize=False)
EVERY = 30  # so many of VSI-Bench's questions are passed over: 171 of all types are left


@pytest.fixture(scope="module")
def loaded(rooms_root: Path, realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> list[LoadedScene]:
    """All rooms with their own questions, and a real kitchen, with its cameras, that is asked VSI-Bench's."""
    rooms = Rooms(scenes=ROOMS, root=str(rooms_root), workers=1)
    scenes = [scene for split in ("train", "val", "test") for scene in rooms.scenes(split)]
    dataset = SceneDataset(
        scenes, UniformSampler(), 6, SMALL, spec=ModelSpec(requires_cameras=True, requires_depth=True)
    )
    folder = SceneFolder(str(red_kitchen(realdata, tmp_path_factory.mktemp("kitchen"))))
    kitchen = SceneDataset(folder.scenes("test"), UniformSampler(), 8, SMALL, spec=ModelSpec(requires_cameras=True))[0]
    questions = [q for scene in read_questions(realdata / "vsibench/test.jsonl").values() for q in scene][::EVERY]
    kitchen = replace(kitchen, questions=tuple(questions))
    assert kitchen.frames is not None and kitchen.geometry is not None
    kitchen.geometry.depth = torch.ones(len(kitchen.frames), *kitchen.frames.shape[-2:])  # not measured
    return [*(dataset[i] for i in range(len(scenes))), kitchen]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", MODELS)
def test_all_answers_are_those_of_each_question_by_itself(name: str, loaded: list[LoadedScene]) -> None:
    model, asked, answers = build(name), 0, set()
    for scene in loaded:
        assert scene.error is None
        rows = batch(model, scene, at_once=18)
        found = replies(model, rows)
        assert [reply.ids for reply in found] == one_by_one(model, rows)
        asked, answers = asked + len(found), answers | {tuple(reply.ids) for reply in found}
    print(f"{name}: {asked} questions, {len(answers)} different answers")
    assert asked > 250 and len(answers) > 50

"""A training on a DataModule's scenes: how it resumes, and what it does about a scene that can't be read."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from callbacks import Checkpoint
from callbacks.checkpoint_io import CheckpointFiles
from datamodules import UniformSampler, VideoQADataModule
from datamodules.dataset import SceneDataset
from datamodules.question_sampler import TrainingItem
from datamodules.samplers import SceneView
from datamodules.scenes import RawQuestion, Scene
from datamodules.skipped_scenes import SkippedScenes, skipped_scenes
from datamodules.sources.base import Split
from tests import signatures
from tests.callbacks.breakable import BROKEN, PIXELS, QUESTIONS, Tiny
from tests.datamodules.batches import builder_for
from zoo.backbones import tiny_preprocessor
from zoo.errors import InputError
from zoo.model_spec import DataRequirements
from zoo.sequences.batch import Batch
from zoo.sequences.loaded_scene import SceneInputs
from zoo.tasks import Task
from zoo.tasks.base import LearningRates, WarmupCosine


class Readable(Tiny):
    """The scenes that can be read, whose first answer may be another."""

    answer = "A"

    def scenes(self, split: Split) -> list[Scene]:
        first, *others = (scene for place, scene in enumerate(super().scenes(split)) if place != BROKEN)
        asked = tuple(replace(question, ground_truth=self.answer) for question in first.questions)
        return [replace(first, questions=asked), *others]


class Drawing(UniformSampler):
    """Draws one of the two frames by the global generators, as a user's sampler may."""

    def choose(self, scene: SceneView, n: int) -> list[int]:
        return [int(torch.rand(()).item() + np.random.rand() + random.random() > 1.5)]


class Learner(Task):
    """Learns a weight; notes what it learns from, its rates, and what it draws by the global generators."""

    preprocessor, requirements = tiny_preprocessor(), DataRequirements()  # type: ignore[assignment]
    sequence_builder = builder_for(preprocessor)

    def __init__(self) -> None:
        super().__init__(LearningRates(), torch.optim.AdamW, WarmupCosine)
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.asked: list[list[str]] = []
        self.types: list[tuple[str, list[str]]] = []  # of each scene, see `SceneInputs`
        self.rates: list[float] = []
        self.drawn: list[Any] = []

    def part_of(self, name: str) -> str:
        return "decoder"

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.check(batch)
        assert batch.sequences is not None
        is_learned = any(batch.sequences.num_answers)
        self.asked.append([record["id"] for record in batch.records] if is_learned else [])
        self.types.append((batch.records[0]["scene"], sorted(batch.scenes[0].question_types)))
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        frames = [record["frames"] for record in batch.records]
        self.drawn.append((frames, torch.rand(2).tolist(), np.random.rand(), random.random()))
        return self.weight.square().sum()


class Absent(Tiny):
    """The first scenes are absent as well."""

    def __init__(self, root: Path, absent: int) -> None:
        super().__init__(root)
        self.absent = absent

    def scenes(self, split: Split) -> list[Scene]:
        scenes = super().scenes(split)
        return [replace(s, video=self.root / "absent.mp4") for s in scenes[: self.absent]] + scenes[self.absent :]


OF_TRAINER = ("max_steps", "max_epochs", "accumulate_grad_batches")


def fit(folder: Path, source: Tiny, learner: Learner | None = None, **settings: Any) -> Learner:
    """Trains, from the newest checkpoint in the folder if there is one."""
    last = folder / "checkpoints/last.ckpt"
    learner = learner or Learner()
    data = {name: settings.pop(name) for name in list(settings) if name not in OF_TRAINER}
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[Checkpoint()],
        plugins=[CheckpointFiles()],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        **settings,
    )
    data = VideoQADataModule(source, num_frames=2, pixels=PIXELS, **({"num_workers": 0} | data))
    trainer.fit(learner, data, ckpt_path=str(last) if last.exists() else None)
    return learner


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    Tiny(folder).prepare()
    return folder


def test_resuming_with_other_answers_is_an_error(root: Path, tmp_path: Path) -> None:
    """Their number is the same."""
    whole = fit(tmp_path / "whole", Readable(root), max_steps=6).asked
    begun = fit(tmp_path / "run", Readable(root), max_steps=3).asked
    changed = Readable(root)
    changed.answer = "B"
    with pytest.raises(InputError, match="^the checkpoint was trained with other questions or answers"):
        fit(tmp_path / "run", changed, max_steps=6)
    assert begun + fit(tmp_path / "run", Readable(root), max_steps=6).asked == whole


def test_a_schedule_that_is_longer_goes_on_without_a_step_at_rate_zero(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = fit(tmp_path / "whole", Readable(root), max_steps=8).rates
    first = fit(tmp_path / "run", Readable(root), max_steps=4).rates
    assert "the schedule has" not in caplog.text
    rest = fit(tmp_path / "run", Readable(root), max_steps=8).rates
    assert first != whole[:4] and rest == whole[4:] and min(rest) > 0
    assert "the schedule has 8 steps, it had 4: learning rates go on at 61% of their peak" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_drawn_depends_on_the_step_alone(
    workers: int, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # beartype itself draws by Python's generator, in each call that is checked
    monkeypatch.setattr(signatures, "CALLS", sys.maxsize)

    def drawn(folder: str, steps: int) -> list[Any]:
        torch.manual_seed(len(folder) + steps)  # another process has other generators
        settings: dict[str, Any] = {"sampler": Drawing(), "num_workers": workers}
        return fit(tmp_path / folder, Readable(root), max_steps=steps, **settings).drawn

    whole = drawn("whole", 8)
    assert drawn("run", 3) + drawn("run", 8) == whole
    assert len({str(draws) for _, *draws in whole}) == 8 and len({str(frames) for frames, *_ in whole}) == 2
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert drawn("another seed", 2)[0] != whole[0]


def test_a_scene_shows_the_same_frames_whichever_of_its_questions_a_process_asks(root: Path) -> None:
    class Coin(UniformSampler):
        def choose(self, scene: SceneView, n: int) -> list[int]:
            return [int(torch.rand(()) > 0.5)]

    data = SceneDataset(Readable(root).scenes("train")[:4], Coin(), 2, PIXELS)
    places = [place for place, scene in enumerate(data.scenes) if len(scene.questions) > 1]

    def frames(*questions: int) -> list[tuple[int, ...]]:
        items = [TrainingItem(place, questions, epoch) for place in places for epoch in range(8)]
        return [data[item].frame_indices for item in items]

    assert frames(0) == frames(1) == frames(0, 1) and len(set(frames(0))) == 2


def test_a_batch_has_the_types_of_all_questions_of_its_step_about_the_scene(root: Path, tmp_path: Path) -> None:
    types = {
        scene.name: sorted(question.question_type for question in scene.questions)
        for scene in Readable(root).scenes("train")
    }
    whole = fit(tmp_path / "whole", Readable(root), max_epochs=1, accumulate_grad_batches=1000)
    assert len(whole.asked) > len(types) and all(found == types[scene] for scene, found in whole.types)
    single = fit(tmp_path / "single", Readable(root), max_epochs=1)  # a step is a question, and so are its types
    assert all(len(found) == 1 and found[0] in types[scene] for scene, found in single.types)


def test_batches_are_pinned_for_a_gpu_and_copied_without_a_wait(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = VideoQADataModule(Readable(root), num_frames=2, pixels=PIXELS, num_workers=0)
    trainer = {"lightning_module": Learner(), "global_rank": 0, "world_size": 1, "is_global_zero": True}
    data.trainer = SimpleNamespace(**trainer, global_step=1, ckpt_path=None, default_root_dir=tmp_path)  # type: ignore[assignment]
    for has_gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        assert data.train_dataloader().pin_memory == data.val_dataloader().pin_memory == has_gpu
    copied: list[Any] = []
    monkeypatch.setattr(Batch, "to", lambda batch, device, non_blocking=False: copied.append((device, non_blocking)))
    data.transfer_batch_to_device(Batch([]), torch.device("cuda"), 0)
    assert copied == [(torch.device("cuda"), True)]


def test_a_training_that_samples_answers_requires_what_it_learns_to_predict(root: Path, tmp_path: Path) -> None:
    """As one that learns from answers; a test answers all the same."""
    data = VideoQADataModule(Readable(root), num_frames=2, pixels=PIXELS, num_workers=0)
    trainer = {"lightning_module": Learner(), "global_rank": 0, "world_size": 1, "is_global_zero": True}
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        **trainer, global_step=1, ckpt_path=None, default_root_dir=tmp_path, limit_val_batches=1.0
    )
    scene = data.dataset(data.scenes("train"))[0]
    scene.target_error = "unreadable depth"
    for asks in (False, True):
        data.trainer.lightning_module.asks_in_training = asks
        found = data.train_dataloader().collate_fn([scene])
        assert {each["error"] for each in found.failed} == {"unreadable depth"} and not found.records
        assert (found.sequences is None) and not found.prompts
    assert not data.val_dataloader().collate_fn([scene]).failed


def test_a_training_that_samples_answers_counts_the_questions_that_it_asks(root: Path, tmp_path: Path) -> None:
    class Talking(Readable):
        def scenes(self, split: Split) -> list[Scene]:
            talk = RawQuestion("talk", "", "How many?", "5", later_turns=(("And then?", "7"),))
            return [replace(scene, questions=(talk,)) for scene in super().scenes(split)[:1]]

    learner = Learner()
    data = VideoQADataModule(Talking(root), num_frames=2, pixels=PIXELS, num_workers=0)
    trainer = {"lightning_module": learner, "global_rank": 0, "world_size": 1, "is_global_zero": True}
    data.trainer = SimpleNamespace(**trainer, global_step=1, ckpt_path=None, default_root_dir=tmp_path)  # type: ignore[assignment]
    for asks, count in ((True, 1), (False, 2)):
        learner.asks_in_training = asks
        assert data.train_dataloader().batch_sampler.num_answers_of_step(0) == count  # type: ignore[union-attr]


# ---- scenes that can't be read ------------------------------------------------------------------------------

SCENE = f"tiny/scene{BROKEN}"
REASON = f"scene{BROKEN}/0.png: unreadable frame"
NUM_QUESTIONS = sum(QUESTIONS)


def ids(asked: list[list[str]]) -> list[str]:
    return sorted(id for batch in asked for id in batch)


def test_an_unreadable_scene_ends_a_training_unless_it_may_be_skipped(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{REASON}.*; --data.skip_failed 1 trains without this scene"):
        fit(tmp_path / "strict", Tiny(root), max_epochs=1)
    everything = ids(fit(tmp_path / "whole", Readable(root), max_epochs=1).asked)
    with pytest.warns(UserWarning) as said:
        skipping = fit(tmp_path / "run", Tiny(root), max_epochs=1, skip_failed=1)
    named = [str(each.message) for each in said if "goes on without" in str(each.message)]
    assert len(named) == 1 and named[0].startswith(f"training goes on without {SCENE}: ") and REASON in named[0]
    assert ids(skipping.asked) == everything and len(skipping.asked) == NUM_QUESTIONS  # none takes its steps away
    assert list(skipped_scenes(tmp_path / "run")) == [SCENE]


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_resumed_training_skips_the_same_scenes_and_counts_them_on(
    batch_size: int, root: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    settings: dict[str, Any] = {"skip_failed": 1, "batch_size": batch_size}
    whole = fit(tmp_path / "whole", Tiny(root), max_epochs=1, **settings)
    recwarn.clear()
    parts = [fit(tmp_path / "run", Tiny(root), max_steps=steps, **settings).asked for steps in (9, len(whole.asked))]
    assert sum(parts, []) == whole.asked
    assert sum("goes on without" in str(each.message) for each in recwarn) == 1
    assert len((tmp_path / "run/skipped_scenes.jsonl").read_text().splitlines()) == 1


def test_more_unreadable_scenes_than_may_be_skipped_end_a_training(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="; 2 training scenes can't be used, and --data.skip_failed is 1: the others"):
        fit(tmp_path / "run", Absent(root, 1), max_epochs=1, skip_failed=1)
    fit(tmp_path / "run", Absent(root, 1), max_epochs=1, skip_failed=2)  # which a resumed run may allow
    assert len(skipped_scenes(tmp_path / "run")) == 2


def test_the_limit_is_for_all_processes_together(tmp_path: Path) -> None:
    first, second = (SkippedScenes(1, tmp_path, rank) for rank in range(2))
    usable = SceneInputs(torch.zeros(0, 0), (1, 2, 2))
    failed = [Batch([usable], failed=[{"scene": f"tiny/{name}", "error": f"{name} is damaged"}]) for name in "aab"]
    with pytest.warns(UserWarning, match="goes on without tiny/a: a is damaged"):
        first(failed[0])
    second(failed[1])
    assert not failed[0].failed and not failed[1].failed
    with pytest.raises(InputError, match="^b is damaged; 2 training scenes"):
        second(failed[2])
    assert list(skipped_scenes(tmp_path)) == ["tiny/a"]  # b may be repaired


def test_a_training_from_its_start_forgets_the_scenes_of_another(root: Path, tmp_path: Path) -> None:
    (tmp_path / "skipped_scenes.rank3.jsonl").write_text('{"id": "tiny/former", "error": ""}\n')
    fit(tmp_path, Tiny(root), max_steps=9, skip_failed=1)
    assert not {"tiny/former"} & skipped_scenes(tmp_path).keys()


def test_a_resumed_training_keeps_the_skipped_scenes_whenever_it_is_restored(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As FSDP2 is: after `configure_optimizers`, which builds the loader to count the steps of an epoch."""
    monkeypatch.setattr(SingleDeviceStrategy, "restore_checkpoint_after_setup", True)
    settings: dict[str, Any] = {"max_epochs": 1, "skip_failed": 2}
    fit(tmp_path, Tiny(root), max_steps=3, **settings)
    (tmp_path / "skipped_scenes.jsonl").write_text('{"id": "tiny/former", "error": ""}\n')
    fit(tmp_path, Tiny(root), max_steps=6, **settings)
    assert "tiny/former" in skipped_scenes(tmp_path)


def test_a_training_of_which_no_scene_can_be_read_ends(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="; 10 training scenes can't be used, and --data.skip_failed is 99"):
        fit(tmp_path / "run", Absent(root, len(QUESTIONS)), max_epochs=1, skip_failed=99)

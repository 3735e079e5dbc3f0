"""A training on a DataModule's scenes: how it resumes, and what it does about a scene that can't be read."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from PIL import Image
from torch import Tensor

from callbacks import Checkpoint
from callbacks.checkpoint import CheckpointFiles
from datamodules import UniformSampler, VideoQADataModule
from datamodules.datamodule import skipped_scenes
from datamodules.dataset import SceneDataset
from datamodules.question_sampler import TrainingItem
from datamodules.samplers import SceneView
from datamodules.scenes import RawQuestion, Scene, file_size
from datamodules.sources.base import Split
from datamodules.sources.conversations import NO_MEDIUM
from tests import signatures
from tests.callbacks.breakable import BROKEN, LAUNCHERS, PIXELS, Tiny
from tests.datamodules.batches import spec_for
from tests.processes import free_port
from zoo.backbones import tiny_preprocessor
from zoo.errors import InputError
from zoo.model_spec import ModelSpec
from zoo.sequences.batch import Batch
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

    asks_in_training = False

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__(LearningRates(), torch.optim.AdamW, WarmupCosine)
        self.stop_at = stop_at
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.asked: list[list[str]] = []
        self.gradients: list[float] = []
        self.types: list[tuple[str, list[str]]] = []  # of each scene, see `LoadedScene`
        self.rates: list[float] = []
        self.drawn: list[Any] = []

    def model_spec(self, *, training: bool = False) -> ModelSpec:
        return spec_for(tiny_preprocessor(), asks_in_training=training and self.asks_in_training)

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
        return batch.weight * self.weight.square().sum()

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Update, and note the gradient of each step by the weights that it is of."""
        before = self.weight.detach().clone()
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.trainer.should_stop |= self.trainer.global_step + 1 == self.stop_at  # this one is not counted yet
        assert self.weight.grad is not None
        self.gradients.append(float((self.weight.grad / before).mean()))


class Hundred(Readable):
    """A hundred readable scenes of one question, before damaged ones."""

    def __init__(self, root: Path, damaged: int) -> None:
        super().__init__(root)
        self.damaged = damaged

    def scenes(self, split: Split) -> list[Scene]:
        readable = super().scenes(split)
        made = []
        for number in range(100 + self.damaged):
            scene = readable[number % len(readable)]
            folder = scene.video if number < 100 else self.root / f"scene{BROKEN}"
            question = replace(scene.questions[0], id=str(number))
            made.append(replace(scene, name=f"tiny/{number}", video=folder, questions=(question,)))
        return made


OF_TRAINER = ("max_steps", "max_epochs", "accumulate_grad_batches", "limit_train_batches")


OF_TRAINER += ("devices", "strategy", "use_distributed_sampler")


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


@pytest.mark.parametrize(
    ("settings", "is_restored_late"),
    [
        ({"num_workers": 1, "limit_train_batches": 5}, False),
        ({"accumulate_grad_batches": 3}, True),
        pytest.param({"limit_train_batches": 5}, True, marks=pytest.mark.slow),
        pytest.param({"accumulate_grad_batches": 3, "num_workers": 1}, False, marks=pytest.mark.slow),
    ],
)
def test_ten_steps_are_five_and_five(
    settings: dict[str, Any], is_restored_late: bool, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever an epoch ends; also where a strategy, as FSDP2, restores after Lightning has asked for the loader."""
    monkeypatch.setattr(SingleDeviceStrategy, "restore_checkpoint_after_setup", is_restored_late)
    whole = fit(tmp_path / "whole", Readable(root), max_steps=10, **settings)
    parts = [fit(tmp_path / "run", Readable(root), Learner(stop), max_steps=10, **settings) for stop in (5, None)]
    assert parts[0].asked + parts[1].asked == whole.asked
    assert len(parts[0].asked) == 5 * settings.get("accumulate_grad_batches", 1)
    assert torch.equal(parts[1].weight, whole.weight) and not torch.equal(parts[0].weight, whole.weight)


def test_resuming_with_other_settings_or_answers_is_an_error(root: Path, tmp_path: Path) -> None:
    """They would change which data a step sees."""
    settings: dict[str, Any] = {"limit_train_batches": 8}
    whole = fit(tmp_path / "whole", Readable(root), max_steps=6, **settings).asked
    begun = fit(tmp_path / "run", Readable(root), max_steps=3, **settings).asked
    for other, says in (
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches 1, now it is 2"),
        ({"limit_train_batches": 7}, "batches_per_epoch 8, now it is 7"),
        ({"batch_size": 2}, "batch_size 1, now it is 2"),
    ):
        with pytest.raises(InputError, match=f"^the checkpoint was trained with {says}"):
            fit(tmp_path / "run", Readable(root), max_steps=6, **(settings | other))
    changed = Readable(root)
    changed.answer = "B"  # as many as before
    with pytest.raises(InputError, match="other questions or answers"):
        fit(tmp_path / "run", changed, max_steps=6, **settings)
    assert begun + fit(tmp_path / "run", Readable(root), max_steps=6, **settings).asked == whole  # the control


@pytest.mark.parametrize("exchanged", [3, 5, 9])
def test_resuming_with_other_videos_warns_and_with_mostly_others_is_an_error(
    exchanged: int, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """A few scenes may be repaired. A copy has other times than its original, and is no other."""
    root = tmp_path / "scenes"
    fit(tmp_path / "run", Readable(root), max_steps=2)
    folders = [scene.video for scene in Readable(root).scenes("train")]
    for folder in folders:
        for frame in folder.iterdir():
            os.utime(frame, (1, 1))
    copied = shutil.copytree(tmp_path / "run", tmp_path / "copied")
    recwarn.clear()
    fit(copied, Readable(root), max_steps=3)
    assert not any("videos" in str(each.message) for each in recwarn)  # the control
    for folder in folders[:exchanged]:
        for frame in folder.iterdir():
            Image.fromarray(np.random.randint(0, 255, (28, 28, 3), np.uint8)).save(frame)
    says = f"the checkpoint was trained with other videos, cameras or depth of {exchanged} of 9 scenes, tiny/scene0 "
    if exchanged > 4:
        with pytest.raises(InputError, match=f"^{says}first: their files .*, or start anew$"):
            fit(tmp_path / "run", Readable(root), max_steps=4)
        return
    fit(tmp_path / "run", Readable(root), max_steps=4)
    assert [str(each.message).startswith(says) for each in recwarn if "other videos" in str(each.message)] == [True]


def test_the_size_of_a_scene_is_that_of_all_of_its_files(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(bytes(10 + number))
    video, depth, cameras = tmp_path / "v.mp4", tmp_path / "v.depth", tmp_path / "v.cameras.json"
    video.write_bytes(bytes(1000))
    cameras.write_bytes(bytes(100))
    shutil.copytree(tmp_path, depth, ignore=shutil.ignore_patterns("v*"))
    assert file_size(Scene("v", video, (), cameras, depth)) == 1000 + 100 + 4 + 10 + 13
    assert file_size(Scene("v", depth, (), tmp_path / "absent")) == 4 + 10 + 13
    images = tuple(tmp_path / f"{number}.png" for number in range(3))
    assert file_size(Scene("v", images[0], (), images=images)) == 10 + 11 + 12


def test_a_schedule_that_is_longer_goes_on_without_a_step_at_rate_zero(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = fit(tmp_path / "whole", Readable(root), max_steps=8).rates
    first = fit(tmp_path / "run", Readable(root), max_steps=4).rates
    assert "the schedule has" not in caplog.text
    rest = fit(tmp_path / "run", Readable(root), max_steps=8).rates
    assert first != whole[:4] and rest == whole[4:] and min(rest) > 0
    assert "the schedule has 8 steps, it had 4: learning rates go on at 61% of their peak" in caplog.text


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
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
    single = fit(tmp_path / "single", Readable(root), max_steps=10)  # a step is a question, and so are its types
    assert all(len(found) == 1 and found[0] in types[scene] for scene, found in single.types)


def data_of(source: Tiny, learner: Learner, folder: Path) -> VideoQADataModule:
    """The data of a training that has begun."""
    data = VideoQADataModule(source, num_frames=2, pixels=PIXELS, num_workers=0)
    trainer = {"lightning_module": learner, "global_rank": 0, "world_size": 1, "is_global_zero": True, "global_step": 1}
    trainer |= {"ckpt_path": None, "default_root_dir": folder, "limit_val_batches": 1.0}
    data.trainer = SimpleNamespace(**trainer)  # type: ignore[assignment]
    return data


def test_batches_are_pinned_for_a_gpu(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(Readable(root), Learner(), tmp_path)
    for has_gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        assert data.train_dataloader().pin_memory == data.val_dataloader().pin_memory == has_gpu


def test_a_training_that_samples_answers_requires_what_it_learns_to_predict(root: Path, tmp_path: Path) -> None:
    """As one that learns from answers; a test answers all the same."""
    learner = Learner()
    data = data_of(Readable(root), learner, tmp_path)
    scene = replace(data.dataset(data.scenes("train"))[0], target_error="unreadable depth")
    for asks in (False, True):
        learner.asks_in_training = asks
        data.setup("fit")
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
    data = data_of(Talking(root), learner, tmp_path)
    for asks, count in ((True, 1), (False, 2)):
        learner.asks_in_training = asks
        data.setup("fit")
        data.train_dataloader()
        assert data.question_sampler is not None
        assert data.question_sampler.shuffle(0).num_answers.tolist() == [count]


# ---- scenes that can't be read ------------------------------------------------------------------------------
REASON = f"scene{BROKEN}/0.png: unreadable frame"


def ids(asked: list[list[str]]) -> list[str]:
    return sorted(id for batch in asked for id in batch)


@pytest.mark.slow
def test_an_unreadable_scene_ends_a_training_unless_it_is_skipped(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{REASON}.*; --data.on_error skip trains without this scene"):
        fit(tmp_path / "strict", Tiny(root), max_epochs=1)
    with pytest.warns(UserWarning) as said:
        learner = fit(tmp_path / "run", Hundred(root, 1), max_epochs=1, on_error="skip")
    named = [str(each.message) for each in said if "goes on without" in str(each.message)]
    assert len(named) == 1 and named[0].startswith(f"training goes on without tiny/100: {root}")
    assert ids(learner.asked) == sorted(map(str, range(100))) and len(learner.asked) == 101  # a step learns nothing
    assert list(skipped_scenes(tmp_path / "run")) == ["tiny/100"]
    # of `weight ** 2` by the weight: a step is the mean over the answers that can be read
    assert sorted(learner.gradients, reverse=True) == pytest.approx([2.0] * 100 + [0.0])
    several = fit(tmp_path / "4", Hundred(root, 1), max_epochs=1, on_error="skip", accumulate_grad_batches=4)
    assert several.gradients == pytest.approx([2.0] * 26)


@pytest.mark.slow
def test_in_two_processes_the_mean_leaves_out_what_one_could_not_read(root: Path, tmp_path: Path) -> None:
    port = free_port()

    def one(rank: int) -> None:
        os.environ.update({name: str(value) for name, value in LAUNCHERS["torchrun"](rank, 2, port).items()})
        two: dict[str, Any] = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
        learner = fit(tmp_path, Hundred(root, 1), max_epochs=1, on_error="skip", **two)
        (tmp_path / f"gradients.{rank}").write_text(json.dumps([learner.gradients, learner.asked]))

    started = [multiprocessing.get_context("fork").Process(target=one, args=(rank,)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join()
        assert process.exitcode == 0
    (gradients, first), (same, second) = (json.loads((tmp_path / f"gradients.{r}").read_text()) for r in range(2))
    assert gradients == same == pytest.approx([2.0] * 51)
    assert ids(first + second) == sorted(map(str, range(100)))
    assert [] in [one for one, other in zip(first + second, second + first, strict=True) if other]  # it lost all
    assert list(skipped_scenes(tmp_path)) == ["tiny/100"]


@pytest.mark.slow
def test_a_resumed_training_skips_the_same_scenes(root: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    settings: dict[str, Any] = {"on_error": "skip", "batch_size": 4}
    whole = fit(tmp_path / "whole", Hundred(root, 1), max_epochs=2, **settings)
    recwarn.clear()
    parts = [fit(tmp_path / "run", Hundred(root, 1), max_epochs=epochs, **settings).asked for epochs in (1, 2)]
    assert sum(parts, []) == whole.asked
    assert sum("goes on without" in str(each.message) for each in recwarn) == 1
    assert len((tmp_path / "run/skipped_scenes.jsonl").read_text().splitlines()) == 1


def test_a_training_ends_above_a_share_of_skipped_scenes(root: Path, tmp_path: Path) -> None:
    says = "; 2 of 102 training scenes can't be used, and --data.on_error skip leaves out at most 1%: .*"
    with pytest.raises(InputError, match=f"{says}skipped_scenes.jsonl lists the others$"):
        fit(tmp_path / "run", Hundred(root, 2), max_epochs=1, on_error="skip")
    assert len(skipped_scenes(tmp_path / "run")) == 1  # the other may be repaired
    with pytest.raises(InputError, match="; 1 of 10 training scenes can't be used"):
        fit(tmp_path / "ten", Tiny(root), max_epochs=1, on_error="skip")


def test_a_training_from_its_start_forgets_the_scenes_of_another(root: Path, tmp_path: Path) -> None:
    (tmp_path / "skipped_scenes.jsonl").write_text('{"id": "tiny/former", "error": ""}\n')
    fit(tmp_path, Hundred(root, 1), max_steps=9, on_error="skip")
    assert not {"tiny/former"} & skipped_scenes(tmp_path).keys()
    (tmp_path / "skipped_scenes.jsonl").write_text('{"id": "tiny/former", "error": ""}\n')
    fit(tmp_path, Hundred(root, 1), max_steps=10, on_error="skip")  # which resumes
    assert {"tiny/former"} & skipped_scenes(tmp_path).keys()


def test_missing_cameras_end_a_training_before_its_first_step(root: Path, tmp_path: Path) -> None:
    class Posed(Hundred):
        bare: tuple[int, ...] = ()

        def scenes(self, split: Split) -> list[Scene]:
            scenes = super().scenes(split)  # a file of cameras is not opened before its scene is read
            return [replace(s, cameras=None if i in self.bare else tmp_path / "c.json") for i, s in enumerate(scenes)]

    class Seeing(Learner):
        def model_spec(self, *, training: bool = False) -> ModelSpec:
            return replace(super().model_spec(training=training), requires_cameras=True)

    data = data_of(Posed(root, 0), Seeing(), tmp_path)
    data.setup("fit")
    for Posed.bare, on_error, is_refused in (((2, 5), "raise", True), ((2, 5), "skip", True), ((), "raise", False)):
        data.on_error = on_error
        says = "^train: 2 of 100 scenes can't be used, tiny/2, tiny/5 first: .*: no cameras, .* --data.on_error skip "
        with pytest.raises(InputError, match=says) if is_refused else nullcontext():
            data.train_dataloader()
    Posed.bare = (2,)
    data.on_error = "skip"
    data.train_dataloader()  # one of a hundred may be left out
    with pytest.warns(UserWarning, match="^val: 1 of 100 scenes can't be used, tiny/2 first: .*score 0$"):
        data.val_dataloader()


# ---- scenes whose files are missing -------------------------------------------------------------------------------


class Incomplete(Readable):
    """Some videos of two folders are missing, and a row names none."""

    def scenes(self, split: Split) -> list[Scene]:
        names = [*(f"far/{i}" for i in range(7)), "near/videos/0", NO_MEDIUM]
        self.missing = {name: Counter({"": 1}) for name in names[: None if split == "train" else 0]}
        return super().scenes(split)


@pytest.mark.slow
def test_missing_videos_end_a_training_before_its_first_step_unless_they_are_skipped(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    says = (
        "^the videos or images of 9 training scenes are missing, and 9 scenes are there: 7 in far, 1 in near/videos, "
        "1 in .; first far/0, far/1, .*; missing_scenes.txt lists all: .* --data.on_missing skip$"
    )
    learner = Learner()
    with pytest.raises(InputError, match=says):
        fit(tmp_path / "run", Incomplete(root), learner, max_epochs=1)
    names = [*(f"far/{i}" for i in range(7)), "near/videos/0", NO_MEDIUM]
    assert Path("missing_scenes.txt").read_text().splitlines()[1:] == names
    assert not learner.asked
    assert fit(tmp_path / "run", Incomplete(root), max_epochs=1, on_missing="skip").asked
    Path("missing_scenes.txt").unlink()
    monkeypatch.setattr(Incomplete, "scenes", Readable.scenes)  # negative control: nothing is missing
    assert fit(tmp_path / "whole", Incomplete(root), max_epochs=1).asked and not Path("missing_scenes.txt").exists()

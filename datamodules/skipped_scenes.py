"""Scenes that a training passes over, since they can't be used: at most `--data.skip_failed`, recorded in its run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from torch.utils.data import Dataset

from datamodules.loaded_scene import LoadedScene
from datamodules.question_sampler import TrainingItem
from zoo.errors import InputError
from zoo.files.atomic_io import JSONLines, read_records
from zoo.sequences.batch import Batch


def skipped_scenes(run: Path) -> dict[str, str]:
    """Return the error of each scene that the training of a run has passed over, on any of its processes."""
    return {record["id"]: record["error"] for record in read_records(sorted(run.glob("skipped_scenes*.jsonl")))}


class SkippedScenes:
    """Pass over the failed scenes of training batches, as many as the limit allows.

    Each of these is named once and appended to `skipped_scenes.jsonl` in the run's folder, of further processes to
    `skipped_scenes.rank1.jsonl` and so on; the limit is for all processes together, also after a resume.

    Args:
        limit: The number of scenes.
        run: Folder of the run.
        rank: This process.
    """

    def __init__(self, limit: int, run: Path, rank: int) -> None:
        self.limit, self.run = limit, run
        self.file = run / f"skipped_scenes{f'.rank{rank}' if rank else ''}.jsonl"

    def forget(self) -> None:
        """Remove the record of a former training in the folder, of all of its processes."""
        for file in self.run.glob("skipped_scenes*.jsonl"):
            file.unlink()

    def __call__(self, batch: Batch) -> None:
        """Remove the failed questions of a batch.

        Raises:
            InputError: More scenes than the limit can't be used, or none can: training must not continue without them.
        """
        failed = {record["scene"]: record["error"] for record in batch.failed}
        if not failed:
            return
        reason = next(iter(failed.values()))
        if not self.limit:
            raise InputError(f"{reason}; --data.skip_failed 1 trains without this scene")
        known = skipped_scenes(self.run).keys()  # by all processes
        new = sorted(failed.keys() - known)
        if (count := len(known) + len(new)) > self.limit or not batch.scenes:
            raise InputError(
                f"{reason}; {count} training scenes can't be used, and --data.skip_failed is {self.limit}: the others "
                f"are in {self.run}/skipped_scenes*.jsonl"
            )
        if new:
            self.run.mkdir(parents=True, exist_ok=True)
            file = JSONLines(self.file)
            file.append([{"id": scene, "error": failed[scene]} for scene in new])
            file.close()
        for scene in new:
            warnings.warn(f"training goes on without {scene}: {failed[scene]}", stacklevel=2)
        batch.failed = []


class SpareCollate:
    """Collate training batches; one of which no scene can be used gets another scene, which nothing is learned from.

    The processes of a training thus take each step together.

    Args:
        collate: Makes a batch of loaded scenes.
        dataset: By `TrainingItem`.
        num_scenes: Scenes of the dataset.
        limit: Scenes that may fail; as many others are tried, and one more.
    """

    def __init__(
        self, collate: Callable[[Sequence[LoadedScene]], Batch], dataset: Dataset, num_scenes: int, limit: int
    ) -> None:
        self.collate, self.dataset, self.num_spares = collate, dataset, min(num_scenes, limit + 1)

    def __call__(self, loaded: Sequence[LoadedScene]) -> Batch:
        batch = self.collate(loaded)
        for scene in range(self.num_spares):
            if batch.scenes:
                break
            failed = batch.failed
            batch = self.collate([self.dataset[TrainingItem(scene, (0,), is_padding=True)]])
            batch.failed = failed + batch.failed
        return batch

"""Conversations about videos or images: the training format of Spatial-MLLM, VSI-590K and most other models."""

from __future__ import annotations

import os.path
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datamodules.depth import find_depth
from datamodules.scenes import MediaFiles, Question, Scene
from datamodules.sources.annotations import find_cameras, find_video
from datamodules.sources.base import Missing, SceneSource, Split, by_type, require_file
from datamodules.sources.scene_index import ImportedScenes
from datamodules.video import VIDEO_SUFFIXES
from zoo.benchmarks import Benchmark
from zoo.errors import InputError
from zoo.files.fingerprint import fingerprint

NO_MEDIUM = "rows without a video or image"  # the name under which rows of plain text count as missing


class Conversations(SceneSource):
    r"""Questions and free answers about videos or images, for training.

    All questions about one video, or about the same images, form one scene.

        {"video": "scannet/scene0000_00.mp4", "conversations": [{"from": "human", "value": "<video>\nHow many ...?"},
                                                                 {"from": "gpt", "value": "4"}]}

    One object per line (.jsonl), or a list of objects (.json); the key may also be "conversation", and "image" is a
    file or a list of files. The texts are used unchanged, with the media where their marks <video> or <image> are
    (VSI-590K marks videos by <image> as well), or first. Rows of plain text, and rows whose video or images are absent,
    count as missing.

    Args:
        path: The file; `data.jsonl%25` selects a fixed 25 % of its rows.
        videos: Folder of the videos; null is the file's folder. A folder of frames may replace a video file, and
            `<name>.cameras.json` beside either is used.
        cameras: Folder of cameras and depth by scene, as `import-cameras --dataset` writes it. Frames that were
            imported with their cameras replace the video. Null takes what is beside the videos.
        separate_turns: Make each turn of a conversation a question of its own; else a conversation is one sequence in
            which every answer is learned from, as in the published training.
        seed: Seed of the selection of rows.
        evaluation: Score the answers instead of training on them, as the test split; each turn is its own question.
            Rows whose `question_type` is none of the benchmark's are left out.
        benchmark: Question types and scorers, see `SceneFolder`; null is VSI-Bench.

    Raises:
        FileNotFoundError: The file is absent.
        ValueError: The file is invalid; names the line.
    """

    def __init__(
        self,
        path: str,
        videos: str | None = None,
        cameras: str | None = None,
        separate_turns: bool = False,
        seed: int = 0,
        evaluation: bool = False,
        benchmark: Benchmark | None = None,
    ) -> None:
        super().__init__(benchmark)
        file, percent, share = path.rpartition("%")
        if percent and not (share.replace(".", "", 1).isdecimal() and 0 < float(share) <= 100):
            raise InputError(f"{path}: after % give the percentage of rows to use, above 0 and up to 100")
        self.path = Path(file if percent else path).expanduser()
        self.share = float(share) / 100 if percent else 1.0
        self.videos = Path(videos).expanduser() if videos else self.path.parent
        self.cameras = Path(cameras).expanduser() if cameras else None
        self.separate_turns, self.seed, self.evaluation = separate_turns or evaluation, seed, evaluation

    def prepare(self) -> None:
        """Checks that the file exists."""
        require_file(self.path, "it should hold conversations, one JSON object per line")

    def scenes(self, split: Split) -> list[Scene]:
        """List the scenes of the training split, or of the test split, which also serves validation."""
        from datamodules.sources.conversation_index import IndexedQuestions, open_index  # pyarrow takes a moment

        check_split(self, split, self.evaluation)
        self.prepare()
        index = open_index(self.path)
        if not len(index):
            raise ValueError(f"{self.path}: no row has a video or image")
        # 1. The selected rows, and the turns that are questions of their own.
        rows = np.arange(len(index))
        if self.share < 1:
            count = max(1, round(self.share * len(index)))
            rows = np.array(sorted(random.Random(self.seed).sample(range(len(index)), count)))
        if self.evaluation:
            kinds = index.texts.column("question_type").to_numpy()[rows]
            rows = rows[np.isin(kinds, self.benchmark.question_types)]
        turns = np.full(len(rows), -1)
        if self.separate_turns:
            turns = np.concatenate([np.arange(n) for n in index.num_turns[rows]])
            rows = np.repeat(rows, index.num_turns[rows])
        # 2. The questions of each video.
        media = index.medium_of[rows]
        order = np.argsort(media, kind="stable")
        shown, starts = np.unique(media[order], return_index=True)
        types = frozenset(self.benchmark.question_types)
        questions: dict[MediaFiles, Sequence[Question]] = {}
        self.missing = {}
        for medium, own in zip(shown.tolist(), np.split(order, starts[1:]), strict=True):
            asked = IndexedQuestions(index, self.path.stem, types, rows[own], turns[own])
            if medium < 0:
                self.missing[NO_MEDIUM] = by_type(asked)
            else:
                questions[index.media[medium]] = asked
        if not questions:
            of_type = f" and a question_type of {self.benchmark.name}" if self.evaluation else ""
            raise ValueError(f"{self.path}: no row has a video or image{of_type}")
        return list_scenes(self.videos, questions, self.missing, self.cameras)


def check_split(source: SceneSource, split: Split, evaluation: bool) -> None:
    """Raise ValueError for the test split of a source to train on, and for the training split of one to test on."""
    name = type(source).__name__
    if evaluation and split == "train":
        raise ValueError(f"{name}: --data.source.evaluation is for a test: train on another source")
    if not evaluation and split != "train":
        remedy = (
            "score them with `evaluation: true`, set the `evaluation` of a `Mixture`, or --trainer.limit_val_batches 0"
        )
        raise ValueError(f"{name} is for training, its free answers have no score: {remedy}")


def list_scenes(
    root: Path, questions: dict[MediaFiles, Sequence[Question]], missing: Missing, cameras: Path | None = None
) -> list[Scene]:
    """Build scenes from questions by video or images; add scenes with absent files to `missing`.

    A scene's name is its video's path without the suffix, or the last two parts of an absolute path. Images have the
    name of the first, and a fingerprint of all names where there are several.

    Args:
        root: Folder of the videos and images.
        questions: Questions by video or images.
        missing: Scenes with absent files.
        cameras: Folder of cameras and depth by scene; None takes what is beside the videos.

    Raises:
        InputError: No scene has cameras in their folder.
        ValueError: Two scenes share a name.
    """
    imported = ImportedScenes(cameras) if cameras else None
    scenes: list[Scene] = []
    paths: dict[str, Path] = {}
    for named, asked in questions.items():
        if isinstance(named, tuple):
            files = tuple(root / name for name in named)
            name = named[0] if len(named) == 1 else f"{named[0]}+{fingerprint(named)[:8]}"
            if all(map(os.path.isfile, files)):
                scenes.append(Scene(name, files[0], asked, images=files))
            else:
                missing.setdefault(name, Counter()).update(by_type(asked))
            continue
        path = Path(named)
        bare = path.with_suffix("") if path.suffix.lower() in VIDEO_SUFFIXES else path
        parts = [part for part in bare.parts if part != ".."]  # selections are written at the name, below their folder
        name = "/".join(parts[-2:] if path.is_absolute() else parts)
        known = imported.find(str(bare)) if imported else None
        found = known.frames if known else None
        found = found or (root / path if os.path.isfile(root / path) else find_video(root, str(bare)))
        if found is None:
            missing.setdefault(name, Counter()).update(by_type(asked))
            continue
        if paths.setdefault(name, found) != found:
            raise ValueError(f"{paths[name]} and {found} share the scene name {name}: use paths relative to `videos`")
        beside = find_cameras(found), find_depth(found)
        scenes.append(Scene(name, found, asked, *((known.cameras, known.depth) if known else beside)))
    if cameras and scenes and all(scene.cameras is None for scene in scenes):
        raise InputError(f"{cameras}: no cameras of any scene, such as {scenes[0].name}: import those of its dataset")
    return scenes

"""Annotation files in VSI-Bench's format, and the folder layout of their videos.

    <root>/<name>.jsonl                         one question per line; or <name>.parquet, one question per row
    <root>/<dataset>/<scene_name>.mp4           or .mov, .avi, .mkv, .webm, or a folder of frames of that name
    <root>/<dataset>/<scene_name>.cameras.json  optional: one camera per raw frame
    <root>/<dataset>/<scene_name>.depth/        optional: one depth image per raw frame, see `datamodules.depth`

A question has the fields id, dataset, scene_name, question_type, question, ground_truth and options. Options are a
list, or null for numeric questions.
"""

from __future__ import annotations

import os.path
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datamodules.depth import find_depth
from datamodules.scenes import MediaFiles, Question, Scene
from datamodules.sources.base import Missing, SceneSource, Split, by_type, require_file
from datamodules.video import VIDEO_SUFFIXES, companion_name, media_path
from zoo.benchmarks import Benchmark, VSIBench
from zoo.errors import InputError
from zoo.files.atomic_io import parse_json, read_json
from zoo.files.fingerprint import fingerprint

Row = dict[str, Any]
REQUIRED = ("id", "dataset", "scene_name", "question_type", "question", "ground_truth")
CAMERAS = ".cameras.json"


def read_questions(
    path: str | Path, benchmark: Benchmark | None = None, convert: Callable[[Row], Row] = dict
) -> dict[str, list[Question]]:
    """Read the questions of each "<dataset>/<scene_name>", in the order of the file.

    Args:
        path: See `read_rows`.
        benchmark: Defines the question types. None uses VSI-Bench.
        convert: Converts a row of another format to these fields. Its ValueError is raised again with file and line.

    Raises:
        ValueError: Invalid JSON, a missing field, an unknown question type, a repeated id, a name that leaves its
            folder, options that don't fit the type or the ground truth, a text that is not Unicode (each with file and
            line), or a file without questions.
        FileNotFoundError: The file is missing.
    """
    path = Path(path)
    scenes: dict[str, list[Question]] = {}
    line_of_id: dict[str, int] = {}
    for number, row in read_rows(path):
        where = f"{path}:{number}"
        try:
            row = convert(row)
            question = _question(row, benchmark or VSIBench())
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if question.id in line_of_id:
            raise ValueError(f"{where}: id {question.id} repeats line {line_of_id[question.id]}: ids must be unique")
        line_of_id[question.id] = number
        name = f"{row['dataset']}/{row['scene_name']}"
        if {"", ".", ".."} & set(name.split("/")):  # files are read, and caches written, at this path
            raise ValueError(f"{where}: {name} leaves its folder: name a scene without .. and without an empty part")
        scenes.setdefault(name, []).append(question)
    if not scenes:
        raise ValueError(f"{path}: no questions in this file: a split needs at least one")
    return scenes


def _question(row: Row, benchmark: Benchmark) -> Question:
    if wrong := [field for field in REQUIRED if not isinstance(row.get(field), (str, int, float))]:
        raise ValueError(f"missing or no text: {', '.join(wrong)}; a question has {', '.join(REQUIRED)}")
    kind, truth, options = str(row["question_type"]), str(row["ground_truth"]), row.get("options") or []
    benchmark.check_question_type(kind)
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise ValueError('options must be a list such as ["A. chair", "B. sofa"], or null')
    if kind in benchmark.multiple_choice_types:
        if not options:
            raise ValueError(f"options are missing, {kind} is multiple choice")
        letters = [option.split(".", 1)[0] for option in options]
        if truth not in letters:
            raise ValueError(f"ground_truth {truth!r} is none of the options {', '.join(letters)}")
        if len({letter.lower() for letter in letters}) < len(letters):
            raise ValueError(f"options have a letter twice: {', '.join(letters)}")
    elif options:
        raise ValueError(f"{kind} is numeric: options must be null")
    benchmark.check_ground_truth(truth, kind)
    try:
        " ".join([*(str(row[field]) for field in REQUIRED), *options]).encode()
    except UnicodeEncodeError as error:
        raise ValueError("a text has half of a surrogate pair, which is no character") from error
    return Question(str(row["id"]), kind, str(row["question"]), truth, tuple(options))


# ---- Rows of .jsonl, .json and .parquet files -----------------------------------------------------------------------


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a file with their numbers from 1.

    Args:
        path: A .json file with a list of objects, a .parquet file, or one object per line.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is damaged. The message names the invalid row.
    """
    rows: Iterable[tuple[int, Any]]
    if path.suffix == ".json":
        content = read_json(path)
        if not isinstance(content, list):
            raise ValueError(f"{path}: expected a list of objects, got a {type(content).__name__}")
        rows = enumerate(content, start=1)
    else:
        rows = enumerate(_read_parquet(path), start=1) if path.suffix == ".parquet" else _read_lines(path)
    for number, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: expected a JSON object, got a {type(row).__name__}")
        yield number, row


def _read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield number, parse_json(line)
                except ValueError as error:
                    raise ValueError(f"{path}:{number}: not valid JSON ({error})") from error


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    from pyarrow import ArrowException, parquet  # slow to import

    try:
        return parquet.read_table(path).to_pylist()
    except FileNotFoundError:
        raise
    except (ArrowException, OSError, ValueError) as error:  # OSError in reading, ValueError in decoding texts
        raise ValueError(f"{path}: not a parquet file, or truncated: download it again") from error


# ---- The files of a scene: its video, cameras and depth -------------------------------------------------------------


def read_layout(
    root: str | Path,
    annotations: str | Path,
    left_out: Container[str] = (),
    benchmark: Benchmark | None = None,
    convert: Callable[[Row], Row] = dict,
) -> tuple[list[Scene], Missing]:
    """List the scenes of an annotation file.

    Args:
        root: Folder of the videos.
        annotations: A file name in `root`, or an absolute path.
        left_out: Ids of questions to ignore. A scene without other questions is ignored too.
        benchmark: Defines the question types. None uses VSI-Bench.
        convert: See `read_questions`.

    Returns:
        The scenes in the order of the file, and the scenes whose video is missing.

    Raises:
        ValueError: See `read_questions`.
        FileNotFoundError: The annotation file is missing.
    """
    root = Path(root)
    scenes: list[Scene] = []
    missing: Missing = {}
    for name, asked in read_questions(root / annotations, benchmark, convert).items():
        questions = [question for question in asked if question.id not in left_out]
        if not questions:
            continue
        video = find_video(root, name)
        if video is None:
            missing[name] = by_type(questions)
            continue
        scenes.append(Scene(name, video, tuple(questions), find_cameras(video), find_depth(video)))
    return scenes, missing


def find_video(root: Path, name: str) -> Path | None:
    """Return the video file of the scene "<dataset>/<scene_name>", or its folder of frames, or None."""
    candidates = [
        root / f"{name}{each}" for suffix in VIDEO_SUFFIXES for each in (suffix, suffix.upper(), suffix.title())
    ]
    if video := next(filter(os.path.isfile, candidates), None):  # Path.is_file raises for names that are too long
        return video
    return root / name if os.path.isdir(root / name) else None


def find_cameras(video: Path) -> Path | None:
    """Return the cameras file beside a video file or a folder of frames, or None."""
    cameras = video.with_name(f"{companion_name(video)}{CAMERAS}")
    return cameras if cameras.is_file() else None


# ---- Files by the scene's name, independent of the folders before it ------------------------------------------------
# Datasets of questions write the same scene as scannet/scene0085_00.mp4 (VSI-590K),
# scannet/videos/scene0085_00.mp4 (VLM-3R) or ScanNet/videos/train/...: its name is scene0085_00 in all of them


def _inside(path: Path) -> str:
    """Return a scene's name for the path of its file: files are written at this name, inside their folder."""
    parts = [part for part in path.parts if part != ".."]
    return "/".join(parts[-2:] if path.is_absolute() else parts)


def list_scenes(
    root: Path, questions: dict[MediaFiles, Sequence[Question]], missing: Missing, cameras: Path | None = None
) -> list[Scene]:
    """Build scenes from questions by video or images. Scenes with missing files are added to `missing`.

    A scene's name is its video's path without the suffix, or the last two parts of an absolute path. A scene of images
    has the name of the first image, and with several images a fingerprint of all names.

    Args:
        root: Folder of the videos and images.
        questions: Questions by video or images.
        missing: Scenes with missing files.
        cameras: Folder of cameras and depth by scene. None uses the files beside the videos.

    Raises:
        InputError: The folder of cameras has none for any scene.
        ValueError: Two scenes share a name.
    """
    imported = _imported_cameras(cameras) if cameras else None
    scenes: list[Scene] = []
    paths: dict[str, Path] = {}
    for named, asked in questions.items():
        if isinstance(named, tuple):
            files = tuple(root / name for name in named)
            first = _inside(Path(named[0]))
            is_whole = len(named) == 1 and first == named[0]  # otherwise other images may have the same name
            name = first if is_whole else f"{first}+{fingerprint(named)[:8]}"
            if all(map(os.path.isfile, files)):
                scenes.append(Scene(name, files[0], asked, images=files))
            else:
                missing.setdefault(name, Counter()).update(by_type(asked))
            continue
        path = Path(named)
        bare = path.with_suffix("") if path.suffix.lower() in VIDEO_SUFFIXES else path
        name = _inside(bare)
        file = imported.find(str(bare)) if imported else None
        found = file and _folder(file, "")  # cameras of frames have the frames beside them; cameras of a video do not
        found = found or (root / path if os.path.isfile(root / path) else find_video(root, str(bare)))
        if found is None:
            missing.setdefault(name, Counter()).update(by_type(asked))
            continue
        if paths.setdefault(name, found) != found:
            raise ValueError(f"{paths[name]} and {found} share the scene name {name}: use paths relative to `videos`")
        depth = _folder(file, ".depth") if file else find_depth(found)
        scenes.append(Scene(name, found, asked, file or find_cameras(found), depth))
    if cameras and scenes and all(scene.cameras is None for scene in scenes):
        raise InputError(f"{cameras}: no cameras of any scene, such as {scenes[0].name}: import those of its dataset")
    return scenes


def _imported_cameras(root: Path) -> SceneIndex:
    """Return the cameras that `import-cameras --dataset` has written to <root>/<dataset>/<scene>.cameras.json."""
    files = [*root.glob(f"*{CAMERAS}"), *root.glob(f"*/*{CAMERAS}")]
    if not files:
        raise InputError(f"{root}: no <dataset>/<scene>{CAMERAS} there: import-cameras --dataset writes them")
    return SceneIndex(files, CAMERAS)


def _folder(cameras: Path, suffix: str) -> Path | None:
    """Return the folder beside a cameras file with the scene's name and a suffix, or None if it is missing."""
    folder = cameras.with_name(cameras.name.removesuffix(CAMERAS) + suffix)
    return folder if folder.is_dir() else None


class SceneIndex:
    """Find files by the names of their scenes.

    Args:
        files: Files named after scenes, in folders named after datasets.
        suffix: End of the file name after the scene's name. If empty, the file's suffix.
    """

    def __init__(self, files: Iterable[Path], suffix: str = "") -> None:
        self._by_scene: dict[str, list[Path]] = {}
        for file in sorted(files):
            self._by_scene.setdefault(file.name.removesuffix(suffix) if suffix else file.stem, []).append(file)

    def find(self, name: str) -> Path | None:
        """Return the file of a scene.

        Args:
            name: The scene's name after its folders. If several datasets have the scene, a folder must name the
                dataset.

        Raises:
            InputError: Several files match.
        """
        *folders, scene = Path(name).parts
        files = self._by_scene.get(scene, [])
        if len(files) > 1:
            datasets = {_plain(folder) for folder in folders}
            files = [file for file in files if datasets & {_plain(part) for part in file.parent.parts}] or files
        if len(files) > 1:
            raise InputError(f"{name}: {files[0]} and {files[1]} are both of a scene {scene}: remove one of them")
        return files[0] if files else None


def _plain(folder: str) -> str:
    """Normalize the spelling of a dataset's name: ScanNet++ becomes scannetpp."""
    return "".join(filter(str.isalnum, folder.lower().replace("+", "p")))


# ---- The user's own videos: a folder of scenes with questions, or one video with one question -----------------------


class SceneFolder(SceneSource):
    """Videos with questions and optional cameras: `<root>/{train,val,test}.jsonl` and the videos.

    Args:
        root: The folder, see `datamodules.sources.annotations`. For cameras, see `datamodules.cameras_file`.
        benchmark: Defines question types, wording and scorers: a class of `zoo.benchmarks`, a class of your own, or
            `OwnQuestions`, whose options list the types. null uses VSI-Bench.

    Raises:
        FileNotFoundError: Raised in `scenes`: the split has no question file.
        ValueError: Raised in `scenes`: a question is malformed.
    """

    def __init__(self, root: str, benchmark: Benchmark | None = None) -> None:
        super().__init__(benchmark)
        self.root = Path(root).expanduser()

    def scenes(self, split: Split) -> list[Scene]:
        """Return the scenes whose videos exist. The others are in `missing`."""
        require_file(self.root / f"{split}.jsonl", "--data.source.root is its folder")
        scenes, self.missing = read_layout(self.root, f"{split}.jsonl", benchmark=self.benchmark)
        return scenes


class SingleVideo(SceneSource):
    """One video with one question and no ground truth.

    Args:
        video: A video file or a folder of frames. Cameras and depth beside it are used.
        question: The question.
        cameras: Path of the cameras file. null uses the one beside the video.

    Raises:
        FileNotFoundError: The video or the cameras file is missing.
    """

    def __init__(self, video: str, question: str, cameras: str | None = None) -> None:
        super().__init__()
        self.video = media_path(video)
        self.cameras = Path(cameras).expanduser() if cameras else None
        self.question = Question("0", "", question)

    def prepare(self) -> None:
        """Check that the files exist."""
        for path, what in ((self.video, "video file or folder of frames"), (self.cameras, "cameras file")):
            if path is not None and not path.exists():
                raise FileNotFoundError(f"{path}: no such {what}")

    def scenes(self, split: Split) -> list[Scene]:
        """Return the one scene."""
        if split == "train":
            raise ValueError(f"{self.video}: a question without a ground truth can't be trained on: use predict")
        self.prepare()
        cameras = self.cameras or find_cameras(self.video)
        return [Scene(companion_name(self.video), self.video, (self.question,), cameras, find_depth(self.video))]

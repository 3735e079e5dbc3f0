"""Pictures of the scenes that tests were asked about, for a report's page: the shown frames, and a map of the cameras.

Videos are found as the tests found them, by the data of their configs. Nothing is rendered or downloaded. A picture
that is there from a former report of the same video and frames is kept.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from PIL import Image

from commands.explain import FOLDER
from commands.reports.scores import Tested
from datamodules import VideoQADataModule
from datamodules.dataset import SceneDataset
from evaluation.drawings import SOFTWARE, SOFTWARE_CHUNK, camera_map, contact_sheet, software_info
from run_folder.results import TESTS
from zoo.configuration import check_class_paths, from_config, is_own, named_modules, with_default_caches
from zoo.errors import SCENE_FAULTS, describe
from zoo.files.atomic_io import parse_json, replace_file
from zoo.files.fingerprint import file_fingerprint, fingerprint
from zoo.files.ownership import begins_with
from zoo.progress import progress
from zoo.weights.saved_models import config_of

COLUMNS = 8  # frames per row of a sheet
MAP_COLORS = 32
QUALITIES = (60, 30)  # of JPEG; the second for sheets that are too large by the first
LIMIT = 30 * 10**6  # bytes of all pictures of a page
FULL = f"the pictures of a page have at most {LIMIT / 1e6:.0f} MB"

MOST_BYTES = 10**7  # of a file of `explain` that is copied
JPEG_MARK = b"\xff\xfe" + (len(SOFTWARE[1]) + 2).to_bytes(2, "big") + SOFTWARE[1].encode(), 20  # and its place

Shown = tuple[str, tuple[int, ...]]  # a scene's name, and the numbers of its frames


class Pictures(NamedTuple):
    """Addresses of pictures relative to a page.

    Attributes:
        shown: Of each scene with its frames: the frames, and the cameras from above.
        explained: Of the folder of each test and a question's id: the picture of `main.py explain`.
    """

    shown: Mapping[Shown, Sequence[str]]
    explained: Mapping[Path, Mapping[str, str]]


def picture_folder(page: Path) -> Path:
    """Return the folder of a page's pictures, which is beside it."""
    return page.with_name(f"{page.stem}_pictures")


def make_pictures(tested: Sequence[Tested], page: Path) -> tuple[Pictures, list[str]]:
    """Write the pictures of all scenes and selections of frames that tests have shown, and copy those of `explain`.

    Args:
        tested: The tests. Those with a perturbation are left out, because they showed something else.
        page: The file of the page.

    Returns:
        The pictures, and notes about those that are left out.
    """
    if picture_folder(page).is_symlink():
        return Pictures({}, {}), [f"pictures are left out: {picture_folder(page)} is a link, which is not followed"]
    wanted = _datasets(tested)
    found: dict[Shown, list[str]] = {}
    reasons: dict[Shown, str] = {}
    explained, total, notes = _copy_explanations(tested, page)  # first: someone asked for each of them
    for shown, source in progress(wanted.items(), "report: pictures", "scenes", len(wanted)):
        if isinstance(source, str):
            reasons[shown] = source
            continue
        try:
            files = list(_write(source, shown, picture_folder(page), LIMIT // len(wanted)))
        except SCENE_FAULTS as error:
            reasons[shown] = describe(error)
            continue
        total += sum(file.stat().st_size for file in files)
        if total > LIMIT:
            reasons[shown] = FULL
            break
        found[shown] = [_address(file) for file in files]
    made = Pictures(found, explained)
    if not reasons:
        return made, notes
    left_out = len({scene for scene, _ in wanted} - {scene for scene, _ in found})
    scenes = f"{left_out} of {len({scene for scene, _ in wanted})} scenes"
    return made, [*notes, f"pictures of {scenes} are left out: {next(iter(reasons.values()))}"]


def _copy_explanations(tested: Sequence[Tested], page: Path) -> tuple[dict[Path, dict[str, str]], int, list[str]]:
    """Copy the pictures of `main.py explain` beside the page, see `Pictures`.

    A picture belongs to a test if both have the same answer about the same frames. A perturbed test showed other ones.

    Returns:
        The pictures, their bytes, and notes about those that are left out.
    """
    found: dict[Path, dict[str, str]] = {}
    sizes: dict[Path, int] = {}
    left_out = 0
    for each in tested:
        if (
            each.folder is None
            or not {"frames", "prediction"} <= {*each.questions}
            or _perturbation(each.folder) is not None
        ):
            continue
        run = each.folder.parent.parent if each.folder.parent.name == TESTS else each.folder
        if (run / FOLDER).is_symlink():
            continue
        for file in sorted((run / FOLDER).glob("*.json")):
            drawn = file.with_suffix(".png")
            with suppress(OSError, ValueError, KeyError, TypeError):  # no picture stops a report
                content = parse_json(_read(file))
                row = each.questions.loc[content["id"]]
                frames = [frame for view in content["views"] for frame in view["frames"]]
                is_same = row["prediction"].strip() == content["answer"].strip() and [*row["frames"]] == frames
                if is_same and not content["is_given"] and begins_with(drawn, *SOFTWARE_CHUNK):
                    data = _read(drawn)
                    copied = picture_folder(page) / f"{fingerprint(data.hex())}.png"
                    if sum(sizes.values()) + len(data) > LIMIT:
                        left_out += 1
                        continue
                    if not _is_there(copied):
                        replace_file(copied, data)
                    sizes[copied] = len(data)
                    found.setdefault(each.folder, {})[content["id"]] = _address(copied)
    return found, sum(sizes.values()), [f"{left_out} explanations are left out: {FULL}"] if left_out else []


def _read(file: Path) -> bytes:
    """Return the bytes of a small regular file.

    Raises:
        OSError: It is something else, or large.
    """
    if not stat.S_ISREG((about := file.lstat()).st_mode) or about.st_size > MOST_BYTES:
        raise OSError(f"{file} is no small file")
    return file.read_bytes()


def _address(picture: Path) -> str:
    return quote(f"{picture.parent.name}/{picture.name}")


def _is_there(picture: Path) -> bool:
    """Return whether a picture of a report is there.

    Raises:
        OSError: Something else is there.
    """
    if not os.path.lexists(picture):
        return False
    if not any(begins_with(picture, *mark) for mark in (SOFTWARE_CHUNK, JPEG_MARK)):
        raise OSError(f"{picture} is not a picture of a report: move it away")
    return True


def _perturbation(folder: Path) -> Any:
    return (config_of(folder)["data"].get("init_args") or {}).get("perturbation")


def _datasets(tested: Sequence[Tested]) -> dict[Shown, SceneDataset | str]:
    """Return the dataset that has each scene with its frames, or why there is none."""
    found: dict[Shown, SceneDataset | str] = {}
    built: dict[str, SceneDataset | str] = {}
    for each in tested:
        if each.folder is None or "frames" not in each.questions:  # a line of a study's results
            continue
        if _perturbation(each.folder) is not None:
            continue
        config = config_of(each.folder)
        key = fingerprint(config["data"])
        if key not in built:
            built[key] = _dataset(each.folder, config)
        source = built[key]
        names = set() if isinstance(source, str) else {scene.name for scene in source.scenes}
        for scene, frames in zip(each.questions["scene"], each.questions["frames"], strict=True):
            own = source if isinstance(source, str) or scene in names else f"{scene}: its video is missing"
            if frames and isinstance(found.get((scene, frames), ""), str):
                found[scene, frames] = own
    return found


def _dataset(folder: Path, config: dict) -> SceneDataset | str:
    """Return the scenes of a test, or why they can't be read. Someone else's config may name no modules of theirs."""
    try:
        settings = config["data"] if is_own(folder) else with_default_caches(config["data"])
        check_class_paths(settings, named_modules(settings) if is_own(folder) else ())
        data = from_config(VideoQADataModule, settings)
        return data.dataset([scene for scene in data.scenes("test") if not scene.is_text])
    except Exception as error:  # any: the classes may be the user's own, and no picture stops a report
        return describe(error)


def _write(dataset: SceneDataset, shown: Shown, folder: Path, share: int) -> Iterator[Path]:
    """Write the pictures of a scene, of about `share` bytes, and yield their files.

    Raises:
        OSError: A file of the scene is missing, or a picture can't be written.
        ValueError: A file of the scene is damaged.
    """
    name, frames = shown
    index = next(n for n, scene in enumerate(dataset.scenes) if scene.name == name)
    scene = dataset.scenes[index]
    files = [path for path in (*(scene.images or [scene.video]), scene.cameras) if path is not None]
    stem = folder / fingerprint([name, frames, *map(file_fingerprint, files)])
    sheet, drawn = stem.with_suffix(".jpg"), stem.with_suffix(".png")
    if not _is_there(sheet):
        view = dataset.open(index)
        poses = None if view.world_to_camera is None else view.world_to_camera[[*frames]]
        if poses is not None and poses.isfinite().all((1, 2)).any() and not _is_there(drawn):
            path = camera_map(replace(view, depth=None), frames, name).quantize(MAP_COLORS)
            replace_file(drawn, _png(path))
        replace_file(sheet, _jpeg(contact_sheet(view.video.read(frames), frames, COLUMNS), share))
    yield sheet
    if begins_with(drawn, *SOFTWARE_CHUNK):
        yield drawn


def _png(picture: Image.Image) -> bytes:
    picture.save(file := BytesIO(), "PNG", optimize=True, pnginfo=software_info())
    return file.getvalue()


def _jpeg(picture: Image.Image, share: int) -> bytes:
    """Return a JPEG of about `share` bytes, with a comment behind its header by which it is known."""
    for quality in QUALITIES:
        picture.save(file := BytesIO(), "JPEG", quality=quality, comment=SOFTWARE[1].encode())
        if file.tell() <= share:
            break
    return file.getvalue()

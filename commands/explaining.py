"""What a run's answer to a question depends on: the pipeline from the run's folder to arrays, a file and a picture."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill, shorten
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from commands.runs import LoadedRun, load_run
from datamodules.augmentations import told_poses, with_poses
from datamodules.collate import QuestionCollate, TrainingCollate
from datamodules.scenes import Question, RawQuestion
from datamodules.sources.base import Split
from evaluation.drawings import THUMBNAIL
from zoo.errors import InputError, did_you_mean, printable
from zoo.explanation import Explanation, check_masks, explain
from zoo.generation import Reply
from zoo.model import SpatialVLM
from zoo.sequences.batch import Batch
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE
from zoo.sequences.loaded_scene import LoadedScene

HIDDEN, ALONE, UNTOLD, WEIGHT = "#2166ac", "#92c5de", "#d6604d", "viridis"
COLUMNS, FEWEST = 8, 4  # views per row of the picture, at most and at least
LINE = 140  # letters per line of the title
LONGEST = 160  # letters of a question or an answer in the picture


@dataclass(frozen=True, eq=False)
class ExplainedAnswer:
    """An explained answer, and what it is about.

    Attributes:
        question: The question.
        scene: The name of its scene.
        answer: The answer, the model's own unless another one was given.
        is_given: Whether that one was given.
        explanation: The effects and the attention.
        frames: The first frame of each of the t views, as it was shown.
        frame_indices: The numbers of the frames of each view in the video.
    """

    question: Question
    scene: str
    answer: str
    is_given: bool
    explanation: Explanation
    frames: UInt8[Tensor, "t 3 H W"]
    frame_indices: tuple[tuple[int, ...], ...]


def explain_question(run: LoadedRun, id: str, answer: str | None = None) -> ExplainedAnswer:
    """Explain the answer to one question.

    Args:
        run: The run, from `load_explained`.
        id: The question's id, as in predictions.jsonl.
        answer: The text of an answer. None is the model's own greedy answer.

    Raises:
        InputError: There is no such question, or the scene can't be read or asked.
    """
    model, benchmark = run.model, run.data.source.benchmark
    check_masks(model)
    place, asked = find_question(run, id)
    loaded = replace(run.dataset[place], questions=(asked,))
    if loaded.error is not None:
        raise InputError(loaded.error)
    told, is_given, ends = {"poses_in_prompt": run.data.poses_in_prompt}, answer is not None, True
    if answer is None:
        prompts = _checked(QuestionCollate(run.dataset.spec, benchmark, **told)([loaded]))
        (reply,) = model.score_candidates(prompts, [[]])
        answer = _text_of(model, reply)
        ends = bool(reply.ids) and reply.ids[-1] in model.backbone.stop_tokens  # otherwise it was cut
    collate = TrainingCollate(run.dataset.spec, benchmark, **told)
    own = replace(asked, later_turns=()) if isinstance(asked, RawQuestion) else asked
    given = replace(loaded, questions=(replace(own, ground_truth=answer),), target_error=None)
    batch = _checked(collate([given]))
    untold = None
    if is_told_cameras(run) and given.geometry is not None and given.geometry.has_cameras:
        untold = [_checked(collate([each])) if each else None for each in _without_each_camera(given)]
    assert loaded.frames is not None
    shown = loaded.frame_indices or tuple(range(len(loaded.frames)))
    return ExplainedAnswer(
        asked,
        loaded.name,
        answer,
        is_given,
        explain(model, batch, untold, ends=ends),
        loaded.frames[::TEMPORAL_PATCH_SIZE],
        tuple(zip(*[iter(shown)] * TEMPORAL_PATCH_SIZE, strict=True)),
    )


def load_explained(
    run: str | Path,
    split: Split = "test",
    device: str | None = None,
    trust_modules: Collection[str] = (),
    data: str | None = None,
) -> LoadedRun:
    """Load a run with all scenes of a split, see `commands.runs.load_run`."""
    return load_run(Path(run), SpatialVLM.from_pretrained, split, sys.maxsize, device, trust_modules, data)


def is_told_cameras(run: LoadedRun) -> bool:
    """Return whether a model reads the dataset's cameras: by its parts, by its geometry encoder, or in its prompt."""
    model, encoder = run.model, run.model.geometry
    by_parts = model.camera_plan.uses_cameras and model.camera_plan.source != "predicted"
    read = [] if encoder is None else [name for own in encoder.given_fields.values() for name in own]
    by_encoder = encoder is not None and (encoder.requires_cameras or "world_to_camera" in read)
    return by_parts or run.data.poses_in_prompt or (by_encoder and model.uses_geometry_tokens)


def find_question(run: LoadedRun, id: str) -> tuple[int, Question]:
    """Return the place of a question's scene in the run's data, and the question.

    Raises:
        InputError: There is no such question.
    """
    known = {question.id: (n, question) for n, scene in enumerate(run.dataset.scenes) for question in scene.questions}
    if id not in known:
        first = f"; the first is {next(iter(known))}" if known else ""
        raise InputError(f"--question {id}: none of the {len(known)} questions{did_you_mean(id, known) or first}")
    return known[id]


def _checked(batch: Batch) -> Batch:
    for failure in batch.failed:
        raise InputError(f"{failure['scene']}: {failure['error']}")
    return batch


def _text_of(model: SpatialVLM, reply: Reply) -> str:
    if reply.error is not None:
        raise InputError(reply.error)
    return model.backbone.preprocessor.decode([reply.ids])[0]


def _without_each_camera(loaded: LoadedScene) -> list[LoadedScene | None]:
    """Return the scene without the camera of each view. None for a view that has none, or the only one."""
    poses = told_poses(loaded)
    known = poses.isfinite().all((1, 2)).unflatten(0, (-1, TEMPORAL_PATCH_SIZE)).any(1)
    found: list[LoadedScene | None] = []
    for view, has_camera in enumerate(known.tolist()):
        changed = poses.clone()
        changed[TEMPORAL_PATCH_SIZE * view : TEMPORAL_PATCH_SIZE * (view + 1)] = torch.nan
        found.append(with_poses(loaded, changed) if has_camera and int(known.sum()) > 1 else None)
    return found


# ---- Files -----------------------------------------------------------------------------------------------------------


def as_json(explained: ExplainedAnswer) -> dict[str, Any]:
    """Return the numbers of an explanation by view, for a file. The attention is that of whole views."""
    own = explained.explanation
    untold = [None] * len(own.hidden) if own.without_camera is None else _finite(own.without_camera)
    hidden, alone = _finite(own.hidden), _finite(own.alone)
    attention = None if own.attention is None else own.attention.sum((2, 3)).T.tolist()
    return {
        "id": explained.question.id,
        "scene": explained.scene,
        "question": explained.question.question,
        "ground_truth": explained.question.ground_truth,
        "answer": explained.answer,
        "is_given": explained.is_given,
        "log_prob": own.log_prob,
        "layers": [*own.layers],
        "views": [
            {
                "frames": [*frames],
                "hidden": hidden[view],
                "alone": alone[view],
                "without_camera": untold[view],
                "attention": None if attention is None else attention[view],
            }
            for view, frames in enumerate(explained.frame_indices)
        ],
    }


def table(explained: ExplainedAnswer) -> pd.DataFrame:
    """Return the effects of each view, and its share of the attention in the mean over layers."""
    own = explained.explanation
    columns: dict[str, Any] = {"frames": [", ".join(map(str, frames)) for frames in explained.frame_indices]}
    columns |= {"hidden": own.hidden, "alone": own.alone}
    if own.without_camera is not None:
        columns["without_camera"] = own.without_camera
    if own.attention is not None:
        columns["attention"] = own.attention.sum((2, 3)).mean(0)
    numbers = {name: each.double().numpy().round(3) for name, each in columns.items() if isinstance(each, Tensor)}
    columns |= numbers
    return pd.DataFrame(columns)


def _finite(values: Tensor) -> list[float | None]:
    return [float(each) if each.isfinite() else None for each in values]


def draw(explained: ExplainedAnswer) -> Image.Image:
    """Draw the effects of views, the attention by layer, and the views under their heat maps."""
    own, count = explained.explanation, len(explained.explanation.hidden)
    columns = min(COLUMNS, max(FEWEST, count))
    rows = -(-count // columns)
    height, width = explained.frames.shape[-2:]
    tall = 11 / columns * height / width + 0.35
    figure = Figure(figsize=(11, 4.8 + rows * tall), dpi=100, layout="constrained", facecolor="white")
    upper, lower = figure.subfigures(2, 1, height_ratios=(4.8, rows * tall))
    bars, weights = upper.subplots(2, 1, sharex=True)
    places, names = np.arange(count), [str(frames[0]) for frames in explained.frame_indices]
    series = [("the view is hidden", own.hidden, HIDDEN, ""), ("all others are hidden", own.alone, ALONE, "..")]
    if own.without_camera is not None:
        series.append(("its camera is not told", own.without_camera, UNTOLD, "//"))
    for number, (label, values, color, hatch) in enumerate(series):
        share = 0.8 / len(series)
        at = places + (number - (len(series) - 1) / 2) * share
        bars.bar(at, values.numpy(), share, color=color, hatch=hatch, edgecolor="white", label=label)
    bars.axhline(0, color="black", linewidth=0.8)
    bars.set(xticks=places, xticklabels=names, xlim=(-0.6, count - 0.4), ylabel="change of log p (nats)")
    bars.legend(fontsize=9, loc="lower left", ncols=len(series))
    asked, said, truth = map(_short, (explained.question.question, explained.answer, explained.question.ground_truth))
    lines = [asked, f"answer {said}, log p {own.log_prob:.2f}; true answer {truth}"]
    title = "\n".join(fill(line, LINE) for line in lines)  # matplotlib's own wrapping parses formulas
    bars.set_title(title, loc="left", fontsize=10, parse_math=False)
    if own.attention is None:
        weights.set_axis_off()
        weights.set_title("no attention: this encoding makes the keys of each view anew", loc="left", fontsize=10)
    else:
        by_view = own.attention.sum((2, 3)).numpy()
        drawn = weights.imshow(by_view, aspect="auto", cmap=WEIGHT, vmin=0, interpolation="nearest")
        weights.set(xticks=places, xticklabels=names, xlabel="first frame of the view", ylabel="layer")
        step = max(1, len(own.layers) // 8)
        weights.set_yticks(range(0, len(own.layers), step), labels=map(str, own.layers[::step]))
        upper.colorbar(drawn, ax=[bars, weights], label="attention", shrink=0.6)
        weights.set_title("attention of the answer's tokens, which shows no cause", loc="left", fontsize=10)
    _draw_views(lower, explained, rows, columns, names)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _short(text: str) -> str:
    return shorten(printable(text), LONGEST, placeholder=" ...")


def _draw_views(figure: Any, explained: ExplainedAnswer, rows: int, columns: int, names: Sequence[str]) -> None:
    """Draw each view with the mean attention over layers on its patches, in one scale."""
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    maps = None if explained.explanation.attention is None else explained.explanation.attention.mean(0).numpy()
    step = max(1, max(explained.frames.shape[-2:]) // THUMBNAIL)
    for place, axis in enumerate(axes):
        axis.set_axis_off()
        if place >= len(names):
            continue
        frame = explained.frames[place, :, ::step, ::step].permute(1, 2, 0).cpu().numpy()
        extent = (0, frame.shape[1], frame.shape[0], 0)
        axis.imshow(frame, extent=extent)
        if maps is not None:
            axis.imshow(
                maps[place], extent=extent, cmap=WEIGHT, alpha=0.5, vmin=0, vmax=maps.max(), interpolation="nearest"
            )
        axis.set_title(f"{names[place]}  {float(explained.explanation.hidden[place]):+.2f}", fontsize=9)

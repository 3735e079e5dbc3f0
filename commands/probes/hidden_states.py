"""Read hidden states of each layer from a model, and the quantities that they may contain from its scenes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from string import ascii_uppercase

import torch
from jaxtyping import Float, Int
from torch import Tensor

from datamodules.collate import TrainingCollate
from datamodules.scenes import Question, num_answers
from zoo.benchmarks import Benchmark
from zoo.cameras.cameras import choose_view, saddle_balanced
from zoo.cameras.poses import invert_se3
from zoo.cameras.scene_geometry import PatchCameras, merge_cameras
from zoo.encodings.base import CameraModule
from zoo.model import SpatialVLM
from zoo.model_spec import ModelSpec
from zoo.precision import answer_precision, to_float32
from zoo.scene_encoding import EncodedScene, token_depth
from zoo.sequences.batch import Batch
from zoo.sequences.loaded_scene import LoadedScene

Targets = dict[str, Float[Tensor, "samples k"]]


class SceneStates:
    """The samples of one scene.

    Attributes:
        states: By kind of token, (layers + 1, samples, D). `visual`: visual tokens. `text`: the last token of each
            question, which is the only one that has seen all of it and from which the answer is generated. The
            embeddings come first, then the outputs of each layer.
        targets: By kind of token, the quantities that each sample may contain; NaN where unknown.
    """

    def __init__(self, states: dict[str, Float[Tensor, "layers samples D"]], targets: dict[str, Targets]) -> None:
        self.states, self.targets = states, targets


def probe_spec(model: SpatialVLM) -> ModelSpec:
    """Return what is read from the scenes: all that the model requires, with cameras and depth where available."""
    return replace(model.model_spec(), targets=("cameras", "depth"))


@torch.no_grad()
def scene_states(
    model: SpatialVLM,
    benchmark: Benchmark,
    loaded: Iterable[LoadedScene],
    tokens: int,
    poses_in_prompt: bool = False,
) -> Iterator[SceneStates]:
    """Yield the samples of each scene. Its questions and answers are read as in training.

    Args:
        model: The model, in eval mode.
        benchmark: Benchmark of the questions.
        loaded: The scenes. Scenes that can't be read are left out.
        tokens: Largest number of visual tokens per scene, evenly spaced.
        poses_in_prompt: See `VideoQADataModule`.
    """
    device = model.backbone.device
    collate = TrainingCollate(probe_spec(model), benchmark, poses_in_prompt=poses_in_prompt)
    for scene in loaded:
        batch = collate([scene])
        if batch.sequences is not None:
            asked = {question.id: question for question in scene.questions}
            questions = [asked[record["id"]] for record in batch.records]  # without unusable questions
            with answer_precision(device, model.precision):
                states = _states_of(model, batch.to(device), questions, tokens)
            yield states


def _states_of(model: SpatialVLM, batch: Batch, questions: Sequence[Question], tokens: int) -> SceneStates:
    sequences = batch.sequences
    assert sequences is not None
    scenes = model.encode_scenes(batch)
    decoded = model.hidden_states(scenes, sequences, range(model.backbone.decoder_layout.num_layers))
    decoded.layers = {-1: model.decoder_inputs(scenes, sequences)["inputs_embeds"], **decoded.layers}
    scene = batch.scenes[0]
    # 1. Visual tokens without extra tokens. They do not depend on the question.
    per_step = scene.tokens_per_step
    chosen = evenly_spaced(scene.num_steps * per_step, tokens)
    visual = []
    for layer in decoded.layers:
        ((_, states),) = decoded.views(layer)
        visual.append(states[0, :, :per_step].flatten(0, 1).cpu()[chosen])
    # 2. Text: the token before the answer to each question, or before the first answer of a conversation.
    lengths, starts = sequences.answer_lengths.tolist(), [0]
    while (behind := starts[-1] + lengths[starts[-1]]) < len(lengths):
        starts.append(behind)
    firsts = accumulate(num_answers(questions)[:-1].tolist(), initial=0)
    places = sequences.answer_places[[starts[first] for first in firsts]]
    text = [to_float32(decoded.layers[layer].flatten(0, 1)[places]).cpu() for layer in decoded.layers]
    return SceneStates(
        {"visual": torch.stack(visual), "text": torch.stack(text)}, targets_of(model, scenes[0], questions, chosen)
    )


def targets_of(
    model: SpatialVLM, encoded: EncodedScene, questions: Sequence[Question], chosen: Int[Tensor, " samples"]
) -> dict[str, Targets]:
    """Return the quantities that the samples of a scene may contain.

    For a visual token: the log depth beneath it, and the position and rotation of its camera in the frame of
    `reference_view`. For text: position and rotation of the last camera, and the answer, see `_answers`. For both: the
    log of the scene's median depth (its scale).
    """
    scene = encoded.scene
    steps, per_step = scene.num_steps, scene.tokens_per_step
    geometry, count = scene.geometry, len(questions)
    view = chosen // per_step
    position, rotation = torch.full((steps, 3), torch.nan), torch.full((steps, 9), torch.nan)
    depth = torch.full((steps * per_step,), torch.nan)
    if geometry is not None and geometry.has_cameras:
        cameras = merge_cameras(geometry, model.merged_camera)
        poses = cameras.world_to_camera.double()
        relative = poses @ invert_se3(poses[reference_view(model, cameras, encoded)])
        known = cameras.has_camera[:, None].cpu()
        position = invert_se3(relative)[:, :3, 3].float().cpu().where(known, torch.nan)
        rotation = relative[:, :3, :3].flatten(1).float().cpu().where(known, torch.nan)
    if geometry is not None and (beneath := token_depth(geometry, scene.token_grid[1])) is not None:
        depth = torch.where(beneath > 0, beneath, torch.nan).flatten().log().float().cpu()
    scale = depth.nanmedian().view(1, 1)
    return {
        "visual": {
            "depth": depth[chosen, None],
            "position": position[view],
            "rotation": rotation[view],
            "scale": scale.expand(len(chosen), 1),
        },
        "text": {
            "position": position[-1:].expand(count, 3),
            "rotation": rotation[-1:].expand(count, 9),
            "scale": scale.expand(count, 1),
            **_answers(questions),
        },
    }


def reference_view(model: SpatialVLM, cameras: PatchCameras, encoded: EncodedScene) -> int:
    """Return the view that defines the frame of text: the camera encoding's reference, else the first with a camera.

    Args:
        model: The model. If its encodings have several references, the first is used.
        cameras: The dataset's cameras of the scene.
        encoded: The scene.
    """
    parts = () if model.camera_encoding is None else model.camera_encoding.modules()
    references = [part.reference for part in parts if isinstance(part, CameraModule) and part.reference]
    reference = references[0] if references else "first"
    if reference != "saddle_balanced":
        return int(choose_view(cameras.world_to_camera[None], cameras.has_camera[None], reference))
    assert encoded.cameras is not None and encoded.view_features is not None
    return int(saddle_balanced(encoded.view_features, encoded.cameras.has_camera))


def evenly_spaced(count: int, most: int) -> Int[Tensor, " samples"]:
    """Return at most `most` of the numbers below `count`, evenly spaced."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def _answers(questions: Sequence[Question]) -> Targets:
    """Return the answers of each question type as separate targets, because the question reveals the type.

    A number is one target. For multiple choice, each letter has a column, which is 1 for the right letter: a linear map
    to these columns is the simplest classifier. Free text has no target. Other question types are NaN.
    """
    found: Targets = {}
    for n, question in enumerate(questions):
        name, value = ("option", _letter) if question.options else ("answer", _number)
        name += f": {question.question_type}" if question.question_type else ""
        answer = value(question.ground_truth)
        found.setdefault(name, torch.full((len(questions), len(answer)), torch.nan))[n] = answer
    return found


def _letter(text: str) -> Float[Tensor, " letters"]:
    right = torch.tensor([text.strip() == letter for letter in ascii_uppercase])
    return right.float() if right.any() else torch.full((len(right),), torch.nan)


def _number(text: str) -> Float[Tensor, " 1"]:
    try:
        return torch.tensor([float(text)])
    except ValueError:
        return torch.tensor([torch.nan])

"""A tiny model by its parts, tiny scenes with questions, and a batch of them.

`tiny_model()` is Qwen2.5-VL with random weights; `tiny_model("prope.yaml", family="Qwen3-VL")` is one of `MODELS` on
another backbone, and `tiny_model(fusion=AddFusion, geometry=...)` has the given parts. `tiny_batch(model)` collates two
scenes. The fixtures `tiny_model` and `tiny_batch` are these two without arguments.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import RepetitionPenaltyLogitsProcessor

from datamodules.chat_format import ChatFormat
from datamodules.collate import QuestionCollate, TrainingCollate
from datamodules.scenes import Question
from docs.symmetries import COMBINATIONS, HYBRID, fits_one_axis
from zoo import (
    AddFusion,
    AttentionFusion,
    CameraPrediction,
    CameraTokenFusion,
    ConcatSplitFusion,
    ConstantIndex,
    DeepFusion,
    GeoThinkerFusion,
    LearningRates,
    PatchMergerFusion,
    StackFusion,
    SubspaceFusion,
    TinyDA3,
    TinyQwen3VL,
    TinyQwen25VL,
    TinyQwen35,
    TinyVGGT,
)
from zoo.backbones.qwen_vl import TinyQwenVL
from zoo.encodings import ViewAttention
from zoo.generation import Reply, answer_batch
from zoo.geometry import DatasetGeometry
from zoo.geometry.base import SceneGeometry
from zoo.published.cambrian_s import CambrianBackbone, TinyCambrianS
from zoo.sequences.batch import Batch
from zoo.sequences.loaded_scene import LoadedScene
from zoo.sequences.packing import Row
from zoo.sequences.time_index import FrameNumberIndex, PathLengthIndex, PoseDistanceIndex, StepIndex
from zoo.tasks import VideoQATask

RATES = LearningRates(decoder=1e-3, connector=1e-3, vision=1e-3)
NEW = 6
TEXTS = (
    "How many chair(s) are in this room?",
    "How many table(s) are in this room? Count those that are seen twice once, and say nothing of their color.",
    "Which?",
    "What is the size of this room (in square meters)?",
    "If I am standing by the bed and facing the lamp, is the door to my left, right, or back?",
)
QUESTIONS = tuple(Question(str(i), "object_counting", text, "4" * (i + 1)) for i, text in enumerate(TEXTS))
VGGT: dict[str, Any] = {"geometry": lambda: TinyVGGT(embed_dim=32, depth=2)}
# the parts of a `SpatialVLM`
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "AddFusion": {"fusion": AddFusion, **VGGT},
    "ConcatSplitFusion": {"fusion": ConcatSplitFusion, **VGGT},
    "CameraTokenFusion, append": {"fusion": CameraTokenFusion, **VGGT},
    "CameraTokenFusion, add": {"fusion": lambda *widths: CameraTokenFusion(*widths, mode="add"), **VGGT},
    "PatchMergerFusion": {"fusion": partial(PatchMergerFusion, hidden=16), **VGGT},
    "CameraPrediction": {"objectives": [CameraPrediction()]},  # with a token behind each view
    "AttentionFusion": {"fusion": AttentionFusion, **VGGT},
    "DeepFusion": {
        "fusion": partial(DeepFusion, decoder_layers=[0, 1]),
        "geometry": lambda: TinyVGGT(embed_dim=32, depth=2, layers=[0, 1]),
    },
    "StackFusion": {
        "fusion": partial(StackFusion, decoder_layers=[1, 1], hidden=16),
        "geometry": lambda: TinyVGGT(embed_dim=32, depth=2, layers=[0, 1], reference="last"),
    },
    "GeoThinkerFusion": {"fusion": partial(GeoThinkerFusion, hidden=16, groups="view"), **VGGT},
    "GeoThinkerFusion, compressed": {"fusion": partial(GeoThinkerFusion, hidden=16, compress_beyond=2), **VGGT},
    "SubspaceFusion": {"fusion": SubspaceFusion, **VGGT},
    "PRoPE on ConcatSplitFusion": {"fusion": ConcatSplitFusion, "camera_encoding": "PRoPE, ChannelRange", **VGGT},
    "prope.yaml": {
        "geometry": lambda: DatasetGeometry(depth=False),
        "fusion": SubspaceFusion,
        "view_mixer": lambda width: ViewAttention(width, 16),
        "camera_encoding": "PRoPE, FrequencyRange",
    },
    "DA3's tokens, points and cameras": {
        "fusion": AddFusion,
        "camera_encoding": "PointRoPE",
        "camera_source": "predicted",
        "geometry": lambda: TinyDA3(embed_dim=32, depth=4, num_heads=2, heads=("camera", "depth")),
    },
    "PRoPE by VGGT's cameras": {"camera_encoding": "PRoPE, ChannelRange", "camera_source": "predicted", **VGGT},
    **{
        time.__name__: {"time_index": time()}
        for time in (StepIndex, FrameNumberIndex, PoseDistanceIndex, PathLengthIndex)
    },
    **{name: {"camera_encoding": name} for name in COMBINATIONS},
}


class TinySquares(TinyCambrianS):
    """Frames are squares of 4 x 4 tokens, without the tokens of the padding."""

    backbone_class = CambrianBackbone

    def __init__(self, **options: Any) -> None:
        super().__init__(frame_tokens=16, **options)


ONE_AXIS = "Cambrian-S"  # its positions have one axis, and it sees each frame as an image
BACKBONES: dict[str, Any] = {
    "Qwen2.5-VL": TinyQwen25VL,
    "Qwen3-VL": TinyQwen3VL,
    "Qwen3.5": TinyQwen35,
    ONE_AXIS: TinySquares,
}
OF_VIDEOS = [name for name in BACKBONES if name != ONE_AXIS]  # which sees each frame as an image
MASKED_FAMILIES = ["Qwen2.5-VL", "Qwen3-VL"]  # their scenes may share a training sequence
FAMILIES = [*MASKED_FAMILIES, pytest.param("Qwen3.5", marks=pytest.mark.slow)]  # for what all of them share
# of frames of 2 x 3 tokens, in Cambrian-S 2 x 4
SIZES = {"Qwen2.5-VL": (56, 84), "Qwen3-VL": (64, 96), "Qwen3.5": (64, 96), ONE_AXIS: (56, 84)}
HYBRID_MODELS = {name: {"camera_encoding": name} for name in HYBRID}  # for Qwen3.5 alone
ONE_AXIS_MODELS = [  # without those that act on a section of mRoPE or set the time
    name
    for name, parts in MODELS.items()
    if "time_index" not in parts
    and (not isinstance(encoding := parts.get("camera_encoding"), str) or fits_one_axis(COMBINATIONS[encoding]()))
]
LAYERS: dict[Any, int] = {
    **dict.fromkeys(("DeepFusion", "StackFusion"), 3),  # behind the last one nothing is added
    **{
        (name, "Qwen3.5"): 6  # two of full attention
        for name in MODELS | HYBRID_MODELS
        if any(each in name for each in ("RayRoPE", "URoPE", "AlternateAxes"))
    },
}
# what every run tests of whole models: on the other backbones, models that differ in how they meet the decoder's layers
FAST = {
    "Qwen2.5-VL": {
        *("plain", "CameraTokenFusion, append", "StackFusion", "CameraPrediction", "prope.yaml", "GeoThinkerFusion"),
        *("DA3's tokens, points and cameras", "PoseDistanceIndex", "RayRoPE"),
        "Compose(PRoPE TemporalSection, PoseALiBi)",
    },
    "Qwen3-VL": {"plain", "DeepFusion", "GeoThinkerFusion, compressed", "PRoPE, ExtraChannels", "PoseAxis"},
    "Qwen3.5": {"plain", "PRoPE, ExtraChannels", "Compose(PRoPE UnrotatedChannels, DeltaNetLayers(PRoPE vo))"},
    ONE_AXIS: {"plain", "CameraPrediction", "GeoThinkerFusion", "RayRoPE"},
}
MODELS_AND_FAMILIES = [
    pytest.param(name, family, marks=() if name in FAST[family] else pytest.mark.slow)
    for family, names in (
        *((family, MODELS) for family in MASKED_FAMILIES),
        ("Qwen3.5", MODELS | HYBRID_MODELS),
        (ONE_AXIS, ONE_AXIS_MODELS),
    )
    for name in names
]


@cache
def tiny_backbone(
    family: str = "Qwen2.5-VL",
    layers: int = 2,
    key_value_heads: int = 1,
    dtype: str = "float32",
    implementation: str = "sdpa",
) -> TinyQwenVL | TinyCambrianS:
    """Return a backbone that builds its model once and copies it for each task."""
    loader = BACKBONES[family](
        layers=layers,
        hidden_size=64,
        heads=2,
        key_value_heads=key_value_heads,
        vision_hidden_size=32,
        dtype=dtype,
        attn_implementation=implementation,
    )
    built = loader.stock_model()
    loader.stock_model = partial(deepcopy, built)
    return loader


def tiny_model(
    name: str = "plain",
    *,
    family: str = "Qwen2.5-VL",
    dtype: str = "float32",
    implementation: str = "sdpa",
    **parts: Any,
) -> VideoQATask:
    """Build a model with random weights that make answers differ; `.model` is the `SpatialVLM`.

    With the usual weights attention is less sharp, and answers repeat one token whatever is asked.

    Args:
        name: one of `MODELS` or `HYBRID_MODELS`.
        family: one of `BACKBONES`.
        dtype: of the backbone.
        implementation: of its attention.
        **parts: options of `VideoQATask` besides those of the named model. A `camera_encoding` may be a name in
            `COMBINATIONS` or `HYBRID`.
    """
    parts = {**deepcopy((MODELS | HYBRID_MODELS)[name]), **parts}
    encoding = parts.get("camera_encoding")
    if isinstance(encoding, str):
        encoding = (COMBINATIONS | HYBRID)[encoding]()
    if encoding is not None:
        parts["camera_encoding"] = encoding
        if encoding.requires_constant_time:
            parts.setdefault("time_index", ConstantIndex())
    layers, key_value_heads = LAYERS.get((name, family), LAYERS.get(name, 2)), 1 if name == "plain" else 2
    backbone = tiny_backbone(family, layers, key_value_heads, dtype, implementation)
    torch.manual_seed(0)
    model = VideoQATask(backbone=backbone, learning_rates=RATES, max_new_tokens=NEW, allow_untrained=True, **parts)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
    layers = model.model.backbone.vlm.model.language_model.layers
    for attention in (layer.self_attn for layer in layers if hasattr(layer, "self_attn")):
        if not hasattr(attention, "q_norm"):
            for each in (attention.q_proj, attention.k_proj):
                each.weight.data *= 2
        else:
            for each in (attention.q_norm, attention.k_norm):
                each.weight.data += 1  # of 1, or in Qwen3.5 of 0, to which the norm adds 1
    if encoding is not None:
        for parameter in encoding.parameters():
            nn.init.normal_(parameter, std=0.1, generator=generator)
    if isinstance(model.model.fusion, GeoThinkerFusion):
        for interaction in model.model.fusion.layers.values():
            nn.init.ones_(interaction.gate)  # with closed gates it is the plain model
    return model.eval()


def tiny_scene(
    name: str,
    questions: tuple[Question, ...] = QUESTIONS,
    steps: int = 3,
    seed: int = 0,
    family: str = "Qwen2.5-VL",
) -> LoadedScene:
    """Make a scene of noise, seen by random cameras, with random depth."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 255, (2 * steps, 3, *SIZES[family]), dtype=torch.uint8, generator=generator)
    skew = torch.randn(2 * steps, 3, 3, generator=generator, dtype=torch.float64)
    poses = torch.eye(4, dtype=torch.float64).repeat(2 * steps, 1, 1)
    poses[:, :3, :3] = torch.linalg.matrix_exp(skew - skew.mT)
    poses[:, :3, 3] = torch.randn(2 * steps, 3, generator=generator, dtype=torch.float64)
    geometry = SceneGeometry(
        world_to_camera=poses,
        K_normalized=torch.diag(torch.tensor([0.8, 1.1, 1.0], dtype=torch.float64)).repeat(2 * steps, 1, 1),
        depth=torch.rand(2 * steps, *SIZES[family], generator=generator) + 1,
    )
    times = tuple(0.7 * frame for frame in range(2 * steps))
    types = tuple(question.question_type for question in questions)
    return LoadedScene(
        name,
        questions,
        frames,
        kind="image" if family == ONE_AXIS else "video",
        frame_indices=tuple(range(0, 20 * steps, 10)),
        frame_times=times,
        seconds_per_grid=1.0,
        geometry=geometry,
        question_types=types,
    )


def two_scenes(family: str = "Qwen2.5-VL") -> tuple[LoadedScene, LoadedScene]:
    """Make a scene with three questions, and a shorter one with one."""
    longer = tiny_scene("a", QUESTIONS[1:4], family=family)
    return longer, tiny_scene("b", QUESTIONS[:1], steps=2, seed=1, family=family)


def tiny_batch(
    task: VideoQATask, *scenes: LoadedScene, training: bool = False, at_once: int = 8, **packing: Any
) -> Batch:
    """Collate scenes, by default two of different lengths, for training or for answers.

    Args:
        task: the model.
        *scenes: as `tiny_scene` makes them for the model's backbone.
        training: with answers and labels.
        at_once: questions per pass of the decoder, for answers.
        **packing: options of `TrainingCollate`.
    """
    if not scenes:
        family = next(name for name, kind in BACKBONES.items() if isinstance(task.model.backbone, kind.backbone_class))
        scenes = (
            tiny_scene("a", QUESTIONS[1:3], family=family),
            tiny_scene("b", QUESTIONS[:1], steps=2, seed=1, family=family),
        )
    spec = replace(task.model_spec(), geometry_reader=None)  # the step asks the geometry encoder
    collate = TrainingCollate(spec, **packing) if training else QuestionCollate(spec, questions_per_batch=at_once)
    return collate(list(scenes))


def one_per_row(task: VideoQATask, *scenes: LoadedScene) -> Batch:
    """Collate a training batch with one question per row, the slow reference of packing."""
    return TrainingCollate(replace(task.model_spec(), packs_questions=False))(list(scenes))


def rows_of(task: VideoQATask, *scenes: LoadedScene) -> tuple[list[Row], list[int]]:
    """Return the tokens and labels of each question by itself, and the number of its scene."""
    wording, rows, scene_of = ChatFormat(task.preprocessor), [], []
    for number, loaded in enumerate(scenes):
        assert loaded.frames is not None
        grids = [task.preprocessor.cut_patches(loaded.frames)[1].tolist()]
        for question in loaded.questions:
            chat = wording.chat(question, with_answers=True)
            rows.append(Row.of(*task.preprocessor.tokenize(chat, grids, task.model.extra_tokens, loaded.frame_times)))
            scene_of.append(number)
    return rows, scene_of


def prompts_of(asked: Batch) -> list[list[int]]:
    """Return the token ids of each question without padding."""
    found: dict[int, list[int]] = {}
    for prompt in asked.prompts:
        questions = [question for each in prompt.passes for question in each]
        shared = prompt.prefix.input_ids[0].tolist()
        found.update((row, [*shared, *question]) for row, question in zip(prompt.rows, questions, strict=True))
    return [found[row] for row in sorted(found)]


def scene_of(asked: Batch) -> list[int]:
    """Return the number of each question's scene."""
    found = {row: prompt.scenes[0] for prompt in asked.prompts for row in prompt.rows}
    return [found[row] for row in sorted(found)]


@torch.no_grad()
def replies(task: VideoQATask, asked: Batch) -> list[Reply]:
    """Answer from a shared prefix, as `test` and `predict` do."""
    return answer_batch(task.model, asked, task.max_new_tokens, task.repetition_penalty)


@torch.no_grad()
def one_by_one(task: VideoQATask, asked: Batch, drafts: list[list[int]] | None = None) -> list[list[int]]:
    """Answer each question by itself and decode its whole sequence for each token: the slow reference.

    `drafts` are the answers under test. The decoder is causal, so one pass over a draft gives the reference's next
    token after each of its tokens. Where a token differs, the sequence is decoded again.
    """
    scenes, found, most = task.model.encode_scenes(asked), [], task.max_new_tokens
    penalize = RepetitionPenaltyLogitsProcessor(float(task.repetition_penalty))
    if drafts is None:
        drafts = [reply.ids for reply in replies(task, asked)]
    for ids, scene, draft in zip(prompts_of(asked), scene_of(asked), drafts, strict=True):
        answer: list[int] = []
        while len(answer) < most and (not answer or answer[-1] not in task.model.backbone.stop_tokens):
            guess = [*answer, *draft[len(answer) :]][: most - 1]
            sequence = torch.tensor([[*ids, *guess]])
            made = task.model.sequence_builder.build(
                sequence, torch.ones_like(sequence).bool(), asked.scenes, [[scene]]
            )
            logits = logits_of(task, task.model.decoder_inputs(scenes, made)).float()
            while len(answer) <= len(guess):
                end = len(ids) + len(answer)
                answer.append(int(penalize(sequence[:, :end], logits[:, end - 1]).argmax()))
                if answer[-1] in task.model.backbone.stop_tokens or answer != guess[: len(answer)]:
                    break
        found.append(answer)
    return found


def inputs_of(task: VideoQATask, asked: Batch, rows: slice = slice(None)) -> dict[str, Any]:
    """Return the decoder's inputs for some questions of a batch, one per row."""
    prompts, scenes = prompts_of(asked)[rows], scene_of(asked)[rows]
    ids = pad_sequence([torch.tensor(ids) for ids in prompts], batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(ids) for ids in prompts])[:, None]
    made = task.model.sequence_builder.build(ids, mask, asked.scenes, [[scene] for scene in scenes])
    return task.model.decoder_inputs(task.model.encode_scenes(asked), made)


def logits_of(task: VideoQATask, inputs: dict[str, Any]) -> Tensor:
    return task.model.backbone.lm_head(task.model.backbone.decode(inputs).last_hidden_state)


# ---- what a step learns ----------------------------------------------------------------------------------------------

Learned = tuple[float, dict[str, Tensor]]  # the loss, and the gradient of every parameter that has one


def learned(model: VideoQATask, loss: Tensor) -> Learned:
    """Return the loss and its gradients."""
    model.zero_grad()
    loss.backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return loss.item(), {name: gradient.clone() for name, gradient in gradients.items()}


def difference(found: Learned, expected: Learned) -> float:
    """Return the greatest relative difference: of the loss, of all gradients, and of each parameter's."""
    (loss, gradients), (reference, references) = found, expected
    assert gradients.keys() == references.keys() and len(references) > 20
    apart = {name: float((gradients[name] - references[name]).norm()) for name in references}
    norms = {name: float(each.norm()) for name, each in references.items()}
    total = torch.tensor(list(norms.values())).norm()
    # a gradient that is zero but for rounding, as of a bias of the keys, has no relative difference of its own
    each = [apart[name] / norm for name, norm in norms.items() if norm > 1e-4 * total]
    return max(abs(loss - reference) / reference, float(torch.tensor(list(apart.values())).norm() / total), *each)

"""Small scenes with many questions, and tiny models of every kind to ask them: for tests of the shared prefix."""

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
from docs.symmetries import COMBINATIONS, HYBRID
from tests.zoo.combinations import REPEATED, VARIANTS
from zoo import (
    AddFusion,
    AttentionFusion,
    CameraPrediction,
    CameraTokenFusion,
    ConcatSplitFusion,
    ConstantIndex,
    DeepFusion,
    LearningRates,
    PatchMergerFusion,
    StackFusion,
    TinyDA3,
    TinyQwen3VL,
    TinyQwen25VL,
    TinyQwen35,
    TinyVGGT,
)
from zoo.backbones.qwen_vl import TinyQwenVL
from zoo.encodings import CameraEncoding, ViewAttention
from zoo.generation import Reply, answer_batch
from zoo.geometry import DatasetGeometry
from zoo.geometry.base import SceneGeometry
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
    "PRoPE on ConcatSplitFusion": {"fusion": ConcatSplitFusion, "camera_encoding": "PRoPE, ChannelRange", **VGGT},
    "prope.yaml": {
        "geometry": lambda: DatasetGeometry(depth=False),
        "fusion": ConcatSplitFusion,
        "view_mixer": lambda width: ViewAttention(width, 16),
        "camera_encoding": "PRoPE, ChannelRange",
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


BACKBONES: dict[str, Any] = {"Qwen2.5-VL": TinyQwen25VL, "Qwen3-VL": TinyQwen3VL, "Qwen3.5": TinyQwen35}
# what every run asks, on the other backbones models that differ in how they meet them; the rest are slow tests
FAST = {
    "Qwen2.5-VL": MODELS.keys() - VARIANTS - REPEATED - {"AddFusion", "ConcatSplitFusion", "StepIndex"},
    "Qwen3-VL": {
        *("plain", "CameraTokenFusion, append", "DeepFusion", "prope.yaml", "PoseALiBi", "PRoPE, ExtraChannels"),
        *("PoseAxis", "PointRoPE"),
    },
    # two with hooks in the steps of an answer, which Gated DeltaNet layers lack
    "Qwen3.5": {"plain", "PoseALiBi", "PRoPE, ExtraChannels"},
}
MODELS_AND_FAMILIES = [
    pytest.param(name, family, marks=() if name in FAST[family] else pytest.mark.slow)
    for family in BACKBONES
    for name in MODELS
]
HYBRID_MODELS = {name: {"camera_encoding": name} for name in HYBRID}
MODELS_AND_FAMILIES += [
    pytest.param(name, "Qwen3.5", marks=() if name.startswith("Compose(PRoPE Unr") else pytest.mark.slow)
    for name in HYBRID_MODELS
]
LAYERS: dict[Any, int] = {
    **dict.fromkeys(("DeepFusion", "StackFusion"), 3),  # behind the last one nothing is added
    **{
        (name, "Qwen3.5"): 6  # two of full attention
        for name in MODELS | HYBRID_MODELS
        if any(each in name for each in ("RayRoPE", "URoPE", "AlternateAxes"))
    },
}
MASKED_FAMILIES = ["Qwen2.5-VL", "Qwen3-VL"]  # whose scenes may share a training sequence
FAMILIES = [*MASKED_FAMILIES, pytest.param("Qwen3.5", marks=pytest.mark.slow)]  # for what all of them share
SIZES = {"Qwen2.5-VL": (56, 84), "Qwen3-VL": (64, 96), "Qwen3.5": (64, 96)}  # of frames of 2 x 3 tokens


@cache
def tiny_backbone(
    family: str = "Qwen2.5-VL",
    layers: int = 2,
    key_value_heads: int = 1,
    dtype: str = "float32",
    implementation: str = "sdpa",
) -> TinyQwenVL:
    """A backbone whose model is built once, and copied for each task."""
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


def build(
    name: str, *, dtype: str = "float32", implementation: str = "sdpa", family: str = "Qwen2.5-VL", **more: Any
) -> VideoQATask:
    """Random weights that make answers differ: with the usual ones, and with attention that is less sharp, they repeat
    a token whatever was asked."""
    parts = {**deepcopy((MODELS | HYBRID_MODELS)[name]), **more}
    encoding: CameraEncoding | None = None
    if "camera_encoding" in parts:
        encoding = (COMBINATIONS | HYBRID)[parts["camera_encoding"]]()
    if encoding is not None:
        parts |= {
            "camera_encoding": encoding,
            "time_index": ConstantIndex() if encoding.requires_constant_time else None,
        }
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
        if family == "Qwen2.5-VL":
            for each in (attention.q_proj, attention.k_proj):
                each.weight.data *= 2
        else:
            for each in (attention.q_norm, attention.k_norm):
                each.weight.data += 1  # of 1, or in Qwen3.5 of 0, to which the norm adds 1
    if encoding is not None:
        for parameter in encoding.parameters():
            nn.init.normal_(parameter, std=0.1, generator=generator)
    return model.eval()


def scene(
    name: str,
    questions: tuple[Question, ...] = QUESTIONS,
    steps: int = 3,
    seed: int = 0,
    family: str = "Qwen2.5-VL",
) -> LoadedScene:
    """Noise, seen by random cameras, with random depth."""
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
        frame_indices=tuple(range(0, 20 * steps, 10)),
        frame_times=times,
        seconds_per_grid=1.0,
        geometry=geometry,
        question_types=types,
    )


def batch(task: VideoQATask, *scenes: LoadedScene, training: bool = False, at_once: int = 8, **packing: Any) -> Batch:
    spec = replace(task.model_spec(), geometry_reader=None)  # the step asks the geometry encoder
    collate = TrainingCollate(spec, **packing) if training else QuestionCollate(spec, questions_per_batch=at_once)
    return collate(list(scenes))


def one_per_row(task: VideoQATask, *scenes: LoadedScene) -> Batch:
    """A training batch with one question per row: the slow reference of packing."""
    return TrainingCollate(replace(task.model_spec(), packs_questions=False))(list(scenes))


def rows_of(task: VideoQATask, *scenes: LoadedScene) -> tuple[list[Row], list[int]]:
    """The tokens and labels of each question by itself, and the scene of each."""
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
    """Token ids of each question, without padding."""
    found: dict[int, list[int]] = {}
    for prompt in asked.prompts:
        questions = [question for each in prompt.passes for question in each]
        shared = prompt.prefix.input_ids[0].tolist()
        found.update((row, [*shared, *question]) for row, question in zip(prompt.rows, questions, strict=True))
    return [found[row] for row in sorted(found)]


def scene_of(asked: Batch) -> list[int]:
    """The scene of each question."""
    found = {row: prompt.scenes[0] for prompt in asked.prompts for row in prompt.rows}
    return [found[row] for row in sorted(found)]


@torch.no_grad()
def replies(task: VideoQATask, asked: Batch) -> list[Reply]:
    """What is tested: from prefixes that are read once."""
    return answer_batch(task.model, asked, task.max_new_tokens, task.repetition_penalty)


@torch.no_grad()
def one_by_one(task: VideoQATask, asked: Batch, drafts: list[list[int]] | None = None) -> list[list[int]]:
    """The slow reference: each question by itself, with its whole sequence decoded again.

    The tested answers are the drafts, which a test may have asked for before. As the decoder is causal, one pass tells
    the reference's next token after each token of the draft; after one that differs, the sequence is decoded again.
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
    """The decoder's inputs for some questions of a batch, one per row."""
    prompts, scenes = prompts_of(asked)[rows], scene_of(asked)[rows]
    ids = pad_sequence([torch.tensor(ids) for ids in prompts], batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(ids) for ids in prompts])[:, None]
    made = task.model.sequence_builder.build(ids, mask, asked.scenes, [[scene] for scene in scenes])
    return task.model.decoder_inputs(task.model.encode_scenes(asked), made)


def logits_of(task: VideoQATask, inputs: dict[str, Any]) -> Tensor:
    return task.model.backbone.lm_head(task.model.backbone.decode(inputs).last_hidden_state)

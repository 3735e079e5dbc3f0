"""Batches of loaded scenes as any preprocessor makes them, by the rules of a tiny model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from datamodules.collate import QuestionCollate, TrainingCollate
from zoo import SpatialVLM
from zoo.model_spec import ModelSpec
from zoo.sequences.batch import Batch, Sequences
from zoo.sequences.layout import Placeholders
from zoo.sequences.loaded_scene import LoadedScene
from zoo.sequences.packing import IGNORED

tiny_spec = cache(lambda: SpatialVLM().model_spec())


def spec_for(preprocessor: Any, **changes: Any) -> ModelSpec:
    """What a tiny model needs with the tokens of a Qwen2.5-VL's preprocessor, one question each."""
    processor = preprocessor.processor
    vision_start = processor.tokenizer.convert_tokens_to_ids("<|vision_start|>")
    placeholders = Placeholders(processor.video_token_id, processor.image_token_id, vision_start)
    own = {"preprocessor": preprocessor, "placeholders": placeholders, "packs_questions": False}
    return replace(tiny_spec(), **{**own, **changes})


def training_batch(preprocessor: Any, *scenes: LoadedScene, **changes: Any) -> Batch:
    return TrainingCollate(spec_for(preprocessor, **changes))(scenes)


def question_batch(preprocessor: Any, *scenes: LoadedScene, **changes: Any) -> Batch:
    return QuestionCollate(spec_for(preprocessor, **changes))(scenes)


def sequences_of(batch: Batch) -> Sequences:
    assert batch.sequences is not None
    return batch.sequences


def labels_of(batch: Batch) -> Tensor:
    """The labels of a training batch as transformers takes them: each token's own id, or `IGNORED`."""
    sequences = sequences_of(batch)
    labels = torch.full_like(sequences.input_ids, IGNORED).flatten()
    labels[sequences.answer_places + 1] = sequences.answer_ids
    return labels.view_as(sequences.input_ids)

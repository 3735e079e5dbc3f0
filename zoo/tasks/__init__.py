"""LightningModules that train and evaluate models."""

from zoo.tasks.base import Task
from zoo.tasks.grpo import GRPO
from zoo.tasks.models import (
    VGLLM,
    BaselineVLM,
    ConcatSplitMLLM,
    GeoThinker,
    PRoPEMLLM,
    Qwen3VL,
    Qwen25VL,
    Qwen35,
    SpatialMLLM,
    SpatialStack,
)
from zoo.tasks.rewards import AnswerFormat, AnswerScore, Reward, ShuffledAnswerScore
from zoo.tasks.vggt_pretraining import VGGTPretraining
from zoo.tasks.video_qa import Algorithm, SupervisedFineTuning, VideoQATask

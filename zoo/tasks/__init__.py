"""LightningModules that train and evaluate models."""

from zoo.tasks.base import Task
from zoo.tasks.geometry_pretraining import GeometryPretraining
from zoo.tasks.grpo import GRPO
from zoo.tasks.models import BaselineVLM, ConcatSplitMLLM, PRoPEMLLM, Qwen3VL, Qwen25VL, Qwen35
from zoo.tasks.rewards import AnswerFormat, AnswerScore, Reward, ShuffledAnswerScore
from zoo.tasks.video_qa import Algorithm, SupervisedFineTuning, VideoQATask

"""LightningModules: how a model is trained and asked."""

from zoo.tasks.base import Task
from zoo.tasks.models import BaselineVLM, ConcatSplitMLLM, PRoPEMLLM, Qwen3VL, Qwen25VL, Qwen35, SpatialMLLM
from zoo.tasks.vggt_pretraining import VGGTPretraining
from zoo.tasks.video_qa import VideoQATask

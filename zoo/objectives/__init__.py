"""Training objectives. Each file beside `base.py` holds one kind."""

from zoo.objectives.base import Decoded, LanguageModeling, LayerObjective, Objective
from zoo.objectives.camera_prediction import CameraPrediction
from zoo.objectives.depth_prediction import DepthPrediction, RayDepthPrediction
from zoo.objectives.masked_views import MaskedViews
from zoo.objectives.teacher import Distillation, MetricScale, TeacherDepth, TeacherPose

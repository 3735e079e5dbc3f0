"""Objectives of training: one file each beside `base.py`."""

from zoo.objectives.base import Decoded, LanguageModeling, LayerObjective, Objective, decode
from zoo.objectives.cambrian_p import PosePrediction
from zoo.objectives.camera_prediction import CameraPrediction, predicted_cameras, prediction_errors
from zoo.objectives.collection import Objectives
from zoo.objectives.depth_prediction import DepthPrediction, RayDepthPrediction
from zoo.objectives.masked_views import MaskedViews
from zoo.objectives.teacher import Distillation, MetricScale, TeacherDepth, TeacherPose

"""Objectives of training: one file each beside `base.py`."""

from zoo.objectives.base import LayerObjective, Objective
from zoo.objectives.camera_prediction import CameraPrediction
from zoo.objectives.collection import Objectives
from zoo.objectives.decoded import Decoded, decode
from zoo.objectives.depth_prediction import DepthPrediction
from zoo.objectives.evaluation import predicted_cameras, prediction_errors
from zoo.objectives.language_modeling import LanguageModeling
from zoo.objectives.masked_views import MaskedViews
from zoo.objectives.pose_prediction import PosePrediction
from zoo.objectives.ray_depth_prediction import RayDepthPrediction
from zoo.objectives.teacher import Distillation, MetricScale, TeacherDepth, TeacherPose

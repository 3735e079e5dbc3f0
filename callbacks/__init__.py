"""Callbacks of every run, one job each."""

from callbacks.checkpoint import Checkpoint
from callbacks.gallery import GalleryCallback
from callbacks.metrics import MetricsCallback
from callbacks.predictions import PredictionsCallback
from callbacks.progress import progress_bar
from callbacks.run_config import SaveRunConfig

__all__ = ["Checkpoint", "GalleryCallback", "MetricsCallback", "PredictionsCallback", "SaveRunConfig", "progress_bar"]

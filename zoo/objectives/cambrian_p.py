"""Cambrian-P's head and loss under the names that outside checks import. They are in `zoo.published.cambrian_p`."""

from zoo.lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    "zoo", {"published.cambrian_p": ["PoseHead", "PosePrediction", "camera_loss", "mean_path"]}
)

"""Lightning callbacks: checkpoints, metrics, predictions, the run's config, a gallery, a progress bar, step times."""

from zoo.lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "checkpoint": ["Checkpoint"],
        "gallery": ["GalleryCallback"],
        "metrics": ["MetricsCallback"],
        "predictions": ["PredictionsCallback"],
        "run_progress": ["progress_bar"],
        "settings": ["SaveRunConfig"],
        "step_times": ["StepTimes"],
    },
)

"""Lightning callbacks: checkpoints, scored answers, a gallery, a progress bar."""

from zoo.lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "checkpoint": ["Checkpoint"],
        "gallery": ["GalleryCallback"],
        "metrics": ["MetricsCallback"],
        "progress": ["progress_bar"],
    },
)

"""What a run prints beside its own lines: of Lightning's messages those that a user can act on."""

from __future__ import annotations

import logging
import threading
import warnings
from collections import Counter
from typing import Any

from lightning.pytorch.utilities.model_summary import get_human_readable_count

from zoo.tasks import Task

LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.trainer.connectors.checkpoint_connector")
MESSAGES = (  # beginnings
    *("GPU available: False", "TPU available: False"),
    "Restoring states from",  # "Loaded" or "Restored" follows
    "`weights_only` was not set",
    "\nDetected KeyboardInterrupt",  # `EndOnSigterm` says when it ends
)
WARNINGS = (
    ".*LeafSpec.*",  # Lightning 2.6 with torch 2.13
    ".*in eval mode at the start.*",  # frozen parts are, on purpose
    "The number of training batches .* smaller than the logging interval",  # steps are counted over all epochs
)


def quiet_lightning() -> None:
    """Leave out what no user can act on, and the paths of the libraries that warn."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    warnings.formatwarning = format_warning
    for name in LOGGERS:
        logging.getLogger(name).addFilter(is_useful)
    threading.excepthook = show_thread_error


def is_useful(record: logging.LogRecord) -> bool:
    """Whether a message of Lightning's is shown; its advertisement of another logger is not."""
    message = record.getMessage()
    return not message.startswith(MESSAGES) and "litlogger" not in message


def show_thread_error(failed: threading.ExceptHookArgs) -> None:
    """Show the traceback of a thread, unless TensorBoard's can't write: the main thread then raises the same error."""
    if type(failed.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(failed)


def format_warning(message: Any, *_: Any, **__: Any) -> str:
    """Return a warning without the file and line that raised it."""
    return f"warning: {message}\n"


def describe_size(model: Task) -> str:
    """Return a line with the number of parameters, and of those of each part that trains."""
    trained: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trained[model.part_of(name)] += parameter.numel()
    total = get_human_readable_count(sum(parameter.numel() for parameter in model.parameters()))
    parts = ", ".join(f"{part} {get_human_readable_count(count).rstrip()}" for part, count in trained.most_common())
    return f"{type(model).__name__}: {total.rstrip()} parameters, trained: {parts}"

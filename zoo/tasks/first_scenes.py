"""Stops an evaluation whose first scenes all fail alike."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.errors import InputError, raised_at

SCENES = 3  # a fault of one scene, or of two, is recorded with it


class FirstScenes:
    """Watch the first scenes that the model is asked about, in each process by itself.

    Where all of them fail alike, the fault is not theirs but the model's, the machine's or the command's, and every
    other scene would be scored 0 as well. Scenes that can't be read never reach the model and do not count.
    """

    def __init__(self) -> None:
        self._failed: dict[str, str] | None = {}  # error of each scene; None once a scene was answered

    def check(self, records: Sequence[Mapping[str, Any]], fault: Exception | None) -> None:
        """Take the records of a batch.

        Args:
            records: Of questions that the model was asked.
            fault: The exception in which the batch ended, if it did.

        Raises:
            InputError: The first scenes all failed alike, by the user's input or a part of the user's own, or by the
                answers' own errors.
            RuntimeError: The first scenes all failed alike, by another exception.
        """
        if self._failed is None or not records:
            return
        if not all(record["error"] for record in records):
            self._failed = None
            return
        self._failed.update((record["scene"], record["error"]) for record in records)
        # numbers differ between the scenes: sizes, lengths, free memory, and the line where that ran out
        if len(self._failed) >= SCENES and len({re.sub(r"\d+|\(/.*:", "", e) for e in self._failed.values()}) == 1:
            self._failed = {}
            text = f"the first {SCENES} scenes all failed alike, so the run stops: {records[0]['error']}"
            if fault is None or isinstance(fault, InputError) or raised_at(fault):
                raise InputError(text) from fault
            raise RuntimeError(text) from fault

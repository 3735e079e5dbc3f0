"""The evaluation protocol of a test: how a group evaluates, and what of a run departs from it."""

from __future__ import annotations

from typing import Any

from lightning import Trainer
from lightning.pytorch.cli import SaveConfigCallback

from callbacks.settings import flatten
from commands.configs import PROTOCOLS, find_config, read_settings
from zoo.errors import InputError


def protocol_record(trainer: Trainer, name: str | None) -> dict[str, Any]:
    """Return the name of a test's protocol, and the options in which the test differs from it.

    Args:
        trainer: Of the test.
        name: Of `protocol_<name>.yaml`, in the current folder or among the package's configs; None is no protocol.

    Returns:
        {"name", "departures": {option: {"protocol", "run"}}}; without departures if the file or the command line is not
        at hand.
    """
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    configs = [callback.config for callback in callbacks if isinstance(callback, SaveConfigCallback)]
    if name is None or not configs:
        return {"name": name}
    try:
        stated = read_settings(find_config(f"{PROTOCOLS}{name}.yaml"))
    except InputError:  # a protocol of another machine
        return {"name": name}
    return {"name": name, "departures": departures(stated, configs[0].as_dict())}


def departures(stated: dict[str, Any], run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the options of a protocol that a run's settings differ from; class paths may lack their module."""
    ours, theirs = flatten(run), flatten(stated)
    return {
        option: {"protocol": value, "run": ours.get(option)}
        for option, value in theirs.items()
        if _bare(option, value) != _bare(option, ours.get(option))
    }


def _bare(option: str, value: Any) -> Any:
    return str(value).rpartition(".")[2] if option.endswith("class_path") else value

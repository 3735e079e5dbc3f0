"""The evaluation protocol of a test: how a group evaluates, and what of a run departs from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning import Trainer
from lightning.pytorch.cli import SaveConfigCallback

from callbacks.configs import PROTOCOLS, find_config, read_settings
from callbacks.settings import flatten
from zoo.configuration import is_same_class, to_config
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
    found = departures(stated, configs[0].as_dict())
    return {"name": name, "departures": found | _time_of_encoding(trainer.lightning_module, stated)}


def departures(stated: dict[str, Any], run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the options of a protocol that a run's settings differ from; class paths may lack their module.

    Args:
        stated: The protocol.
        run: The settings of the run.

    Returns:
        {option: {"protocol", "run"}}; of a part that the protocol leaves out, "run" has all of its options.
    """
    ours = flatten(run)
    found = {option: {"protocol": value, "run": _setting(ours, option)} for option, value in flatten(stated).items()}
    return {option: each for option, each in found.items() if not _is_same(option, *each.values())}


def _time_of_encoding(task: Any, stated: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the departure of a model whose camera encoding sets the time index, whatever a protocol says."""
    model: Any = getattr(task, "model", None)
    encoding = getattr(model, "camera_encoding", None)
    time_index = stated.get("model", {}).get("init_args", {}).get("time_index")
    if encoding is None or time_index is None or not (encoding.time_index or encoding.requires_constant_time):
        return {}
    return {"model.time_index": {"protocol": time_index, "run": to_config(model.time_index)}}


def _setting(flat: Mapping[str, Any], option: str) -> Any:
    """Return an option of a flattened config; of a part, its options by name."""
    inside = {name.removeprefix(f"{option}."): value for name, value in flat.items() if name.startswith(f"{option}.")}
    return inside or flat.get(option)


def _is_same(option: str, one: Any, other: Any) -> bool:
    return is_same_class(one, other) if option.endswith("class_path") else bool(one == other)

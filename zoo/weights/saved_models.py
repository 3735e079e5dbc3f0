"""Models on disk: run folders and saved models, with a model card.

A saved model consists of the configuration of its parts and the weights that no released file can restore.
"""

from __future__ import annotations

import os.path
import shutil
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from zoo.configuration import (
    PlainLoader,
    check_class_paths,
    from_config,
    is_own,
    to_config,
    with_default_caches,
    with_overrides,
)
from zoo.errors import InputError, add_file_to_errors
from zoo.files.atomic_io import new_folder, write_json, write_whole
from zoo.seed import resolve_seed
from zoo.weights.checkpoint import (
    FROZEN,
    check_frozen,
    check_loaded,
    frozen_weights,
    read_checkpoint,
    read_start,
    released_sources,
    saved_names,
)
from zoo.weights.load import CONFIG, WEIGHTS, StoredTensors, find_folder, read_config

RUN_CONFIG, CHECKPOINTS, LAST = "config.yaml", "checkpoints", "last.ckpt"  # files in a run's folder
LAST_CHECKPOINT = f"{CHECKPOINTS}/{LAST}"
ReleasedParts = Callable[[str, Mapping[str, Any]], dict[str, Any]]
LIBRARY = "spatial-vlm-zoo"
CARD_FILE = "README.md"
CARD = """---
library_name: {library}
pipeline_tag: video-text-to-text
tags: [spatial-reasoning, video, 3d]
{base_model}---

# {title}

A spatial video-language model of the {library}, made of these parts:

```yaml
{parts}```

```python
from zoo import SpatialVLM

model = SpatialVLM.from_pretrained("{title}")
model.answer("clip.mp4", "What is the size of this room (in square meters)?")
```
{frozen}"""


# ---- Runs ------------------------------------------------------------------------------------------------------------


def config_of(run: Path) -> dict[str, Any]:
    """Read the settings of a run.

    Raises:
        InputError: The settings can't be read, or have no model.
    """
    file = run / RUN_CONFIG
    try:
        config: Any = yaml.load(file.read_text(encoding="utf-8"), PlainLoader)
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{file} can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise InputError(f"{file} names no model")
    return config


def latest_run(name: str | None = None, runs: str | Path = "runs") -> Path:
    """Return the folder of the newest run with a checkpoint, for `SpatialVLM.from_pretrained(latest_run())`.

    A warning names runs whose config can't be read.

    Args:
        name: Class of its model, such as "PRoPEMLLM", or the name given by `fit --name`. None accepts any run.
        runs: The folder of runs.

    Raises:
        InputError: There is no such run.
    """
    found = {config.parent for config in Path(runs).glob(f"*/{RUN_CONFIG}")}
    for run in sorted((run for run in found if (run / LAST_CHECKPOINT).exists()), key=trained_at, reverse=True):
        if (config := readable_config(run)) is None:
            continue
        model = str(config["model"].get("class_path", "")).rpartition(".")[2]
        if name in (None, model, config.get("name")):
            return run
    which = "run" if name is None else f"run of {name}"
    raise InputError(f"no trained {which} in {runs}/: train one first, python main.py fit --config prope.yaml")


def readable_config(run: Path) -> dict[str, Any] | None:
    """Return the settings of a run. None, with a warning, if they can't be read."""
    try:
        return config_of(run)
    except InputError:
        warnings.warn(f"{run} is passed over: its {RUN_CONFIG} can't be read", stacklevel=2)
        return None


def trained_at(run: Path) -> float:
    """Return the time of a run's checkpoint, or of its config if there is no checkpoint."""
    checkpoint = run / LAST_CHECKPOINT
    return (checkpoint if checkpoint.exists() else run / RUN_CONFIG).stat().st_mtime


# ---- Saving ----------------------------------------------------------------------------------------------------------


def save_model(model: Any, folder: Path, full: bool, name: str) -> None:
    """Write the folder of `SpatialVLM.save_pretrained`."""
    parts, sources = to_config(model), dict(released_sources(model).values())
    with new_folder(folder) as partial:
        if full:
            parts = _with_copies(parts, sources, partial)
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in _own_tensors(model).items()}
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        config = {
            "library_name": LIBRARY,
            "model": parts,
            "data": _replaced(model.data_config, "seed", resolve_seed),
            "precision": model.precision,
            "frozen": frozen_weights(model),
            "full": full,
        }
        write_json(partial / CONFIG, config)
        model.backbone.preprocessor.save_pretrained(str(partial))
        card = model_card(name, parts, sources, () if full else sources)
        write_whole(partial / CARD_FILE, card)


def _own_tensors(model: Any) -> dict[str, Tensor]:
    """Return the tensors of `saved_names`. A tied weight is included once."""
    every = dict(model.named_parameters(remove_duplicate=False))
    names = saved_names(model, model.restored_by_files) - (every.keys() - dict(model.named_parameters()).keys())
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}


def _with_copies(parts: Any, sources: Mapping[str, tuple[Path, ...]], folder: Path) -> Any:
    """Copy released folders into `released/`, and change the configuration to use the copies."""
    names = {}
    for number, (path, files) in enumerate(sources.items()):
        target = folder / "released" / f"{number}-{Path(path).name}"
        target.mkdir(parents=True)
        beside = [f for f in files[0].parent.iterdir() if f.suffix in (".json", ".txt", ".jinja")]
        for file in {*files, *beside}:
            shutil.copyfile(file, target / file.name)
        source = target / Path(path).name if Path(path).is_file() else target
        names[path] = str(source.relative_to(folder))
    return _replaced(parts, "path", lambda path: names.get(path, path))


def _replaced(config: Any, option: str, changed: Callable[[Any], Any]) -> Any:
    """Return the configuration with every value of an option changed."""
    if not isinstance(config, dict):
        return config
    return {
        key: changed(value) if key == option else _replaced(value, option, changed) for key, value in config.items()
    }


def model_card(title: str, parts: Mapping[str, Any], released: Iterable[str], frozen: Iterable[str] = ()) -> str:
    """Return the text of a model card.

    The first hub id in `released` is the base model. `frozen` are sources of weights that are not in the folder.
    """
    hub_ids = [path for path in released if not Path(path).exists()]
    return CARD.format(
        library=LIBRARY,
        title=title,
        base_model="".join(f"base_model: {path}\n" for path in hub_ids[:1]),
        parts=yaml.safe_dump(parts, sort_keys=False),
        frozen="".join(f"\nFrozen weights are read from `{path}`.\n" for path in frozen),
    )


# ---- Loading ---------------------------------------------------------------------------------------------------------


def load_model(
    kind: Any,
    path: str | Path,
    overrides: Mapping[str, Any],
    released_parts: ReleasedParts,
    trust_modules: Collection[str] = (),
) -> Any:
    """Build the model of a run, an exported or released folder, or a hub id. It is frozen and in eval mode.

    Args:
        kind: Class of the model.
        path: See `SpatialVLM.from_pretrained`.
        overrides: Constructor arguments that replace the stored ones.
        released_parts: Maps path and config.json of a released model to constructor arguments.
        trust_modules: See `check_class_paths`.

    Raises:
        InputError: Nothing can be loaded from there, or it names a module that is not trusted.
    """
    name = str(path)
    local = Path(path).expanduser()
    if (local / RUN_CONFIG).is_file():
        return _of_run(local, overrides, trust_modules)
    if local.is_file():
        raise InputError(f"{path} is a file: give its run's folder, or one of python main.py export --ckpt_path {path}")
    folder = find_folder(name, "Qwen/Qwen2.5-VL-3B-Instruct")
    config = read_config(folder)
    if config.get("library_name") != LIBRARY:
        return _frozen(kind(**{**released_parts(name, config), **overrides}))
    with add_file_to_errors(folder / CONFIG):
        parts = with_overrides(with_default_caches(config["model"]), overrides)
        if config.get("full"):
            parts = _replaced(
                parts, "path", lambda path: str(folder / path) if path and os.path.exists(folder / path) else path
            )
        check_class_paths(config["model"], trust_modules)
        model = from_config(kind, parts)
        model.data_config, model.precision = with_default_caches(config.get("data") or {}), config.get("precision")
        model.trust_modules = tuple(trust_modules)
    with add_file_to_errors(folder):
        if not config.get("full"):
            check_frozen(config.get("frozen", {}), frozen_weights(_frozen(model)), folder)
        return _load_tensors(model, StoredTensors(lambda: folder / WEIGHTS), str(folder), overrides)


def initial_model(run: Path, trust_modules: Collection[str] = ()) -> Any:
    """Build the model of a run with the weights that its training started from. It is frozen and in eval mode.

    Random weights are drawn anew by torch's generator.

    Raises:
        InputError: The run can't be read, or names a module that is not trusted.
    """
    task = _task_of_run(run, {}, trust_modules)
    if (start := getattr(task, "initial_weights", None)) is not None:
        with add_file_to_errors(start):
            task.load_state_dict(read_start(task, start, task.initial_parts)[0]["state_dict"])
    fusion, checkpoint = getattr(task.model, "fusion", None), run / LAST_CHECKPOINT
    if fusion is not None and fusion.requires_tokens and checkpoint.is_file():  # it was fitted when the training began
        saved = read_checkpoint(checkpoint)["state_dict"]
        for name, buffer in fusion.named_buffers():
            buffer.copy_(saved[f"model.fusion.{name}"])
    return _frozen(task.model)


def _of_run(run: Path, overrides: Mapping[str, Any], trust_modules: Collection[str]) -> Any:
    task = _task_of_run(run, overrides, trust_modules)
    model, checkpoint = task.model, run / LAST_CHECKPOINT
    if checkpoint.is_file():
        saved = read_checkpoint(checkpoint)
        with add_file_to_errors(checkpoint):
            check_frozen(saved.get(FROZEN, {}), task.frozen_weights, checkpoint)
            state = {k.removeprefix("model."): v for k, v in saved["state_dict"].items()}
            return _load_tensors(model, state, str(checkpoint), overrides)
    if not model.is_pretrained:
        raise InputError(f"{run} has no {LAST_CHECKPOINT}: train it first, python main.py fit")
    return _frozen(model)


def _task_of_run(run: Path, overrides: Mapping[str, Any], trust_modules: Collection[str]) -> Any:
    """Build the task of a run, as its training did."""
    settings = config_of(run) if is_own(run) else with_default_caches(config_of(run))
    with add_file_to_errors(run / RUN_CONFIG):
        # the task is found by its class path, because the model layer does not import the task layer
        check_class_paths(settings["model"], trust_modules)
        task: Any = from_config(nn.Module, with_overrides(settings["model"], overrides))
        if not task.answers_questions:
            raise InputError(f"a {type(task).__name__} answers no questions, so there is no SpatialVLM in it")
        model = task.model
        model.trust_modules = tuple(trust_modules)
        seed = int(settings.get("seed_everything") or 0)  # seed of the run's random frames
        model.data_config = _replaced(settings.get("data") or {}, "seed", lambda own: seed if own is None else own)
        if isinstance(trainer := settings.get("trainer"), dict):
            model.precision = str(trainer.get("precision") or "32-true")
    return task


def _load_tensors(model: Any, tensors: Mapping[str, Tensor], source: str, overrides: Mapping[str, Any]) -> Any:
    _frozen(model)
    tensors, wanted = dict(tensors), set(_own_tensors(model))
    if "objectives" in overrides:  # heads may be dropped or start from scratch, but a token is part of the prompt
        own = model.state_dict()
        fitting = {name for name in tensors.keys() & own.keys() if tensors[name].shape == own[name].shape}
        others = {name for name in {*tensors, *own} - fitting if name.startswith("objectives.")}
        for name in sorted(others - own.keys()):
            if name.endswith(".token"):
                warnings.warn(f"{source} was trained with {name} in its prompt, which is left out now", stacklevel=2)
        tensors = {name: tensor for name, tensor in tensors.items() if name not in others}
        wanted -= {name for name in others if not name.endswith(".token")}
    for name, parameter in model.named_parameters():
        if name in tensors:  # trained weights are float32, even in a frozen bfloat16 model
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, tensors[name].dtype))
    check_loaded(model.load_state_dict(tensors, strict=False), wanted, source)
    model.loaded_names = frozenset(tensors)
    return model


def _frozen(model: Any) -> Any:
    return model.requires_grad_(False).eval()

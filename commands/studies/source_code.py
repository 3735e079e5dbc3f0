"""The code that a training depends on: a digest that changes with what it does, and a copy."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

import callbacks
import datamodules
import zoo
from callbacks.configs import merge_configs
from commands.cli import TRAINER_DEFAULTS
from commands.parser import split_configs
from commands.studies.modules import ROOT, Module, Modules
from commands.studies.study_file import Run
from zoo.configuration import flatten
from zoo.files.atomic_io import replace_file
from zoo.files.fingerprint import fingerprint

DIGITS = 12
SCORES = "zoo.metrics"  # of the tests; all else follows from the class paths of a training


class SourceCode:
    """The present code of trainings; each module and config is read once.

    The code of a training is its configs, and the modules that define the classes in its settings, with those that
    these import in turn: the project's and the user's.
    """

    def __init__(self) -> None:
        self._modules = Modules([Path.cwd(), ROOT])  # as `python -m commands.main` imports them
        self._digests: dict[str, set[str]] = {}  # of modules
        self._configs: dict[tuple[str, ...], list[dict[str, Any]]] = {}

    def digest(self, run: Run) -> str:
        """Return the digest of the code of a training.

        Comments, docstrings and the layout of Python files and configs have no effect, nor has the file in which a
        statement stands. Not noticed: two functions of one name in two files that exchange their bodies.

        Raises:
            InputError: A config is absent or damaged, or two of them disagree.
        """
        modules = self.modules(run)
        self._digests |= {each.name: each.digests for each in modules if each.name not in self._digests}
        code = set[str]().union(*(self._digests[each.name] for each in modules))
        return fingerprint([sorted(code), self._settings(run)])[:DIGITS]

    def modules(self, run: Run) -> list[Module]:
        """Return the modules that a training depends on."""
        return self._modules.closure([SCORES, *_import_paths(self.settings(run))])

    def settings(self, run: Run) -> dict[str, Any]:
        """Return the settings of a training by dotted name."""
        return _final_settings(self._settings(run), run.fit)

    def save(self, run: Run, path: Path) -> None:
        """Write the modules of a training, and the files that they read, into a zip.

        Raises:
            OSError: It can't be written.
        """

        def write(file: Any) -> None:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                for module in self.modules(run):
                    for each in (module.path, *module.data):
                        archive.write(each, module.folder / each.name)

        replace_file(path, write)

    def _settings(self, run: Run) -> list[dict[str, Any]]:
        """Return the settings that lie below the options of a training, in the order in which they are read."""
        if run.configs not in self._configs:
            self._configs[run.configs] = [{"trainer": TRAINER_DEFAULTS}, merge_configs(run.configs).settings]
        return self._configs[run.configs]


def _final_settings(configs: Iterable[dict[str, Any]], fit: Iterable[str]) -> dict[str, Any]:
    """Return the settings of a training by dotted name.

    Under another class options stay, as those do that it accepts.
    """
    words = (word.removeprefix("--").partition("=") for word in split_configs(list(fit))[1])
    options = [{name: _parsed(text)} for name, _, text in words]
    settings: dict[str, Any] = {}
    for name, value in (item for each in (*configs, *options) for item in flatten(each).items()):
        part = name.removesuffix(".class_path")
        if value is None:
            settings = {option: each for option, each in settings.items() if not option.startswith(f"{part}.")}
        for former in (part, f"{part}.class_path"):
            settings.pop(former, None)
        settings[name] = value
    return settings


def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _import_paths(value: Any) -> Iterator[str]:
    """Yield the texts in settings, of which some are import paths, and the project's classes in full."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _import_paths(each)
    elif isinstance(value, str):
        menus = (menu.__name__ for menu in (zoo, datamodules, callbacks) if value in menu.__all__)
        yield f"{next(menus, '')}.{value}".lstrip(".")

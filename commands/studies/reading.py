"""Reads a study file; its errors name the file and the key."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError

from callbacks.configs import MergedConfig, buildable_classes, find_config
from commands.main import COMMANDS
from commands.parser import build, command_parser, explained
from commands.studies.embedding import check_references
from commands.studies.names import check_names
from commands.studies.study_file import MACRO, Setting, Study, Test, folder_name
from zoo.benchmarks import registered_benchmarks
from zoo.errors import InputError, closest

SPECIAL = {  # keys that are no options
    "settings": {field.name for field in fields(Setting)} - {"options"},
    "tests": {field.name for field in fields(Test)} - {"options"},
}
CLASS = re.compile(r"[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*|GTA")  # a value that names one


def read_study(path: Path, output: Path | None = None) -> Study:
    """Read and check a study file.

    Args:
        path: The file.
        output: A folder for all that is written; other documents are left alone then.

    Raises:
        InputError: The file is absent or not YAML, or a key, a name or a value is wrong.
    """
    if not path.is_file():
        folders = dict.fromkeys((path.parent, Path("studies")))
        known = {other.stem: str(other) for folder in folders for other in sorted(folder.glob("[!.]*.yaml"))}
        guess = closest(path.stem, known)
        advice = f"did you mean {known[guess]}?" if guess else f"known: {', '.join(known.values())}"
        raise InputError(f"{path}: there is no such study" + (f"; {advice}" if known else ""))
    try:
        study = _parse(_load(path), path)
        _check(study)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return study if output is None else replace(study, output=output, documents=[])


class StudyLoader(yaml.SafeLoader):
    """Refuse a repeated key, and a merge of several parts: PyYAML's versions disagree who wins."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Return the mapping that begins here."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value]
        for number, (key, value) in enumerate(node.value):
            if key.value in keys[:number]:
                raise InputError(f"line {key.start_mark.line + 1}: {key.value} is given twice")
            if key.value == "<<" and isinstance(value, yaml.SequenceNode):
                raise InputError(f"line {key.start_mark.line + 1}: merge one part, which may itself merge another")
        return node


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), StudyLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError("holds no study: it needs at least a title and settings")
    return content


def _parse(content: dict[str, Any], path: Path) -> Study:
    for key, special in SPECIAL.items():
        if isinstance(named := content.get(key), dict):
            split = {str(name): _split(key, options, special) for name, options in named.items()}
            content = {**content, key: split}
    parser = command_parser("study", None)
    parser.add_class_arguments(Study, skip={"path", "output"})
    keys = {str(key): value for key, value in content.items()}
    try:
        parsed = parser.parse_object(keys)
    except ArgumentError as error:
        refused = error
    else:
        return Study(**vars(build(parser, parsed)), path=path)
    raise explained(refused, parser, MergedConfig(keys), ()) from refused


def _split(where: str, named: Any, special: set[str]) -> Any:
    """Return a setting or a test with its options apart from the special keys."""
    if not isinstance(named, dict):
        raise InputError(f"{where}: expected options by name for each {where.removesuffix('s')}, not {named}")
    options = {key: value for key, value in named.items() if key not in special}
    return {**{key: value for key, value in named.items() if key in special}, "options": options}


def _check(study: Study) -> None:
    """Check the names that a study file refers to."""
    if not study.settings:
        raise InputError("settings: there is none")
    check_names(study.seeds, study.seeds, "seed")
    scores = {MACRO, *(kind for benchmark in registered_benchmarks().values() for kind in benchmark().question_types)}
    for setting in study.settings.values():
        for config in (*study.configs, *setting.configs):
            find_config(config)
        check_names(setting.columns or [], study.columns, "column")
        check_names(setting.tests, study.tests, "test")
        check_names(setting.requires, study.requires, "required file")
        check_names([setting.score or study.score], scores, "score")
    check_names({test.score for test in study.tests.values() if test.score}, scores, "score")
    for file, command in study.requires.items():
        _check_command(file, command)
    _check_classes(study)
    runs = study.runs(study.settings, study.columns, study.seeds)
    for folders in ([run.folder_name for run in runs], [folder_name(test) for test in study.tests]):
        if shared := [name for name, count in Counter(folders).items() if count > 1]:
            raise InputError(f"two trainings or tests would share the folder {shared[0]}: rename a setting or a test")
    titles = [each.title for each in study.compare]
    check_names(titles, titles, "title")
    for each in study.compare:
        check_names([*each.settings, *filter(None, [each.baseline])], study.settings, "setting")
        check_names([each.column] if each.column else [], study.columns, "column")
        check_names(each.tests, study.tests, "test")
        if each.baseline is None and not each.tests:
            raise InputError(f"compare: {each.title}: name a baseline or tests")
        for name in [] if each.baseline is None else [each.baseline, *each.settings]:
            check_names(each.tests, study.settings[name].tests, f"test of {name}")
    for name in study.documents:
        if not Path(name).is_file():
            raise InputError(f"documents: there is no {name}")
        try:
            check_references(Path(name).read_text(encoding="utf-8"), study)
        except InputError as error:
            raise InputError(f"documents: {name}: {error}") from error


def _check_command(file: str, command: str) -> None:
    """Check the command that makes a required file, as far as its name."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(f"requires: {file}: {error}: {command}") from error
    if not words or words[0] not in COMMANDS:
        raise InputError(f"requires: {file}: give what follows main.py, such as fit --config ..., not {command!r}")


def _check_classes(study: Study) -> None:
    """Check names of classes, which a training would refuse only when it starts, and a test only after hours."""
    known = {"None", *(kind.__name__ for kind in buildable_classes())}
    named: list[Setting | Test] = [*study.settings.values(), *study.tests.values()]
    for options in (study.options, study.test, *(each.options for each in named), *study.columns.values()):
        for value in options.values():
            if isinstance(value, str) and CLASS.fullmatch(value):
                check_names([value], known, "class")

"""Reads a study file; its errors name the file and the key."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from commands.configs import find_config
from commands.parser import OneLineParser, closest, registered_classes
from commands.studies.study_file import MACRO, MARKS, Setting, Study, folder_name
from zoo.benchmarks import registered_benchmarks
from zoo.errors import InputError

SPECIAL = {field.name for field in fields(Setting)} - {"options"}  # keys of a setting that are no options


def read_study(path: Path, output: Path | None = None) -> Study:
    """Read and check a study file.

    Args:
        path: the file.
        output: a folder for all that is written; other documents are left alone then.

    Raises:
        InputError: the file is absent or not YAML, or a key, a name or a value is wrong.
    """
    if not path.is_file():
        known = ", ".join(str(other) for other in sorted(path.parent.glob("*.yaml")))
        raise InputError(f"{path}: there is no such study" + (f"; known: {known}" if known else ""))
    try:
        study = _parse(_load(path), path)
        _check(study)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return study if output is None else replace(study, output=output, documents=[])


def check_names(names: Collection[Any], known: Collection[Any], what: str) -> None:
    """Raise InputError for a name that is unknown, with the nearest, or given twice."""
    for name in names:
        if name not in known:
            guess = closest(str(name), map(str, known))[1]
            raise InputError(f"there is no {what} {name}" + (f"; the nearest is {guess}" if guess else ""))
    if twice := [str(name) for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{what} {twice[0]} is given twice")


def _load(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_ambiguous(yaml.compose(text, Loader=yaml.SafeLoader))
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError("holds no study: it needs at least a title and settings")
    return content


def _refuse_ambiguous(node: yaml.Node | None) -> None:
    """Raise InputError for a repeated key, and for a merge of several parts: PyYAML's versions disagree who wins."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    seen = set()
    for key, value in pairs:
        line = f"line {key.start_mark.line + 1}"
        if str(key.value) in seen:
            raise InputError(f"{line}: {key.value} is given twice")
        if key.value == "<<" and isinstance(value, yaml.SequenceNode):
            raise InputError(f"{line}: merge one part, which may itself merge another")
        seen.add(str(key.value))
    for child in [value for _, value in pairs] if pairs else getattr(node, "value", []):
        if isinstance(child, yaml.CollectionNode):
            _refuse_ambiguous(child)


def _parse(content: dict[str, Any], path: Path) -> Study:
    settings = content.get("settings")
    if isinstance(settings, dict):
        content = {**content, "settings": {str(name): _split(setting) for name, setting in settings.items()}}
    parser = OneLineParser(prog="main.py study")
    parser.add_class_arguments(Study, skip={"path", "output"})
    parsed = parser.instantiate_classes(parser.parse_object({str(key): value for key, value in content.items()}))
    return Study(**vars(parsed), path=path)


def _split(setting: Any) -> Any:
    """Return a setting with its options apart from the special keys."""
    if not isinstance(setting, dict):
        raise InputError(f"settings: expected options by name for each setting, not {setting}")
    options = {key: value for key, value in setting.items() if key not in SPECIAL}
    return {**{key: value for key, value in setting.items() if key in SPECIAL}, "options": options}


def _check_classes(options: Iterable[dict[str, Any]]) -> None:
    """Check names of classes, which a training would refuse only when it starts, and a test only after hours."""
    known = {"None", *(kind.__name__ for kind in registered_classes())}
    for own in options:
        for name, value in own.items():
            if isinstance(value, str) and re.fullmatch(r"[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*|GTA", value):
                try:
                    check_names([value], known, "class")
                except InputError as error:
                    raise InputError(f"{name}: {error}") from error


def _check(study: Study) -> None:
    """Check the names that a study file refers to."""
    if not study.settings:
        raise InputError("settings: there is none")
    check_names(study.seeds, study.seeds, "seed")
    scores = {MACRO, *(kind for benchmark in registered_benchmarks().values() for kind in benchmark().question_types)}
    check_names([study.score], scores, "score")
    for config in study.configs:
        find_config(config)
    _check_classes([study.options, *study.columns.values(), *study.tests.values()])
    _check_classes([setting.options for setting in study.settings.values()])
    for name, setting in study.settings.items():
        for config in setting.configs:
            find_config(config)
        check_names(setting.columns or [], study.columns, "column")
        check_names(setting.tests, study.tests, "test")
        check_names(setting.requires, study.requires, "required file")
        check_names([study.score_of(name)], scores, "score")
    for names, what in ((study.settings, "setting"), (study.columns, "column"), (study.tests, "test")):
        alike = Counter(folder_name(name) for name in names)
        if same := [name for name in names if alike[folder_name(name)] > 1]:
            raise InputError(f"{what}s {' and '.join(same)} would share a folder: rename one")
    folders = Counter(run.folder_name for run in study.runs(study.settings, study.columns, study.seeds))
    if shared := [name for name, count in folders.items() if count > 1]:
        raise InputError(f"two trainings would share the folder {shared[0]}: rename a setting or a column")
    check_names([each.title for each in study.compare], [each.title for each in study.compare], "title")
    for each in study.compare:
        check_names(each.settings, study.settings, "setting")
        check_names([each.baseline] if each.baseline else [], study.settings, "setting")
        check_names([each.column] if each.column else [], study.columns, "column")
        check_names(each.tests, study.tests, "test")
        if (each.baseline is None) == (not each.tests):
            raise InputError(f"compare: {each.title}: name either a baseline or tests")
        column = each.column or next(iter(study.columns))
        if each.baseline and column not in study.columns_of(each.baseline):
            raise InputError(f"compare: {each.title}: its baseline {each.baseline} is not run under {column}")
        if not each.baseline and not any(set(study.settings[name].tests) & set(each.tests) for name in each.settings):
            raise InputError(f"compare: {each.title}: none of its settings has one of its tests")
    for name in study.documents:
        if not Path(name).is_file():
            raise InputError(f"documents: there is no {name}")
        blocks = MARKS.finditer(Path(name).read_text(encoding="utf-8"))
        embedded = {block["title"] for block in blocks if block["study"] == study.name}
        check_names(embedded, [each.title for each in study.compare], f"section for {name},")

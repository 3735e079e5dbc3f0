"""A study file: its content, its checks, and the trainings that it plans."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError

from commands.main import COMMANDS
from commands.parser import build, command_parser, explained, with_option
from datamodules import Intervention
from run_folder.configs import MergedConfig, buildable_classes, find_class, find_config, merge_configs
from run_folder.record import RunRecord
from zoo.benchmarks import registered_benchmarks
from zoo.configuration import RUNS, flatten, is_covered
from zoo.errors import InputError, closest, did_you_mean
from zoo.files.ownership import file_name

STUDIES = RUNS / "studies"  # folder for the runs of studies
MACRO = "macro"  # a score: the mean over the question types
SAMPLING = "model.sampling"
OWN = ""  # the name of the test that every trained model has
Options = dict[str, Any]  # values by dotted name


# ---- Content ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        options: Options of `fit`.
        configs: Config files.
        columns: The columns that the setting is run under; None means all.
        tests: Names of further tests.
        score: The measure of the row; None means the study's.
        requires: Files that the training reads, keys of the study's `requires`.
        responses: Interventions to which the trained model's responses are measured, by their class.
    """

    options: Options = field(default_factory=dict)
    configs: list[str] = field(default_factory=list)
    columns: list[str] | None = None
    tests: list[str] = field(default_factory=list)
    score: str | None = None
    requires: list[str] = field(default_factory=list)
    responses: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Test:
    """A further test of trained models.

    Attributes:
        options: Options of `test`, over the options that every test of the study has.
        score: The measure of its scores; None means the setting's.
    """

    options: Options = field(default_factory=dict)
    score: str | None = None


@dataclass(frozen=True)
class Comparison:
    """One section of the document.

    It compares settings with a baseline, or the tests of trained models with their own test. With both a baseline and
    tests, it compares the settings with the baseline under each of the tests.

    Attributes:
        title: The heading.
        settings: The rows.
        baseline: The setting that the others are compared with; None compares tests.
        tests: Further tests. Each row is a setting under one of the tests that it has.
        column: The only column that is shown and compared. None shows all columns and compares in the first.
        interest: The least effect of interest, in 0..1, by which the table says what a difference means. None says
            nothing.
    """

    title: str
    settings: list[str]
    baseline: str | None = None
    tests: list[str] = field(default_factory=list)
    column: str | None = None
    interest: float | None = None


@dataclass(frozen=True)
class Run:
    """One planned training and its tests.

    Attributes:
        options: The study's, the setting's and the column's options; of equal names the last wins.
        tests: Options of each test, by its name.
        score: The measure of the row.
        requires: Files that the training reads.
    """

    setting: str
    column: str
    seed: int
    configs: tuple[str, ...]
    options: Options
    tests: dict[str, Options]
    score: str
    requires: tuple[str, ...]
    responses: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join([*filter(None, (self.setting, self.column)), f"seed {self.seed}"])

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the command line after `main.py fit`."""
        configs = (f"--config={config}" for config in self.configs)
        return (*configs, *as_words(self.options), f"--seed_everything={self.seed}")

    @cached_property
    def merged(self) -> Options:
        """The options of the training with its configs merged, by dotted name."""
        settings = merged(self.configs)
        for name, value in self.options.items():
            settings = with_option(settings, name, value)
        return flatten(settings)

    @cached_property
    def resolved(self) -> Options:
        """The merged options by which results belong to the training.

        Options that change no result, such as the number of devices, are left out. Options that only change answers are
        those of the study file: configs state the defaults of tests.
        """
        owners = [find_class(str(self.merged.get(f"{part}.class_path"))) for part in ("model", "data")]
        record = RunRecord.of(self.merged, *(owners if all(owners) else ()))
        flat = {
            name: each
            for name, each in self.merged.items()
            if record.changes_training(name)
            or (is_covered(name, self.options) and is_covered(name, record.effects.answers))
        }
        return dict(json.loads(json.dumps(flat, default=str)))

    @property
    def is_trained(self) -> bool:
        """Whether there is a training. With zero steps there is none, and the released weights are tested."""
        return self.options.get("trainer.max_steps") != 0

    @property
    def depends_on_seed(self) -> bool:
        """Whether other seeds may give other results: in a training, and where a test draws its answers."""
        return self.is_trained or any(is_covered(name, [SAMPLING]) and value for name, value in self.merged.items())

    @property
    def folder_name(self) -> str:
        """The name of the run's folder inside the folder of the study."""
        return "-".join([*(file_name(part) for part in (self.setting, self.column) if part), str(self.seed)])


@dataclass(frozen=True)
class Study:
    """A study file; `main.py study --help` describes it."""

    title: str
    settings: dict[str, Setting]
    text: str = ""
    configs: list[str] = field(default_factory=list)
    options: Options = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    added_seeds: list[int] = field(default_factory=list)
    score: str = MACRO
    begins: float | None = None
    columns: dict[str, Options] = field(default_factory=lambda: {"": {}})
    test: Options = field(default_factory=dict)
    tests: dict[str, Test] = field(default_factory=dict)
    requires: dict[str, str] = field(default_factory=dict)
    compare: list[Comparison] = field(default_factory=list)
    parts: Any = None  # YAML anchors
    path: Path = Path()  # of the file itself
    output: Path | None = None  # the folder of everything that is written; None: runs/ and the file's own folder

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem

    @property
    def folder(self) -> Path:
        """The folder of the study's runs."""
        return self.output / "runs" if self.output else STUDIES / self.name

    @property
    def results(self) -> Path:
        """The file of the study's results."""
        return (self.output or self.path.parent) / "results" / f"{self.name}.jsonl"

    @property
    def document(self) -> Path:
        """The Markdown file with the study's tables."""
        return (self.output or self.path.parent) / f"{self.name}.md"

    def score_of(self, setting: str, test: str = OWN) -> str:
        """Return the measure of a setting's row, or of a further test."""
        of_test = self.tests[test].score if test != OWN else None
        return of_test or self.settings[setting].score or self.score

    def label_of(self, setting: str) -> str:
        """Return a setting's name, with its measure if that is not the study's."""
        own = self.score_of(setting)
        return setting if own == self.score else f"{setting} ({own})"

    def columns_of(self, setting: str) -> list[str]:
        """Return the columns that a setting is run under."""
        chosen = self.settings[setting].columns
        return [column for column in self.columns if chosen is None or column in chosen]

    def runs(
        self,
        settings: Collection[str] | None = None,
        columns: Collection[str] | None = None,
        seeds: Collection[int] | None = None,
    ) -> list[Run]:
        """Return the planned trainings, or the chosen ones.

        All settings of one seed and column come together, so that whole tables are complete early.
        """
        return [
            self.run(name, column, seed)
            for seed, column, name in product(self.seeds, self.columns, self.settings)
            if seed in (self.seeds if seeds is None else seeds)
            and column in (self.columns_of(name) if columns is None else {*columns} & {*self.columns_of(name)})
            and (settings is None or name in settings)
        ]

    def run(self, name: str, column: str, seed: int) -> Run:
        """Return the training of a setting; of options that are given twice, the column's win, then the setting's."""
        return self._planned[name, column, seed]

    @cached_property
    def _planned(self) -> dict[tuple[str, str, int], Run]:
        """Every training, made once: `Run.resolved` takes time."""
        return {key: self._plan(*key) for key in product(self.settings, self.columns, self.seeds)}

    def _plan(self, name: str, column: str, seed: int) -> Run:
        setting = self.settings[name]
        chosen = {test: self.tests[test] for test in setting.tests}
        return Run(
            name,
            column,
            seed,
            (*self.configs, *setting.configs),
            {**self.options, **setting.options, **self.columns[column]},
            {test: {**self.test, **each.options} for test, each in {OWN: Test(), **chosen}.items()},
            self.score_of(name),
            tuple(setting.requires),
            tuple(setting.responses),
        )


@cache
def merged(configs: tuple[str, ...]) -> Mapping[str, Any]:
    """Return configs in one, see `merge_configs`."""
    return merge_configs(configs).settings


def as_words(options: Options) -> tuple[str, ...]:
    """Return options as words of a command line."""
    return tuple(
        f"--{name}={value if isinstance(value, str) else json.dumps(value, default=str)}"
        for name, value in options.items()
    )


def test_folder_name(test: str) -> str:
    """Return the name of the folder of a test."""
    return file_name(test) or "own"


# ---- Reading ---------------------------------------------------------------------------------------------------------

SPECIAL = {  # keys of a setting or a test that are no options
    "settings": {each.name for each in fields(Setting)} - {"options"},
    "tests": {each.name for each in fields(Test)} - {"options"},
}


def read_study(path: Path, output: Path | None = None) -> Study:
    """Read and check a study file.

    Args:
        path: The file.
        output: A folder for everything that is written.

    Raises:
        InputError: The file is absent or not YAML, or a key, a name or a value is wrong. It names the file and the key.
    """
    if not path.is_file():
        folders = dict.fromkeys((path.parent, Path("studies")))
        known = {other.stem: str(other) for folder in folders for other in sorted(folder.glob("[!.]*.yaml"))}
        guess = closest(path.stem, known)
        advice = f"did you mean {known[guess]}?" if guess else f"known: {', '.join(known.values())}"
        raise InputError(f"{path}: there is no such study" + (f"; {advice}" if known else ""))
    merged.cache_clear()  # configs may have been edited since
    try:
        study = _parse(_load(path), path, output)
        _check(study)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return study


class StudyLoader(yaml.SafeLoader):
    """Refuse a repeated key, which YAML overwrites without a word, and a merge of several parts.

    Versions of PyYAML disagree on which of several parts wins.
    """

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


def _parse(content: dict[str, Any], path: Path, output: Path | None) -> Study:
    check_names([*map(str, content)], {each.name for each in fields(Study)} - {"path", "output"}, "key")
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
        return Study(**vars(build(parser, parsed)), path=path, output=output)
    raise explained(refused, parser, MergedConfig(keys), ()) from refused


def _split(where: str, named: Any, special: set[str]) -> Any:
    """Separate the options of a setting or a test from the special keys."""
    if not isinstance(named, dict):
        raise InputError(f"{where}: expected options by name for each {where.removesuffix('s')}, not {named}")
    options = {key: value for key, value in named.items() if key not in special}
    return {**{key: value for key, value in named.items() if key in special}, "options": options}


def _check(study: Study) -> None:
    """Check the names that a study file refers to."""
    if not study.settings:
        raise InputError("settings: there is none")
    check_names(study.seeds, study.seeds, "seed")
    check_names(study.added_seeds, study.seeds, "seed")
    scores = {MACRO, *(kind for benchmark in registered_benchmarks().values() for kind in benchmark().question_types)}
    for setting in study.settings.values():
        for config in (*study.configs, *setting.configs):
            find_config(config)
        check_names(setting.columns or [], study.columns, "column")
        check_names(setting.tests, study.tests, "test")
        check_names(setting.requires, study.requires, "required file")
        if setting.responses:  # to list the interventions imports every public class
            check_names(setting.responses, {kind.__name__ for kind in buildable_classes(Intervention)}, "intervention")
        check_names([setting.score or study.score], scores, "score")
    check_names({test.score for test in study.tests.values() if test.score}, scores, "score")
    for file, command in study.requires.items():
        if command.split()[:1] == [] or command.split()[0] not in COMMANDS:
            raise InputError(f"requires: {file}: give what follows main.py, such as fit --config ..., not {command!r}")
        try:
            shlex.split(command)
        except ValueError as error:
            raise InputError(f"requires: {file}: {error}: {command}") from error
    test_folders = [test_folder_name(test) for test in (OWN, *study.tests)]
    for folders in ([run.folder_name for run in study.runs()], test_folders):
        if shared := [name for name, count in Counter(folders).items() if count > 1]:
            raise InputError(f"two trainings or tests would share the folder {shared[0]}: rename a setting or a test")
    for each in study.compare:
        check_names([*each.settings, *filter(None, [each.baseline])], study.settings, "setting")
        check_names([each.column] if each.column else [], study.columns, "column")
        check_names(each.tests, study.tests, "test")
        if each.baseline is None and not each.tests:
            raise InputError(f"compare: {each.title}: name a baseline or tests")
        for name in [] if each.baseline is None else [each.baseline, *each.settings]:
            check_names(each.tests, study.settings[name].tests, f"test of {name}")


def check_names(names: Collection[Any], known: Collection[Any], what: str) -> None:
    """Raise InputError for a name that is unknown or given twice."""
    for name in names:
        if name not in known:
            names_known = [str(each) for each in known]
            meant = did_you_mean(str(name), names_known) or f"; known: {shlex.join(names_known)}"
            raise InputError(f"there is no {what} {name}{meant}")
    if twice := [str(name) for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{what} {twice[0]} is given twice")

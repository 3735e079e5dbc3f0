"""The content of a study file, and the trainings that it plans."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

RUNS = Path("runs") / "studies"
MACRO = "macro"  # a score: the mean over the question types
OWN = ""  # the name of the test that every trained model has
STEPS = "--trainer.max_steps"
Options = dict[str, Any]  # values by dotted name


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        options: Options of `fit`.
        configs: Config files.
        columns: The columns that it is run under; None is all.
        tests: Names of further tests.
        score: The measure of its row; None is the study's.
        requires: Files that its training reads, keys of the study's `requires`.
    """

    options: Options = field(default_factory=dict)
    configs: list[str] = field(default_factory=list)
    columns: list[str] | None = None
    tests: list[str] = field(default_factory=list)
    score: str | None = None
    requires: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Test:
    """A further test of trained models.

    Attributes:
        options: Options of `test`, over those that every test of the study has.
        score: The measure of its scores; None is that of the setting.
    """

    options: Options = field(default_factory=dict)
    score: str | None = None


@dataclass(frozen=True)
class Comparison:
    """One section of the document: settings against a baseline, or trained models under tests against themselves.

    With both, settings are compared with the baseline under each of the tests.

    Attributes:
        title: The heading, by which documents embed the section.
        settings: The rows.
        baseline: The setting that the others are compared with; None compares tests.
        tests: Further tests; each row is a setting under one of those that it has. With a baseline all have them.
        column: The column in which the scores are compared, shown alone; None compares in the first and shows all.
    """

    title: str
    settings: list[str]
    baseline: str | None = None
    tests: list[str] = field(default_factory=list)
    column: str | None = None


@dataclass(frozen=True)
class Run:
    """One training and its tests.

    Attributes:
        fit: Words of the command line after `main.py fit`.
        tests: Words after `main.py test` that change the test, by the test's name.
    """

    setting: str
    column: str
    seed: int
    configs: tuple[str, ...]
    fit: tuple[str, ...]
    tests: dict[str, tuple[str, ...]]
    score: str
    requires: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join([*filter(None, (self.setting, self.column)), f"seed {self.seed}"])

    @property
    def command(self) -> str:
        """The words of `fit` as text, by which results are found."""
        return shlex.join(self.fit)

    @property
    def is_trained(self) -> bool:
        """Whether there is a training: in zero steps there is none, and the released weights are tested."""
        steps = [word for word in self.fit if word.startswith(f"{STEPS}=")]
        return steps[-1:] != [f"{STEPS}=0"]

    @property
    def folder_name(self) -> str:
        """The name of its folder, below that of the study."""
        return "-".join([*(folder_name(part) for part in (self.setting, self.column) if part), str(self.seed)])


@dataclass(frozen=True)
class Study:
    """A study file; `commands.study` describes it."""

    title: str
    settings: dict[str, Setting]
    text: str = ""
    configs: list[str] = field(default_factory=list)
    options: Options = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    score: str = MACRO
    columns: dict[str, Options] = field(default_factory=lambda: {"": {}})
    test: Options = field(default_factory=dict)
    tests: dict[str, Test] = field(default_factory=dict)
    requires: dict[str, str] = field(default_factory=dict)
    compare: list[Comparison] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)
    parts: Any = None  # YAML anchors
    path: Path = Path()  # of the file itself
    output: Path | None = None  # a folder for all that is written; None is runs/ and the file's own folder

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem

    @property
    def folder(self) -> Path:
        """The folder of its runs."""
        return self.output / "runs" if self.output else RUNS / self.name

    @property
    def results(self) -> Path:
        """The file of its results."""
        return (self.output or self.path.parent) / "results" / f"{self.name}.jsonl"

    @property
    def document(self) -> Path:
        """The file of its tables."""
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

    def runs(self, settings: Collection[str], columns: Collection[str], seeds: Collection[int]) -> list[Run]:
        """Return the planned trainings: all settings of a seed and column together, so that whole tables come early."""
        return [
            self.run(name, column, seed)
            for seed, column, name in product(self.seeds, self.columns, self.settings)
            if seed in seeds and column in columns and name in settings and column in self.columns_of(name)
        ]

    def run(self, name: str, column: str, seed: int) -> Run:
        """Return the training of a setting; of options that are given twice, the column's win, then the setting's."""
        setting = self.settings[name]
        configs = (*self.configs, *setting.configs)
        options = (*words(self.options), *words(setting.options), *words(self.columns[column]))
        chosen = {test: self.tests[test] for test in setting.tests}
        return Run(
            name,
            column,
            seed,
            configs,
            (*(f"--config={config}" for config in configs), *options, f"--seed_everything={seed}"),
            {test: words({**self.test, **each.options}) for test, each in {OWN: Test(), **chosen}.items()},
            self.score_of(name),
            tuple(setting.requires),
        )


def words(options: Options) -> tuple[str, ...]:
    """Return options as words of a command line."""
    return tuple(
        f"--{name}={value if isinstance(value, str) else json.dumps(value, default=str)}"
        for name, value in options.items()
    )


def folder_name(name: str) -> str:
    """Return a name without the characters that a folder's should not have."""
    return re.sub(r"[^\w.]+", "-", name).strip("-")

"""python main.py report: runs that differ in the seed alone are averaged, and settings compared over seeds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands.report import report
from tests.commands.made_runs import CONFIG, answers, make_run
from tests.commands.reports.printing import cells, printed


def seeded(seed: int, steps: int = 10, rooms: int = 0) -> Any:
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    config["seed_everything"] = seed
    config["trainer"] = {"default_root_dir": f"runs/{seed}", "max_steps": steps}
    config["model"]["init_args"]["backbone"]["init_args"]["seed"] = None
    config["data"]["init_args"]["source"] = {"class_path": "datamodules.Rooms", "init_args": {"seed": rooms}}
    return config


def test_runs_that_differ_in_the_seed_alone_are_averaged(tmp_path: Path, capsys) -> None:
    configs = {
        **{f"seed{seed}": seeded(seed) for seed in range(3)},
        "again": seeded(2),  # the same training once more is no further seed
        "longer": seeded(3, steps=20),
        "elsewhere": seeded(3, rooms=1),  # the seed of the rooms makes other data
    }
    runs = [make_run(tmp_path / name, answers(90, seed=i), config) for i, (name, config) in enumerate(configs.items())]
    make_run(tmp_path / "seed4", answers(90), seeded(4), scorer="thinking_in_space")
    capsys.readouterr()
    report([*map(str, runs), str(tmp_path / "seed4")])
    said = capsys.readouterr().out
    (table,) = re.findall(r"\nScores of runs that differ in the seed alone.*?\n\n.*?\n\n", said, re.DOTALL)
    rows = [cells("text", line) for line in table.split("\n") if line.startswith("seed")]
    assert {row[0] for row in rows} == {"seed0, seed1, seed2"} and len(rows) == 8 + 6
    means = [100 * json.loads((run / "metrics.json").read_text())["all"]["micro"] for run in runs[:3]]
    expected = [f"{number:.1f}" for number in (sum(means) / 3, min(means), max(means))]
    assert ["seed0, seed1, seed2", "All micro", *expected, "3"] in rows and len(set(means)) == 3
    report([*map(str, runs[3:]), "--output", str(tmp_path / "page.html")])
    assert "differ in the seed alone" not in (tmp_path / "page.html").read_text()
    report([*map(str, runs[:2]), "--output", str(tmp_path / "page.html")])
    assert "differ in the seed alone" in (tmp_path / "page.html").read_text()


def rewrite_metrics(run: Path, **entries: Any) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, **entries}))


def trained(step: int, run_step: int | None = None, zoo: str = "0.1.0+gabc") -> dict[str, Any]:
    versions = {"zoo": zoo}
    return {"step": step, "run_step": run_step or step, "max_steps": 60, "training_versions": versions}


def averaged(runs: list[Path], capsys) -> tuple[str, str]:
    """The runs of the first average, and all that is printed."""
    said = printed(runs, capsys)
    rows = re.findall(r"^(\w+(?:, \w+)+)  +All micro", said, re.MULTILINE)
    return "".join(rows), said


def test_the_seed_of_a_sampler_is_a_seed_and_its_other_options_are_not(tmp_path: Path, capsys) -> None:
    runs = [make_run(tmp_path / f"s{seed}", answers(45, seed=seed), seeded(seed)) for seed in range(3)]
    for seed, run in enumerate(runs):
        sampler = {"class_path": "datamodules.RandomSampler", "init_args": {"seed": seed, "candidates": 8 + seed // 2}}
        rewrite_metrics(run, config={"data": {"init_args": {"sampler": sampler}}})
    assert averaged(runs, capsys)[0] == "s0, s1"


def test_a_half_trained_run_and_other_code_are_not_averaged(tmp_path: Path, capsys) -> None:
    runs = [make_run(tmp_path / f"s{seed}", answers(45, seed=seed), seeded(seed)) for seed in range(3)]
    for run, step in zip(runs, (60, 60, 9), strict=True):
        rewrite_metrics(run, **trained(step))
    names, said = averaged(runs, capsys)
    assert names == "s0, s1"
    assert "not averaged together: s0, s1, s2 differ in the seed and in run_step (60, 60, 9)" in said
    assert f"{runs[2]}: unfinished weights: their training has made 9 of 60 steps" in said
    rewrite_metrics(runs[2], **trained(60))
    names, said = averaged(runs, capsys)
    assert names == "s0, s1, s2" and "not averaged" not in said and "unfinished weights" not in said  # the control
    rewrite_metrics(runs[2], **trained(60, zoo="0.1.0+gdef"))
    names, said = averaged(runs, capsys)
    assert names == "s0, s1" and "in training_versions.zoo (0.1.0+gabc, 0.1.0+gabc, 0.1.0+gdef)" in said
    rewrite_metrics(runs[2], **trained(60), versions={"zoo": "0.2.0"})
    names, said = averaged(runs, capsys)
    assert names == "s0, s1" and "versions.zoo (" in said
    for run, step in zip(runs, (40, 50, 9), strict=True):  # the best checkpoints, of which one run is unfinished
        best = trained(step, run_step=step if step == 9 else 60)
        rewrite_metrics(run, **best, checkpoint="checkpoints/best.ckpt", versions={"zoo": "0.1.0"})
    assert averaged(runs, capsys)[0] == "s0, s1"


def as_training(run: Path, weights: str) -> Path:
    """The same run with weights of its own, which it has trained."""
    rewrite_metrics(run, **trained(60))
    file = run / "test.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "weights": weights}))
    return run


def test_one_training_of_each_has_no_interval_which_is_said(tmp_path: Path, capsys) -> None:
    runs = [as_training(make_run(tmp_path / n, answers(90, seed=i)), n) for i, n in enumerate("ab")]
    said = printed(runs, capsys)
    assert not re.search(r"^b .*\[[+-]\d", said, re.MULTILINE) and re.search(
        r"^b  +All micro  +[+-]\d", said, re.MULTILINE
    )
    assert "no interval of a difference between trainings: there is one seed of each: a and b" in said
    report([*map(str, runs), "--output", str(tmp_path / "r.html")])
    data = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "r.html").read_text(), re.DOTALL)[1])
    assert data["comparisons"]["trainings"] == ["0 1"] and data["comparisons"]["pairs"]["0 1"][0][2:] == [None, None]
    said = printed([runs[0], as_training(runs[1], "a")], capsys)  # the control: two tests of one model
    assert re.search(r"^b .*\[[+-]\d", said, re.MULTILINE) and "no interval" not in said


def test_settings_with_several_seeds_are_compared_over_seeds_and_scenes(tmp_path: Path, capsys) -> None:
    """Each question is about a scene of its own, so that its column is that of the scenes."""
    runs = []
    for name, right in (("poor", 0.2), ("good", 0.6), ("alike", 0.2)):
        for seed in range(3):
            config = seeded(seed)
            config["model"]["init_args"]["fusion"] = {"class_path": f"my.{name}"}
            records = answers(180, seed=seed + len(runs), right=right, scenes=180)
            runs.append(as_training(make_run(tmp_path / f"{name}{seed}", records, config), f"{name}{seed}"))
    said = printed(runs, capsys)
    (found,) = re.findall(r"\nDifferences from poor0, poor1, poor2.*?\n\n.*?\n\n", said, re.DOTALL)
    rows = {
        (row[0][:4], row[1]): row[2:] for row in (cells("text", line) for line in found.split("\n")) if len(row) == 6
    }
    assert rows["Runs", "Measure"] == ["Difference", "By seed and scene", "Could show", "Seeds"]
    metrics = [json.loads((run / "metrics.json").read_text())["all"]["micro"] for run in runs]
    change, ends, shown, seeds = rows["good", "All micro"]
    assert change == f"{100 * (sum(metrics[3:6]) - sum(metrics[:3])) / 3:+.1f}" and (shown, seeds) == ("-", "-")
    low, high = map(float, ends.strip("[]").split(", "))
    assert 0 < low < float(change) < high
    change, ends, shown, seeds = rows["alik", "All micro"]
    low, high = map(float, ends.strip("[]").split(", "))
    assert low < 0 < high and seeds == "overlap" and float(shown) == pytest.approx(2.8 / 3.92 * (high - low), abs=0.1)


@pytest.mark.parametrize(
    ("option", "value", "changes_result"),
    [
        ("enable_progress_bar", False, False),
        ("log_every_n_steps", 1, False),
        ("logger", [{"class_path": "CSVLogger", "init_args": {"save_dir": "a"}}], False),
        ("limit_test_batches", 3, False),  # of `fit`, which tests nothing
        ("accumulate_grad_batches", 2, True),
        ("precision", "bf16-mixed", True),
        ("callbacks", [{"class_path": "my.EMA", "init_args": {"decay": 0.9}}], True),
    ],
)
def test_options_that_change_no_result_are_no_other_training(
    option: str, value: Any, changes_result: bool, tmp_path: Path, capsys
) -> None:
    configs = [seeded(0), seeded(1)]
    configs[1]["trainer"][option] = value
    runs = [make_run(tmp_path / f"s{i}", answers(45, seed=i), config) for i, config in enumerate(configs)]
    assert averaged(runs, capsys)[0] == ("" if changes_result else "s0, s1")

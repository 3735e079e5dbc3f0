"""What the difference of two evaluations is made of: each part switched alone, and all together."""

from __future__ import annotations

import re
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from callbacks.configs import CONFIGS, read_settings
from commands.between import ALL, FIRST, _shown, between, report, run_test
from commands.reports.loaded_runs import load_run
from commands.studies.processes import Launch
from commands.studies.switches import config_of_parts, differing_parts, parts_of
from tests.callbacks.toy import record
from tests.cli import Run, the_run
from tests.commands.made_runs import CONFIG, answers, make_run
from zoo.errors import InputError

PROTOCOLS = {name: read_settings(CONFIGS / f"protocol_{name}.yaml") for name in ("spatial_mllm", "vg_llm", "lmms_eval")}


def test_the_parts_in_which_protocols_differ() -> None:
    found = differing_parts(PROTOCOLS["spatial_mllm"], PROTOCOLS["lmms_eval"], CONFIG)
    assert [*found] == [
        *("model.time_index", "model.text_after_vision", "model.max_new_tokens"),
        *("data.num_frames", "data.sampler", "data.prompt_prefix", "data.pixels", "metrics.scorer"),
    ]
    assert found["data.num_frames"] == {"first": 16, "second": 32}
    fixed = ("--data.num_frames", "4", "--data.pixels.min_pixels=784")
    fewer = differing_parts(PROTOCOLS["spatial_mllm"], PROTOCOLS["lmms_eval"], CONFIG, fixed)
    assert found.keys() - fewer.keys() == {"data.num_frames", "data.pixels"}
    stills = differing_parts(PROTOCOLS["vg_llm"], PROTOCOLS["lmms_eval"], CONFIG)
    assert stills["data.frames_as"] == {"first": "image", "second": "video"} and "data.still_resize" in stills
    assert config_of_parts(parts_of(PROTOCOLS["vg_llm"])) == PROTOCOLS["vg_llm"]
    shown = [_shown(each) for each in (None, "", ["a", "b"], {"class_path": "zoo.A", "init_args": {"b": 1, "c": None}})]
    assert shown == ["null", '""', "['a', 'b']", "A b 1"]


@pytest.mark.parametrize(
    "changes, error",
    [
        ({}, "differ in nothing that changes an answer"),
        ({"data": {"init_args": {"num_workers": 3}}}, "differ in nothing"),
        ({"data": {"init_args": {"sampler": {"class_path": "UniformSampler"}}}}, "differ in nothing"),
        (
            {"model": {"init_args": {"fusion": {"class_path": "AddFusion"}}}},
            "differ in model.fusion, which changes the",
        ),
        *(
            ({"data": {"init_args": {name: other}}}, f"data.{name}.*--options")
            for name, other in (("subset", 200), ("datasets", ["scannet"]), ("source", {"class_path": "ReVSI"}))
        ),
    ],
)
def test_what_can_not_be_switched_is_refused(changes: dict[str, Any], error: str) -> None:
    run = {"data": {"init_args": {"sampler": {"class_path": "datamodules.UniformSampler", "init_args": {"rule": "a"}}}}}
    with pytest.raises(InputError, match=error):
        differing_parts({}, changes, run)


def test_other_questions_are_compared_once_both_have_the_same() -> None:
    """And refused before any test."""
    first, second = ({"data": {"init_args": {"subset": n, "num_frames": 8 + n}}} for n in (1, 2))
    with pytest.raises(InputError, match="data.subset"):
        differing_parts(first, second, {})
    assert [*differing_parts(first, second, {}, ("--data.subset", "5"))] == ["data.num_frames"]


def test_what_one_of_them_leaves_out_of_a_part_is_the_runs() -> None:
    def of(**options: Any) -> dict[str, Any]:
        sampler = {"class_path": "UniformSampler", **({"init_args": options} if options else {})}
        return {"data": {"init_args": {"sampler": sampler, "prompt_prefix": None}}}

    run = deepcopy(of(rule="a", seed=1))
    run["data"]["init_args"]["prompt_prefix"] = "Look."
    found = differing_parts(of(), of(rule="b"), run)["data.sampler"]
    assert [each["init_args"] for each in found.values()] == [{"rule": "a", "seed": 1}, {"rule": "b", "seed": 1}]
    with pytest.raises(InputError, match="differ in nothing"):
        differing_parts(of(), of(rule="a"), run)
    assert [*differing_parts(of(), {}, run)] == ["data.prompt_prefix"]  # a null is a setting


@pytest.mark.parametrize(
    ("name", "kind", "default", "other"),
    [
        ("still_resize", "FixedWidthStills", {"jpeg": False}, {"jpeg": True}),
        ("sampler", "UniformSampler", {"rule": "qwen_vl_utils"}, {"rule": "linspace_floor"}),
    ],
)
def test_an_option_that_one_of_them_leaves_out_is_its_default(
    name: str, kind: str, default: dict[str, Any], other: dict[str, Any]
) -> None:
    """Where the run has another class there, or none."""
    bare, same, changed = (
        {"data": {"init_args": {name: {"class_path": kind, "init_args": own}}}} for own in ({}, default, other)
    )
    for run in ({}, {"data": {"init_args": {name: {"class_path": "RandomSampler", "init_args": {"seed": 0}}}}}):
        assert [*differing_parts(bare, changed, run)] == [*differing_parts(changed, bare, run)] == [f"data.{name}"]
        with pytest.raises(InputError, match="differ in nothing"):
            differing_parts(bare, same, run)


def test_a_planted_difference_is_found_and_what_has_no_effect_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    first = answers(200, right=0.7, scenes=20)
    asked: list[str] = []
    given: list[bool] = []

    def test_of_switched(log: Path, launch: Launch, *words: str) -> None:
        """In place of main.py: fewer frames answer worse, a prefix in other words, the size of frames not at all."""
        folder = Path(words[-1])
        config = yaml.safe_load((folder / "protocol_switched.yaml").read_text())
        data = config["data"]["init_args"]
        asked.append(folder.name)
        given.append("--ckpt_path" in words)
        records = [dict(each) for each in first]
        if data["num_frames"] == 8:
            records = answers(200, right=0.5, scenes=20)
            log.write_text("test 1/2\nwarning: a: only 4 frames\nwarning: b: only 4 frames\n")
        if data["prompt_prefix"]:
            records = [{**each, "prediction": f"{each['prediction']}."} for each in records]
        made = make_run(tmp_path / f"made-{len(asked)}", records, scorer=config["metrics"]["scorer"])
        shutil.copytree(made, folder, dirs_exist_ok=True)

    monkeypatch.setattr("commands.between.main_py", test_of_switched)
    make_run(tmp_path / "runs/x", None)
    shared = {"num_frames": 16, "prompt_prefix": "", "pixels": {"min_pixels": 1}}
    changed = {"num_frames": 8, "prompt_prefix": "Look.", "pixels": {"min_pixels": 2}}
    for name, data, scorer in (("a", shared, "spatial_mllm"), ("b", changed, "thinking_in_space")):
        content = {"data": {"init_args": data}, "metrics": {"scorer": scorer}}
        Path(f"protocol_{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    words = ["protocol_a.yaml", "protocol_b.yaml", "--run", str(tmp_path / "runs/x")]
    between(words)
    assert asked == ["first", "data-num_frames", "data-prompt_prefix", "data-pixels", "all-together"]
    said = capsys.readouterr().out
    rows = {line.split(" | ")[0].strip("| `"): line.split(" | ") for line in said.splitlines()}
    change, interval, words_changed, scores_changed = rows["data.num_frames"][3:7]
    assert float(change) < -10 and interval.startswith("-") and int(scores_changed) > 25
    assert rows["data.num_frames"][7].startswith("an effect") and rows["data.num_frames"][1:3] == ["16", "8"]
    assert rows["data.pixels"][3:8] == ["+0.0", "+0.0 to +0.0", "0", "0", "no effect |"]
    assert rows["data.prompt_prefix"][5:8] == ["200", "0", "other words, the same scores |"]
    assert rows["metrics.scorer"][5] == "0"  # the same answers by another scorer
    assert float(rows["all together"][3]) < -10 and abs(float(rows["of it interaction"][3])) < 2
    assert rows["option"][1:3] == ["a", "b"]
    scores = re.search(r"^Of 200 questions, All macro: (.*) by a, (.*) by b; best constant answer", said, re.MULTILINE)
    assert scores and float(scores[2]) - float(scores[1]) == pytest.approx(float(rows["all together"][3]), abs=0.11)
    assert re.search(r"^data.num_frames: warning: a: only 4 frames \(2 such lines in .*log.txt\)$", said, re.MULTILINE)
    assert "data.prompt_prefix: warning" not in said
    assert (tmp_path / "runs/between/x/a-and-b/between.md").exists()
    between(words)
    assert len(asked) == 5 and not any(given)  # an interrupted command goes on; released weights have no checkpoint
    (tmp_path / "runs/x/checkpoints").mkdir()
    (tmp_path / "runs/x/checkpoints/last.ckpt").touch()
    between(words)
    assert given[5:] == [True] * 5
    (tmp_path / "runs/x/checkpoints/last.ckpt").write_text("trained further")
    between(words)
    assert len(asked) == 15
    for name, like in (("c", "a"), ("d", "b")):  # the configs of two runs have one file name
        Path("runs", name).mkdir()
        Path("runs", name, "config.yaml").write_text(Path(f"protocol_{like}.yaml").read_text())
    between(["runs/c/config.yaml", "runs/d/config.yaml", *words[2:]])
    assert (tmp_path / "runs/between/x/c-and-d/between.md").exists()


def test_a_test_is_kept_for_the_same_weights_code_and_options_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `test` does, one with other settings beside a finished test gets a folder inside."""
    made, tested = make_run(tmp_path / "made", answers(20)), tmp_path / "first"
    checkpoint = make_run(tmp_path / "x", None) / "checkpoints/last.ckpt"
    checkpoint.parent.mkdir()
    started: list[bool] = []

    def main_py(log: Path, launch: Launch, *words: str) -> None:
        started.append((tested / "command.txt").exists())  # one that is interrupted goes on
        log.touch()
        is_taken = (tested / "metrics.json").exists()
        shutil.copytree(made, tested / "tests/other" if is_taken else tested, dirs_exist_ok=True)

    monkeypatch.setattr("commands.between.main_py", main_py)
    for weights, version, options in (("a", "1", ""), ("b", "1", ""), ("b", "2", ""), ("b", "2", "--data.subset 20")):
        checkpoint.write_text(weights)
        monkeypatch.setattr("commands.between.zoo_version", lambda version=version: version)
        for _ in range(2):
            assert len(run_test(tested, tmp_path / "x", {}, options).answers) == 20
    assert started == [True] * 4


def test_failed_questions_are_counted_beside_the_table(tmp_path: Path) -> None:
    records = answers(20, right=1)
    failed = [{**each, "error": "too long", "prediction": ""} for each in records[:2]]
    tests = {
        name: load_run(make_run(tmp_path / name, each), name)
        for name, each in ((FIRST, records), (ALL, [*failed, *records[2:]]))
    }
    said = report(tests, {}, ["a", "b"])
    assert re.findall(r"^(.*): (\d+) of 20 questions failed and score 0", said, re.MULTILINE) == [(ALL, "2")]


def test_a_scorer_that_averages_otherwise_changes_no_rule_of_the_table(tmp_path: Path) -> None:
    """Directions, of which one type has most questions: a scorer may pool them, and the table never does."""
    kinds = ["object_rel_direction_easy"] * 9 + ["object_rel_direction_hard"]
    records = [record(f"q{i}", kind, "none" if i == 9 else "A", "A", f"toy/{i}") for i, kind in enumerate(kinds)]
    runs = {}
    for name in (FIRST, ALL):
        runs[name] = load_run(make_run(tmp_path / name, records, scorer="geovr"), name)
    said = report(runs, {}, ["geovr", "other"])
    found = re.search(r"All macro: (.*) by geovr, (.*) by other", said)
    assert found and found[1] == found[2] == "50.0"
    assert runs[FIRST].score("All macro") == pytest.approx(0.9)  # the control: by the scorer's own rule


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fewer_frames_are_found_between_protocols_of_a_trained_model(run: Run, tmp_path: Path) -> None:
    """The model of the demo needs all frames. Its answers are short, and both samplers take all frames of a video."""
    panels = f"--config data_panels.yaml --data.source.root {tmp_path / 'panels'} --data.source.scenes [1600,0,100]"
    model = "--config prope.yaml --model.fusion null --model.view_mixer null --model.geometry null --gallery.scenes 0"
    steps = "--data.batch_size 8 --trainer.max_steps 200 --trainer.limit_val_batches 0"
    words = " ".join((panels, "--data.source.task PanelRotation", model, steps)).split()
    run("fit", *words, sized=False)
    trained = the_run(tmp_path)
    planted = deepcopy(PROTOCOLS["spatial_mllm"])
    planted["model"]["init_args"]["max_new_tokens"] = 16
    planted["data"]["init_args"] |= {"num_frames": 2, "sampler": PROTOCOLS["lmms_eval"]["data"]["init_args"]["sampler"]}
    (tmp_path / "planted.yaml").write_text(yaml.safe_dump(planted))
    sizes = "--data.pixels.min_pixels 784 --data.pixels.max_pixels 65536"  # of the training
    said = run("between", "protocol_spatial_mllm.yaml", "planted.yaml", "--options", sizes, sized=False)
    changed = "model.max_new_tokens, data.num_frames, data.sampler"
    assert f"{trained.relative_to(tmp_path)}: spatial_mllm and planted differ in {changed}" in said
    assert "the same in all tests, by --options: data.pixels" in said
    rows = {line.split(" | ")[0].strip("| `"): line.strip("| ").split(" | ") for line in said.splitlines()}
    for name, settings in (("data.num_frames", ["16", "2"]), ("all together", ["", ""])):
        change, interval, _, scores, verdict = rows[name][3:]
        assert rows[name][1:3] == settings and verdict == "an effect" and int(scores) > 20
        assert float(change) < -10 and float(interval.split(" to ")[1]) < 0
    for name in ("model.max_new_tokens", "data.sampler"):
        assert rows[name][3:] == ["+0.0", "+0.0 to +0.0", "0", "0", "no effect"]
    (first,) = tmp_path.glob("runs/between/*/*/first")
    switched = yaml.safe_load((first / "protocol_switched.yaml").read_text())
    again = run_test(first, trained, switched, f"{sizes} --data.subset 20")
    assert len(again.answers) == 20 and not [*first.glob("tests/*")]  # as beside a finished test with other settings

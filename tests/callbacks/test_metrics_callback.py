import json

import pytest
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from toy import Toy, golden_scenes, record, trainer

from callbacks.metrics import MetricsCallback
from callbacks.table import render, summarize
from zoo.benchmarks import VSIBench
from zoo.errors import InputError
from zoo.metrics import VSIBenchScore, with_scores

HEADING = "question type"


def expected(scenes, scorer="spatial_mllm"):
    records = [each for scene in scenes for each in scene]
    metric = VSIBenchScore(scorer)
    keys = ("prediction", "ground_truth", "question_type", "id")
    metric.update(*([each[key] for each in records] for key in keys))
    return metric.compute()


def test_a_test_run_prints_one_table_and_writes_metrics_json(tmp_path, capsys):
    scenes = golden_scenes()
    returned = trainer(tmp_path, MetricsCallback()).test(Toy(scenes))
    result = expected(scenes)

    text = capsys.readouterr().out
    assert text.count(HEADING) == 1
    assert "Toy, test split\n" in text and "| scorer " in text and "| spatial_mllm |" in text
    assert "Test metric" not in text  # Lightning's own table
    assert f"{result['all']['macro']:.3f}" in text
    assert "toy/1 (18 questions): toy/1.mp4: truncated video" in text

    written = json.loads((tmp_path / "metrics.json").read_text())
    assert {key: written[key] for key in result} == result
    assert (written["benchmark"], written["scorer"]) == ("VSIBench", "spatial_mllm")
    assert written["counts"]["questions"] == sum(len(scene) for scene in scenes)
    assert written["counts"]["failed"] == 18
    assert written["failed_scenes"] == [
        {"scene": "toy/1", "error": "toy/1.mp4: truncated video, fetch it again", "questions": 18}
    ]
    assert set(written["versions"]) == {"zoo", "torch", "transformers", "lightning", "torchvision", "av"}

    assert returned[0]["test/all/macro"] == pytest.approx(result["all"]["macro"])
    counting = result["per_question_type"]["object_counting"]["score"]
    assert returned[0]["test/object_counting"] == pytest.approx(counting)


def test_the_scorer_decides(tmp_path):
    scenes = golden_scenes()
    trainer(tmp_path, MetricsCallback("thinking_in_space")).test(Toy(scenes))
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["all"] == expected(scenes, "thinking_in_space")["all"]
    assert written["all"] != expected(scenes)["all"]


def test_failed_and_unparsable_questions_are_counted_apart_and_score_zero(tmp_path):
    scenes = [
        [record("a", "object_counting", "4", "4"), record("b", "object_counting", "four", "4")],
        [record("c", "object_counting", "4", "4", scene="toy/bad", error="bad.mp4: no frames")],
        [record("d", "route_planning", "A", "A"), record("e", "route_planning", "turn left", "A")],
    ]
    trainer(tmp_path, MetricsCallback()).test(Toy(scenes))
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["counts"] == {"questions": 5, "failed": 1, "unparsable": 2, "missing": 0, "filtered": 0}
    assert written["per_question_type"]["object_counting"] == {"score": 1 / 3, "count": 3}
    assert written["per_question_type"]["route_planning"] == {"score": 0.5, "count": 2}


def test_a_score_below_the_best_constant_is_marked(tmp_path, capsys):
    """Of the means as well; a validation has no baselines."""
    truths = {"object_counting": "444", "route_planning": "AAB"}
    scenes = [[record(f"{k}{i}", k, "A", t, f"s{i}") for k, each in truths.items() for i, t in enumerate(each)]]
    trainer(tmp_path, MetricsCallback()).test(Toy(scenes))
    found = json.loads((tmp_path / "metrics.json").read_text())["baselines"]
    assert found["constant"].pop("answers") == {"object_counting": "4", "route_planning": "A"}
    assert found == {
        "constant": expected(
            [[{**e, "prediction": "4" if e["question_type"] == "object_counting" else "A"} for e in scenes[0]]]
        )
    }
    lines = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")}
    rows = {name: [cell.strip() for cell in line.split("|")[2:5]] for name, line in lines.items()}
    assert rows["question type"] == ["micro", "macro", "constant"]
    assert rows["object_counting"] == ["0.000 <", "", "1.000"] and rows["route_planning"] == ["0.667", "", "0.667"]
    assert rows["all"] == ["0.333 <", "0.333 <", "0.833"]
    trainer(tmp_path, MetricsCallback()).validate(Toy(scenes))
    assert "constant" not in capsys.readouterr().out


class SanityProbe(Callback):
    """Records the output of the sanity check."""

    def __init__(self, capsys):
        self.capsys, self.printed = capsys, None

    def on_sanity_check_end(self, trainer, pl_module):
        self.printed = self.capsys.readouterr().out


def test_validation_in_fit_can_be_monitored_and_the_sanity_check_leaves_no_trace(tmp_path, capsys):
    metrics, checkpoint = MetricsCallback(), ModelCheckpoint(tmp_path, monitor="val/all/macro", mode="max")
    probe = SanityProbe(capsys)
    logger = CSVLogger(tmp_path, name="", version="")
    settings = {"max_epochs": 2, "num_sanity_val_steps": 2, "enable_checkpointing": True, "logger": logger}
    run = trainer(tmp_path, metrics, probe, checkpoint, **settings)
    run.fit(Toy())

    result = expected(golden_scenes())
    assert HEADING not in probe.printed
    assert capsys.readouterr().out.count(HEADING) == 2  # an epoch each
    assert run.callback_metrics["val/all/macro"].item() == pytest.approx(result["all"]["macro"])
    assert checkpoint.best_model_score.item() == pytest.approx(result["all"]["macro"])
    assert "val/mra/micro" in (tmp_path / "metrics.csv").read_text()
    assert not (tmp_path / "metrics.json").exists()  # only a test writes it


def test_validate_prints_one_table(tmp_path, capsys):
    trainer(tmp_path, MetricsCallback()).validate(Toy())
    text = capsys.readouterr().out
    assert text.count(HEADING) == 1
    assert "Validate metric" not in text


def test_errors_of_objectives_are_means_over_the_scenes(tmp_path, capsys):
    def of(scene, id, **errors):
        return record(id, "object_counting", "4", "4", scene) | ({"objectives": errors} if errors else {})

    scenes = [[of("a", "1", x=1.0), of("a", "2", x=1.0)], [of("b", "3", x=4.0, y=2.0)], [of("c", "4")]]
    scenes[2][0]["unmeasured"] = "c.depth: 1 depth images for 2 frames"
    returned = trainer(tmp_path, MetricsCallback()).test(Toy(scenes))
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["objectives"] == {"x": 2.5, "y": 2.0} and written["counts"]["failed"] == 0
    assert written["unmeasured_scenes"] == [{"scene": "c", "error": "c.depth: 1 depth images for 2 frames"}]
    printed = capsys.readouterr().out
    assert "1 scene could not be measured\n  c: c.depth: 1 depth images" in printed
    assert returned[0]["test/x"] == pytest.approx(2.5)


def test_questions_without_a_truth_are_not_scored(tmp_path, capsys):
    scenes = [[record("a", "object_counting", "4", "4"), record("b", "object_counting", "4", "")]]
    trainer(tmp_path, MetricsCallback()).test(Toy(scenes))
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["counts"]["questions"] == 1
    assert written["acc"] == {
        "micro": None,
        "macro": None,
    }  # no multiple choice: no score, and nothing logged


@pytest.mark.parametrize("truth", ["4", ""])
def test_where_all_questions_failed_the_run_stops(tmp_path, truth):
    scenes = [[record(id, "object_counting", "", truth, id, f"{id}.mp4: no frames")] for id in "ab"]
    with pytest.raises(InputError, match=r"test: all 2 questions failed, the first with: a.mp4: no frames"):
        trainer(tmp_path, MetricsCallback()).test(Toy(scenes))
    trainer(tmp_path, MetricsCallback()).test(Toy([*scenes, [record("c", "object_counting", "4", truth)]]))


def test_an_unknown_scorer_is_refused_before_the_run_starts(tmp_path):
    with pytest.raises(InputError, match="unknown scorer 'vsi'; VSIBench has spatial_mllm"):
        trainer(tmp_path, MetricsCallback("vsi")).fit(Toy())


def test_the_table_in_a_terminal_and_in_a_file():
    records = [each for scene in golden_scenes() for each in scene if not each["error"]]
    scored = summarize(with_scores(records, VSIBench()), VSIBench(), "spatial_mllm")
    terminal, plain = (render(scored, VSIBench(), title="val", terminal=terminal) for terminal in (True, False))
    assert "\x1b[" in terminal
    assert plain.isascii()
    assert all(f"{entry['score']:.3f}" in plain for entry in scored["per_question_type"].values())
    assert f"{scored['counts']['unparsable']} answers could not be parsed" in plain
    assert "-" in render(summarize([], VSIBench(), "spatial_mllm"), VSIBench(), title="val", terminal=False)
    free = {**records[0], "id": "free text", "question_type": ""}
    with_free = with_scores([*records, free], VSIBench())
    assert with_free[-1]["score"] is None is not with_free[0]["score"]
    assert summarize(with_free, VSIBench(), "spatial_mllm") == scored


def test_a_failed_question_leaves_the_errors_of_its_scene() -> None:
    records = [
        {**record("1", "", "left", "", "a"), "objectives": {"off": 1.0}},
        record("2", "", "", "", "a", error="unreadable"),
        {**record("3", "", "right", "", "b"), "objectives": {"off": 2.0}},
    ]
    records = with_scores(records, VSIBench())
    scored = summarize(records, VSIBench(), "spatial_mllm")
    assert scored["objectives"] == {"off": 1.5}
    assert "objectives" not in summarize(records[1:2], VSIBench(), "spatial_mllm")
    assert scored["counts"]["questions"] == scored["counts"]["failed"] == 0  # without a ground truth

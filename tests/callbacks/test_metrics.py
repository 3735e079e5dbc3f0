"""A test's metrics, table and answers: by one process and by two, of failed, unparsable and unscored questions."""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from callbacks.metrics import MetricsCallback, departures, protocol_record
from run_folder.configs import CONFIGS
from run_folder.record import SaveRunConfig
from tests.callbacks.toy import Toy, golden_scenes, record, trainer
from tests.tiny import tiny_model
from zoo.errors import InputError
from zoo.metrics import VSIBenchScore, score_answer

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


def test_a_test_is_finished_before_its_table_is_printed(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise UnicodeEncodeError("ascii", "\xe9", 0, 1, "ordinal not in range(128)")

    module = Toy()
    monkeypatch.setattr(module, "print", refuse)
    with pytest.raises(UnicodeEncodeError):
        trainer(tmp_path, MetricsCallback()).test(module, verbose=False)
    assert json.loads((tmp_path / "metrics.json").read_text())["counts"]["questions"] > 0


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
    """Of the means as well, and in a validation."""
    truths = {"object_counting": "444", "route_planning": "AAB"}
    scenes = [[record(f"{k}{i}", k, "A", t, f"s{i}") for k, each in truths.items() for i, t in enumerate(each)]]
    trainer(tmp_path, MetricsCallback()).test(Toy(scenes))
    found = json.loads((tmp_path / "metrics.json").read_text())["baselines"]
    assert found["constant"].pop("answers") == {"object_counting": "4", "route_planning": "A"}
    best = {"object_counting": "4", "route_planning": "A"}
    assert found == {
        "constant": expected([[{**each, "prediction": best[each["question_type"]]} for each in scenes[0]]])
    }
    lines = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")}
    rows = {name: [cell.strip() for cell in line.split("|")[2:5]] for name, line in lines.items()}
    assert rows["question type"] == ["micro", "macro", "constant"]
    assert rows["object_counting"] == ["0.000 <", "", "1.000"] and rows["route_planning"] == ["0.667", "", "0.667"]
    assert rows["all"] == ["0.333 <", "0.333 <", "0.833"]
    trainer(tmp_path, MetricsCallback()).validate(Toy(scenes))
    assert "0.000 <" in capsys.readouterr().out  # a training that has not begun shows it


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
    constant = run.callback_metrics["constant/all/macro"].item()  # a training that has not begun scores no more
    assert result["all"]["macro"] != constant > 0
    assert not (tmp_path / "metrics.json").exists()  # only a test writes it


def test_errors_of_objectives_are_means_over_the_scenes(tmp_path, capsys):
    def of(scene, id, **errors):
        return record(id, "object_counting", "4", "4", scene) | ({"objectives": errors} if errors else {})

    failed = record("5", "object_counting", "", "4", "a", "unreadable")  # leaves the errors of its scene
    scenes = [[of("a", "1", x=1.0), of("a", "2", x=1.0), failed], [of("b", "3", x=4.0, y=2.0)], [of("c", "4")]]
    scenes[2][0]["unmeasured"] = "c.depth: 1 depth images for 2 frames"
    returned = trainer(tmp_path, MetricsCallback()).test(Toy(scenes))
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["objectives"] == {"x": 2.5, "y": 2.0} and written["counts"]["failed"] == 1
    assert written["unmeasured_scenes"] == [{"scene": "c", "error": "c.depth: 1 depth images for 2 frames"}]
    printed = capsys.readouterr().out
    assert "1 scene could not be measured\n  c: c.depth: 1 depth images" in printed
    assert returned[0]["test/x"] == pytest.approx(2.5)


def test_questions_without_a_truth_are_not_scored(tmp_path, capsys):
    scenes = [[record("a", "object_counting", "4", "4"), record("b", "object_counting", "4", "")]]
    trainer(tmp_path, MetricsCallback()).test(Toy(scenes))
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["counts"]["questions"] == 1
    assert written["acc"] == {"micro": None, "macro": None}  # no multiple choice: no score, and nothing logged


def test_where_all_questions_failed_the_run_stops(tmp_path):
    scenes = [[record(id, "object_counting", "", "4", id, f"{id}.mp4: no frames")] for id in "ab"]
    with pytest.raises(InputError, match=r"test: all 2 questions failed, the first with: a.mp4: no frames"):
        trainer(tmp_path, MetricsCallback()).test(Toy(scenes))
    trainer(tmp_path, MetricsCallback()).test(Toy([*scenes, [record("c", "object_counting", "4", "4")]]))
    with pytest.raises(InputError, match="unknown scorer 'vsi'; VSIBench has spatial_mllm"):  # before the run starts
        trainer(tmp_path, MetricsCallback("vsi")).fit(Toy())


def lines(folder, name="predictions.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().split("\n") if line]


def test_a_line_a_question(tmp_path):
    scenes, scorer = golden_scenes(), "thinking_in_space"
    trainer(tmp_path, MetricsCallback(scorer)).test(Toy(scenes))
    written, records = lines(tmp_path), [each for scene in scenes for each in scene]
    assert len(written) == len(records)
    for line, each in zip(written, records, strict=True):
        assert {key: line[key] for key in each} == each
        score = score_answer(each["prediction"], each["ground_truth"], each["question_type"], scorer)
        assert line["score"] == (0.0 if each["error"] else score)
        assert (line["benchmark"], line["scorer"]) == ("VSIBench", scorer)


class Interrupt(Callback):
    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 2:
            raise RuntimeError("cut off")


def test_without_a_datamodule_a_cut_off_test_starts_over_and_a_finished_one_stays(tmp_path):
    """Nothing tells such a test which questions to leave out."""
    with pytest.raises(RuntimeError, match="cut off"):
        trainer(tmp_path, MetricsCallback(), Interrupt()).test(Toy(golden_scenes()))
    assert len(lines(tmp_path)) == 108 and not (tmp_path / "metrics.json").exists()
    trainer(tmp_path, MetricsCallback()).test(Toy(golden_scenes()))
    ids = [line["id"] for line in lines(tmp_path)]
    assert len(ids) == len(set(ids)) == sum(map(len, golden_scenes()))
    assert not list(tmp_path.glob("*.partial"))

    first = {name: (tmp_path / name).read_bytes() for name in ("metrics.json", "predictions.jsonl", "test.json")}
    for name in ("repeat", "repeat-2"):
        trainer(tmp_path, MetricsCallback()).test(Toy(golden_scenes()))
        assert {each: (tmp_path / "tests" / name / each).read_bytes() for each in first} == first
    assert {each: (tmp_path / each).read_bytes() for each in first} == first


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "predictions.jsonl").write_text('{"id": "of another program"}\n')
    trainer(tmp_path, MetricsCallback()).test(Toy(golden_scenes()))
    assert len(lines(tmp_path)) == 1 < len(lines(tmp_path / "tests/repeat"))


def test_predict_prints_answers_and_adds_them(tmp_path, capsys):
    callback = MetricsCallback()
    trainer(tmp_path, callback).test(Toy([[record("a", "object_counting", "4", "4")]]))
    asked = [
        record("mine", "room_size_estimation", "23.5 m² ✓", "", scene="clip.mp4"),
        record("bad", "room_size_estimation", "", "", scene="gone.mp4", error="gone.mp4: no such file"),
    ]
    trainer(tmp_path, callback).predict(Toy([asked]))
    text = capsys.readouterr().out
    assert "question mine?" in text
    assert "23.5 m² ✓" in text
    assert "gone.mp4: no such file" in text
    assert [line["id"] for line in lines(tmp_path)] == ["a"]  # what was tested stays as it was
    written = lines(tmp_path, "answers.jsonl")
    assert [line["id"] for line in written] == ["mine", "bad"]
    assert [line["score"] for line in written] == [None, None]
    assert written[0]["prediction"] == "23.5 m² ✓"


ODD = ("7" * 10_000, "about four " * 1000, "<answer>" * 1250, "4 \ud83d", "", "\n" * 10_000, "." * 10_000)


def test_whatever_a_model_says_is_kept_and_scored(tmp_path):
    kinds = {"object_counting": "4", "route_planning": "A"}
    scenes = [[record(f"{n}{kind}", kind, said, kinds[kind]) for n, said in enumerate(ODD) for kind in kinds]]
    trainer(tmp_path, MetricsCallback()).test(Toy(scenes))
    assert [line["prediction"] for line in lines(tmp_path)] == [said for said in ODD for _ in kinds]
    assert {line["score"] for line in lines(tmp_path)} == {0.0}
    counts = json.loads((tmp_path / "metrics.json").read_text())["counts"]
    assert counts["questions"] == counts["unparsable"] == 2 * len(ODD) and counts["failed"] == 0


class CountQuestions(Callback):
    """How many questions each process saw, repeats included."""

    seen = 0

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.seen += len(outputs)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        (Path(trainer.default_root_dir) / f"seen.{trainer.global_rank}").write_text(str(self.seen))


# ---- by one process and by two


def fit_and_test(folder: Path, processes: int) -> None:
    torch.set_num_threads(1)
    run = trainer(
        folder,
        MetricsCallback(),
        CountQuestions(),
        ModelCheckpoint(folder, monitor="val/all/macro", filename="best"),
        devices=processes,
        strategy="ddp_fork" if processes > 1 else "auto",
        logger=CSVLogger(folder, name="", version=""),
        enable_checkpointing=True,
        max_epochs=1,
    )
    scenes = [
        [{**each, "objectives": {"off": float(place)}} for each in scene] for place, scene in enumerate(golden_scenes())
    ]
    model = Toy(scenes)
    run.fit(model)
    run.test(model)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same fit and test by one process and by two (gloo)."""
    made = {}
    for processes in (1, 2):
        made[processes] = tmp_path_factory.mktemp(f"processes{processes}")
        started = multiprocessing.get_context("fork").Process(target=in_a_process, args=(made[processes], processes))
        started.start()
        started.join()
        assert started.exitcode == 0, (made[processes] / "stdout").read_text()[-3000:]
    return made


def in_a_process(folder, processes):
    with (folder / "stdout").open("w") as sys.stdout:
        sys.stderr = sys.stdout
        fit_and_test(folder, processes)


@pytest.mark.slow
def test_the_numbers_and_answers_are_the_same(folders):
    one, two = (json.loads((folders[n] / "metrics.json").read_text()) for n in (1, 2))
    for metrics in (one, two):  # without a DataModule, nothing says in which order
        metrics["question_ids"].sort()
    assert one == two
    assert one["counts"]["questions"] == sum(map(len, golden_scenes()))
    assert one["counts"]["failed"] == 18 and one["objectives"]["off"] > 0
    result = expected(golden_scenes())
    assert {key: one[key] for key in result} == result
    seen = sum(int((folders[2] / f"seen.{rank}").read_text()) for rank in (0, 1))
    answered = [lines(folders[n]) for n in (1, 2)]
    by_id = [{line["id"]: line for line in each} for each in answered]
    assert len(by_id[0]) == len(answered[0]) == len(answered[1]) < seen  # although the sampler repeats some
    assert by_id[0] == by_id[1]
    assert not list(folders[2].glob("predictions.rank*"))
    for folder in folders.values():
        assert (folder / "stdout").read_text().count("question type") == 2  # val of the fit's epoch, test
        assert (folder / "best.ckpt").exists()


# ---- what of a test departs from its protocol

STATED = yaml.safe_load((CONFIGS / "protocol_lmms_eval.yaml").read_text())


def test_a_part_that_a_protocol_leaves_out_is_a_departure() -> None:
    stated = {"data": {"init_args": {"still_resize": None, "image_pixels": None, "sampler": {"class_path": "Uniform"}}}}
    options: dict[str, Any] = {"still_resize": {"class_path": "datamodules.Stills", "init_args": {"jpeg": False}}}
    options |= {"image_pixels": None, "sampler": {"class_path": "datamodules.Uniform"}}
    assert departures(stated, {"data": {"init_args": options}}) == {
        "data.still_resize": {"protocol": None, "run": {"class_path": "datamodules.Stills", "jpeg": False}}
    }


@pytest.mark.parametrize("name, index", [("plain", None), ("PRoPE, TemporalSection", "zoo.ConstantIndex")])
def test_a_time_that_an_encoding_sets_is_a_departure(tmp_path: Path, name: str, index: str | None) -> None:
    """Though the option is the protocol's."""
    saved = SaveRunConfig.__new__(SaveRunConfig)
    saved.content = lambda: STATED  # type: ignore[method-assign]
    tester: Any = trainer(tmp_path, saved)
    tester.strategy.connect(tiny_model(name))
    found = protocol_record(tester, "lmms_eval")["departures"]
    assert [each["run"]["class_path"] for each in found.values()] == ([] if index is None else [index])
    assert [*found] == ([] if index is None else ["model.time_index"])
    assert protocol_record(tester, None) == {"name": None}

import json

import pytest
from lightning.pytorch.callbacks import Callback
from toy import Toy, golden_scenes, record, trainer

from callbacks.metrics import MetricsCallback
from zoo.metrics import score_answer


def lines(folder, name="predictions.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().split("\n") if line]


@pytest.mark.parametrize("scorer", ["spatial_mllm", "thinking_in_space"])
def test_a_line_a_question(tmp_path, scorer):
    scenes = golden_scenes()
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


LONG = {
    "digits": "7" * 10_000,
    "words": "about four " * 1000,
    "tags": "<answer>" * 1250,
    "half a pair": "4 \ud83d",
    "nothing": "",
    "lines": "\n" * 10_000,
    "points": "." * 10_000,
}


@pytest.mark.parametrize("answer", LONG)
def test_whatever_a_model_says_is_kept_and_scored(tmp_path, answer):
    kinds = ("object_counting", "route_planning")
    scenes = [[record(kind, kind, LONG[answer], {"route_planning": "A"}.get(kind, "4")) for kind in kinds]]
    trainer(tmp_path, MetricsCallback()).test(Toy(scenes))
    assert [line["prediction"] for line in lines(tmp_path)] == [LONG[answer]] * 2
    assert [line["score"] for line in lines(tmp_path)] == [0.0, 0.0]
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["counts"]["questions"] == 2 and written["counts"]["failed"] == 0
    assert written["counts"]["unparsable"] == 2

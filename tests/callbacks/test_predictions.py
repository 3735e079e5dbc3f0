import json

import pytest
from lightning.pytorch.callbacks import Callback
from toy import Toy, golden_scenes, record, trainer

from callbacks.metrics import MetricsCallback
from callbacks.predictions import PredictionsCallback
from zoo.metrics import score_answer


def lines(folder, name="predictions.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().split("\n") if line]


@pytest.mark.parametrize("scorer", ["spatial_mllm", "thinking_in_space"])
def test_a_line_a_question(tmp_path, scorer):
    scenes = golden_scenes()
    trainer(tmp_path, PredictionsCallback(scorer)).test(Toy(scenes))
    written, records = lines(tmp_path), [each for scene in scenes for each in scene]
    assert len(written) == len(records)
    for line, each in zip(written, records, strict=True):
        assert {key: line[key] for key in each} == each
        score = score_answer(each["prediction"], each["ground_truth"], each["question_type"], scorer)
        assert line["score"] == (0.0 if each["error"] else score)
        assert line["versions"]["torch"]


def test_a_test_replaces_what_was_there_and_a_cut_off_one_keeps_what_it_had(tmp_path):
    (tmp_path / "predictions.jsonl").write_text('{"id": "of an older run"}\n')
    (tmp_path / "predictions.rank3.jsonl").write_text("{}\n")

    class Interrupt(Callback):
        def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            if batch_idx == 2:
                raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        trainer(tmp_path, PredictionsCallback(), Interrupt()).test(Toy(golden_scenes()))
    assert len(lines(tmp_path)) == 108
    assert not (tmp_path / "predictions.rank3.jsonl").exists()

    trainer(tmp_path, PredictionsCallback()).test(Toy(golden_scenes()))
    ids = [line["id"] for line in lines(tmp_path)]
    assert len(ids) == len(set(ids)) == sum(map(len, golden_scenes()))
    assert not list(tmp_path.glob("*.partial"))


def test_predict_prints_answers_and_adds_them(tmp_path, capsys):
    callback = PredictionsCallback()
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
    trainer(tmp_path, PredictionsCallback(), MetricsCallback()).test(Toy(scenes))
    assert [line["prediction"] for line in lines(tmp_path)] == [LONG[answer]] * 2
    assert [line["score"] for line in lines(tmp_path)] == [0.0, 0.0]
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["counts"]["questions"] == 2 and written["counts"]["failed"] == 0
    assert written["counts"]["unparsable"] == 2

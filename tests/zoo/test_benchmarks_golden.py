"""Scores of ReVSI, SQA3D, ScanQA and of lmms-eval's VSI-Bench, by the official rules on golden answers."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from zoo.benchmarks import SQA3D, Benchmark, ReVSI, ScanQA, VSIBench, find_benchmark, registered_benchmarks
from zoo.benchmarks.free_answers import caption_scores
from zoo.benchmarks.scorers import clean_answer
from zoo.errors import InputError
from zoo.metrics import BenchmarkScore, score_answer

GOLDEN = Path(__file__).parents[1] / "golden"
LMMS = json.loads((GOLDEN / "benchmarks/lmms_eval.json").read_text())
FREE = json.loads((GOLDEN / "benchmarks/free_answers.json").read_text())
ROWS = json.loads((GOLDEN / "vsibench_metric/cases.json").read_text())["rows"]


def test_vsibench_by_lmms_eval() -> None:
    different = 0
    for row, expected in zip(ROWS, LMMS["vsibench_lmms_eval"], strict=True):
        asked = (row["prediction"], row["ground_truth"], row["question_type"])
        assert score_answer(*asked, scorer="lmms_eval_0.7.3") == pytest.approx(expected or 0.0, abs=1e-12), row
        different += score_answer(*asked, scorer="thinking_in_space") != (expected or 0.0)
    assert different > 20  # the control


def test_vsibench_by_geovr() -> None:
    """Directions are pooled by rows: thinking-in-space averages their three types."""
    table = json.loads((GOLDEN / "geovr/tables.json").read_text())["metric"]
    metrics = {scorer: BenchmarkScore(VSIBench(), scorer) for scorer in ("geovr", "thinking_in_space")}
    different = 0
    for row in table["rows"]:
        asked = (str(row["prediction"]), str(row["ground_truth"]), row["question_type"])
        expected = row["score"] or 0.0  # an empty choice crashes the published scorer
        assert score_answer(*asked, scorer="geovr") == pytest.approx(expected, abs=1e-12), row
        different += score_answer(*asked, scorer="thinking_in_space") != expected
    for row in table["rows"][:-1]:
        for metric in metrics.values():
            metric.update([str(row["prediction"])], [str(row["ground_truth"])], [row["question_type"]])
    assert different > 5  # the control
    result = metrics["geovr"].compute()
    assert result["all"]["macro"] == pytest.approx(table["aggregate"]["average_all_8_types"], abs=1e-12)
    kinds = VSIBench.direction_types
    counts = {kind: result["per_question_type"][kind]["count"] for kind in kinds}
    pooled = sum(result["per_question_type"][kind]["score"] * n for kind, n in counts.items()) / sum(counts.values())
    assert pooled == pytest.approx(table["aggregate"]["metrics_per_type"]["object_rel_direction"], abs=1e-12)
    averaged = VSIBench().aggregate({"object_rel_direction_easy": [1.0, 1.0, 1.0], "object_rel_direction_hard": [0.0]})
    assert averaged["all"]["macro"] == 0.5  # the control


def test_the_wordings_of_vsibench() -> None:
    own = VSIBench()
    other = own.with_prompt("", "geovr")
    number = "How many chairs?\nPlease answer the question ONLY using a single Arabic numeral."
    assert other.user_text("How many chairs?", prefix=other.prefix) == number
    choice = "Which?\nA. one\nB. two\nAnswer with ONLY the option's letter directly."
    assert other.user_text("Which?", ["A. one", "B. two"]) == choice
    assert "Options:" in own.user_text("Which?", ["A. one", "B. two"]) and own.prompt_wording is None
    with pytest.raises(InputError, match="prompt_wording other: VSIBench has geovr"):
        own.with_prompt(None, "other")
    with pytest.raises(InputError, match="prompt_wording geovr: SQA3D has its own alone"):
        SQA3D().with_prompt(None, "geovr")


def test_revsi_by_lmms_eval() -> None:
    metric, others = BenchmarkScore(ReVSI()), 0
    for answer, truth, kind, expected in LMMS["revsi"]:
        assert ReVSI().score(answer, truth, kind, "revsi") == pytest.approx(expected, abs=1e-12), (answer, truth, kind)
        others += ReVSI().score(answer, truth, kind, "thinking_in_space") != expected
        metric.update([answer], [truth], [kind])
    assert others > 10  # the control: an answer that begins with spaces
    result, expected = metric.compute(), LMMS["revsi_aggregates"]
    assert result["all"]["macro"] == pytest.approx(expected["overall_acc"], abs=1e-12)
    benchmark = ReVSI()
    for group, kinds in benchmark.averaged_types.items():
        own = [result["per_question_type"][kind]["score"] for kind in kinds]
        assert sum(own) / len(own) == pytest.approx(expected[f"{group}_acc"], abs=1e-12)
    assert sorted(kind for kinds in benchmark.columns.values() for kind in kinds) == sorted(benchmark.question_types)


@pytest.mark.parametrize("benchmark", [SQA3D(), ScanQA()], ids=lambda each: each.name)
def test_exact_and_refined_matches(benchmark: Benchmark) -> None:
    kind, exact, refined = benchmark.question_types[0], 0, 0
    for case in FREE["cases"]:
        assert clean_answer(case["prediction"]) == case["cleaned"], case
        for scorer in benchmark.scorers:
            expected = case[scorer] if case["prediction"] else 0  # LEO's code finds an empty answer in every truth
            assert benchmark.score(case["prediction"], "\n".join(case["answers"]), kind, scorer) == expected, case
        exact, refined = exact + case["exact_match"], refined + case["refined_exact_match"]
    assert 10 < exact < refined < len(FREE["cases"])
    assert benchmark.groups["acc"] == benchmark.question_types and not benchmark.is_parsable(" ", kind, "exact_match")


def test_question_types_and_wording() -> None:
    assert [SQA3D().find_type(q) for q in ("What is it?", " is it?", "Can I?", "Where am I?")] == [
        *("what", "is", "can", "others")
    ]
    questions = (
        "Where is it?",
        "How many chairs?",
        "What color is it?",
        "What kind of bed?",
        "What is this?",
        "Is it?",
    )
    assert [ScanQA().find_type(q) for q in questions] == list(ScanQA().question_types)
    number = "Answer the question using a single integer or decimal number."
    letter = "Answer with the option's letter from the given choices directly."
    asked = ReVSI().user_text("How far (in meters)?", prefix=ReVSI.prefix)
    assert asked == f"These are frames of a video.\nHow far (in meters)?\n{number}"
    assert ReVSI().user_text("Where?", ["A. left", "B. right"]) == f"Where?\nOptions:\nA. left\nB. right\n{letter}"
    short = "Answer the question using a single word or phrase."
    assert SQA3D().user_text("I sit. Is it red?") == f"I sit. Is it red? {short}"
    assert ScanQA().user_text("Is it red?", prefix="Look.") == "Look.\nIs it red? Answer the question simply."


def test_an_unknown_question_type_names_its_benchmark_or_the_nearest_type() -> None:
    with pytest.raises(InputError, match=r"it is one of ReVSI \(score --benchmark ReVSI\)"):
        find_benchmark("VSIBench").check_question_type("object_counting_single")
    with pytest.raises(InputError, match="did you mean object_counting?"):
        find_benchmark("VSIBench").check_question_type("object_countin")
    assert {"VSIBench", "ReVSI", "SQA3D", "ScanQA"} <= registered_benchmarks().keys()
    assert not {"FreeAnswers", "SpatialBenchmark"} & registered_benchmarks().keys()


# ---- captions ---------------------------------------------------------------------------------------------


ANSWERS = [case["prediction"] for case in FREE["cases"]]
TRUTHS = [case["answers"] for case in FREE["cases"]]


@pytest.mark.parametrize("java", [pytest.param(True, marks=pytest.mark.slow), False])
def test_caption_metrics_with_and_without_java(java: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocoevalcap", reason="the extra `captions` is not installed")
    if java and not shutil.which("java"):
        pytest.skip("no Java here")
    if not java:
        monkeypatch.setattr(shutil, "which", lambda name: None)
    broken = [answer.replace(" ", "\r\u2028") for answer in ANSWERS]  # each character ends a line for Java
    found, expected = caption_scores(broken, TRUTHS), FREE["captions"]["PTB" if java else "white space"]
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert ("meteor" in found) == java == (found["tokenizer"] == "PTB")
    assert found["skipped"] == ({} if java else {"meteor": "install Java"})
    assert FREE["captions"]["PTB"]["cider"] != FREE["captions"]["white space"]["cider"]  # the control


def test_without_the_extra_the_metrics_are_said_to_be_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu", None)
    found = SQA3D().corpus_scores(["left"], ["left\nright"])
    assert found == {"skipped": dict.fromkeys(("bleu_4", "rouge_l", "cider", "meteor"),
                                              "pip install 'spatial-vlm-zoo[captions]'")}  # fmt: skip

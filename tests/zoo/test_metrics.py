"""Scores of VSI-Bench, ReVSI, SQA3D and ScanQA: the official rules on golden answers, and the table."""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
from itertools import permutations
from pathlib import Path

import pytest
import torch

from zoo.benchmarks import SQA3D, Benchmark, PanelBench, ReVSI, ScanQA, VSIBench, find_benchmark, registered_benchmarks
from zoo.benchmarks.free_answers import caption_scores
from zoo.benchmarks.scorers import SCORERS as ALL_SCORERS
from zoo.benchmarks.scorers import clean_answer, read_tagged, without_thoughts
from zoo.errors import InputError
from zoo.metrics import BenchmarkScore, VSIBenchScore, score_answer, with_scores

GOLDEN = Path(__file__).parents[1] / "golden"
ROWS = json.loads((GOLDEN / "vsibench_metric/cases.json").read_text())["rows"]
AGGREGATES = json.loads((GOLDEN / "vsibench_metric/aggregates.json").read_text())
LMMS = json.loads((GOLDEN / "benchmarks/lmms_eval.json").read_text())
FREE = json.loads((GOLDEN / "benchmarks/free_answers.json").read_text())
SUBSETS = {"all": {"ids": [row["id"] for row in ROWS], **AGGREGATES["all"]}, **AGGREGATES["subsets"]}
BENCHMARK = VSIBench()
NUMERIC_TYPES, MULTIPLE_CHOICE_TYPES = BENCHMARK.numeric_types, BENCHMARK.multiple_choice_types
QUESTION_TYPES, is_parsable = BENCHMARK.question_types, BENCHMARK.is_parsable
SCORERS = ("spatial_mllm", "thinking_in_space")  # with golden rows


def official(row, scorer):
    key = {"spatial_mllm": "reward", "thinking_in_space": "score"}[scorer]
    return row[scorer][key]  # None where the official scorer raises


def score(row, scorer):
    return score_answer(row["prediction"], row["ground_truth"], row["question_type"], scorer)


def update(metric, rows, ids=True):
    metric.update(
        [row["prediction"] for row in rows],
        [row["ground_truth"] for row in rows],
        [row["question_type"] for row in rows],
        [f"sample {row['id']}" for row in rows] if ids else None,
    )
    return metric


# ---- one answer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scorer", SCORERS)
def test_every_golden_row_bit_for_bit(scorer):
    for row in ROWS:
        expected = official(row, scorer)
        got = score(row, scorer)
        assert type(got) is float
        assert got == (0.0 if expected is None else expected), row


def test_the_other_scorer_fails_where_they_disagree():
    differing = [row for row in ROWS if official(row, SCORERS[0]) != (official(row, SCORERS[1]) or 0.0)]
    assert len(differing) > 100
    for mine, other in permutations(SCORERS):
        assert all(score(row, other) != (official(row, mine) or 0.0) for row in differing)


@pytest.mark.parametrize(
    ("prediction", "ground_truth", "spatial_mllm", "thinking_in_space"),
    [  # by the rules in zoo.benchmarks.scorers; cases that the golden rows lack
        ("1_0", "10", 1.0, 1.0),  # float() takes underscores,
        ("１０", "10", 1.0, 1.0),  # full-width digits,
        ("1e1", "10", 1.0, 1.0),  # exponents,
        ("10 m", "10 m", 0.0, 0.0),  # but no unit: in thinking_in_space the truth is not cut
        ("1,0", "10", 1.0, 0.0),
        ("10.", "10.", 1.0, 1.0),
        ("<answer>10", "10", 0.0, 0.0),
        ("<ANSWER>10</ANSWER>", "10", 0.0, 0.0),  # the tag is in lower case
        ("<answer>1</answer> or 10", "10", 0.0, 0.0),
        ("10. m", "10", 0.0, 1.0),
        ("10\u00a0m", "10", 0.0, 0.0),  # only a plain space ends the first word
        ("The answer is 10", "10", 0.0, 0.0),
        ("10%", "10", 0.0, 0.0),
        ("inf", "10", 0.0, 0.0),
        ("1e39", "1e39", 0.0, 1.0),  # infinite in float32: inf - inf
        ("", "10", 0.0, 0.0),
    ],
)
def test_how_numbers_are_read(prediction, ground_truth, spatial_mllm, thinking_in_space):
    scores = [score_answer(prediction, ground_truth, "room_size_estimation", scorer) for scorer in SCORERS]
    assert scores == [spatial_mllm, thinking_in_space]


@pytest.mark.parametrize(
    ("prediction", "ground_truth", "expected"),
    [
        ("There are 3 boxes", "3", 1.0),
        ("Three boxes.", "3", 1.0),
        ("about twenty-one", "21", 1.0),
        ("three hundred and twenty-one", "321", 1.0),
        ("two thousand five", "2005", 1.0),
        ("one apple, room 2", "1", 1.0),  # the first number wins
        ("room 2, one apple", "2", 1.0),
        ("-3.5 m", "3.5", 0.0),
        ("1,200", "1", 1.0),  # no thousands separators
        ("3", "3 m", 0.0),  # the ground truth is a plain float()
        ("3", "0", 0.0),  # the official scorer raises
        ("hundred " * 200, "3", 0.0),  # and here
        ("no idea", "3", 0.0),
        ("9", "10", 0.9),  # <=, 1 - 0.9 in float64
    ],
)
def test_lmms_eval_reads_the_first_number_in_digits_or_words(prediction, ground_truth, expected):
    """Expected values are the results of lmms-eval 0.7.3."""
    score = score_answer(prediction, ground_truth, "object_counting", "lmms_eval_0.7.3")
    assert score == pytest.approx(expected, abs=1e-12)


def test_tags_without_an_end_take_no_longer_than_other_text():
    """Each of them once searched the whole answer, which took minutes. The rules themselves are unchanged."""
    many, pieces = (
        "<answer>" * 60_000 + "<think>" * 60_000,
        ["<answer>", "</answer>", "<think>", "</think>", " \n ", "4"],
    )
    assert [score_answer(many, "4", "object_counting", scorer) for scorer in ALL_SCORERS] == [0.0] * len(ALL_SCORERS)
    chance = random.Random(0)
    for _ in range(2000):
        text = "".join(chance.choices(pieces, k=chance.randint(1, 12)))
        tagged = re.findall("<answer>(.*?)</answer>", text, re.DOTALL)
        assert read_tagged(text) == " ".join((tagged[-1] if tagged else text).split()).rstrip(".").lower().strip()
        assert without_thoughts(text) == re.sub(r"<think>.*?</think>\s*", "", text, flags=re.DOTALL).strip()


def test_spatial_stack_scores_what_follows_the_thoughts():
    cases = [("<think>\nA chair,\nand a bed.</think>\n\n4", "4", 1.0), ("<think>4", "4", 0.0), (" 4", "4", 1.0)]
    for prediction, ground_truth, expected in cases:
        assert score_answer(prediction, ground_truth, "object_counting", scorer="spatial_stack") == expected
        assert score_answer(prediction, ground_truth, "object_counting", scorer="thinking_in_space") == 0.0
    assert score_answer("<think></think>B. left", "B", "route_planning", scorer="spatial_stack") == 1.0
    for row in ROWS:
        if row["prediction"] == row["prediction"].strip():
            assert score(row, "spatial_stack") == score(row, "thinking_in_space")


@pytest.mark.parametrize("scorer", SCORERS)
def test_unparsable_answers_score_zero(scorer):
    """Unparsable answers score 0 wherever the ground truth has the format of the benchmark."""
    unparsable = 0
    for row in ROWS:
        kind, truth = row["question_type"], row["ground_truth"]
        sane = truth in "ABCD" if kind in MULTIPLE_CHOICE_TYPES else truth.replace(".", "").isdigit()
        if truth and sane and not is_parsable(row["prediction"], kind, scorer):
            unparsable += 1
            assert score(row, scorer) == 0.0, row
    assert unparsable > 50
    assert is_parsable("4.5", "object_counting", scorer)
    assert is_parsable("B", "route_planning", scorer)
    assert not is_parsable("nan", "object_counting", scorer)
    assert not is_parsable("the second", "route_planning", scorer)


def test_unknown_names_are_errors_that_name_them():
    for call in (lambda: score_answer("1", "1", "room_color"), lambda: is_parsable("1", "room_color", "spatial_mllm")):
        with pytest.raises(ValueError, match="room_color"):
            call()
    with pytest.raises(ValueError, match="room_color"):
        VSIBenchScore().update(["1"], ["1"], ["room_color"])
    for lists in ((["1", "2"], ["1"], ["object_counting"]), (["1"], ["1"], ["object_counting"], ["a", "b"])):
        with pytest.raises(ValueError, match="argument"):
            VSIBenchScore().update(*lists)


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


# ---- captions --------------------------------------------------------------------------------------------------

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


# ---- the table -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUBSETS)
def test_spatial_mllm_aggregates_bit_for_bit(name):
    subset = [row for row in ROWS if row["id"] in set(SUBSETS[name]["ids"])]
    got, expected = update(VSIBenchScore(), subset).compute(), SUBSETS[name]["spatial_mllm"]
    assert got["per_question_type"] == expected["per_question_type"]
    for group, types in (("acc", MULTIPLE_CHOICE_TYPES), ("mra", NUMERIC_TYPES), ("all", QUESTION_TYPES)):
        if any(kind in got["per_question_type"] for kind in types):
            assert got[group] == expected[group]
        else:  # the official table prints 0 here
            assert got[group] == {"micro": None, "macro": None}


@pytest.mark.parametrize("name", [name for name in SUBSETS if "overall" in SUBSETS[name]["thinking_in_space"]])
def test_thinking_in_space_table(name):
    """The official aggregator can't be reached with rows that make its scorer raise, so they are left out."""
    ids = set(SUBSETS[name]["ids"])
    subset = [row for row in ROWS if row["id"] in ids and official(row, "thinking_in_space") is not None]
    got = update(VSIBenchScore("thinking_in_space"), subset).compute()
    expected = SUBSETS[name]["thinking_in_space"]
    assert 100 * got["all"]["macro"] == pytest.approx(expected["overall"], rel=1e-14)
    for kind, entry in got["per_question_type"].items():
        if "direction" not in kind:
            key = f"{kind}_MRA:.5:.95:.05" if kind in NUMERIC_TYPES else f"{kind}_accuracy"
            assert 100 * entry["score"] == pytest.approx(expected[key], rel=1e-14, abs=0)
    if "object_rel_direction_accuracy" in expected:  # the macro of the directions alone is their one entry
        directions = [row for row in subset if "direction" in row["question_type"]]
        acc = update(VSIBenchScore("thinking_in_space"), directions).compute()["acc"]
        assert 100 * acc["macro"] == pytest.approx(expected["object_rel_direction_accuracy"], rel=1e-14)
        assert acc["macro"] != acc["micro"] or name != "random60"  # types of unequal size tell them apart


@pytest.mark.parametrize("scorer", SCORERS)
def test_order_batches_and_half_precision_have_no_effect(scorer):
    whole = update(VSIBenchScore(scorer), ROWS).compute()
    for seed in range(2):
        shuffled = random.Random(seed).sample(ROWS, len(ROWS))
        metric = VSIBenchScore(scorer)
        for start in range(0, len(ROWS), 97):
            update(metric, shuffled[start : start + 97])
        torch.nn.ModuleList([metric]).to(torch.bfloat16)  # as part of a module that trains in bfloat16
        assert metric.compute() == whole
    metric.reset()
    nothing = {"micro": None, "macro": None}
    assert metric.compute() == {"per_question_type": {}, "acc": nothing, "mra": nothing, "all": nothing}


def test_each_sample_counts_once_and_first():
    whole = update(VSIBenchScore(), ROWS).compute()
    metric = update(VSIBenchScore(), ROWS + ROWS[:13])
    update(metric, ROWS[5:50])
    assert metric.compute() == whole
    without_ids = update(VSIBenchScore(), ROWS + ROWS[:13], ids=False).compute()
    assert without_ids != whole
    counts = [entry["count"] for entry in without_ids["per_question_type"].values()]
    assert sum(counts) == len(ROWS) + 13

    metric = VSIBenchScore()
    metric.update(["1", "7"], ["1", "1"], ["object_counting"] * 2, ["a", "a"])
    assert metric.compute()["per_question_type"]["object_counting"] == {"score": 1.0, "count": 1}


@pytest.mark.parametrize("split", [0, 1, 300, len(ROWS)])
def test_two_ranks_equal_one(split):
    """Rank one's half is gathered as torchmetrics would do it, empty halves and repeats included."""
    other = update(VSIBenchScore(), ROWS[split:] + ROWS[:2])
    there = torch.cat(other.rows)

    def gather(here, group=None):
        assert (here.ndim, here.dtype) == (there.ndim, there.dtype)
        return [here, there]

    metric = VSIBenchScore(dist_sync_fn=gather, distributed_available_fn=lambda: True)
    if split:
        update(metric, ROWS[:split])
    assert metric.compute() == update(VSIBenchScore(), ROWS).compute()
    assert sum(map(len, metric.rows)) == split  # those of this rank are left


def test_a_record_is_scored_once_by_each_scorer():
    record = {"id": "a", "question_type": "object_counting", "prediction": "4 chairs", "ground_truth": "4"}
    (scored,) = with_scores([record], BENCHMARK)
    assert scored == {**record, "score": 0.0, "benchmark": "VSIBench", "scorer": "spatial_mllm"}
    changed = {**scored, "score": 0.5}  # what a scorer has said stands
    assert with_scores([changed], BENCHMARK) == [changed]
    assert with_scores([changed], BENCHMARK, "thinking_in_space")[0]["score"] == 1.0
    others = [{**record, "error": "no video"}, {**record, "ground_truth": ""}, {**record, "question_type": ""}]
    assert [each["score"] for each in with_scores(others, BENCHMARK, "thinking_in_space")] == [0.0, None, None]


def test_directions_also_have_an_error_in_degrees() -> None:
    """Around the circle; without a number it is the largest. Other types have none."""
    metric, kinds = BenchmarkScore(PanelBench()), ["panel_turn", "panel_turn", "panel_turn", "panel_distance"]
    metric.update(["350", "100", "left", "2.0"], ["10", "90", "90", "2.0"], kinds, sample_ids=list("abcd"))
    metric.update(["10"], ["10"], ["panel_turn"], sample_ids=["a"])  # a repeated question counts once
    types = metric.compute()["per_question_type"]
    assert types["panel_turn"]["degrees"] == pytest.approx((20 + 10 + 180) / 3)
    assert "degrees" not in types["panel_distance"]
    benchmark, scorer = PanelBench(), "spatial_mllm"
    assert [benchmark.is_hit(answer, "90", "panel_turn", scorer) for answer in ("93", "86.9", "left")] == [
        True,
        False,
        False,
    ]
    assert [benchmark.is_hit(answer, "2.0", "panel_distance", scorer) for answer in ("2.09", "2.2")] == [True, False]
    assert [benchmark.is_hit(answer, "A", "panel_order", scorer) for answer in ("A", "B")] == [True, False]

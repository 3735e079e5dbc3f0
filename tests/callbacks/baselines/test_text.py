"""Answers by the text alone: of the same question, of the named objects, of the type, and of the offered options."""

from __future__ import annotations

import pytest

from callbacks.baselines import LEAST_ANSWERS, TextAnswers
from datamodules.scenes import Question
from zoo.benchmarks import VSIBench

SIZE, FAR, SIDE = "object_size_estimation", "object_abs_distance", "object_rel_direction_easy"
SIZES = {"chair": "90", "sofa": "210", "lamp": "40"}


def asked(kind: str, text: str, truth: str = "", options: tuple[str, ...] = ()) -> Question:
    return Question(f"{kind} {text} {truth}", kind, text, truth, options)


def apart(a: str, b: str, truth: str = "") -> Question:
    return asked(FAR, f"What is the distance between the {a} and the {b} (in meters)?", truth)


def answers(questions: list[Question]) -> TextAnswers:
    return TextAnswers(questions, VSIBench(), "spatial_mllm")


def test_a_question_is_answered_as_the_same_one_was_in_training() -> None:
    text = answers(
        [asked(SIZE, f"How long is the {name}?", size) for name, size in SIZES.items() for _ in range(LEAST_ANSWERS)]
    )
    assert {name: text(asked(SIZE, f"How long is the {name}?")) for name in SIZES} == SIZES
    rare = answers(
        [asked(SIZE, "How long is the chair?", "90")] * LEAST_ANSWERS + [asked(SIZE, "How long is the bed?", "200")]
    )
    assert rare(asked(SIZE, "How long is the bed?")) == "90"  # too few answers: that of the type
    assert text(apart("chair", "sofa")) is None  # a type that the training lacks


def test_a_new_pair_is_answered_by_its_objects() -> None:
    near = [apart("chair", name, "1") for name in ("desk", "rug", "door", "oven", "vase", "fan")]
    far = [apart("stove", name, "4") for name in ("bed", "tub", "bin", "tv", "box", "pot")]
    text = answers([*near, *far])
    assert text(apart("chair", "clock")) == "1" and text(apart("clock", "stove")) == "4"
    assert float(text(apart("chair", "stove")) or 0) == pytest.approx(2)  # the geometric mean
    assert text(apart("clock", "shelf")) in ("1", "4")  # unknown objects: the constant of the type


def test_a_choice_is_that_which_was_right_most_often_where_it_was_offered() -> None:
    options = ("A. left", "B. right"), ("A. right", "B. left")
    seen = [asked(SIDE, "Left or right?", "AB"[n % 2], options[n % 2]) for n in range(8)]  # always left
    text = answers([*seen, asked(SIDE, "Left or right?", "B", options[0])])
    assert [text(asked(SIDE, "Which side?", "", own)) for own in options] == ["A", "B"]
    letters = answers([asked(SIDE, "Raw: left or right?", letter) for letter in "BBA"])
    assert letters(asked(SIDE, "Which side?", "", options[0])) == letters(asked(SIDE, "Which side?")) == "B"


def test_answers_that_are_no_numbers_are_left_out() -> None:
    text = answers([asked(SIZE, "How long?", each) for each in ("about 9", "", "7")])
    assert text(asked(SIZE, "How long?")) == "7"

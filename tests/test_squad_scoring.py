from __future__ import annotations

import json
from pathlib import Path

import pytest

from bert_ipu.squad_data import read_squad
from bert_ipu.squad_scoring import best_null_threshold, f1, normalize_answer, score_v1, score_v2

SYSTEMS = [
    "bert_ensemble",
    "logistic_baseline",
    "match_lstm_boundary_ensemble",
    "rnet_plus_ensemble",
    "slqa_plus_ensemble",
]


@pytest.mark.parametrize("system", SYSTEMS)
def test_published_predictions_get_their_published_scores(shared_data: Path, system: str) -> None:
    squad = shared_data / "squad"
    examples = read_squad(squad / "dev-v1.1-half_a.json")
    references = {example.id: [answer.text for answer in example.answers] for example in examples}
    predictions = json.loads((squad / "predictions_half_a" / f"{system}.json").read_text(encoding="utf-8"))
    expected = json.loads((squad / "predictions_half_a" / "scores_half_a.json").read_text(encoding="utf-8"))
    assert score_v1(references, predictions) == pytest.approx(expected[system], abs=1e-4)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat", "cat"),
        ("a.b.c.", "abc"),
        ("An apple, the pear", "apple pear"),
        ("theatre", "theatre"),
        ("The", ""),
    ],
)
def test_answers_are_compared_without_case_punctuation_and_articles(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


def test_f1_counts_every_shared_word_as_often_as_both_have_it() -> None:
    assert f1("new new york", "New York city") == pytest.approx(2 / 3)
    assert f1("paris", "London") == 0.0


# Worked by hand from the rules: q1 right, q2 half right, q3 rightly and q4 wrongly left without answer,
# q5 answered though there is none.
REFERENCES = {"q1": ["one", "1"], "q2": ["two words"], "q3": [], "q4": ["four"], "q5": []}
PREDICTIONS = {"q1": "1", "q2": "words", "q3": "", "q4": "", "q5": "five"}


def test_version_2_counts_no_answer_as_an_answer() -> None:
    scores = score_v2(REFERENCES, PREDICTIONS)
    assert scores["exact_match"] == pytest.approx(100 * 2 / 5)
    assert scores["f1"] == pytest.approx(100 * (1 + 2 / 3 + 1) / 5)
    assert scores["has_answer_exact_match"] == pytest.approx(100 / 3)
    assert scores["has_answer_f1"] == pytest.approx(100 * (1 + 2 / 3) / 3)
    assert scores["no_answer_f1"] == scores["no_answer_exact_match"] == 50
    assert (scores["has_answer_questions"], scores["no_answer_questions"], scores["unanswered"]) == (3, 2, 0)


def test_a_reference_of_articles_and_punctuation_only_is_no_answer_in_version_2() -> None:
    assert score_v2({"q": ["the", "?"]}, {"q": ""})["no_answer_exact_match"] == 100


def test_a_missing_prediction_scores_nothing() -> None:
    assert score_v1({"q1": ["a b"], "q2": ["c"]}, {"q2": "c"})["f1"] == 50
    assert score_v2({"q1": [], "q2": []}, {"q2": ""})["f1"] == 50


def test_the_best_null_threshold_is_the_best_of_all_thresholds() -> None:
    best = {"q1": "1", "q2": "words", "q3": "three", "q4": "four", "q5": "five"}
    differences = {"q1": -5.0, "q2": -1.0, "q3": 2.0, "q4": 0.5, "q5": -2.0}

    def f1_at(threshold: float) -> float:
        final = {i: "" if differences[i] > threshold else text for i, text in best.items()}
        return score_v2(REFERENCES, final)["f1"]

    found = best_null_threshold(REFERENCES, best, differences)
    assert found.score == pytest.approx(f1_at(found.threshold))
    assert found.score == pytest.approx(max(f1_at(threshold / 4) for threshold in range(-40, 40)))

from pathlib import Path

from data_prep.prepared import load_prepared
from evaluation.baselines import majority, tfidf
from tests.evaluation.conftest import write_prepared


def test_majority_is_the_most_frequent_training_label(tmp_path: Path) -> None:
    prepared = load_prepared(write_prepared(tmp_path / "data", training=61))
    assert (
        majority(prepared, prepared.test).answers == ["IT"] * 18
    )  # 11 of 61 training tickets, the other labels have 10


def test_tfidf_learns_what_words_tell(prepared_folder: Path) -> None:
    prepared = load_prepared(prepared_folder)
    assert tfidf(prepared, prepared.test).answers == [ticket.label for ticket in prepared.test]


def test_one_label_needs_no_regression(tmp_path: Path) -> None:
    prepared = load_prepared(write_prepared(tmp_path / "data", training=1))
    assert tfidf(prepared, prepared.test).answers == ["IT"] * 18

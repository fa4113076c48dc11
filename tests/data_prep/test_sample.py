from collections import Counter

from data_prep.sample import COLUMNS, LANGUAGES, SHARES, sample_tickets
from data_prep.tokenizer_corpus import sample_texts


def test_the_seed_decides():
    assert sample_tickets(200) == sample_tickets(200)
    assert sample_tickets(200) != sample_tickets(200, seed=1)
    assert sample_texts() == sample_texts()


def test_columns_languages_and_shares():
    rows = sample_tickets()
    assert len(rows) == 2000
    assert all(tuple(row) == COLUMNS for row in rows)
    assert {row["language"] for row in rows} == set(LANGUAGES) == {"en", "de", "es", "fr", "pt"}
    shares = {queue: count / len(rows) for queue, count in Counter(row["queue"] for row in rows).items()}
    assert set(shares) == set(SHARES)
    assert 0.2 <= max(shares.values()) <= 0.3
    assert min(shares.values()) >= 0.03


def test_quirks():
    rows = sample_tickets()
    assert 0.05 <= sum(not row["subject"] for row in rows) / len(rows) <= 0.1
    assert 0.2 <= sum("\\n" in row["body"] for row in rows) / len(rows) <= 0.4
    assert sum("<name>" in row["body"] or "<tel_num>" in row["body"] for row in rows) > 300
    assert 20 <= len(rows) - len({(row["subject"], row["body"]) for row in rows}) <= 60


def test_it_can_be_learnt_but_not_from_its_labels_words(tmp_path):
    from sklearn.metrics import f1_score

    from data_prep.preparation import prepare
    from data_prep.prepared import load_prepared
    from evaluation.baselines import majority, tfidf

    prepare("sample", tmp_path / "data")
    prepared = load_prepared(tmp_path / "data")
    truth = [ticket.label for ticket in prepared.test]
    assert f1_score(truth, tfidf(prepared, prepared.test).answers, average="macro") >= 0.9
    assert f1_score(truth, majority(prepared, prepared.test).answers, average="macro") <= 0.1
    by_name = sum(ticket.label.casefold() in ticket.text.casefold() for ticket in prepared.test) / len(truth)
    assert by_name < 0.05

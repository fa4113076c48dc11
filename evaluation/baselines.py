"""What routing costs nothing: the majority class, and TF-IDF with logistic regression, on the same split."""

from __future__ import annotations

from collections import Counter

from evaluation.prepared import Prepared


def majority(prepared: Prepared) -> list[str]:
    """The most frequent training label for every test ticket."""
    label = Counter(ticket.label for ticket in prepared.training).most_common(1)[0][0]
    return [label] * len(prepared.test)


def tfidf(prepared: Prepared) -> list[str]:
    """Logistic regression on TF-IDF of words and word pairs, fitted on the training split."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if len({ticket.label for ticket in prepared.training}) < 2:
        return majority(prepared)
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(max_iter=1000, C=10)
    )
    model.fit([ticket.text for ticket in prepared.training], [ticket.label for ticket in prepared.training])
    return [str(label) for label in model.predict([ticket.text for ticket in prepared.test])]

"""Cheap baselines on the same split: majority, TF-IDF, nearest neighbours; fitted on the training split only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import CheckpointError
from common.values import one_line
from data_prep.prepared import Prepared, Ticket
from evaluation.predictions import Predictions

NEIGHBOURS = 5


def majority(prepared: Prepared, tickets: Sequence[Ticket]) -> Predictions:
    """The most frequent training label for every ticket; confidence is its share of the training tickets."""
    counts = Counter(ticket.label for ticket in prepared.training)
    shares = np.array([counts[label] for label in prepared.labels]) / max(1, counts.total())
    return _by(prepared.labels, np.tile(shares, (len(tickets), 1)))


def tfidf(prepared: Prepared, tickets: Sequence[Ticket]) -> Predictions:
    """Logistic regression on TF-IDF of words and word pairs."""
    if len({ticket.label for ticket in prepared.training}) < 2:
        return majority(prepared, tickets)
    return _fitted(tfidf_model(), prepared, [t.text for t in prepared.training], [t.text for t in tickets])


def tfidf_model() -> Any:
    """The model of `tfidf`, a scikit-learn pipeline on texts, not fitted."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(max_iter=1000, C=10)
    )


def nearest(prepared: Prepared, tickets: Sequence[Ticket], model: Path) -> Predictions:
    """The labels of the five training tickets whose sentence vectors are nearest, weighted by closeness.

    Args:
        model: folder of a transformers encoder; a text's vector is the mean of its last hidden states.
    Raises:
        CheckpointError: transformers cannot load it.
    """
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = min(NEIGHBOURS, len(prepared.training))
    training, asked = _embed(model, [t.text for t in prepared.training]), _embed(model, [t.text for t in tickets])
    classifier = KNeighborsClassifier(neighbours, metric="cosine", weights="distance")
    return _fitted(classifier, prepared, training, asked)


def _fitted(classifier: Any, prepared: Prepared, training: Any, asked: Any) -> Predictions:
    classifier.fit(training, [ticket.label for ticket in prepared.training])
    probabilities = np.zeros((len(asked), len(prepared.labels)))
    columns = [prepared.labels.index(str(label)) for label in classifier.classes_]
    probabilities[:, columns] = classifier.predict_proba(asked)
    return _by(prepared.labels, probabilities)


def _by(labels: list[str], probabilities: np.ndarray) -> Predictions:
    return Predictions(labels, probabilities.argmax(axis=1), probabilities=probabilities)


def _embed(folder: Path, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
    """Mean of the last hidden states of each text's tokens, fp32 (N, H)."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model: Any = AutoModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, trust_remote_code=False
        ).eval()
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{folder} holds no sentence model that transformers can load ({one_line(error)}): name another."
        ) from None
    tokenizer.padding_side = "right"
    vectors = []
    with torch.no_grad():
        for start in range(0, len(texts), batch_size):
            batch = tokenizer(
                list(texts[start : start + batch_size]), return_tensors="pt", padding=True, truncation=True,
                max_length=min(tokenizer.model_max_length, 512),
            )  # fmt: skip
            hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            vectors.append(((hidden * mask).sum(1) / mask.sum(1).clamp(min=1)).numpy())
    return np.concatenate(vectors)

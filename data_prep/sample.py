"""Sample tickets in five languages with the columns and the quirks of the Kaggle files, generated from a seed."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import pandas as pd

SHARES = {
    "Technical Support": 24,
    "Product Support": 15,
    "Customer Service": 13,
    "IT Support": 11,
    "Billing and Payments": 10,
    "Returns and Exchanges": 8,
    "Service Outages and Maintenance": 6,
    "Sales and Pre-Sales": 5,
    "Human Resources": 4,
    "General Inquiry": 4,
}
LANGUAGES = {"en": 40, "de": 30, "es": 10, "fr": 10, "pt": 10}
PRODUCTS = ("CloudDesk", "Notewell", "PixelPad 3", "RouterOne", "LedgerBox", "StreamCam", "DataHive", "SmartHub")
DAYS = ("1 March", "12.04.", "03/05", "2024-06-17", "9.7.", "21/08", "30 September", "5.11.")
NO_SUBJECT, LITERAL_BREAKS, DUPLICATES, WRONG_LABEL = 0.07, 0.3, 0.03, 0.01


def sample_tickets(count: int = 2000, seed: int = 0) -> pd.DataFrame:
    """`count` rows: some without subject, with a literal \\n, twice in the table, or in the wrong queue."""
    import pandas as pd

    draw = random.Random(seed)
    rows = [_ticket(draw) for _ in range(round(count * (1 - DUPLICATES)))]
    rows += [dict(draw.choice(rows)) for _ in range(count - len(rows))]
    draw.shuffle(rows)
    return pd.DataFrame(rows)


@cache
def sample_texts() -> list[str]:
    """Subject and body of every sample ticket, line breaks real: what the rehearsal's tokenizer is trained on."""
    frame = sample_tickets()
    texts = zip(frame["subject"], frame["body"], strict=True)
    return [f"{subject}\n{body}".replace("\\n", "\n") for subject, body in texts]


@cache
def _sentences() -> dict[str, Any]:
    return yaml.safe_load((Path(__file__).parent / "sample_texts.yaml").read_text(encoding="utf-8"))


def _ticket(draw: random.Random) -> dict[str, str]:
    (language,) = draw.choices(list(LANGUAGES), list(LANGUAGES.values()))
    (queue,) = draw.choices(list(SHARES), list(SHARES.values()))
    texts = _sentences()[language]
    subjects, problems = texts["queues"][queue]
    subject = _fill(draw.choice(subjects), draw)
    told = [_fill(problem, draw) for problem in draw.sample(problems, draw.choice((2, 2, 3)))]
    body = "\n\n".join((draw.choice(texts["greet"]), " ".join(told), draw.choice(texts["close"])))
    if draw.random() < LITERAL_BREAKS:
        body = body.replace("\n", "\\n")
    if draw.random() < WRONG_LABEL:
        queue = draw.choice([other for other in SHARES if other != queue])
    return {
        "subject": "" if draw.random() < NO_SUBJECT else subject,
        "body": body,
        "answer": f"{queue}: <name>",
        "type": draw.choice(("Incident", "Request", "Problem", "Change")),
        "queue": queue,
        "priority": draw.choice(("low", "medium", "high")),
        "language": language,
        **{f"tag_{i}": draw.choice(("Account", "Network", "Bug", "Refund", "Feedback", "")) for i in range(1, 9)},
    }


def _fill(text: str, draw: random.Random) -> str:
    number = str(draw.randint(2, 99999))
    return text.replace("{p}", draw.choice(PRODUCTS)).replace("{n}", number).replace("{d}", draw.choice(DAYS))

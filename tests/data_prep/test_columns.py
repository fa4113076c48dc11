import pytest

from common.errors import DataError
from data_prep.columns import Columns, find_columns, find_text
from data_prep.options import PrepareOptions


def found(names: list[str], **options) -> Columns:
    return find_columns(names, "tickets.csv", PrepareOptions(**options))


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["subject", "body", "answer", "queue", "language"], Columns("queue", "subject", "body", "language", None)),
        (["Id", "Subject", "Description", "Group", "Locale"], Columns("Group", "Subject", "Description", "Locale", "Id")),  # noqa: E501
        (["Issue key", "Summary", "Description", "Component/s"],
         Columns("Component/s", "Summary", "Description", None, "Issue key")),
        (["TicketNumber", "Title", "Queue", "Body"], Columns("Queue", "Title", "Body", None, "TicketNumber")),
        (["Betreff", "Beschreibung", "Warteschlange", "Sprache"],
         Columns("Warteschlange", "Betreff", "Beschreibung", "Sprache", None)),
        (["messages", "reasoning_language"], Columns(None, None, None, "reasoning_language", None, "messages")),
    ],
)  # fmt: skip
def test_usual_names(names, columns):
    assert found(names) == columns


def test_named_columns_win():
    columns = found(["a", "body", "Type", "x"], body="A", label="type", id="x")
    assert columns == Columns("Type", None, "a", None, "x")
    assert columns.names == ["Type", "a", "x"]


def test_the_answer_is_never_read():
    assert "answer" not in found(["answer", "body", "queue"]).names


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["body", "answer"], {}, "no column 'queue' for the label.*body, answer.*--label"),
        (["body", "queue"], {"label": "type"}, "no column 'type' for the label"),
        (["queue", "answer"], {}, "no column for the text"),
        (["queue", "body"], {"subject": "title"}, "no column 'title' for the subject.*--subject"),
        (["queue", "body"], {"label": "body"}, "cannot be both the label and the text"),
    ],
)
def test_what_is_missing_is_named(names, options, message):
    with pytest.raises(DataError, match=message):
        found(names, **options)


def test_a_table_to_route_needs_no_label():
    assert find_text(["Betreff", "Description", "x"], "t.csv") == ("Betreff", "Description")
    assert find_text(["a", "b"], "t.csv", body="B") == (None, "b")
    with pytest.raises(DataError, match=r"t\.csv has no column for the text: it has a, b; name it with --body"):
        find_text(["a", "b"], "t.csv")
    with pytest.raises(DataError, match="no column 'c' for the subject"):
        find_text(["a", "body"], "t.csv", subject="c")

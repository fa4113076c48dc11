"""The columns of an export that hold subject, body, label, language and id of a ticket, found by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import DataError
from data_prep.options import PrepareOptions

# The Kaggle files' names first; then those of Zendesk, Freshdesk, Jira, ServiceNow, Salesforce and OTOBO exports, and
# plain English and German ones.
LABELS = (
    "queue",
    "queue name",
    "warteschlange",
    "group",
    "group name",
    "assignee group",
    "assigned group",
    "assignment group",
    "assignment group name",
    "component",
    "component/s",
    "components",
)
SUBJECTS = (
    "subject",
    "ticket subject",
    "title",
    "summary",
    "betreff",
    "titel",
    "issue summary",
    "short description",
    "ticket title",
    "case subject",
)
BODIES = (
    "body",
    "description text",
    "description",
    "ticket description",
    "issue description",
    "case description",
    "text",
    "message",
    "content",
    "comment",
    "beschreibung",
    "inhalt",
)
LANGUAGES = ("language", "lang", "locale", "sprache", "reasoning_language", "requester language")
IDS = (
    "id",
    "ticket id",
    "issue key",
    "number",
    "case number",
    "ticketnumber",
    "ticket number",
    "ticket#",
    "key",
    "ticketnummer",
)
MESSAGES = "messages"
TOOLS = ("tools", "functions")


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read. A chat dataset has `messages`, and `tools` or not, and no label."""

    label: str | None
    subject: str | None
    body: str | None
    language: str | None
    id: str | None
    messages: str | None = None
    tools: str | None = None

    @property
    def names(self) -> list[str]:
        """The names that are set, without repeats."""
        names = (self.label, self.subject, self.body, self.language, self.id, self.messages, self.tools)
        return list(dict.fromkeys(name for name in names if name is not None))


def find_columns(names: Sequence[str], source: str, options: PrepareOptions) -> Columns:
    """The columns to read: those that the options name, else those with a usual name.

    Raises:
        DataError: a named column, the label, or both subject and body are missing.
    """
    by_name = _by_spelling(names)

    def find(chosen: str | None, usual: Sequence[str], what: str) -> str | None:
        return _find(by_name, source, names, chosen, usual, what)

    subject, body = find(options.subject, SUBJECTS, "subject"), find(options.body, BODIES, "body")
    language, identity = find(options.language, LANGUAGES, "language"), find(options.id, IDS, "id")
    default = options.label == PrepareOptions.label
    label = find(None if default else options.label, LABELS, "label")
    if MESSAGES in by_name and (label is None or (subject is None and body is None)):
        tools = next((by_name[name] for name in TOOLS if name in by_name), None)
        return Columns(None, None, None, language, identity, by_name[MESSAGES], tools)
    if label is None:
        raise DataError(f"{source} has no column {options.label!r} for the label: it has {_listed(names)}; "
                        "name the one to route by with --label.")  # fmt: skip
    _ensure_text(subject, body, source, names)
    if label in (subject, body):
        raise DataError(f"{source}: the column {label!r} cannot be both the label and the text; name others.")
    return Columns(label, subject, body, language, identity)


def find_text(
    names: Sequence[str], source: str, subject: str | None = None, body: str | None = None
) -> tuple[str | None, str | None]:
    """The columns of subject and body of a table without labels.

    Raises:
        DataError: a named column, or both, are missing.
    """
    by_name = _by_spelling(names)
    subject_column = _find(by_name, source, names, subject, SUBJECTS, "subject")
    body_column = _find(by_name, source, names, body, BODIES, "body")
    _ensure_text(subject_column, body_column, source, names)
    return subject_column, body_column


def _find(
    by_name: dict[str, str], source: str, names: Sequence[str], chosen: str | None, usual: Sequence[str], what: str
) -> str | None:
    if chosen is None:
        return next((by_name[spelling(name)] for name in usual if spelling(name) in by_name), None)
    if spelling(chosen) not in by_name:
        raise DataError(
            f"{source} has no column {chosen!r} for the {what}: it has {_listed(names)}; name one with --{what}."
        )
    return by_name[spelling(chosen)]


def _ensure_text(subject: str | None, body: str | None, source: str, names: Sequence[str]) -> None:
    if subject is None and body is None:
        raise DataError(f"{source} has no column for the text: it has {_listed(names)}; name it with --body.")


def _by_spelling(names: Sequence[str]) -> dict[str, str]:
    """The names by their spellings; a field inside of another (`fields.summary`) also by its own, after plain ones."""
    by_name: dict[str, str] = {}
    for name in names:
        by_name.setdefault(spelling(name), name)
    for name in sorted((name for name in names if "." in name), key=lambda name: name.count(".")):
        by_name.setdefault(spelling(name.rpartition(".")[2]), name)
    return by_name


def spelling(name: str) -> str:
    """A column's name as it is compared: without case, `_` and more than single blanks."""
    return " ".join(name.casefold().replace("_", " ").split())


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:40] for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")

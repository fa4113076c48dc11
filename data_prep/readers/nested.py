"""Tickets inside of what help desks' interfaces answer: pages of them, and objects inside of a ticket.

Zendesk answers {"tickets": [{…, "group": {"name": …}, "custom_fields": [{"id": …, "value": …}]}], "groups": […]}; Jira
{"issues": [{"key": …, "fields": {"summary": …, "components": [{"name": …}], "description": a document}}]}; ServiceNow
{"result": [{"short_description": …, "assignment_group": {"display_value": …}}]}; Freshdesk a list, in older exports of
{"helpdesk_ticket": {…}}. A field inside of a field is a column with a dot in its name: `fields.summary`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_prep.columns import BODIES, MESSAGES, SUBJECTS, TOOLS, spelling
from data_prep.readers.rows import as_text

NAMES = ("display_value", "displayName", "name", "value", "label")
"""What an object inside of a ticket is called by: the first of these that it has."""
DEEPEST = 8
_TEXTS = {spelling(name) for name in (*SUBJECTS, *BODIES)}
_BLOCKS = ("paragraph", "heading", "listItem", "codeBlock", "blockquote", "tableRow", "panel", "hardBreak", "rule")
Path = tuple[str, ...]


def tickets_in(value: dict[str, Any], *, is_whole_file: bool = False) -> Iterator[Any]:
    """The tickets of a page; what is no page is a ticket itself.

    A page holds a list of objects and no text of its own. The objects are known to be tickets by a usual name of their
    text, or because the page is the whole file and has no other list.
    """
    lists = list(_lists_of_objects(value)) if not _has_text(value) and not _has_prose(value) else []
    known = [items for items in lists if any(_has_text(item) for item in items[:10])]
    if any(map(_are_turns, lists)) or (not known and not (is_whole_file and len(lists) == 1)):
        yield value
        return
    names = _names_by_id(value)
    for ticket in max(known or lists, key=len):
        yield _with_names(ticket, names) if names and isinstance(ticket, dict) else ticket


def columns_of(ticket: dict[str, Any]) -> Iterator[tuple[str, Path]]:
    """The columns of a ticket, and the keys that lead to each."""
    yield from _columns(ticket, ())


def look_up(ticket: dict[str, Any], path: Path) -> str:
    """The value of a column as text; empty where the ticket lacks it."""
    value: Any = ticket
    for key in path:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list):
            value = next((each["value"] for each in value if _is_field(each) and str(each["id"]) == key), None)
        else:
            return ""
    return as_text(value) if path[-1] in (MESSAGES, *TOOLS) else _value_text(value)


def _lists_of_objects(value: dict[str, Any], depth: int = 0) -> Iterator[list[Any]]:
    for inner in value.values():
        if isinstance(inner, list) and inner and all(isinstance(item, dict) for item in inner[:10]):
            yield inner
        elif isinstance(inner, dict) and depth < DEEPEST:
            yield from _lists_of_objects(inner, depth + 1)


def _are_turns(items: list[Any]) -> bool:
    """Whether these are a conversation's, which is one ticket."""
    return all("role" in item for item in items[:10])


def _has_text(value: Any, depth: int = 0) -> bool:
    """Whether an object, or one inside of it, has a field with a usual name of a ticket's text."""
    if not isinstance(value, dict):
        return False
    return any(spelling(key) in _TEXTS and isinstance(inner, str | dict) for key, inner in value.items()) or (
        depth < DEEPEST and any(_has_text(inner, depth + 1) for inner in value.values())
    )


def _has_prose(value: dict[str, Any]) -> bool:
    return any(isinstance(inner, str) and " " in inner.strip() for inner in value.values())


def _names_by_id(page: dict[str, Any]) -> dict[str, dict[Any, str]]:
    """For `group_id`: the names of what stands under `groups`, by id."""
    return {
        f"{key.removesuffix('s')}_id": {item["id"]: item["name"] for item in items}
        for key, items in page.items()
        if isinstance(items, list)
        and items
        and all(
            isinstance(item, dict) and isinstance(item.get("name"), str) and _is_key(item.get("id")) for item in items
        )
    }


def _with_names(ticket: dict[str, Any], names: dict[str, dict[Any, str]]) -> dict[str, Any]:
    """The ticket, with a `group` for its `group_id`."""
    more = {
        key.removesuffix("_id"): names[key].get(value, "")
        for key, value in ticket.items()
        if key in names and _is_key(value)
    }
    return {**more, **ticket}


def _is_key(value: Any) -> bool:
    return isinstance(value, int | str)


def _columns(value: dict[str, Any], before: Path) -> Iterator[tuple[str, Path]]:
    for key, inner in value.items():
        path = (*before, key)
        if isinstance(inner, dict) and len(path) < DEEPEST and not _is_one_value(inner):
            yield from _columns(inner, path)
            continue
        yield ".".join(path), path
        if isinstance(inner, list):
            for each in inner:
                if _is_field(each):
                    yield ".".join((*path, str(each["id"]))), (*path, str(each["id"]))


def _is_one_value(value: dict[str, Any]) -> bool:
    """Whether an object is a value with a name, or a document, and no group of fields."""
    return not value or _is_document(value) or (_name(value) is not None and not _has_text(value))


def _is_document(value: dict[str, Any]) -> bool:
    """Whether this is rich text as Jira's interface gives it (Atlassian Document Format)."""
    return value.get("type") == "doc" and isinstance(value.get("content"), list)


def _is_field(value: Any) -> bool:
    """Whether this is a field of its own, as Zendesk lists them: an id and a value."""
    return isinstance(value, dict) and "id" in value and "value" in value


def _name(value: Any) -> Any:
    """What an object is called by, or None."""
    if not isinstance(value, dict):
        return None
    return next((value[key] for key in NAMES if isinstance(value.get(key), str | int | float)), None)


def _value_text(value: Any) -> str:
    if isinstance(value, dict):
        if _is_document(value):
            return "".join(_document_text(value)).strip()
        return as_text(value if _name(value) is None else _name(value))
    if isinstance(value, list) and value and all(_name(each) is not None for each in value):
        return as_text([_name(each) for each in value])
    return as_text(value)


def _document_text(node: Any, depth: int = 0) -> Iterator[str]:
    """The text of a document's node, with a line break behind each block."""
    if not isinstance(node, dict) or depth > 100:
        return
    attributes: Any = node.get("attrs")
    attributes = attributes if isinstance(attributes, dict) else {}
    text = node.get("text") or attributes.get("text") or attributes.get("shortName")
    if isinstance(text, str):
        yield text
    content = node.get("content")
    for inner in content if isinstance(content, list) else []:
        yield from _document_text(inner, depth + 1)
    if node.get("type") in _BLOCKS:
        yield "\n"

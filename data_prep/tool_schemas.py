"""Function schemas → the TypeScript by which harmony declares tools to the model.

Source: openai/harmony, docs/format.md, "Function calling"; what it leaves open is as openai-harmony 0.0.8 writes it,
which tests/data_prep/test_harmony_library.py compares.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

NAMESPACE = "functions"
_PLAIN = {"number": "number", "integer": "number", "boolean": "boolean"}

Schema = Mapping[str, Any]


def declare(tools: Sequence[Mapping[str, Any]]) -> str:
    """The section `# Tools` of a developer's message, from OpenAI's `{"type": "function", "function": {…}}`."""
    declared = "\n".join(_function(tool["function"]) for tool in tools)
    return f"# Tools\n\n## {NAMESPACE}\n\nnamespace {NAMESPACE} {{\n\n{declared}\n}} // namespace {NAMESPACE}"


def _function(function: Schema) -> str:
    described = function.get("description") or ""
    lines = described.replace("\r\n", "\n").removesuffix("\n").split("\n") if described else []
    comment = "".join(f"// {line}\n" for line in lines)
    takes = f"_: {_type(function['parameters'], '')}" if function.get("parameters") is not None else ""
    return f"{comment}type {function['name']} = ({takes}) => any;\n"


def _type(schema: Any, indent: str) -> str:
    """The type that a schema stands for."""
    schema = schema if isinstance(schema, Mapping) else {}
    variants, kind = schema.get("oneOf"), schema.get("type")
    if isinstance(variants, list):
        return "".join(f"\n{indent} | {_variant(each, indent, None, bare=False)}" for each in variants)
    if isinstance(kind, list):
        return " | ".join("number" if name == "integer" else name for name in kind if isinstance(name, str)) or "any"
    if kind == "object":
        return _object(schema, indent)
    if kind == "array":
        return f"{_type(schema['items'], indent)}[]" if "items" in schema else "Array<any>"
    if kind == "string":
        choices = schema.get("enum")
        choices = [f'"{choice}"' for choice in choices if isinstance(choice, str)] if isinstance(choices, list) else []
        return " | ".join(choices) or "string"
    return _PLAIN.get(kind, "any") if isinstance(kind, str) else "any"


def _object(schema: Schema, indent: str) -> str:
    properties, required = schema.get("properties"), schema.get("required")
    properties = properties if isinstance(properties, Mapping) else {}
    required = required if isinstance(required, list) else []
    fields = "".join(
        _property(name if name in required else f"{name}?", each if isinstance(each, Mapping) else {}, indent)
        for name, each in properties.items()
    )
    return f"{_comment(schema.get('description'), indent)}{{\n{fields}{indent}}}"


def _property(name: str, schema: Schema, indent: str) -> str:
    """One field of an object, with its comments above it."""
    title, examples, described = schema.get("title"), schema.get("examples"), schema.get("description")
    text = f"{indent}// {title}\n{indent}//\n" if isinstance(title, str) else ""
    if "oneOf" not in schema:
        text += _comment(described, indent)
    if isinstance(examples, list) and examples:
        shown = (f'{indent}// - "{example}"\n' for example in examples if isinstance(example, str))
        text += f"{indent}// Examples:\n" + "".join(shown)
    if isinstance(schema.get("oneOf"), list):
        return text + _choice(name, schema, indent)
    text += f"{indent}{name}: {_nullable(schema, indent + '    ')},"
    return text + (f" // {_default(schema)}\n" if "default" in schema and "oneOf" not in schema else "\n")


def _choice(name: str, schema: Schema, indent: str) -> str:
    """A field of one of several types, each on a line of its own; a description that two have stands once."""
    variants: list[Any] = schema["oneOf"]
    described = schema.get("description") if isinstance(schema.get("description"), str) else None
    first = variants[0].get("description") if variants and isinstance(variants[0], Mapping) else None
    above = described if described != first else None
    lines = "".join(
        f"{indent} | {_variant(each, indent, described, silent=not place and above is not None)}\n"
        for place, each in enumerate(variants)
    )
    default = f"{indent}// {_default(schema)}\n" if "default" in schema else ""
    return f"{_comment(above, indent)}{default}{indent}{name}:\n{lines}{indent},\n"


def _variant(schema: Any, indent: str, said: str | None, *, silent: bool = False, bare: bool = True) -> str:
    """One of several types, and behind it what is not `said` of it yet."""
    described = schema.get("description") if isinstance(schema, Mapping) else None
    notes = [described] if isinstance(described, str) and described != said and not silent else []
    if isinstance(schema, Mapping) and "default" in schema:
        notes.append(_default(schema, bare=bare))
    return _nullable(schema, indent + "   ") + (f" // {' '.join(notes)}" if notes else "")


def _nullable(schema: Any, indent: str) -> str:
    kind = _type(schema, indent)
    nullable = isinstance(schema, Mapping) and schema.get("nullable") is True
    return f"{kind} | null" if nullable and "null" not in kind else kind


def _default(schema: Schema, *, bare: bool = True) -> str:
    """`default: …`; a choice of an enumeration is bare, any other text in quotation marks."""
    value, choices = schema["default"], schema.get("enum")
    if isinstance(value, str) and isinstance(choices, list) and choices and bare:
        return f"default: {value}"
    quoted = isinstance(value, str) and not (isinstance(choices, list) and choices)
    dumped = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f'default: "{value}"' if quoted else f"default: {dumped}"


def _comment(text: Any, indent: str) -> str:
    return f"{indent}// {text}\n" if isinstance(text, str) else ""

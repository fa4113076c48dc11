"""Write docs/errors.md: every sentence by which a command can fail, its cause and remedy, from the code that raises it.

python docs/error_page.py
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).parent
PAGE = DOCS / "errors.md"
ERRORS = ("ConfigurationError", "CheckpointError", "DataError", "LaunchError")
REASONS = ("preflight", "machine", "estimates", "logger_checks")
"""Files whose generators yield sentences, which the launch collects and raises together."""
ROOMS = {
    "Tickets: `prepare`, and whatever reads its folders": ("data_prep",),
    "Checkpoints: `convert`": ("converters",),
    "Recipes, models and layouts: `launch`, `plan`": ("recipes", "modeling", "planning"),
    "Runs: `launch`, `status`, `logs`, `cancel`": ("pipeline", "launch"),
    "Training": ("training", "stages"),
    "Figures: `evaluate`, `inspect`": ("evaluation",),
    "Servers: `serve`, `route`": ("serving",),
    "Every command": ("common",),
}
LEAST = 3
"""Words of a sentence; shorter ones are parts of others."""
HEAD = """\
# When something fails

<!-- Written by `python docs/error_page.py` from the code; tests/test_docs.py keeps it current. -->

An error is one sentence on stderr, `error: what is wrong: what to do`, and status 1; Ctrl-C is status 130. Nothing
that was finished is lost: the same command goes on from there. Anything with a traceback is a fault of this package:
report it with the output of `nemo-run --debug COMMAND`, which shows the traceback of the sentences too.

A stage that fails names its log, `runs/NAME/logs/STAGE.log` (`.rankN.log` of the other processes): `nemo-run status
RUN` shows the last error, `nemo-run logs RUN STAGE` all of it. When a process ends without a word, the kernel killed it
for memory.

Find your sentence by a few of its words. What stands in CAPITALS or as … is filled in with your files and values.
"""


def page(root: Path) -> str:
    """The text of the page, from the packages below `root`."""
    parts = [HEAD]
    for title, packages in ROOMS.items():
        files = [file for package in packages for file in sorted((root / package).rglob("*.py"))]
        sentences = dict.fromkeys(sentence for file in files for sentence in sentences_of(file))
        rows = [f"| {_cell(cause)} | {_cell(remedy)} |" for cause, remedy in map(divided, sentences)]
        parts.append("\n".join([f"## {title}\n", "| what is wrong | what to do |", "| --- | --- |", *rows, ""]))
    return "\n".join(parts)


def sentences_of(file: Path) -> Iterator[str]:
    """Messages of the errors that a file raises, in their order, with the names of what is filled in."""
    for node in _in_order(ast.parse(file.read_text(encoding="utf-8"))):
        said = None
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ERRORS and node.args:
            said = node.args[0]
        elif isinstance(node, ast.Yield) and file.stem in REASONS:
            said = node.value
        text = " ".join(_text(said).split()) if said is not None else ""
        if len([word for word in text.split() if word.islower()]) >= LEAST:
            yield text


def divided(sentence: str) -> tuple[str, str]:
    """Cause and remedy, which a colon or, where that only follows a name, a semicolon divides."""
    for sign in (": ", "; "):
        cause, _, remedy = sentence.rpartition(sign)
        if any(word.islower() for word in cause.split()) or " " in cause:
            return cause, remedy.rstrip(".")
    return sentence.rstrip("."), ""


def _in_order(tree: ast.AST) -> list[ast.AST]:
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.Call, ast.Yield))]
    return sorted(nodes, key=lambda node: (node.lineno, node.col_offset))


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    value = node.value if isinstance(node, ast.FormattedValue) else node
    if isinstance(value, ast.Name | ast.Attribute):
        return (value.id if isinstance(value, ast.Name) else value.attr).strip("_").upper()
    return "…"


def _cell(text: str) -> str:
    for sign in ("\\", "|", "<", "*", "_", "`"):
        text = text.replace(sign, f"\\{sign}")
    return text


if __name__ == "__main__":
    PAGE.write_text(page(DOCS.parent), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")

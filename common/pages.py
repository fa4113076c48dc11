"""Report pages, each one self-contained HTML file, legible on a phone, on a wide screen and in print."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

BASE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{% block title %}{% endblock %}</title>
<style>
:root { --ink: #1c2530; --soft: #5d6a78; --line: #dde3ea; --paper: #fff; --wash: #f5f7fa;
        --training: #2f6f9f; --validation: #e0a030; --test: #b5485d; --lost: #a7b0ba; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9ef; --soft: #9aa7b5; --line: #343f4b; --paper: #161b21; --wash: #1f262e; --training: #5da2d5; }
}
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
       max-width: 68rem; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2.4rem 0 .6rem; }
p, .soft { color: var(--soft); } p { margin: .2rem 0 .8rem; max-width: 46rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .25rem .6rem; vertical-align: top; }
th { font-weight: 600; border-bottom: 2px solid var(--line); } td { border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 0 2.5rem; }
.two > *, .pair > * { min-width: 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .8rem; margin: .6rem 0 1.2rem; }
pre { background: var(--wash); padding: .7rem; margin: 0; border-radius: 4px; white-space: pre-wrap;
      overflow-wrap: anywhere; font: 12.5px/1.45 ui-monospace, monospace; }
.wide { overflow-x: auto; } svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 11px; }
@media (max-width: 40rem) { body { padding: 1.2rem 1rem 3rem; } .pair { grid-template-columns: 1fr; } }
@media print { body { padding: 0; font-size: 11px; } th, td { padding: .12rem .35rem; } .wide { overflow: visible; }
  pre, svg { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  tr, .pair, svg { break-inside: avoid; } h2 { break-after: avoid; } }
{% block style %}{% endblock %}
</style>
</head>
<body>
{% block body %}{% endblock %}
</body>
</html>
"""


def write_page(template: Path, file: Path, **values: Any) -> None:
    """Render a template that extends "page"; text is escaped, nothing is loaded from elsewhere."""
    page = _environment(template.parent).get_template(template.name).render(values)
    file.write_text(page + "\n", encoding="utf-8")


@cache
def _environment(folder: Path) -> Any:
    from jinja2 import ChoiceLoader, DictLoader, Environment, FileSystemLoader, StrictUndefined

    loader = ChoiceLoader([DictLoader({"page": BASE}), FileSystemLoader(folder)])
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)

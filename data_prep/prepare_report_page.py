"""report.html: the report as one self-contained page."""

from __future__ import annotations

from pathlib import Path

from common.pages import write_page
from data_prep.cleaning import DESCRIPTIONS
from data_prep.kaggle_source import DATASET, LICENCE, is_of_dataset
from data_prep.prepare_report import PrepareReport
from data_prep.splitting import SPLITS

SHOWN_DAMAGES = 50
TEMPLATE = Path(__file__).parent / "prepare_report.html.jinja"


def write_html(report: PrepareReport, file: Path) -> None:
    """Render the report."""
    write_page(
        TEMPLATE,
        file,
        report=report,
        splits=SPLITS,
        cells=_cells(report),
        languages=list(report.languages),
        rules={DESCRIPTIONS[name]: count for name, count in report.cleaned.items()},
        skipped=[DESCRIPTIONS[name] for name in report.options["skip"]],
        shown=SHOWN_DAMAGES,
        licence=LICENCE if any(is_of_dataset(Path(name).name) for name in report.sources) else None,
        dataset=DATASET,
        most=max(report.labels.values(), default=1) or 1,
    )


def _cells(report: PrepareReport) -> dict[str, dict[str, int]]:
    """Rows of each label in each split, over all languages."""
    return {
        label: {split: sum(counts.get(split, 0) for counts in report.table[label].values()) for split in SPLITS}
        for label in report.labels
    }

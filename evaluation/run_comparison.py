"""Runs side by side: what differs in their settings, and in what became of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evaluation.comparison import Comparison, compare
from evaluation.run_figures import BASE, Ran, Score, total_of
from pipeline.history import last_loss

FIGURES = (
    *("macro_f1", "macro_f1_low", "macro_f1_high", "accuracy", "base_macro_f1"),
    *("macro_f1_minus_best", "minus_best_low", "minus_best_high", "gained", "lost", "p_value", "p_value_holm"),
    *("validation_loss", "validation_step", "training_loss", "relative_change", "effective_rank"),
    *("steps", "tokens", "training_seconds", "finetune_seconds", "evaluate_seconds", "memory_gb"),
)
"""Of a run, as the columns of the CSV name them."""

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class RunComparison:
    """Runs side by side, in the order in which they were named."""

    runs: list[Ran]

    @property
    def evaluated(self) -> list[Ran]:
        """The runs that have figures to compare."""
        return [run for run in self.runs if run.score is not None]

    @cached_property
    def settings(self) -> list[str]:
        """Keys of the recipe in which the runs differ."""
        keys = dict.fromkeys(key for run in self.runs for key in run.settings)
        return [key for key in keys if len({run.settings.get(key) for run in self.runs}) > 1]

    @cached_property
    def tickets(self) -> dict[tuple[tuple[str, str], ...], list[Ran]]:
        """The runs by the test tickets that they answered."""
        groups: dict[tuple[tuple[str, str], ...], list[Ran]] = {}
        for run in self.evaluated:
            groups.setdefault(tuple((each, label) for each, label, _ in run.answers), []).append(run)
        return groups

    @property
    def best(self) -> Ran | None:
        """The run of the highest macro-F1; None where they answered different tickets, or none."""
        if len(self.tickets) != 1:
            return None
        return max(self.evaluated, key=lambda run: run.score.macro_f1 if run.score else 0.0)

    @cached_property
    def tests(self) -> dict[str, Comparison]:
        """Each evaluated run minus the best, ticket by ticket, by its name; none where tickets differ."""
        best = self.best
        if best is None:
            return {}
        gold, answers = [label for _, label, _ in best.answers], [given for _, _, given in best.answers]
        others = [run for run in self.evaluated if run is not best]
        return {run.name: compare(gold, answers, [given for _, _, given in run.answers]) for run in others}

    @cached_property
    def p_values(self) -> dict[str, float]:
        """McNemar's, by Holm's method for as many tests as there are."""
        names = sorted(self.tests, key=lambda name: self.tests[name].p_value)
        adjusted: dict[str, float] = {}
        least = 0.0
        for rank, name in enumerate(names):
            least = max(least, min(1.0, (len(names) - rank) * self.tests[name].p_value))
            adjusted[name] = least
        return adjusted

    @property
    def no_worse(self) -> list[str]:
        """Runs that the test cannot tell from the best."""
        return [name for name, p_value in self.p_values.items() if p_value >= SIGNIFICANT]

    @property
    def notes(self) -> list[str]:
        """What could not be compared, and why."""
        notes = [
            f"{run.name} is not finished: it waits for stage {run.waits_for}." for run in self.runs if run.waits_for
        ]
        if len(self.tickets) > 1:
            groups = [f"{', '.join(run.name for run in runs)}: {len(key)}" for key, runs in self.tickets.items()]
            notes.append(
                f"The runs answered different test tickets ({'; '.join(groups)}), so none is called the best and no "
                "paired test is made: compare those of the same data and the same evaluation.max_tickets."
            )
        unlabelled = [run.name for run in self.runs if run.waits_for is None and run.score is None]
        if unlabelled:
            notes.append(f"{', '.join(unlabelled)}: conversations have no labels to score; see the validation loss.")
        unknown = [run.name for run in self.runs if run.waits_for is None and run.changes is None]
        if unknown:
            notes.append(
                f"{', '.join(unknown)}: the checkpoints are not here, so their weights are not compared; nemo-run "
                "inspect, where they are, leaves in the run folder what is needed."
            )
        return notes

    def rows(self) -> list[dict[str, Any]]:
        """One row a run, with the settings that differ and as many of `FIGURES` as there are."""
        return [self._row(run) for run in self.runs]

    def _row(self, run: Ran) -> dict[str, Any]:
        row: dict[str, Any] = {key: run.settings.get(key) for key in self.settings}
        row |= {"run": run.name, "waits_for": run.waits_for, "training_loss": last_loss(run.history)}
        row |= {"steps": run.steps, "tokens": run.tokens, "training_seconds": run.training_seconds}
        row |= {f"{stage}_seconds": run.seconds.get(stage) for stage in ("finetune", "evaluate")}
        row |= {"memory_gb": run.memory_gb}
        if score := run.score:
            row |= {"macro_f1": score.macro_f1, "accuracy": score.accuracy, "base_macro_f1": run.scores[BASE].macro_f1}
            row["macro_f1_low"], row["macro_f1_high"] = score.macro_f1_interval
        if test := self.tests.get(run.name):
            row |= {"macro_f1_minus_best": test.macro_f1, "gained": test.gained, "lost": test.lost}
            row["minus_best_low"], row["minus_best_high"] = test.macro_f1_interval
            row |= {"p_value": test.p_value, "p_value_holm": self.p_values[run.name]}
        if run.validation:
            row["validation_loss"], row["validation_step"] = run.validation
        if run.changes:
            total = total_of(run.changes)
            row |= {"relative_change": total["relative"], "effective_rank": total["rank"]}
        return row


def console_table(comparison: RunComparison) -> str:
    """One row a run: what differs, macro-F1 with its interval, the test against the best, the validation loss."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("run", *comparison.settings, "macro-F1", "p (Holm)", "validation loss", "steps", "seconds"):
        table.add_column(heading, overflow="fold")
    for run in comparison.runs:
        validation, p_value = run.validation, comparison.p_values.get(run.name)
        table.add_row(
            run.name,
            *(run.settings.get(key, "–") for key in comparison.settings),
            f"waits for {run.waits_for}" if run.waits_for else _with_interval(run.score),
            "best" if run is comparison.best else "–" if p_value is None else f"{p_value:.2g}",
            f"{validation[0]:.4f} at {validation[1]}" if validation else "–",
            str(run.steps),
            f"{run.training_seconds:.0f}",
        )
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()


def _with_interval(score: Score | None) -> str:
    if score is None:
        return "–"
    low, high = score.macro_f1_interval
    return f"{score.macro_f1:.3f} ({low:.3f} to {high:.3f})"

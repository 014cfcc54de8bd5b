"""Print progress and warnings to stderr, and results as tables."""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from dreamstill.formatting import (
    BASELINES,
    agreement_of,
    duration,
    more_scores,
    percent,
    shown,
    words_of,
)
from dreamstill.progress import Progress as Step
from dreamstill.progress import start_kept

__all__ = [
    "Bars",
    "print_compression",
    "print_goal",
    "print_next",
    "print_rows",
    "print_summary",
]

WHEN = ("before", "after")
CONTINUAL_ROWS = {
    "accuracy on old classes": ("accuracy_old_before", "accuracy_old"),
    "accuracy on new classes": ("", "accuracy_new"),
    "average of the two": ("", "average_accuracy"),
    "forgetting": ("", "forgetting"),
}
"""Keys of each metric before and after learning."""


class Terminal(Console):
    """Console that raises BrokenPipeError."""

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError; rich would exit the process."""
        raise BrokenPipeError


class Bars(logging.Handler):
    """Progress on stderr, as bars in a terminal and as lines in a file, and one-line messages."""

    share, seconds = 0.1, 30.0
    """Fraction of a stage, or seconds, after which the next line is written."""

    def __init__(self, *, quiet: bool) -> None:
        super().__init__(logging.WARNING if quiet else logging.INFO)
        self.quiet, self.console = quiet, Terminal(stderr=True)
        self.under_way: tuple[Progress, TaskID] | None = None
        self.stage, self.begun, self.told = "", (0, 0.0), (0, 0.0)  # (steps, time)

    def __enter__(self) -> "Bars":
        logger = logging.getLogger("dreamstill")
        self.level_before = logger.level
        logger.setLevel(self.level)
        logger.addHandler(self)
        return self

    def __exit__(self, *details: object) -> None:
        logger = logging.getLogger("dreamstill")
        logger.removeHandler(self)
        logger.setLevel(self.level_before)
        if self.under_way:
            self.under_way[0].stop()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message in one line, above the bar if there is one."""
        kind = "dreamstill: warning: " if record.levelno >= logging.WARNING else ""
        line = f"{kind}{record.getMessage()}".replace("\n", " ")
        if self.under_way:
            bar, _ = self.under_way
            bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def __call__(self, step: Step) -> None:
        """Show the progress of a stage."""
        if self.quiet:
            return
        text = step.stage
        if "loss" in step.record:
            text += f"  loss {step.record['loss']:.3f}"
        if self.console.is_terminal:
            self._draw(step, text)
        else:
            self._tell(step, text)

    def _draw(self, step: Step, text: str) -> None:
        if not self.under_way:
            columns = (
                TextColumn("{task.description:<24}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            bar = Progress(*columns, console=self.console)
            bar.start()
            self.under_way = bar, bar.add_task(step.stage, total=step.total)
        bar, task = self.under_way
        bar.update(task, completed=step.done, description=text)
        if step.done >= step.total:
            bar.stop()
            self.under_way = None

    def _tell(self, step: Step, text: str) -> None:
        now = time.monotonic()
        if step.stage != self.stage or step.done <= self.told[0]:  # a stage may run again
            self.stage, self.begun, self.told = step.stage, (step.done, now), (0, now)
        done, told_at = step.done - self.told[0], now - self.told[1]
        if step.done < step.total and done < self.share * step.total and told_at < self.seconds:
            return
        self.told = step.done, now
        line = f"{text}  {step.done:,} of {step.total:,} ({step.done / step.total:.0%})"
        since = now - self.begun[1]
        if step.done >= step.total:
            line, self.stage = f"{line}, took {duration(since)}", ""
        elif step.done > self.begun[0]:
            left = since * (step.total - step.done) / (step.done - self.begun[0])
            line += f", {duration(left)} left"
        print(line, file=sys.stderr, flush=True)


def print_next(*commands: str) -> None:
    """Print commands to run next."""
    for word, command in zip(("next:", *("or:",) * len(commands)), commands, strict=False):
        print(f"{word} {command}")


def print_rows(title: str, rows: dict[str, Any]) -> None:
    """Print a table of names and values."""
    table = Table(title=title, show_header=False)
    for name, value in rows.items():
        table.add_row(name.replace("_", " "), escape(shown(value)))
    Terminal().print(table)


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of a name and right-aligned numbers.

    Columns beyond the terminal's width follow in further tables, with the names again.
    """
    console, rest = Terminal(), list(range(1, len(columns) + 1))

    def table(shown: Sequence[int]) -> Table:
        made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
        for column in (0, *shown):
            name = ("", *columns)[column]
            made.add_column(name, justify="right" if column else "left", overflow="fold")
        for row in rows:
            made.add_row(*(escape(row[column]) for column in (0, *shown)))
        return made

    unbounded = console.options.update(width=10**6)
    console.print(escape(title), style="italic")
    while rest:
        widths = [
            console.measure(table(rest[:num]), options=unbounded).maximum
            for num in range(1, len(rest) + 1)
        ]
        num = max(1, sum(width <= console.width for width in widths))
        console.print(table(rest[:num]))
        rest = rest[num:]


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """Print summary.json of a run: teacher and student side by side, and the baselines."""
    title = f"{summary['method']} on {summary['images'] or 'no real images'}"
    measured = _rows(summary, summary["teacher"], summary["student"])
    _print_table(title, ("teacher", "student"), measured)
    _print_baselines(summary)
    spent = f"{duration(summary['seconds'])}, {summary['queries']:,} teacher queries"
    if "image_visits" in summary:
        spent += f", {summary['image_visits']:,} image visits in {summary['precision']}"
    print(spent)
    if "steps" in summary:
        print(_chosen(summary["chosen_at_step"], summary["steps"]))
    for record in summary.get("exports", []):
        print(
            f"{record['format']}: {record['path']}, {record['bytes']:,} bytes, "
            f"largest difference of a logit {record['max_abs_difference']:.1e}"
        )
    print(folder / "report.html")


def print_network(measured: dict[str, Any], name: str) -> None:
    """Print what a network was measured to do, and its size."""
    images = f"{measured['num_images']:,} images of {measured['images']}"
    _print_table(f"{name} on {images}", ("network",), _rows(measured, measured))


def _rows(summary: dict[str, Any], *networks: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row for each figure that is known of one of the networks: title and values.

    Args:
        summary: what says of what kind the outputs are, and how many validation images there were.
        networks: the records with the figures; the last one's latency names the runtime.

    """
    runtime = networks[-1].get("latency_ms", {}).get("runtime", "PyTorch")
    metrics: list[tuple[str, Callable[[Any], str], str]] = [
        (words_of(summary).score, percent, "accuracy"),
        ("agreement with the teacher", percent, "agreement"),
        ("agreement on validation images", partial(agreement_of, summary), "validation_agreement"),
        *((title, show, key) for title, key, show in more_scores()),
        ("parameters", shown, "parameters"),
        ("multiply-accumulates", shown, "macs"),
        ("bytes of weights", shown, "bytes"),
        (f"latency in {runtime}, ms", lambda v: f"{v['median']:.3f}", "latency_ms"),
    ]
    rows = [
        (label, *(show(of[key]) if key in of else "-" for of in networks))
        for label, show, key in metrics
    ]
    return [row for row in rows if {*row[1:]} != {"-"}]


def _print_baselines(summary: dict[str, Any]) -> None:
    """Print the student between its noise baseline and real-data bound, if there are any."""
    titles = {"noise_baseline": "", "student": "the student"} | BASELINES
    present = [name for name in titles if name in summary]
    columns: dict[str, Callable[[Any], str]] = {
        "accuracy": percent,
        "validation_agreement": partial(agreement_of, summary),
        "image_visits": shown,
    }
    columns = {key: show for key, show in columns.items() if key in summary["student"]}
    rows = [
        (titles[name], *(show(summary[name].get(key)) for key, show in columns.items()))
        for name in present
    ]
    if len(present) > 1:
        score = {"accuracy": words_of(summary).score}
        names = [score.get(key, key.replace("_", " ")) for key in columns]
        _print_table("the same student on other images", names, rows)


def _chosen(step: int, steps: int) -> str:
    """Return a sentence that says at which step the student was selected."""
    if step:
        return f"the student of step {step:,} of {steps:,} was chosen"
    return start_kept(steps) if steps else "no step was taken"


def print_compression(summary: dict[str, Any], folder: Path) -> None:
    """Print summary.json of a compression pipeline: a row for each stage, and the files."""
    score = words_of(summary).score
    columns = ("bytes", "smaller", "parameters", "MACs", "ms", "agreement", score)
    networks = [summary["teacher"] | {"task": "teacher"}, *summary["stages"]]
    rows = [
        (
            record["task"],
            shown(record["bytes"]) + "*" * ("file_bytes" not in record),
            f"{record['smaller']:.1f} x" if record["smaller"] else "-",
            shown(record["parameters"]),
            shown(record["macs"]),
            f"{record['latency_ms']['median']:.3f}" if record.get("latency_ms") else "-",
            percent(record["agreement"]) if "agreement" in record else "-",
            percent(record["accuracy"]) if "accuracy" in record else "-",
        )
        for record in networks
    ]
    _print_table(f"stages: bytes of files, ms in {summary['runtime']}", columns, rows)
    if not all("file_bytes" in record for record in networks):
        print("* of the weights: there is no file")
    for stage in summary["stages"]:
        if "old_classes" in stage:
            _print_classes(stage)
        if "skipped" in stage:
            print(f"{stage['task']} skipped: {', '.join(stage['skipped'])}")
        for text in stage.get("warnings", []):
            print(f"{stage['task']}: {text}")
    for file in [f for stage in summary["stages"] for f in stage.get("files", [])]:
        text = f"{file['path']}, {file['bytes']:,} bytes"
        if "agreement" in file:
            text += f", agreement {percent(file['agreement'])} on images that did not calibrate it"
        print(text)
    print(", ".join(summary.get("network", ())) or summary["not_exported"])
    print(folder / "report.html")


def print_goal(summary: dict[str, Any], folder: Path) -> None:
    """Print summary.json of a search: a row for each candidate, the files and the advice."""
    columns = ("settings", "bytes", "MACs", "agreement", "KL", "s", "goal")
    teacher = summary["teacher"]
    rows = [("teacher", "", shown(teacher["bytes"]), shown(teacher["macs"]), *[""] * 4)]
    for number, record in enumerate(summary["candidates"], 1):
        cells = (
            ("-", "-", "failed", "-")
            if "failed" in record
            else (
                shown(record["bytes"]),
                shown(record["macs"]),
                agreement_of(summary, record["agreement"]),
                f"{record['kl']:.2g}",
            )
        )
        kept = "no" if record.get("missed", True) else "yes"
        name = f"{number}. {record['task']}"
        rows.append((name, record["settings"], *cells, f"{record['seconds']:.0f}", kept))
    _print_table(summary["meaning"], columns, rows)
    for record in summary["candidates"]:
        if "failed" in record:
            print(f"{record['task']} failed: {record['failed']}")
    for file in summary["files"]:
        if "failed" in file:
            continue
        text = f"{folder / file['path']}, {file['bytes']:,} bytes"
        if "latency_ms" in file:
            text += f", {file['latency_ms']['median']:.3f} ms in {file['runtime']}"
        if "accuracy" in file:
            text += f", {words_of(summary).score} {percent(file['accuracy'])}, teacher's "
            text += percent(teacher["accuracy"])
        print(text)
    print(folder / "model_card.md")
    print(summary["recommendation"])


def _print_classes(stage: dict[str, Any]) -> None:
    """Print what a stage that learned new classes kept of the old ones, as far as it is known."""
    rows = [
        (label, *(percent(stage[key]) if key else "" for key in keys))
        for label, keys in CONTINUAL_ROWS.items()
        if keys[1] in stage
    ]
    old = stage["old_classes"]
    if rows:
        _print_table(f"{stage['classes'] - old} new classes beside {old} old ones", WHEN, rows)
    else:
        print("no real image of an old class was looked at: what is kept is not known")

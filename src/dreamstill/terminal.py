"""What a person sees of a command: progress bars on stderr, and tables."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dreamstill.tasks.distill import Progress as Step

__all__ = ["Bars", "print_chain", "print_rows", "print_summary"]


class Terminal(Console):
    """A console that leaves it to the command what to do where its reader has gone."""

    def on_broken_pipe(self) -> None:
        """Say so; rich would end the process."""
        raise BrokenPipeError


class Bars:
    """Progress bars on stderr with the time left, a new one for each stage; stopped on leaving."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.under_way: tuple[Progress, Any] | None = None

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *details: object) -> None:
        if self.under_way:
            self.under_way[0].stop()

    def __call__(self, step: Step) -> None:
        """Show how far the stage has come."""
        if self.quiet:
            return
        if not self.under_way:
            columns = (
                TextColumn("{task.description:<24}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            bar = Progress(*columns, console=Terminal(stderr=True))
            bar.start()
            self.under_way = bar, bar.add_task(step.stage, total=step.total)
        bar, task = self.under_way
        text = step.stage
        if "loss" in step.record:
            text += f"  loss {step.record['loss']:.3f}"
        bar.update(task, completed=step.done, description=text)
        if step.done >= step.total:
            bar.stop()
            self.under_way = None


def print_rows(title: str, rows: dict[str, Any]) -> None:
    """Names and values."""
    table = Table(title=title, show_header=False)
    for name, value in rows.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        table.add_row(name.replace("_", " "), escape(shown))
    Terminal().print(table)


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """A run's summary.json: teacher, student and noise floor side by side."""
    teacher, student = summary["teacher"], summary["student"]
    floor = summary.get("noise_floor", {})
    table = Table(title=f"{summary['method']} on {summary['images'] or 'no real images'}")
    for name in ("", "teacher", "student", "noise floor"):
        table.add_column(name, justify="right" if name else "left")

    def row(label: str, show: Callable[[Any], str], key: str) -> None:
        values = [show(s[key]) if key in s else "-" for s in (teacher, student, floor)]
        table.add_row(label, *values)

    row("accuracy", lambda v: f"{v:.2%}", "accuracy")
    row("agreement with the teacher", lambda v: f"{v:.2%}", "agreement")
    row("calibration error", lambda v: f"{v:.2%}", "ece")
    row("parameters", lambda v: f"{v:,}", "parameters")
    row("multiply-accumulates", lambda v: f"{v:,}", "macs")
    row("bytes", lambda v: f"{v:,}", "bytes")
    row("latency, ms", lambda v: f"{v['median']:.3f}", "latency_ms")
    console = Terminal()
    console.print(table)
    console.print(f"{summary['seconds']:.0f} s, {summary['queries']:,} teacher queries")
    if "held_out_agreement" in summary:
        share = summary["held_out_agreement"]
        console.print(f"{share:.2%} agreement on synthetic images that were held out")
    for record in summary.get("exports", []):
        console.print(
            f"{record['format']}: {escape(record['path'])}, {record['bytes']:,} bytes, "
            f"max abs difference {record['max_abs_difference']:.1e}"
        )
    print(folder / "report.html")


def print_chain(summary: dict[str, Any], folder: Path) -> None:
    """A chain's summary.json: a row for each link, and the files."""
    table = Table(title="chain")
    for name in ("", "bytes", "parameters", "MACs", "ms", "agreement", "accuracy"):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for record in (summary["teacher"] | {"task": "teacher"}, *summary["links"]):
        table.add_row(
            record["task"],
            f"{record['bytes']:,}",
            f"{record['parameters']:,}",
            f"{record['macs']:,}",
            f"{record['latency_ms']['median']:.3f}",
            f"{record['agreement']:.2%}" if "agreement" in record else "-",
            f"{record['accuracy']:.2%}" if "accuracy" in record else "-",
        )
    Terminal().print(table)
    for link in summary["links"]:
        if "left_whole" in link:
            print(f"{link['task']} left whole: {', '.join(link['left_whole'])}")
    for file in [f for link in summary["links"] for f in link.get("files", [])]:
        print(f"{file['path']}, {file['bytes']:,} bytes")
    print(summary.get("network") or summary["not_exported"])
    print(folder / "report.html")

"""Write the page and the model card of a compression toward a goal."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dreamstill.errors import RunError
from dreamstill.files.writing import write_atomically
from dreamstill.formatting import agreement_of, capitalized, words_of
from dreamstill.report import figures
from dreamstill.report.compression import layer_figures
from dreamstill.report.model_card import model_card
from dreamstill.report.page import Figure, from_records, read_table, write_page

__all__ = ["write_goal_report"]


@from_records
def write_goal_report(folder: Path) -> Path:
    """Write FOLDER/report.html and model_card.md; RunError where there is no summary.json."""
    summary, config = read_table(folder / "summary.json"), read_table(folder / "config.json")
    if "candidates" not in summary:
        raise RunError(f"{folder} holds no finished search: resume the run first")
    card = model_card(summary, config["teacher"]["weights"])
    write_atomically(folder / "model_card.md", card.encode("utf-8"))
    finished = [record for record in summary["candidates"] if "failed" not in record]
    networks = [record | {"task": record["folder"].partition("-")[0]} for record in finished]
    drawn = [
        Figure(
            "Size against agreement",
            figures.tradeoff([summary["teacher"], *networks], joined=False),
            "The teacher (orange) and the candidates by their numbers: the best are small and "
            "agree, on the left and high up.",
        ),
        *_chosen_figures(folder, summary),
    ]
    return write_page(
        folder,
        "goal.html",
        config=config,
        command="dreamstill compress run.toml --out runs/again",
        verdict=summary["recommendation"],
        figures=drawn,
        warnings=[f"The goal was missed: {text}" for text in summary["missed"]]
        + summary.get("warnings", []),
        **{name: summary[name] for name in SHOWN},
        agreement_of=partial(agreement_of, summary),
        score=capitalized(words_of(summary).score),
        by_file=summary["goal"] != "w4",
    )


SHOWN = ("teacher", "candidates", "chosen", "files", "plan", "images", "validation_images", "goal")


def _chosen_figures(folder: Path, summary: Mapping[str, Any]) -> list[Figure]:
    """Return what each stage of the recommended network did to the layers."""
    weights, drawn = read_table(folder / "weights.json"), list[Figure]()
    before = weights.get("teacher", {})
    for number, stage in enumerate(summary["stages"], 1):
        after = weights.get(f"{number}-{stage['task']}", {})
        drawn += [
            figure._replace(title=f"{number}. {stage['task']}: {figure.title}")
            for figure in layer_figures(stage, before, after)
        ]
        before = after
    return drawn

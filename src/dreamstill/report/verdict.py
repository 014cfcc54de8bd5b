"""Say the result of a run in a sentence or two, and no more than was measured."""

from collections.abc import Mapping
from typing import Any

from dreamstill.formatting import BASELINES, Words, agreement_of, percent, words_of

__all__ = [
    "verdict_of_compression",
    "verdict_of_continual",
    "verdict_of_distill",
    "verdict_of_goal",
]

NO_REAL_IMAGES = "Accuracy on real images is unknown: none were given."


def verdict_of_distill(summary: Mapping[str, Any]) -> str:
    """Return what a student keeps of its teacher's accuracy, and what it saves."""
    if "student" not in summary:
        return "There is no result yet: the run is not finished."
    teacher, student = summary["teacher"], summary["student"]
    savings = f"it has {student['parameters']:,} parameters."
    if teacher:  # of a black box nothing is measured
        savings = f"it has {_parameters(teacher, student)} and {_latency(teacher, student)}."
    if "accuracy" not in student:
        known = ""
        if "validation_agreement" in summary:
            share = agreement_of(summary, summary["validation_agreement"])
            known = words_of(summary).agrees.format(share)
        answers = f"The student {known}; " if known else "Of the student: "
        return f"{answers}{savings}{_baselines(summary, 'validation_agreement')} {NO_REAL_IMAGES}"
    text = f"{_accuracy('The student', student, teacher, words_of(summary))}; {savings}"
    return text + _baselines(summary, "accuracy")


def _baselines(summary: Mapping[str, Any], key: str) -> str:
    """Return a sentence on each baseline that was measured."""
    text, does = "", words_of(summary).right if key == "accuracy" else "agrees on {}"
    for name, images in zip(BASELINES, ("noise", "real images"), strict=True):
        if key in (baseline := summary.get(name, {})):
            share = does.format(percent(baseline[key]))
            text += f" Trained on {images}, the same student {share}."
    return text


def verdict_of_compression(summary: Mapping[str, Any]) -> str:
    """Return how much smaller the last network of a compression is, and how well it answers."""
    teacher, stages = summary["teacher"], summary["stages"]
    last = stages[-1]
    after = "After 1 stage" if len(stages) == 1 else f"After {len(stages)} stages"
    smaller = last.get("smaller")
    size = f" is {_times(smaller, 'smaller', 'larger', 'as large')};" if smaller else ":"
    text = f"{after} the network{size}"
    if "accuracy" in last:
        return f"{text} {_accuracy('it', last, teacher, words_of(summary))}."
    if "agreement" in last:
        share = words_of(summary).agrees.format(percent(last["agreement"]))
        text += f" it {share}."
        return f"{text} {NO_REAL_IMAGES}"
    return f"{text} how well it answers was not measured."


def verdict_of_goal(summary: Mapping[str, Any]) -> str:
    """Return which candidate is recommended, what it saves and is predicted to lose."""
    teacher = summary["teacher"]
    best = next(c for c in summary["candidates"] if c["folder"] == summary["chosen"])
    settings = f" ({best['settings']})" if best["settings"] else ""
    share, loss = agreement_of(summary, best["agreement"]), 100 * (1 - best["agreement"])
    smaller = _times(teacher["bytes"] / best["bytes"], "smaller", "larger", "as large")
    saved = f"{best['bytes']:,} bytes, {smaller}"
    if best["macs"] < teacher["macs"]:
        saved += f", with {100 * best['macs'] / teacher['macs']:.0f} % of the multiply-accumulates"
    text = (
        f"Recommended for {summary['goal']}: {best['task']}{settings}: {saved}; it "
        f"{words_of(summary).agrees.format(share)}, a predicted loss of {loss:.1f} points."
    )
    missed = f"The goal was missed: {'; '.join(summary['missed'])}. " if summary["missed"] else ""
    text = missed + text + _latency_of_file(summary)
    if summary["not_tried"]:
        tasks = ", ".join(summary["not_tried"])
        text += f" The minutes were over before {tasks} had been tried: resume with more."
    return text if summary["images"] else f"{text} {NO_REAL_IMAGES}"


def _latency_of_file(summary: Mapping[str, Any]) -> str:
    """Return a sentence on the first file, if it runs in the runtime of the teacher's own."""
    teacher, file = summary["teacher"], summary["files"][0]
    if "latency_ms" not in file or file["runtime"] != teacher.get("runtime"):
        return ""
    return f" {file['path']} {_latency(teacher, file)} in {file['runtime']}."


def verdict_of_continual(stage: Mapping[str, Any]) -> str:
    """Return how well a network knows new and old classes, as far as it was measured."""
    num_old = stage["old_classes"]
    num_new = stage["classes"] - num_old
    text = f"The network learned {num_new} new class{'es' * (num_new != 1)}"
    if "accuracy_new" in stage:
        whose = "its" if num_new == 1 else "their"
        text += f" and is right on {percent(stage['accuracy_new'])} of {whose} images"
    if "accuracy_old" in stage:
        before, after = (percent(stage[k]) for k in ("accuracy_old_before", "accuracy_old"))
        old = f"of the {num_old} old classes it is right on {after}, before it was on {before}."
        return f"{text}; on the images {old}"
    unknown = f"How well it still knows the {num_old} old ones is unknown"
    return f"{text}. {unknown}: no test image of theirs was given."


def _accuracy(
    who: str, network: Mapping[str, Any], teacher: Mapping[str, Any], words: Words
) -> str:
    text = f"{who} {words.right.format(percent(network['accuracy']))} {words.of}"
    if not teacher:
        return text
    return f"{text}, the teacher {words.other.format(percent(teacher['accuracy']))}"


def _parameters(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> str:
    ratio = teacher["parameters"] / student["parameters"]
    return f"{_times(ratio, 'fewer', 'more', 'as many')} parameters"


def _latency(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> str:
    """Compare medians, where the 10th to 90th percentiles of the two do not overlap."""
    whole, small = teacher["latency_ms"], student["latency_ms"]
    if small["low"] <= whole["high"] and whole["low"] <= small["high"]:
        return "is not measurably faster or slower"
    return f"answers {_times(whole['median'] / small['median'], 'faster', 'slower', 'as fast')}"


def _times(ratio: float, more: str, less: str, same: str) -> str:
    """Return a ratio in words.

    >>> _times(2.44, "smaller", "larger", "as large"), _times(0.5, "smaller", "larger", "as large")
    ('2.4 times smaller', '2.0 times larger')
    """
    if f"{max(ratio, 1 / ratio):.1f}" == "1.0":
        return same
    return f"{ratio:.1f} times {more}" if ratio > 1 else f"{1 / ratio:.1f} times {less}"

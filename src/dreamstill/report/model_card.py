"""Describe a compressed network in a model card, as Markdown."""

from collections.abc import Mapping
from typing import Any

from dreamstill.formatting import agreement_of, percent, words_of

__all__ = ["model_card"]

RUN = {
    "onnx": (
        "import onnxruntime\n\n"
        'session = onnxruntime.InferenceSession("{path}")\n'
        '(logits,) = session.run(["logits"], {{"input": x}})'
    ),
    "pt2": 'import torch\n\nlogits = torch.export.load("{path}").module()(torch.from_numpy(x))',
    "pte": (
        "import torch\nfrom executorch.runtime import Runtime\n\n"
        'method = Runtime.get().load_program("{path}").load_method("forward")\n'
        "(logits,) = method.execute((torch.from_numpy(x[:1]),))"
    ),
}
"""Code that runs a file on the array x, by format."""


OUTPUT = {
    "classes": "logits (N, {})",
    "labels": "logits (N, {}), one for each label",
    "values": "values (N, {})",
    "dense": "logits (N, {}, H, W), of the classes of each pixel",
}
"""The output of the network, by what it says."""


def model_card(summary: Mapping[str, Any], weights: str) -> str:
    """Return the card of the network that a search recommends.

    Args:
        summary: of the search, as in summary.json.
        weights: file or name of the teacher.

    """
    teacher, num = summary["teacher"], summary["validation_images"]
    chosen = next(c for c in summary["candidates"] if c["folder"] == summary["chosen"])
    shape, classes = summary["input"]["shape"], summary["num_classes"]
    whole = f"{teacher['parameters']:,} parameters, {teacher['macs']:,} multiply-accumulates"
    lines = [
        "# Model card",
        "",
        summary["recommendation"],
        "",
        "| | |",
        "|---|---|",
        f"| made from | {f'`{weights}`' if weights else 'a network in memory'}: {whole} |",
        f"| made by | Dreamstill: {chosen['task']} ({chosen['settings']}), {_made_on(summary)} |",
        f"| goal | {summary['meaning']} |",
        f"| parameters | {chosen['parameters']:,} |",
        f"| multiply-accumulates | {chosen['macs']:,} |",
        f"| input | float32 (N, {', '.join(map(str, shape))}): pixels in [0, 1], minus mean, "
        "divided by std |",
        f"| mean | {', '.join(f'{value:g}' for value in summary['input']['mean'])} |",
        f"| std | {', '.join(f'{value:g}' for value in summary['input']['std'])} |",
        f"| output | {OUTPUT[summary.get('outputs', 'classes')].format(classes)} |",
        f"| agreement with the teacher | {agreement_of(summary, chosen['agreement'])} on {num:,} "
        "synthetic validation images |",
    ]
    if "accuracy" in teacher:
        score = words_of(summary).score
        lines.append(f"| {score} of the teacher | {percent(teacher['accuracy'])} |")
    lines += ["", "## Files", "", *_files(summary, teacher), ""]
    for file in summary["files"]:
        if file["format"] in RUN and "path" in file:
            code = RUN[file["format"]].format(path=file["path"])
            lines += [f"## Run the .{file['format']}", "", "```python", code, "```", ""]
    return "\n".join(lines)


def _made_on(summary: Mapping[str, Any]) -> str:
    """Return on what images a network was made: nobody knows whether given ones are real."""
    given = summary["given_images"]
    return f"on the images of {given}" if given else "without any real data"


def _files(summary: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[str]:
    """Return the rows of a table of files."""
    files, score = summary["files"], words_of(summary).score
    measured = any("accuracy" in file for file in files)
    head = ["file", "bytes", "latency of an image", *([score] if measured else [])]
    rows = [head, ["---"] * len(head)]
    for file in files:
        if "failed" in file:
            rows.append([f".{file['format']}", "not written", file["failed"]])
            continue
        latency = "-"
        if "latency_ms" in file:
            latency = f"{file['latency_ms']['median']:.3f} ms in {file['runtime']}"
        row = [f"`{file['path']}`", f"{file['bytes']:,}", latency]
        rows.append(row + ([percent(file["accuracy"])] if measured else []))
    if "latency_ms" in teacher:
        latency = f"{teacher['latency_ms']['median']:.3f} ms in {teacher['runtime']}"
        whole = ["the teacher's", f"{teacher['bytes']:,}", latency]
        rows.append(whole + ([percent(teacher["accuracy"])] if measured else []))
    return [f"| {' | '.join(row)} |" for row in rows]

"""Draw docs/pictures/zskd_curve.png: the student over the number of Data Impressions.

python -m benchmarks curve
"""

import json
from pathlib import Path

from matplotlib.figure import Figure


def main() -> None:
    rows = json.loads(Path("benchmarks/records/zskd_curve.json").read_text())["rows"]
    sizes = {int(n.split()[0]): r for n, r in rows.items() if n.endswith("impressions")}
    figure = Figure(figsize=(6.5, 3.6))
    axes = figure.subplots()
    for row in range(len(next(iter(sizes.values()))["runs"])):
        points = [r["runs"][row]["accuracy"] for r in sizes.values()]
        axes.scatter(list(sizes), points, color="#24668f", s=12, alpha=0.6)
    axes.plot(list(sizes), [r["accuracy_mean"] for r in sizes.values()], color="#24668f")
    for name, label in (("structured_noise", "structured noise"), ("noise", "clipped noise")):
        axes.axhline(rows[name]["accuracy_mean"], color="#b8632b", linestyle=":")
        axes.annotate(label, (min(sizes), rows[name]["accuracy_mean"]), va="bottom", fontsize=8)
    axes.set(xscale="log", xlabel="Data Impressions", ylabel="student, %")
    axes.set_xticks(list(sizes), [str(size) for size in sizes])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig("docs/pictures/zskd_curve.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()

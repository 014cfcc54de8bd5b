"""Forward KL, backward KL and Jensen-Shannon: what each does on one set of images.

    python -m benchmarks kl_directions --data FOLDER

The picture is of the losses themselves: a student that can only be one bump (softmax of a parabola
over 60 classes) is fitted to a teacher of two unequal bumps, the best of three starts. The table is
of LeNet-5-Half trained on the same 8,000 structured-noise images of the MNIST teacher, 1,500 steps,
3 seeds, with the share of synthetic images on which the student names the teacher's second class
and the student's mean entropy over the teacher's.
"""

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from dreamstill.data.images import load_images
from dreamstill.distillation.config import DistillConfig, LossName
from dreamstill.distillation.finetune import finetune
from dreamstill.evaluation import accuracy, agreement, predict
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.losses import logits as losses
from dreamstill.pipelines.distill import open_student
from dreamstill.pipelines.process import flush_denormals
from dreamstill.pipelines.run_directory import environment
from dreamstill.synthesis.config import StructuredNoiseConfig
from dreamstill.synthesis.registry import open_synthesizer

NAMES = {
    LossName.KL: "forward KL",
    LossName.REVERSE_KL: "backward KL",
    LossName.JS: "Jensen-Shannon",
}
FUNCTIONS = {
    LossName.KL: losses.kl_divergence,
    LossName.REVERSE_KL: losses.reverse_kl,
    LossName.JS: losses.js_divergence,
}


def two_bumps() -> Tensor:
    """Log-probabilities (1, 60) of bumps at 18 and 42, the second half as likely again."""
    at = torch.arange(60.0)
    density = 0.4 * torch.exp(-0.5 * ((at - 18) / 3) ** 2) + 0.6 * torch.exp(
        -0.5 * ((at - 42) / 3) ** 2
    )
    return (density / density.sum() + 1e-9).log()[None]


def fitted(transfer: LossName) -> Tensor:
    """Probabilities (60,) of the best single bump under a loss, from three starts."""
    at, teacher = torch.arange(60.0), two_bumps()
    found = []
    for start in (18.0, 36.0, 42.0):
        place = torch.tensor([start, 1.5], requires_grad=True)  # mean and log width
        optimizer = torch.optim.Adam([place], lr=0.05)
        for _ in range(2000):
            student = -0.5 * ((at - place[0]) / place[1].exp()) ** 2
            optimizer.zero_grad()
            loss = FUNCTIONS[transfer](student[None], teacher)
            loss.backward()
            optimizer.step()
        found.append((loss.item(), start, student.softmax(0).detach()))
        print(f"{NAMES[transfer]} from {start:g}: {loss.item():.3f}")
    return min(found, key=lambda of: of[0])[2]


def picture(path: Path) -> None:
    """The teacher's two bumps and the three students' one."""
    figure = Figure(figsize=(7, 3))
    axes = figure.subplots()
    axes.fill_between(range(60), two_bumps().exp()[0], color="#dddddd", label="teacher")
    for transfer, color in zip(NAMES, ("#24668f", "#b8632b", "#4d8f4d"), strict=True):
        wide = 4 if transfer is LossName.REVERSE_KL else 1.5  # Jensen-Shannon lies upon it
        axes.plot(fitted(transfer), color=color, label=NAMES[transfer], linewidth=wide, alpha=0.8)
    axes.set_xlabel("class")
    axes.set_ylabel("probability")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    flush_denormals()
    parser = argparse.ArgumentParser(description="Directions of the KL.")
    parser.add_argument("--data", type=Path, default=os.environ.get("DREAMSTILL_DATA"))
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    picture(Path("docs/pictures/kl_directions.png"))
    teacher = open_from(TeacherFile(weights="benchmarks/teachers/lenet5_mnist.safetensors"))
    source = open_synthesizer(
        "structured_noise",
        teacher,
        StructuredNoiseConfig(batch_size=500, oversample=3),
        rng=torch.Generator().manual_seed(0),
    )
    images = torch.cat([teacher.input_spec.decode(source.next_batch().images) for _ in range(16)])
    wanted = predict(teacher.module, teacher.input_spec, images)
    second = wanted.topk(2).indices[:, 1]
    x, y = load_images(args.data / "mnist.npz", teacher.input_spec, 10)
    answers = predict(teacher.module, teacher.input_spec, x)

    def entropy(logits: Tensor) -> float:
        return float((-logits.softmax(1) * logits.log_softmax(1)).sum(1).mean())

    rows: dict[str, Any] = {}
    for transfer, name in NAMES.items():
        config = DistillConfig(
            steps=args.steps, batch_size=64, lr=3e-3, losses=(transfer,), temperature=1.0
        )
        runs = []
        for seed in range(3):
            rng = torch.Generator().manual_seed(seed)
            student = open_student("dreamstill.nn.lenet:lenet5_half", teacher, rng)
            student = finetune(teacher, student, images, config, rng=rng, pretrained=False)
            real, dreamt = (predict(student, teacher.input_spec, shown) for shown in (x, images))
            runs.append(
                {
                    "accuracy": round(100 * accuracy(real, y), 2),
                    "agreement": round(100 * agreement(real, answers), 2),
                    "second_class": round(100 * accuracy(dreamt, second), 2),
                    "entropy_ratio": round(entropy(dreamt) / entropy(wanted), 3),
                }
            )
            print(name, seed, runs[-1], flush=True)
        values = [run["accuracy"] for run in runs]
        rows[name] = {
            "accuracy_mean": round(statistics.mean(values), 2),
            "accuracy_std": round(statistics.stdev(values), 2),
            "second_class_mean": round(statistics.mean(r["second_class"] for r in runs), 2),
            "entropy_ratio_mean": round(statistics.mean(r["entropy_ratio"] for r in runs), 3),
            "runs": runs,
        }
    record = {
        "name": "kl_directions",
        "data": "mnist",
        "steps": args.steps,
        "environment": environment("cpu"),
        "rows": rows,
    }
    Path("benchmarks/records/kl_directions.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

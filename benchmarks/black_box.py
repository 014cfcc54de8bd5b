"""Black boxes: what is learned from scores and from labels within a budget, and from a bad server.

    python -m benchmarks black_box --data FOLDER [--rows ROW ...] [--seeds N]
    python -m benchmarks black_box --faults             # a server that fails, a kill, a resume

The teacher is LeNet-5 of MNIST, of which only the answers are used. A row is what it answers, the
budget in queries and the student; its images are those of the default method, drawn once, or
clipped noise. The validation set is paid from the budget. Runs that the record has are kept.
"""

import argparse
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import dreamstill as ds
from benchmarks.runner import RECORDS
from dreamstill.black_box.config import Answers
from dreamstill.data.images import load_images
from dreamstill.files.writing import write_json
from dreamstill.pipelines.process import flush_denormals
from dreamstill.pipelines.run_directory import environment

__all__ = ["Handler", "answering", "faults", "rows"]

TEACHER = "benchmarks/teachers/lenet5_mnist.safetensors"
STEPS, BATCH_SIZE = 5000, 128
STUDENTS = ("lenet5_half", "lenet5")
BUDGETS = (10_000, 30_000, 100_000)
RECORD = RECORDS / "black_box.json"


def rows() -> dict[str, tuple[Answers, int, str, str]]:
    """Return what a row's name stands for: answers, budget, student and method."""
    found = {
        f"{answers}, {budget:,}, {student}": (answers, budget, student, "image_programs")
        for student in STUDENTS
        for answers in Answers
        for budget in BUDGETS
    }
    return found | {
        f"{answers}, {budget:,}, lenet5_half, noise": (answers, budget, "lenet5_half", "noise")
        for answers in (Answers.LOGITS, Answers.LABELS)
        for budget in BUDGETS[-1:]
    }


def answering(network: nn.Module, kind: Answers) -> Any:
    """Return a function of images that answers as a black box does."""

    @torch.no_grad()
    def answer(images: Any) -> torch.Tensor:
        logits: torch.Tensor = network(torch.from_numpy(images))
        match kind:
            case Answers.LABELS:
                return logits.argmax(1)
            case Answers.PROBABILITIES:
                return logits.softmax(1)
        return logits

    return answer


def measured(row: str, seed: int, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
    """Distill one student, and read the test set once."""
    answers, budget, student, method = rows()[row]
    known = ds.load_teacher(TEACHER)
    config = ds.BlackBoxConfig(answers=answers, budget=budget)
    teacher = ds.BlackBox(
        answering(known.module, answers), known.input_spec, config, num_classes=10
    )
    begun = time.monotonic()
    course = ds.DistillConfig(steps=STEPS, batch_size=BATCH_SIZE, validate_every=250)
    images: Any = ds.NoiseConfig() if method == "noise" else method
    result = ds.distill(teacher, f"dreamstill.nn.lenet:{student}", images, course, seed=seed)
    right = ds.evaluate(result.model, x, y, known.input_spec)["accuracy"]
    return {
        "seed": seed,
        "accuracy": round(100 * right, 2),
        "queries": teacher.queries,
        "validation_agreement": round(100 * result.details["validation_agreement"], 2),
        "seconds": round(time.monotonic() - begun),
    }


class Handler(BaseHTTPRequestHandler):
    """Answers with labels as JSON; of a faulty server some requests fail, by their number."""

    server: "Server"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        images, server = np.load(io.BytesIO(body), allow_pickle=False), self.server
        server.requests.append(images)
        number = len(server.requests)
        if server.faulty and number % 5 == 0:
            self._answer(b"out of order", 500 if number % 2 else 503)
        elif server.faulty and number % 7 == 0:
            time.sleep(2)  # longer than the time-out
        elif server.faulty and number % 8 == 0:
            self.connection.close()
        else:
            if server.faulty and number % 3 == 0:
                time.sleep(0.2)
            self._answer(json.dumps(server.answer(images).tolist()).encode(), 200)

    def _answer(self, body: bytes, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """A classifier on this machine that notes what it is sent."""

    daemon_threads = True

    def __init__(self, *, faulty: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faulty, self.requests = faulty, list[np.ndarray[Any, Any]]()
        self.answer = answering(ds.load_teacher(TEACHER).module, Answers.LABELS)

    @property
    def num_images(self) -> int:
        """Images of all requests, those that failed included."""
        return sum(map(len, self.requests))

    @property
    def num_different(self) -> int:
        """Images of all requests, each once."""
        return len({image.tobytes() for images in self.requests for image in images})


def faults(budget: int = 4000) -> dict[str, Any]:
    """Distill over HTTP on the command line: killed and resumed, and from a server with faults."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("killed between requests", "killed in a request", "faults"):
            out = Path(folder) / name.replace(" ", "_")
            with Server(faulty=name == "faults") as server:
                threading.Thread(target=server.serve_forever, daemon=True).start()
                if name != "faults":
                    wait = 0.3 if name == "killed between requests" else 0.0
                    _killed(server, out, budget // 2, wait=wait)
                before = server.num_images
                command = _command(server, out, budget)
                resume = ["--resume", str(out)] if (out / "checkpoint.pt").is_file() else command
                done = subprocess.run(
                    [*_base(), *resume], env=_environment(), capture_output=True, text=True
                )
                server.shutdown()
                result = json.loads((out / "result.json").read_text())
                found[name] = {
                    "exit": done.returncode,
                    "budget": budget,
                    "images_sent_before_the_kill": before,
                    "images_sent": server.num_images,
                    "different_images_sent": server.num_different,
                    "queries_counted": result["queries"],
                }
                print(name, found[name], flush=True)
    return found


def _base() -> list[str]:
    return [sys.executable, "-m", "dreamstill", "distill", "--json"]


def _environment() -> dict[str, str]:
    return os.environ | {"no_proxy": "127.0.0.1"}


def _command(server: Server, out: Path, budget: int) -> list[str]:
    """Return the flags of a short distillation."""
    url = f"http://127.0.0.1:{server.server_address[1]}/classify"
    teacher = {
        **{"weights": url, "card": str(Path(TEACHER).with_suffix(".json").absolute())},
        **{"black_box.answers": "labels", "black_box.budget": budget, "black_box.timeout": 1},
        **{"black_box.cache": out.with_suffix(".sqlite"), "black_box.wait": 0.1},
    }
    flags = [f"--teacher.{name}={value}" for name, value in teacher.items()]
    settings = {"steps": 300, "batch_size": 64, "num_validation": 256}
    flags += [f"--distill.{name}={value}" for name, value in settings.items()]
    student = "dreamstill.nn.lenet:lenet5_half"
    return [*flags, f"--student={student}", "--checkpoint_every=0", f"--out={out}"]


def _killed(server: Server, out: Path, num_images: int, *, wait: float) -> None:
    """Start a distillation, and kill it some seconds after the server has seen so many images."""
    process = subprocess.Popen(
        [*_base(), *_command(server, out, 2 * num_images)],
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while server.num_images < num_images:
        if process.poll() is not None:
            raise RuntimeError("the run ended before it was killed")
        time.sleep(0.001)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.wait()


def main() -> None:
    """Run what the flags ask for, and write the record after each run."""
    flush_denormals()
    parser = argparse.ArgumentParser(description="Students of a black box.")
    parser.add_argument("--data", type=Path, default=os.environ.get("DREAMSTILL_DATA"))
    parser.add_argument("--rows", nargs="+", choices=[*rows()], default=[*rows()], metavar="ROW")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RECORD, help=f"JSON record [{RECORD}]")
    parser.add_argument("--faults", action="store_true", help="of the server alone")
    args = parser.parse_args()
    record = json.loads(args.out.read_text()) if args.out.is_file() else {"rows": {}}
    settings = {"steps": STEPS, "batch_size": BATCH_SIZE}
    record |= {"name": "black_box", "data": "mnist", "answers_of": TEACHER, "settings": settings}
    record["environment"] = environment("cpu")
    if args.faults:
        record["server"] = faults()
        write_json(args.out, record)
        return
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    x, y = load_images(args.data / "mnist.npz", ds.load_teacher(TEACHER).input_spec, 10)
    for seed in range(1, args.seeds + 1):
        for row in args.rows:
            runs = record["rows"].setdefault(row, {"runs": []})["runs"]
            if any(run["seed"] == seed for run in runs):
                continue
            runs.append(measured(row, seed, x, y))
            print(row, runs[-1], flush=True)
            record["rows"][row]["queries"] = max(run["queries"] for run in runs)
            values = [run["accuracy"] for run in runs]
            record["rows"][row]["accuracy_mean"] = round(statistics.mean(values), 2)
            spread = round(statistics.stdev(values), 2) if len(values) > 1 else None
            record["rows"][row]["accuracy_std"] = spread
            write_json(args.out, record)


if __name__ == "__main__":
    main()

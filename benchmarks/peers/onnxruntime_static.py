"""onnxruntime's static quantization, fed with random input or with real images.

Options: `inputs`, "normal", "uniform" or "real"; `per_channel` [False].
"""

from typing import Any

import numpy as np
import onnxruntime.quantization as ort
from numpy.typing import NDArray
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.peers.task import Task, main, random_inputs

NUM_IMAGES = 64


class Reader(ort.CalibrationDataReader):  # type: ignore[misc]
    """Batches of 16."""

    def __init__(self, inputs: NDArray[np.float32]) -> None:
        self.batches = iter(np.split(inputs, len(inputs) // 16))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"input": batch}


def make(task: Task) -> dict[str, Any]:
    """Write the int8 file."""
    kind = task.options["inputs"]
    inputs = np.load(task.real) if kind == "real" else random_inputs(task, kind, NUM_IMAGES).numpy()
    ready = f"{task.out}.ready.onnx"
    quant_pre_process(task.onnx, ready)
    rest = {key: value for key, value in task.options.items() if key != "inputs"}
    ort.quantize_static(ready, task.out, Reader(inputs), **rest)
    return {"per_channel": False, "num_images": NUM_IMAGES} | task.options


if __name__ == "__main__":
    main(make, "onnxruntime")

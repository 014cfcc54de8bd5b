"""NVIDIA's Model Optimizer on ONNX: its int8 quantization, which calibrates on random data itself.

Options: `calibration_method`, "entropy" or "max" [entropy]; `inputs`, "real" for 64 real images
[one random input].
"""

from typing import Any

import numpy as np
from modelopt.onnx.quantization import quantize

from benchmarks.peers.task import Task, main


def make(task: Task) -> dict[str, Any]:
    """Write the int8 file, calibrated on the CPU; nothing else is set but `task.options`."""
    rest = {key: value for key, value in task.options.items() if key != "inputs"}
    if "inputs" in task.options:
        rest["calibration_data"] = np.load(task.real)
    quantize(task.onnx, output_path=task.out, calibration_eps=["cpu"], **rest)
    return {"calibration_method": "entropy", "inputs": "one, random, its own"} | task.options


if __name__ == "__main__":
    main(make, "nvidia-modelopt", "onnxruntime-gpu")

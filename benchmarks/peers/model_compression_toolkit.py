"""Sony's Model Compression Toolkit: generates images, then quantizes with them (PTQ).

Options: `n_images`, which has no default, and `n_iter`, steps of data generation [500].
"""

import importlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.peers.task import Task, main, open_network
from benchmarks.torchvision_import import torchvision_importable


def make(task: Task) -> dict[str, Any]:
    """Write the quantized network, its rounding simulated by floats, as the toolkit exports it."""
    with torchvision_importable():
        mct = importlib.import_module("model_compression_toolkit")
    network = open_network(task)
    config = mct.data_generation.get_pytorch_data_generation_config(
        **{k: v for k, v in task.options.items() if k != "n_images"}
    )
    images = mct.data_generation.pytorch_data_generation_experimental(
        network, task.options["n_images"], task.shape[1:], config
    )

    def batches() -> Iterator[list[Any]]:
        for batch in images:
            yield [batch]

    # torch 2.9 made another exporter the default, which the toolkit's tuple of inputs does not fit
    torch.onnx.export = partial(torch.onnx.export, dynamo=False)
    quantized, _ = mct.ptq.pytorch_post_training_quantization(network, batches)
    mct.exporter.pytorch_export_model(
        quantized,
        task.out,
        batches,
        quantization_format=mct.exporter.QuantizationFormat.FAKELY_QUANT,
        output_names=["logits"],
    )
    return {
        "n_images": task.options["n_images"],
        "n_iter": config.n_iter,
        "data_gen_batch_size": config.data_gen_batch_size,
    }


if __name__ == "__main__":
    main(make, "model-compression-toolkit", "torch")

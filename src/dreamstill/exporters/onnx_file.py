"""Leave out of ONNX files what runtimes do not read.

Exporters write shapes of intermediate values, the graph that they came from, and long names: a
tenth of an int8 file of a small network.
"""

import onnx_ir as ir
from onnx_ir.passes import common

__all__ = ["to_bytes"]

KEPT = ("shape", "mean", "std", "outputs")
"""Metadata that stays: the input spec, and what outputs say where their shape does not tell."""


def to_bytes(model: ir.Model, *, short_names: bool = False) -> bytes:
    """Return the bytes of a model without notes, shapes of values, and unused initializers.

    Args:
        model: model, which is modified. Its inputs, outputs and their names stay.
        short_names: number all other values, and store equal initializers once. Parameters lose
            their names, and a file that is quantized later must not share them.

    """
    kept = {name: model.metadata_props[name] for name in KEPT if name in model.metadata_props}
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.metadata_props.update(kept)
    if short_names:
        common.DeduplicateInitializersPass()(model)
        held = [*model.graph.initializers.values()]
        model.graph.initializers.clear()  # a new name may be another's old one
        made = [output for node in model.graph.all_nodes() for output in node.outputs]
        for number, value in enumerate([*held, *made]):
            if not value.is_graph_output():
                value.name = f"{number:x}"
        for value in held:
            model.graph.initializers.add(value)
    for node in model.graph.all_nodes():
        node.name = None
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    data: bytes = proto.SerializeToString()
    return data

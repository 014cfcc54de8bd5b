"""Split a traced network into blocks that run one after the other.

Source: Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction",
ICLR 2021, where a block is a residual block; here it is found in the graph.
"""

from collections.abc import Collection, Iterator

from torch import fx, nn

from dreamstill.graph.tracing import is_one_of, is_size
from dreamstill.nn.op_sets import AVERAGE, LARGEST, MEAN

__all__ = ["blocks"]


def blocks(
    graph: fx.GraphModule, model: nn.Module, layers: Collection[str]
) -> list[tuple[list[str], fx.GraphModule]]:
    """Return the smallest parts of a network with one input, one output and one of the layers.

    Run in order, each on the output of the one before, they compute what the network does. A part
    ends with the activation after its last layer; pooling begins the next one.

    Args:
        graph: result of `trace`.
        model: network with modules of the same names, which the parts share.
        layers: names of layers.

    Returns:
        The names of its layers and the module of each part, in order; empty where the network's
        output is not one tensor, or nothing runs on its input alone.

    """
    nodes = [node for node in graph.graph.nodes if node.op not in ("get_attr", "placeholder")]
    (start, *more), output = graph.graph.find_nodes(op="placeholder"), nodes.pop()
    if more or output.args[0] is not nodes[-1]:
        return []
    modules, parts = dict(graph.named_modules()), list[tuple[list[str], list[fx.Node]]]()
    for segment in _segments(start, nodes):
        named = [str(n.target) for n in segment if n.op == "call_module" and n.target in layers]
        pools = any(is_one_of(node, modules, (*LARGEST, *AVERAGE, *MEAN)) for node in segment)
        last = parts[-1] if parts else None
        if last is None or (last[0] and (named or pools)):
            parts.append((named, segment))
        else:  # before the first layer of the part, or an activation behind its last one
            last[0].extend(named)
            last[1].extend(segment)
    if len(parts) > 1 and not parts[-1][0]:
        parts[-2][1].extend(parts.pop()[1])
    ends = [start, *(part[-1] for _, part in parts)]
    return [
        (named, _module(model, before, part))
        for before, (named, part) in zip(ends, parts, strict=False)
    ]


def _segments(start: fx.Node, nodes: list[fx.Node]) -> Iterator[list[fx.Node]]:
    """Split nodes after each one whose value is all that later ones read of those before it.

    Sizes do not count: see `_module`.
    """
    place = {node: index for index, node in enumerate(nodes, 1)}

    def last_use(node: fx.Node) -> int:
        readers = () if is_size(node) else node.users
        return max((place.get(user, 0) for user in readers if not is_size(user)), default=0)

    segment, reach = list[fx.Node](), last_use(start)
    for node, index in place.items():
        segment.append(node)
        if reach <= index and not is_size(node):
            yield segment
            segment = []
        reach = max(reach, last_use(node))


def _module(model: nn.Module, before: fx.Node, part: list[fx.Node]) -> fx.GraphModule:
    """Return nodes as a module of one input, the value of `before`.

    A size that a node outside the part has is read from the input.
    """
    graph = fx.Graph()
    copies = {before: graph.placeholder("x")}

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in copies:
            if node.op != "get_attr" and not is_size(node):
                return copies[before]
            copies[node] = graph.node_copy(node, copy_of)
        return copies[node]

    for node in part:
        copies[node] = graph.node_copy(node, copy_of)
    graph.output(copies[part[-1]])
    return fx.GraphModule(model, graph)

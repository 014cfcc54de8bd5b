"""Operators of ONNX that only move values, or that ask for shapes."""

import math
from typing import Any

import numpy as np

from dreamstill.errors import TeacherError
from dreamstill.loaders.onnx.graph import Graph, Node, Operator, Shapes, batch_axis
from dreamstill.loaders.onnx.resize import resize

__all__ = ["SHAPES"]


def identity(graph: Graph, node: Node) -> Any:
    """Lower operators that change nothing in a network that is not being trained."""
    if node.has(2) and graph.constant(node.inputs[2]):
        raise TeacherError("the file was exported in train mode: export the network in eval mode")
    return graph.operand(node.input)


def shape(graph: Graph, node: Node) -> Any:
    """Give the sizes of a value, which are known."""
    sizes = graph.shapes(graph.operand(node.input))
    axes = slice(node.get("start", 0), node.get("end"))
    return [np.array(size[axes], np.int64) for size in sizes]


def size(graph: Graph, node: Node) -> Any:
    """Give the number of values, which is known."""
    sizes = graph.shapes(graph.operand(node.input))
    return [np.array(math.prod(size), np.int64) for size in sizes]


def reshape(graph: Graph, node: Node) -> Any:
    """Lower Reshape; see `reshaped`."""
    x = graph.operand(node.input)
    if node.has(1):
        wanted = graph.known(node.inputs[1])
        if wanted is None:
            raise TeacherError("a shape is computed from the pixels, which is not supported")
        targets = [[int(n) for n in value] for value in wanted]
    else:
        targets = [list(node.attributes["shape"])] * graph.num
    shapes = graph.shapes(x)
    if not node.get("allowzero", 0):
        targets = [
            [have[n] if size == 0 else size for n, size in enumerate(target)]
            for have, target in zip(shapes, targets, strict=True)
        ]
    return reshaped(graph, x, _rebatched(graph, shapes, targets))


def _rebatched(graph: Graph, shapes: Shapes, targets: list[list[int]]) -> Shapes:
    """Return the shapes that a reshape asks for, for any batch size.

    In a file that is written for one batch size, the batch is a number like any other: see
    `_batch_place`.
    """
    axis = batch_axis(shapes)
    alike = all(target == targets[0] for target in targets)
    if graph.batch is None or axis is None or not alike:
        return [_resolved(*pair) for pair in zip(shapes, targets, strict=True)]
    counts = [shape[0] for shape in graph.shapes(graph.input)]
    written = list(shapes[0])
    written[axis] = written[axis] * graph.batch // counts[0]
    target = _resolved(tuple(written), targets[0])
    place = _batch_place(written[:axis], target, graph.batch)
    found = [[*target] for _ in counts]
    for sizes, count in zip(found, counts, strict=True):
        sizes[place] = sizes[place] * count // graph.batch
    return [tuple(sizes) for sizes in found]


def _batch_place(before: list[int], target: tuple[int, ...], batch: int) -> int:
    """Return the axis of a written shape that holds the batch.

    That is the one whose size is the batch size, if it is only one; otherwise the one that begins
    behind as many values as lie before the batch in the input, but not the last, of features.
    """
    exact = [n for n, size in enumerate(target) if size == batch]
    if len(exact) == 1:
        return exact[0]
    ahead = math.prod(before)
    firsts = [math.prod(target[:n]) for n in range(len(target) + 1)]
    if starts := [n for n in exact if firsts[n] == ahead]:
        return starts[0]
    place = next((n for n in range(len(target)) if firsts[n] <= ahead < firsts[n + 1]), 0)
    return place - 1 if place and place == len(target) - 1 else place


def _resolved(have: tuple[int, ...], target: list[int]) -> tuple[int, ...]:
    """Return a shape with its -1 replaced by what is left."""
    rest = math.prod(size for size in target if size != -1)
    return tuple(math.prod(have) // max(rest, 1) if size == -1 else size for size in target)


def reshaped(graph: Graph, x: Any, targets: Shapes) -> Any:
    """Add the simplest step that gives a value another shape.

    Where axes are merged or one is split this is said as such, so that the step still fits when a
    network loses channels; otherwise sizes are written, with -1 for the one that grows with the
    batch.
    """
    shapes = graph.shapes(x)
    old = list(zip(*shapes, strict=True))
    new = list(zip(*targets, strict=True))
    if any(math.prod(a) != math.prod(b) for a, b in zip(shapes, targets, strict=True)):
        raise ValueError(f"shape {shapes[0]} cannot become {targets[0]}")
    if old == new:
        return x
    if len(new) == 2 and len(old) > 2 and old[0] == new[0]:
        return graph.call("flatten", x, start_dim=1)
    front = next(n for n in range(len(old) + len(new)) if old[n : n + 1] != new[n : n + 1])
    back = 0
    while back < min(len(old), len(new)) - front and old[-1 - back] == new[-1 - back]:
        back += 1
    merged, split = old[front : len(old) - back], new[front : len(new) - back]
    if len(split) == 1 and len(merged) > 1:
        end = -1 if back == 0 else front + len(merged) - 1
        return graph.call("flatten", x, start_dim=front, end_dim=end)
    if len(merged) == 1 and len(split) > 1:
        return graph.call("unflatten", x, dim=front, sizes=_sizes(split))
    return graph.call("reshape", x, shape=_sizes(new))


def _sizes(sizes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Return sizes with -1 for the one that differs between examples, or for the last."""
    changing = [n for n, size in enumerate(sizes) if len({*size}) > 1]
    if len(changing) > 1:
        raise TeacherError("a shape holds the batch size twice, which is not supported")
    free = changing[0] if changing else len(sizes) - 1
    return tuple(-1 if n == free else size[0] for n, size in enumerate(sizes))


def flatten(graph: Graph, node: Node) -> Any:
    """Lower Flatten, whose result always has two axes."""
    x, axis = graph.operand(node.input), node.get("axis", 1)
    halves = [(have[:axis], have[axis:]) for have in graph.shapes(x)]
    return reshaped(graph, x, [tuple(map(math.prod, pair)) for pair in halves])


def transpose(graph: Graph, node: Node) -> Any:
    """Lower Transpose."""
    x = graph.operand(node.input)
    dims = node.get("perm", [*range(graph.rank(x))][::-1])
    return graph.call("permute", x, dims=tuple(dims))


def _given(graph: Graph, node: Node, name: str, index: int) -> list[int] | None:
    """Return integers that are an attribute in old files and an input in new ones."""
    if node.has(index):
        return graph.ints(node.inputs[index])
    return node.get(name)  # type: ignore[no-any-return]


def squeeze(graph: Graph, node: Node) -> Any:
    """Lower Squeeze; all axes of size 1 go if none is named."""
    x = graph.operand(node.input)
    axes = _given(graph, node, "axes", 1)
    rank = graph.rank(x)
    if axes is None:
        axes = [n for n, sizes in enumerate(zip(*graph.shapes(x), strict=True)) if {*sizes} == {1}]
    gone = sorted(axis % rank for axis in axes)
    if rank > 2 and gone == [*range(2, rank)]:
        return graph.call("flatten", x, start_dim=1)
    return graph.call("squeeze", x, dim=tuple(gone))


def unsqueeze(graph: Graph, node: Node) -> Any:
    """Lower Unsqueeze."""
    x, axes = graph.operand(node.input), _given(graph, node, "axes", 1) or []
    rank = graph.rank(x) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = graph.call("unsqueeze", x, dim=axis)
    return x


def concat(graph: Graph, node: Node) -> Any:
    """Lower Concat; a constant such as a class token is repeated for each image."""
    like = next(v for v in map(graph.values.get, node.inputs) if isinstance(v, str))
    axis = node.attributes["axis"] % graph.rank(like)
    return graph.call("cat", *(graph.operand(name, like=like) for name in node.inputs), dim=axis)


def split(graph: Graph, node: Node) -> Any:
    """Lower Split, to torch.chunk where the parts are equal."""
    x, axis = graph.operand(node.input), node.get("axis", 0)
    sizes, num = _given(graph, node, "split", 1), len(node.outputs)
    width = graph.shape(x)[axis]
    if sizes is None:
        part = -(-width // num)
        sizes = [part] * (num - 1) + [width - part * (num - 1)]
    if num == 1:
        return x
    if len({*sizes}) == 1:
        return graph.call("chunk", x, chunks=num, dim=axis, outputs=num)
    return graph.call("split", x, split_size_or_sections=tuple(sizes), dim=axis, outputs=num)


def slices(graph: Graph, node: Node) -> Any:
    """Lower Slice; an end that is the end of the axis is left open."""
    x = graph.operand(node.input)
    starts, ends = (_given(graph, node, name, n) or [] for n, name in ((1, "starts"), (2, "ends")))
    axes = _given(graph, node, "axes", 3) or [*range(len(starts))]
    steps = graph.ints(node.inputs[4]) if node.has(4) else [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        axis %= graph.rank(x)
        sizes = [have[axis] for have in graph.shapes(x)]
        if len({*sizes}) > 1 and (start, step) == (0, 1) and end >= (graph.batch or max(sizes)):
            continue  # the whole batch
        size = sizes[0]
        if step < 0:  # from the back: the same on the flipped axis
            start = min(start if start >= 0 else start + size, size - 1)
            end = max(end if end >= 0 else end + size, -1)
            start, end = size - 1 - start, size - 1 - end
        else:
            start, end = (min(max(n + size if n < 0 else n, 0), size) for n in (start, end))
        if (start, step) == (0, 1) and end >= size:
            continue
        last = None if end >= size else max(end, start)
        x = graph.call("slice", x, dim=axis, start=start, end=last, step=step)
    return x


def gather(graph: Graph, node: Node) -> Any:
    """Lower Gather with constant indices; all values in order are a reshape."""
    x, axis = graph.operand(node.input), node.get("axis", 0)
    places = graph.known(node.inputs[1])
    if places is None:
        raise TeacherError("Gather at places that are computed from the pixels is not supported")
    if graph.rank(x) == 1 and all(np.array_equal(p.ravel(), np.arange(p.size)) for p in places):
        targets = _rebatched(graph, graph.shapes(x), [[*p.shape] for p in places])
        if [math.prod(target) for target in targets] == [n for (n,) in graph.shapes(x)]:
            return reshaped(graph, x, targets)
    axis, indices = axis % graph.rank(x), graph.constant(node.inputs[1])
    size = graph.shape(x)[axis]
    indices = np.where(indices < 0, indices + size, indices)
    if indices.ndim == 0:
        return graph.call("select", x, dim=axis, index=int(indices))
    first, num = int(indices.flat[0]) if indices.size else 0, indices.size
    if indices.ndim == 1 and np.array_equal(indices, np.arange(first, first + num)):
        return graph.call("slice", x, dim=axis, start=first, end=first + num, step=1)
    flat = graph.part(f"{node.inputs[1]}.{axis}", indices.ravel().astype(np.int64))
    picked = graph.call("index_select", x, axis, flat)
    if indices.ndim == 1:
        return picked
    return graph.call("unflatten", picked, dim=axis, sizes=indices.shape)


def pad(graph: Graph, node: Node) -> Any:
    """Lower Pad."""
    x, mode = graph.operand(node.input), node.get("mode", "constant")
    rank = graph.rank(x)
    given = _given(graph, node, "pads", 1) or []
    axes = graph.ints(node.inputs[3]) if node.has(3) else [*range(rank)]
    pads = [(0, 0)] * rank
    for n, axis in enumerate(axes):
        pads[axis] = (given[n], given[n + len(axes)])
    if not any(map(any, pads)):
        return x
    while not any(pads[0]) and len(pads) > (2 if mode != "constant" else 1):
        pads = pads[1:]
        if mode == "constant" and any(pads[0]):
            break
    if mode != "constant" and rank > 2:
        pads = pads[-(rank - 2) :] if len(pads) > rank - 2 else pads
    settings: dict[str, Any] = {"pad": tuple(n for pair in reversed(pads) for n in pair)}
    if mode == "constant":
        value = graph.constant(node.inputs[2]).item() if node.has(2) else node.get("value", 0.0)
        settings["value"] = value
    else:
        settings["mode"] = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode]
    return graph.call("pad", x, **settings)


def expand(graph: Graph, node: Node) -> Any:
    """Lower Expand."""
    x, targets = graph.operand(node.input), graph.known(node.inputs[1])
    if targets is None:
        raise TeacherError("a shape is computed from the pixels, which is not supported")
    have, sizes = graph.shapes(x), []
    rank = max(graph.rank(x), len(targets[0]))
    for n in range(-rank, 0):
        old = [shape[n] if -n <= len(shape) else 1 for shape in have]
        new = [int(target[n]) if -n <= len(target) else 1 for target in targets]
        if len({*old}) > 1 or old == new or new[0] == 1:
            sizes.append(-1 if -n <= len(have[0]) else 1)
        elif len({*new}) == 1:
            sizes.append(new[0])
        else:
            raise TeacherError("Expand to the batch size of a computed value is not supported")
    return graph.call("expand", x, sizes=tuple(sizes))


def tile(graph: Graph, node: Node) -> Any:
    """Lower Tile."""
    x = graph.operand(node.input)
    return graph.call("tile", x, dims=tuple(graph.ints(node.inputs[1])))


def depth_to_space(graph: Graph, node: Node) -> Any:
    """Lower DepthToSpace; in mode CRD it is F.pixel_shuffle."""
    x, size = graph.operand(node.input), node.attributes["blocksize"]
    if node.get("mode", "DCR") == "CRD":
        return graph.call("pixel_shuffle", x, upscale_factor=size)
    return graph.call("depth_to_space", x, blocksize=size)


def space_to_depth(graph: Graph, node: Node) -> Any:
    """Lower SpaceToDepth; in mode CRD it is F.pixel_unshuffle."""
    x, size = graph.operand(node.input), node.attributes["blocksize"]
    if node.get("mode", "DCR") == "CRD":
        return graph.call("pixel_unshuffle", x, downscale_factor=size)
    return graph.call("space_to_depth", x, blocksize=size)


SHAPES: dict[str, Operator] = {
    **dict.fromkeys(("Identity", "Dropout"), identity),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    "Shape": shape,
    "Size": size,
    "Reshape": reshape,
    "Flatten": flatten,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Concat": concat,
    "Split": split,
    "Slice": slices,
    "Gather": gather,
    "Pad": pad,
    "Expand": expand,
    "Tile": tile,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
}
"""Lowerings by operator."""

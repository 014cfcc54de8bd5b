"""Resize and Upsample of ONNX, where F.interpolate computes the same."""

from typing import Any

from dreamstill.errors import TeacherError
from dreamstill.loaders.onnx.graph import Graph, Node

__all__ = ["resize"]


def resize(graph: Graph, node: Node) -> Any:
    """Lower Resize and Upsample where F.interpolate computes the same."""
    x, old = graph.operand(node.input), node.op == "Upsample" or graph.opset < 11
    have = graph.shape(x)
    axes = [axis % len(have) for axis in node.get("axes", range(len(have)))]
    scales_at, sizes_at = (1, 9) if old else (2, 3)
    scaled = not node.has(sizes_at)
    if node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise TeacherError("Resize that keeps the aspect ratio is not supported")
    if scaled:
        scales = node.get("scales")
        given = graph.constant(node.inputs[scales_at]).ravel() if scales is None else scales
        factors = [float(dict(zip(axes, given, strict=True)).get(n, 1)) for n in range(len(have))]
    else:
        wanted = graph.known(node.inputs[sizes_at])
        if wanted is None:
            raise TeacherError("a size is computed from the pixels, which is not supported")
        sizes = dict(zip(axes, map(int, wanted[0]), strict=True))
        factors = [sizes.get(n, size) / size if n else 1.0 for n, size in enumerate(have)]
    if factors[0] != 1 or factors[1] != 1:
        raise TeacherError("Resize of images or channels is not supported")
    spatial = list(zip(have[2:], factors[2:], strict=True))
    settings = _interpolation(node, spatial, old=old, scaled=scaled)
    if scaled:
        settings["scale_factor"] = tuple(factor for _, factor in spatial)
    else:
        settings["size"] = tuple(round(size * factor) for size, factor in spatial)
    return graph.call("interpolate", x, **settings)


def _interpolation(
    node: Node, spatial: list[tuple[int, float]], *, old: bool, scaled: bool
) -> dict[str, Any]:
    """Return the mode of F.interpolate that does what a node asks for; raise if there is none.

    Args:
        node: Resize or Upsample.
        spatial: size and factor of each axis of a map.
        old: whether the node is of an opset below 11, which knows one way only.
        scaled: whether it gives factors and not sizes.

    """
    mode = node.get("mode", "nearest")
    at = node.get("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
    rounded = node.get("nearest_mode", "floor" if old else "round_prefer_floor")
    halves, whole = at in ("half_pixel", "pytorch_half_pixel"), at == "align_corners"
    new = [round(size * factor) for size, factor in spatial]
    if mode == "nearest":
        if (at, rounded) == ("asymmetric", "floor"):
            return {"mode": "nearest"}
        pairs = [(n, f) for (_, f), m in zip(spatial, new, strict=True) for n in range(m)]
        ties = rounded != "round_prefer_ceil" and any((n + 0.5) / f % 1 == 0 for n, f in pairs)
        if halves and rounded.startswith("round") and not ties:
            return {"mode": "nearest-exact"}
    exact = all(size * factor == m for (size, factor), m in zip(spatial, new, strict=True))
    single = at == "pytorch_half_pixel" and 1 in new
    plain = not (node.get("antialias", 0) or node.get("exclude_outside", 0) or single)
    if plain and (halves or (whole and (exact or not scaled))):
        if mode == "linear" and len(spatial) <= 3:
            name = ("linear", "bilinear", "trilinear")[len(spatial) - 1]
            return {"mode": name, "align_corners": whole}
        if mode == "cubic" and len(spatial) == 2 and node.get("cubic_coeff_a", -0.75) == -0.75:
            return {"mode": "bicubic", "align_corners": whole}
    raise TeacherError(f"{node.op} with mode {mode}, {at}, {rounded} is not supported")

"""ONNX's own node tests of every operator that a teacher file may have.

    python -m benchmarks onnx_operators [--show]

Each test of `onnx.backend.test` is one node, or the nodes of a function, with the outputs
that are right. It is read as a file would be, with as many of its inputs computed and not
constant as the operator allows; outputs that only training needs are not compared.
"""

import argparse
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from benchmarks.runner import RECORDS
from dreamstill.errors import TeacherError
from dreamstill.files.writing import write_json
from dreamstill.loaders.onnx.graph import Graph
from dreamstill.loaders.onnx.operators import OPERATORS
from dreamstill.nn.graph_network import GraphNetwork
from dreamstill.pipelines.run_directory import environment

PLAIN = (np.float32, np.float64, np.int64, np.int32, np.bool_)
"""Types of inputs and outputs that are tried, floats as float32."""


def node_tests() -> list[Any]:
    """Return the tests whose operators are all claimed and whose values are of plain types."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        tests = collect_testcases(None)
    return [test for test in tests if operators_of(test) <= OPERATORS.keys() and _is_plain(test)]


def operators_of(test: Any) -> set[str]:
    """Return the operators of a test's nodes."""
    return {f"{node.domain}.{node.op_type}".lstrip(".") for node in test.model.graph.node}


def _is_plain(test: Any) -> bool:
    values = [value for part in test.data_sets[0] for value in part]
    return all(isinstance(value, np.ndarray) and value.dtype.type in PLAIN for value in values)


def outcome(test: Any) -> str:
    """Return "passed", "refused: why" or "failed: why"."""
    inputs, outputs = test.data_sets[0]
    names = [value.name for value in test.model.graph.input]
    given = {n: _single(value) for n, value in zip(names, inputs, strict=False)}
    said = "failed: it has no inputs"
    for computed in _choices(given):
        try:
            results = _run(test, given, computed)
        except TeacherError as error:
            said = f"{'failed' if error.__cause__ else 'refused'}: {error}"
            continue
        return _compared(test, results, outputs)
    return said


def _single(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32) if value.dtype == np.float64 else value


def _choices(given: dict[str, np.ndarray]) -> Iterator[list[str]]:
    """Yield inputs that are computed: all, the first ones, the first of floats alone."""
    for num in range(len(given), 0, -1):
        yield [*given][:num]
    yield from ([name] for name, value in given.items() if value.dtype == np.float32)


def _run(test: Any, given: dict[str, np.ndarray], computed: list[str]) -> list[Any]:
    """Return the outputs of a test's nodes."""
    examples = {name: torch.from_numpy(given[name].copy()) for name in computed}
    model = onnx.ModelProto.FromString(test.model.SerializeToString())
    if operators_of(test) & {"Dropout", "LayerNormalization"}:
        del model.graph.output[1:]  # which only training needs
    graph = Graph(model, [examples])
    graph.values |= {name: [value] for name, value in given.items() if name not in computed}
    graph.lower(OPERATORS)
    results = []
    for output in model.graph.output:
        value = graph.values[output.name]
        if isinstance(value, str):
            network = GraphNetwork(graph.steps, graph.parts, "%0", value).eval()
            with torch.no_grad():
                values = {f"%{index}": examples[name] for index, name in enumerate(computed)}
                results.append(network.run(values)[value].numpy())
        else:
            results.append(value[0])
    return results


def _compared(test: Any, results: list[Any], outputs: list[Any]) -> str:
    for got, wanted in zip(results, outputs, strict=False):
        try:
            np.testing.assert_allclose(got, wanted, test.rtol, test.atol)
        except AssertionError as error:
            return f"failed: {' '.join(str(error).split())[:200]}"
    return "passed"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks onnx_operators")
    parser.add_argument("--out", type=Path, default=RECORDS / "onnx_operators.json")
    parser.add_argument("--show", action="store_true", help="print why tests did not pass")
    args = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    reasons = {}
    for test in node_tests():
        said = outcome(test)
        kind, _, why = said.partition(": ")
        (name, *more) = operators_of(test)
        counts.setdefault("functions of several nodes" if more else name, Counter())[kind] += 1
        if why:
            reasons[test.name] = said
            if args.show:
                print(test.name, said)
    totals = sum(counts.values(), Counter[str]())
    partly = {name: row for name, row in sorted(counts.items()) if len(row) > 1}
    record = {
        "name": "onnx_operators",
        "data": "ONNX's own node tests of the operators that are claimed, and operators not all of "
        "whose tests pass",
        "onnx": onnx.__version__,
        "operators": len(OPERATORS),
        "without_a_test": sorted(OPERATORS.keys() - counts.keys()),
        "environment": environment("cpu"),
        "rows": {"all": totals} | partly,
        "by_operator": dict(sorted(counts.items())),
        "not_passed": reasons,
    }
    write_json(args.out, record)
    print(f"{len(OPERATORS)} operators: {', '.join(f'{n} {kind}' for kind, n in totals.items())}")


if __name__ == "__main__":
    main()

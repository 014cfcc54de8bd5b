"""Fold BatchNorm into the layers before it."""

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from dreamstill.evaluation import check_same_function, device_of
from dreamstill.graph.modules import _calls, replace_module
from dreamstill.graph.tracing import trace
from dreamstill.input_spec import InputSpec
from dreamstill.nn.copying import copy_network, is_hooked
from dreamstill.nn.padding import make_padding_plain

__all__ = ["batch_norms", "fold_batch_norm"]


def fold_batch_norm(model: nn.Module, spec: InputSpec | None = None) -> nn.Module:
    """Return a copy whose BatchNorm layers are folded into the layers before them.

    Folded layers become identities, or the activation that they ran too. Not folded are layers that
    do not follow exactly one layer, or where either of the two has hooks.

    Args:
        model: network; not modified.
        spec: input of the network; if given, subclasses of nn.Conv2d that pad by themselves become
            plain ones, and the outputs of copy and model are compared.

    Raises:
        TeacherError: the model has BatchNorm and cannot be traced, or the outputs differ.

    """
    whole, model = model, copy_network(model).eval()
    if spec is not None:
        make_padding_plain(model, spec.encode(spec.noise(2).to(device_of(model))))
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return model
    for name, norm in batch_norms(trace(model)).items():
        layer, after = model.get_submodule(name), model.get_submodule(norm)
        assert isinstance(after, _BatchNorm)
        if after.weight is None and after.running_var is not None:  # fusing needs affine parameters
            after.weight = nn.Parameter(torch.ones_like(after.running_var))
            after.bias = nn.Parameter(torch.zeros_like(after.running_var))
        fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        replace_module(model, name, fuse(layer, after))  # type: ignore[type-var]
        activation = [*after.children()]  # timm's runs one
        replace_module(model, norm, nn.Sequential(*activation) if activation else nn.Identity())
    if spec is not None:
        check_same_function(whole, model, spec, "folding BatchNorm")
    return model


def batch_norms(graph: fx.GraphModule) -> dict[str, str]:
    """Return the BatchNorm that is the only reader of a layer's output, by layer name.

    BatchNorm layers without running statistics are left out.
    """
    modules, calls = dict(graph.named_modules()), _calls(graph)
    found = {}
    for node in graph.graph.nodes:
        name = str(node.target)
        norm = modules.get(name) if node.op == "call_module" else None
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and calls[name] == 1:
            if is_hooked(norm):
                continue
            before = node.args[0]
            layer = modules.get(str(before.target)) if before.op == "call_module" else None
            layer = None if layer is None or is_hooked(layer) else layer
            alone = len(before.users) == 1 and calls[str(before.target)] == 1
            if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear) and alone:
                found[str(before.target)] = name
    return found

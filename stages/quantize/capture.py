"""A user's model -> a graph of ATen operators that quantizers can be put into (`engine.py`).

The graph owns copies of the weights: whatever happens to it, the model stays as it was.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from kdpipe.stages.quantize.aten import DROPOUTS, mark_constants, name_layers, origin
from kdpipe.stages.quantize.attention import open_attention
from kdpipe.stages.quantize.fold import fold_batch_norms
from kdpipe.stages.quantize.trace import trace
from kdpipe.targets.errors import StageError


def capture(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """Trace `model` in eval mode for any batch size; batch norms are folded, dropout is gone,
    attention is written out.

    `example`: a batch of at least two samples, (N >= 2, ...), on the model's device. All weights of
    the result can be trained. Raises StageError when torch.export cannot trace the model.
    """
    # The exported program shares its parameters with the model it was made from.
    program = trace(copy.deepcopy(model).eval(), example)
    traced = program.module(check_guards=False)
    _return_one_tensor(traced.graph)
    module = fx.GraphModule(traced, traced.graph)
    _make_functional(module.graph)
    _remove_dropout(module.graph)
    open_attention(module.graph)
    fold_batch_norms(module)
    module.graph.eliminate_dead_code()
    drop_unused(module)
    mark_constants(module.graph)
    name_layers(module.graph)
    module.recompile()
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return module


def drop_unused(module: fx.GraphModule) -> None:
    """Delete the parameters and buffers that no node reads any more, in place."""
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    called = {node.target for node in module.graph.nodes if node.op == "call_module"}
    for path in [name for name, _ in (*module.named_parameters(), *module.named_buffers())]:
        folder, _, name = path.rpartition(".")
        if path not in used and folder not in called:
            delattr(module.get_submodule(folder), name)


def _return_one_tensor(graph: fx.Graph) -> None:
    """Unwrap what holds the one tensor that the model returns; raise StageError on several."""
    outputs = graph.output_node().all_input_nodes
    if len(outputs) != 1:
        raise StageError(
            "the model must return exactly one tensor",
            found=f"{len(outputs)} outputs",
            fix="wrap it in a module that returns the one tensor the task reads",
        )
    graph.output_node().args = (outputs[0],)
    graph.set_codegen(fx.graph.CodeGen())


def _make_functional(graph: fx.Graph) -> None:
    """Replace in-place operators (`relu_`) by those that return a new tensor (`relu`)."""
    for node in list(graph.nodes):
        if node.op != "call_function" or not _writes(node):
            continue
        name, _, overload = str(node.target).removeprefix("aten.").partition(".")
        functional = getattr(torch.ops.aten, name.removesuffix("_"), None)
        target = node.args[0]
        if functional is None or not name.endswith("_") or _seen_elsewhere(node, target):
            raise StageError(
                f"the model overwrites a tensor that it goes on using: {origin(node)}",
                found=f"the in-place operator {node.target}",
                fix="use the operator that returns a new tensor, e.g. x.add(y), not x.add_(y)",
            )
        node.target = getattr(functional, overload)
        target.replace_all_uses_with(node, delete_user_cb=lambda user, node=node: node < user)


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema and schema.is_mutable)


def _is_view(node: fx.Node) -> bool:
    """Whether the node's output shares memory with its first input."""
    schema = getattr(node.target, "_schema", None)
    return bool(schema and not schema.is_mutable and any(r.alias_info for r in schema.returns))


def _seen_elsewhere(write: fx.Node, target: fx.Node) -> bool:
    """Whether what `write` overwrites is read later through another view of the same memory."""
    base = target
    while _is_view(base):
        base = base.all_input_nodes[0]
    views, queue = set(), [base]
    while queue:
        node = queue.pop()
        views.add(node)
        queue += [user for user in node.users if _is_view(user)]
    return any(write < user for view in views - {target} for user in view.users)


def _remove_dropout(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.target in DROPOUTS:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)

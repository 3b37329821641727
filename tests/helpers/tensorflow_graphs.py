"""Inspect the graphs of TensorFlow functions."""


def operation_types(function):
    """Return the set of operation types in a concrete function and the functions that it calls."""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    return {node.op for node in nodes}

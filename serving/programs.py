"""Compiled functions of language models: one set for all versions of the same network.

TensorFlow keeps what XLA compiled until the process ends, also for functions that nobody holds any
more. So a version that was trained anew takes the functions of the one before, over weights and a
cache of its own: it is there without compiling, and memory does not grow with each.
"""

import copy
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2, function_pb2

WAIT_SECONDS = 5.0  # how often who waits for another's compiling says so


class Programs:
    """The functions of one network. Those of `over` may run at once for several versions."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._functions: dict[str, tuple[Any, list[int]]] = {}  # and which captures it takes

    @contextmanager
    def compiling(self, waits: Callable[[], None]) -> Iterator[None]:
        """One version at a time: the next finds all compiled. `waits` is called now and then
        meanwhile, and ends the waiting by what it raises."""
        while not self._lock.acquire(timeout=WAIT_SECONDS):
            waits()
        try:
            yield
        finally:
            self._lock.release()

    def over(
        self, captures: Sequence[tf.Tensor], trace: Callable[[], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Concrete functions by name, which read and write these resources.

        `trace` makes them, capturing nothing else, if no version has yet. Within `compiling`.
        """
        if not self._functions:
            at = {id(tensor): place for place, tensor in enumerate(captures)}
            self._functions = {
                name: (function, [at[id(tensor)] for tensor in function.captured_inputs])
                for name, function in trace().items()
            }
        return {
            name: _with_captures(function, [captures[place] for place in places])
            for name, (function, places) in self._functions.items()
        }


def programs_of(decode: Any, *settings: int) -> Programs:
    """Those of a loaded network, by what `decode` computes and by what else is traced."""
    shapes = [(variable.shape, variable.dtype) for variable in decode.variables]
    signature = (decode.structured_input_signature, decode.structured_outputs)
    key = repr((fingerprint(decode), shapes, signature, settings))
    with _LOCK:
        return _PROGRAMS.setdefault(key, Programs())


_LOCK = threading.Lock()
_PROGRAMS: dict[str, Programs] = {}


def fingerprint(function: Any) -> str:
    """sha256 of all that a concrete function computes, whatever it and its nodes are called.

    Names have numbers that depend on what else a process has traced; so a node is known by its
    place, and a function that is called by its own fingerprint.
    """
    whole = function.function_def
    library = {one.signature.name: one for one in function.graph.as_graph_def().library.function}
    known: dict[str, str] = {}

    def of(definition: function_pb2.FunctionDef) -> str:
        name = definition.signature.name
        if name not in known:
            known[name] = hashlib.sha256(repr(described(definition)).encode()).hexdigest()
        return known[name]

    def described(definition: function_pb2.FunctionDef) -> list[object]:
        signature, nodes = definition.signature, definition.node_def
        places = {argument.name: f"argument {i}" for i, argument in enumerate(signature.input_arg)}
        places |= {node.name: f"node {i}" for i, node in enumerate(nodes)}

        def place(text: str) -> str:  # NAME, NAME:OUTPUT:NUMBER or ^NAME
            name, colon, output = text.removeprefix("^").partition(":")
            return f"{text[:1] == '^'} {places[name]}{colon}{output}"

        def value(attribute: attr_value_pb2.AttrValue) -> object:
            called = [attribute.func] if attribute.HasField("func") else attribute.list.func
            return [of(library[one.name]) for one in called] or attribute.SerializeToString(
                deterministic=True
            )

        return [
            [argument.type for argument in signature.input_arg],
            *(
                (
                    node.op,
                    node.device,
                    [place(text) for text in node.input],
                    # Which gradient a node has is a numbered name, and nothing is trained here.
                    [
                        (name, value(node.attr[name]))
                        for name in sorted(node.attr)
                        if name != "_gradient_op_type"
                    ],
                )
                for node in nodes
            ),
            [place(definition.ret[argument.name]) for argument in signature.output_arg],
            sorted(place(f"^{name}") for name in definition.control_ret.values()),
        ]

    return of(whole)


def forget(variables: Sequence[tf.Variable]) -> None:
    """Frees what they hold, as functions that were traced over them keep them. Nobody may read
    them any more."""
    for variable in variables:
        nothing = tf.zeros([0], variable.dtype)
        tf.raw_ops.AssignVariableOp(resource=variable.handle, value=nothing, validate_shape=False)


def _with_captures(function: Any, captures: list[tf.Tensor]) -> Any:
    own = copy.copy(function)
    own.set_external_captures(captures)
    return own

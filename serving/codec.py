"""Tensors to and from JSON and TensorProto, by TensorFlow Serving's rules.

Reading JSON goes two ways. The fast one flattens a value level by level and checks all leaves at
once. When it meets anything wrong, `_first_fault` walks the value again in the protocol's own order
and names the first fault in the protocol's words; speed does not matter there.

Arrays of strings are numpy object arrays of `bytes`.
"""

import base64
import binascii
import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from serving.errors import Code, ServingError, invalid_argument

Arrays = dict[str, np.ndarray]

MAX_RANK = 64  # numpy's limit

INT32 = (-(2**31), 2**31 - 1)
# What a JSON integer must fit. The protocol checks the small types against int32 only.
INTEGER_RANGES = {
    types_pb2.DT_INT8: INT32,
    types_pb2.DT_UINT8: INT32,
    types_pb2.DT_INT16: INT32,
    types_pb2.DT_INT32: INT32,
    types_pb2.DT_INT64: (-(2**63), 2**63 - 1),
    types_pb2.DT_UINT32: (0, 2**32 - 1),
    types_pb2.DT_UINT64: (0, 2**64 - 1),
}
FLOATS = (types_pb2.DT_FLOAT, types_pb2.DT_DOUBLE)
JSON_TYPES = {*INTEGER_RANGES, *FLOATS, types_pb2.DT_BOOL, types_pb2.DT_STRING}


def type_name(dtype: int) -> str:
    """TensorFlow's short name of a DataType: `float`, `int32`, `string`, `half`."""
    return types_pb2.DataType.Name(dtype).removeprefix("DT_").lower()


# ---------------------------------------------------------------- JSON text

_DECODER = json.JSONDecoder()

# Python's message (its beginning) -> RapidJSON's.
_PARSE_ERRORS = {
    "Expecting property name": "Missing a name for object member.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Unterminated string": "Missing a closing quotation mark in string.",
    "Invalid control character": "Invalid encoding in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
}
_STRING_OR_INF = re.compile(r'"(?:[^"\\]|\\.)*"|\bInf\b', re.DOTALL)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)


def parse_json(body: bytes) -> Any:
    """The first JSON value in `body`; the rest is ignored. NaN, Infinity and Inf are numbers."""
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    # Invalid UTF-8 travels through a string input unchanged, as surrogates here.
    text = body.decode("utf-8", errors="surrogateescape")
    start = len(text) - len(text.lstrip(" \t\r\n"))
    if start == len(text):
        raise _parse_error("The document is empty.", text, start)
    try:
        value = _decode(text, start)
    except json.JSONDecodeError as error:
        raise _parse_error(_rapidjson_text(error, text), text, error.pos) from error
    except RecursionError as error:
        raise _parse_error("Lists and objects are nested too deeply.", text, start) from error
    except ValueError as error:  # an integer of thousands of digits
        raise _parse_error("Number too big to be stored in double.", text, start) from error
    if "\\ud" in text or "\\uD" in text:
        _refuse_lone_surrogates(text)
    return value


def _decode(text: str, start: int) -> Any:
    try:
        return _DECODER.raw_decode(text, start)[0]
    except json.JSONDecodeError:
        if not any(m[0] == "Inf" for m in _STRING_OR_INF.finditer(text)):
            raise
    longer = _STRING_OR_INF.sub(lambda m: "Infinity" if m[0] == "Inf" else m[0], text)
    return _DECODER.raw_decode(longer, start)[0]


def _rapidjson_text(error: json.JSONDecodeError, text: str) -> str:
    if error.msg.startswith("Expecting ',' delimiter"):
        if _innermost_bracket(text[: error.pos]) == "{":
            return "Missing a comma or } after an object member."
        return "Missing a comma or ] after an array element."
    matches = (ours for theirs, ours in _PARSE_ERRORS.items() if error.msg.startswith(theirs))
    return next(matches, "Invalid value.")


def _innermost_bracket(text: str) -> str:
    """The last bracket that is still open where `text` ends."""
    stack = [""]
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', text, re.DOTALL):
        if token[0] in "[{":
            stack.append(token[0])
        elif token[0] in "]}":
            stack.pop()
    return stack[-1]


def _refuse_lone_surrogates(text: str) -> None:
    r"""`"\ud83d"` alone is no character and could not be written as UTF-8."""
    high: int | None = None  # where a high half waits for its low half
    for escape in _ESCAPE.finditer(text):
        unit = int(escape[1], 16) if escape[1] else 0
        is_low = 0xDC00 <= unit <= 0xDFFF
        if (high is not None) != is_low or (is_low and escape.start() != high):
            at = escape.start() if high is None else high - 6
            raise _parse_error("The surrogate pair in string is invalid.", text, at)
        high = escape.end() if 0xD800 <= unit <= 0xDBFF else None
    if high is not None:
        raise _parse_error("The surrogate pair in string is invalid.", text, high - 6)


def _parse_error(what: str, text: str, position: int) -> ServingError:
    offset = len(text[:position].encode("utf-8", errors="surrogateescape"))
    return invalid_argument(f"JSON Parse error: {what} at offset: {offset}")


def shown(value: Any) -> str:
    """`JSON Value: ...` as error texts show it, cut at 256 characters however large it is."""
    pieces, length = [], 0
    try:
        for piece in json.JSONEncoder(indent=4, ensure_ascii=False).iterencode(value):
            pieces.append(piece)
            length += len(piece)
            if length > 256:
                break
    except RecursionError:
        pieces = ["(nested too deeply to show)"]
    text = "".join(pieces)[:256].encode("utf-8", errors="surrogateescape").decode(errors="replace")
    return f"JSON Value: {text}"


# ---------------------------------------------------------------- JSON -> tensors


def is_base64_object(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64_object(value)


def inputs_from_json(body: Mapping[str, Any], dtypes: Mapping[str, int]) -> tuple[Arrays, bool]:
    """The input tensors of a predict request, by alias, and whether it is in row format.

    `dtypes` are the signature's inputs: alias -> DataType. Types come from there, never from JSON.
    """
    if ("instances" in body) and ("inputs" in body):
        raise invalid_argument(
            f"{shown(body)} Not formatted correctly expecting only one of 'inputs' or 'instances' "
            "keys to exist "
        )
    if "instances" in body:
        return _from_rows(body["instances"], dtypes), True
    if "inputs" in body:
        return _from_columns(body["inputs"], dtypes), False
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def _from_rows(rows: Any, dtypes: Mapping[str, int]) -> Arrays:
    if not isinstance(rows, list):
        raise invalid_argument(f"{shown(rows)} Expecting 'instances' to be an list/array")
    if not rows:
        raise invalid_argument(f"{shown(rows)} No values in 'instances' array")
    try:
        if _is_object(rows[0]):
            if all(type(row) is dict and row.keys() == dtypes.keys() for row in rows):
                return {a: _to_array([row[a] for row in rows], dtypes[a]) for a in dtypes}
        elif len(dtypes) == 1 and not any(map(_is_object, rows)):
            ((alias, dtype),) = dtypes.items()
            return {alias: _to_array(rows, dtype)}
    except _Fault:
        pass  # named below
    raise _row_fault(rows, dtypes)


def _row_fault(rows: list[Any], dtypes: Mapping[str, int]) -> ServingError:
    """The first fault in rows that `_from_rows` could not convert, in the protocol's order."""
    rows_are_objects = _is_object(rows[0])
    if not rows_are_objects and len(dtypes) > 1:
        return invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    first_shapes: dict[str, tuple[int, ...]] = {}
    for i, row in enumerate(rows):
        failed = f"Failed to process element: {i}"
        if rows_are_objects != _is_object(row):
            return invalid_argument(
                f"Expecting object but got list at item {i} of input list"
                if rows_are_objects
                else f"Expecting value/list but got object at item {i} of input list"
            )
        named = row if rows_are_objects else {next(iter(dtypes)): row}
        for alias, value in named.items():
            try:
                _check_row_value(alias, value, dtypes, first_shapes)
            except ServingError as error:
                key = f" key: {alias}" if rows_are_objects else ""
                return ServingError(
                    error.code,
                    f"{failed}{key} of 'instances' list. Error: {error.code.name}: {error.message}",
                )
        if named.keys() != dtypes.keys():
            return invalid_argument(
                f"{failed} of 'instances' list. JSON object: {shown(row)[len('JSON Value: ') :]} "
                f"keys must be equal to: {','.join(sorted(dtypes))}"
            )
    raise AssertionError(f"rows refused without a fault: {shown(rows)}")


def _check_row_value(
    alias: str, value: Any, dtypes: Mapping[str, int], first_shapes: dict[str, tuple[int, ...]]
) -> None:
    if alias not in dtypes:
        raise invalid_argument(f"JSON object: does not have named input: {alias}")
    shape = _shape_of(value)
    _check_value(value, shape, dtypes[alias])
    expected = first_shapes.setdefault(alias, shape)
    size, expected_size = int(np.prod(shape)), int(np.prod(expected))
    if size != expected_size:
        raise invalid_argument(f"Expecting tensor size: {expected_size} but got: {size}")
    if shape != expected:
        raise invalid_argument(
            f"Expecting shape [{','.join(map(str, expected))}] "
            f"but got: [{','.join(map(str, shape))}]"
        )


def _from_columns(inputs: Any, dtypes: Mapping[str, int]) -> Arrays:
    if not _is_object(inputs):
        if len(dtypes) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        inputs = {next(iter(dtypes)): inputs}
    arrays = {}
    for alias, dtype in dtypes.items():
        if alias not in inputs:
            raise invalid_argument(f"Missing named input: {alias} in 'inputs' object.")
        try:
            arrays[alias] = _to_array(inputs[alias], dtype)
        except _Fault:
            _check_value(inputs[alias], _shape_of(inputs[alias]), dtype)
            raise AssertionError(f"refused without a fault: {shown(inputs[alias])}") from None
    return arrays


class _Fault(Exception):
    """The fast way does not fit; the slow walk finds out what to tell."""


def _to_array(value: Any, dtype: int) -> np.ndarray:
    """The tensor of a nested list, or `_Fault`."""
    shape = _shape_of(value)
    leaves = [value]
    for size in shape:
        if not all(type(row) is list and len(row) == size for row in leaves):
            raise _Fault
        leaves = list(itertools.chain.from_iterable(leaves))
    return np.reshape(_leaf_array(leaves, dtype), shape)


def _shape_of(value: Any) -> tuple[int, ...]:
    """The shape by the first element of each list."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    if len(shape) > MAX_RANK:
        raise invalid_argument(f"Lists are nested {len(shape)} deep; at most {MAX_RANK} is legal.")
    return tuple(shape)


def _leaf_array(leaves: list[Any], dtype: int) -> np.ndarray:
    if not leaves:
        return np.empty(0, dtype=tf.as_dtype(dtype).as_numpy_dtype)
    types = set(map(type, leaves))  # exact types: in Python a bool is an int
    if dtype == types_pb2.DT_STRING:
        array = np.empty(len(leaves), dtype=object)
        array[:] = [_to_bytes(leaf) for leaf in leaves]
        return array
    if dtype in FLOATS and types <= {int, float}:
        try:
            doubles = np.array(leaves, dtype=np.float64)
        except OverflowError as error:
            raise _Fault from error
        with np.errstate(over="ignore"):  # beyond float32 is infinity, as in a C++ cast
            return doubles.astype(tf.as_dtype(dtype).as_numpy_dtype)
    if dtype == types_pb2.DT_BOOL and types <= {bool}:
        return np.array(leaves, dtype=bool)
    if dtype in INTEGER_RANGES and types <= {int}:
        low, high = INTEGER_RANGES[dtype]
        if min(leaves) >= low and max(leaves) <= high:
            wide = np.array(leaves, dtype=np.uint64 if low == 0 else np.int64)
            return wide.astype(tf.as_dtype(dtype).as_numpy_dtype)
    raise _Fault


def _to_bytes(leaf: Any) -> bytes:
    if isinstance(leaf, str):
        return leaf.encode("utf-8", errors="surrogateescape")
    if not is_base64_object(leaf):
        raise _Fault
    text = leaf["b64"].rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _Fault from error


def _check_value(value: Any, shape: tuple[int, ...], dtype: int, level: int = 0) -> None:
    """Raises for the first fault of `value` in depth-first order; returns if there is none."""
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid_argument(
                f"{shown(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        return _check_leaf(value, dtype)
    if level >= len(shape):
        raise invalid_argument(
            f"Encountered list at unexpected level: {level} expected < {len(shape)}"
        )
    if len(value) != shape[level]:
        raise invalid_argument(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for item in value:
        _check_value(item, shape, dtype, level + 1)


def _check_leaf(leaf: Any, dtype: int) -> None:
    if dtype not in JSON_TYPES:
        raise ServingError(
            Code.UNIMPLEMENTED, f"Conversion of {shown(leaf)} to type: {type_name(dtype)}"
        )
    try:
        _leaf_array([leaf], dtype)
    except _Fault:
        if dtype == types_pb2.DT_STRING and is_base64_object(leaf):
            raise invalid_argument("Unable to base64 decode") from None
        raise invalid_argument(
            f"{shown(leaf)} Type: {_json_type(leaf)} is not of expected type: {type_name(dtype)}"
        ) from None


def _json_type(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "Null", True: "True", False: "False"}[value]
    names: dict[type, str] = {dict: "Object", list: "Array", str: "String"}
    return names.get(type(value), "Number")


# ---------------------------------------------------------------- tensors -> JSON


def outputs_to_json(outputs: Arrays, *, row_format: bool) -> bytes:
    """The body of a predict answer.

    float32 is printed as the shortest text that reads back to the same float32. NaN and infinities
    are bare words and invalid UTF-8 is passed through: not JSON for a strict reader, but the
    protocol. orjson can write neither, so such answers take Python's slower writer.
    """
    if row_format:
        _check_rows(outputs)
    values = {alias: _json_ready(alias, array) for alias, array in outputs.items()}
    if len(values) == 1:
        (answer,) = values.values()
    elif row_format:
        answer = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    else:
        answer = values
    payload = {"predictions" if row_format else "outputs": answer}

    if all(array.dtype.kind != "f" or np.isfinite(array).all() for array in outputs.values()):
        try:
            return orjson.dumps(payload, option=orjson.OPT_SERIALIZE_NUMPY)
        except orjson.JSONEncodeError:
            pass  # a string that is no valid UTF-8
    text = json.dumps(payload, ensure_ascii=False, default=_plain_numbers)
    return text.encode("utf-8", errors="surrogateescape")


def _check_rows(outputs: Arrays) -> None:
    batch_size: int | None = None
    for alias, array in outputs.items():
        if array.ndim == 0:
            raise invalid_argument(f"Tensor name: {alias} has no shape information ")
        batch_size = len(array) if batch_size is None else batch_size
        if len(array) != batch_size:
            raise invalid_argument(
                f"Tensor name: {alias} has inconsistent batch size: {len(array)} "
                f"expecting: {batch_size}"
            )


def _json_ready(alias: str, array: np.ndarray) -> Any:
    """Nested lists for strings; numbers stay in numpy, which orjson writes itself."""
    dtype = tf.as_dtype(array.dtype).as_datatype_enum
    if dtype not in JSON_TYPES:
        raise invalid_argument(f"Failed to write JSON value for tensor type: {type_name(dtype)}")
    if dtype != types_pb2.DT_STRING:
        return np.ascontiguousarray(array) if array.ndim else array[()]
    convert = _to_base64 if alias.endswith("_bytes") else _to_text
    converted = np.empty(array.size, dtype=object)
    converted[:] = [convert(leaf) for leaf in array.ravel()]
    return converted.reshape(array.shape).tolist()


def _to_text(value: bytes) -> str:
    return value.decode("utf-8", errors="surrogateescape")


def _to_base64(value: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode("ascii")}


def _plain_numbers(value: Any) -> Any:
    array = np.asarray(value)
    if array.dtype.kind == "f":
        # The shortest text of a float32, read as a double, prints as that text again.
        array = array.astype(str).astype(np.float64)
    return array.tolist()


# ---------------------------------------------------------------- TensorProto

# Field of each DataType in a TensorProto. half and bfloat16 travel as their 16 bits.
_PROTO_FIELDS = {
    types_pb2.DT_FLOAT: "float_val",
    types_pb2.DT_DOUBLE: "double_val",
    types_pb2.DT_INT8: "int_val",
    types_pb2.DT_UINT8: "int_val",
    types_pb2.DT_INT16: "int_val",
    types_pb2.DT_UINT16: "int_val",
    types_pb2.DT_INT32: "int_val",
    types_pb2.DT_INT64: "int64_val",
    types_pb2.DT_UINT32: "uint32_val",
    types_pb2.DT_UINT64: "uint64_val",
    types_pb2.DT_BOOL: "bool_val",
    types_pb2.DT_STRING: "string_val",
    types_pb2.DT_HALF: "half_val",
    types_pb2.DT_BFLOAT16: "half_val",
    types_pb2.DT_COMPLEX64: "scomplex_val",
    types_pb2.DT_COMPLEX128: "dcomplex_val",
}


def tensor_from_proto(alias: str, proto: tensor_pb2.TensorProto) -> np.ndarray:
    """Fewer values than the shape asks for are legal: the last one fills up."""
    dims = [dim.size for dim in proto.tensor_shape.dim]
    try:
        if proto.tensor_shape.unknown_rank or any(size < 0 for size in dims):
            raise ValueError(f"incomplete shape {dims}")  # numpy would guess a size
        array = tf.make_ndarray(proto)
    except (ValueError, TypeError, MemoryError) as error:
        raise invalid_argument(f"tensor parsing error: {alias}") from error
    return np.asarray(array)


def tensor_to_proto(array: np.ndarray, *, as_content: bool = False) -> tensor_pb2.TensorProto:
    """Values in the typed `*_val` field, one per element, as TensorFlow Serving sends them.

    With `as_content` their bytes in `tensor_content`, strings aside, which it does not hold.
    """
    dtype = tf.as_dtype(array.dtype).as_datatype_enum
    proto = tensor_pb2.TensorProto(dtype=dtype)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if dtype not in _PROTO_FIELDS:
        raise ServingError(Code.UNIMPLEMENTED, f"Cannot send a tensor of type {type_name(dtype)}.")
    if as_content and dtype != types_pb2.DT_STRING:
        proto.tensor_content = np.ascontiguousarray(array).tobytes()
        return proto
    flat = array.ravel()
    if dtype in (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16):
        flat = flat.view(np.uint16)
    elif dtype in (types_pb2.DT_COMPLEX64, types_pb2.DT_COMPLEX128):
        flat = flat.view(flat.real.dtype)
    getattr(proto, _PROTO_FIELDS[dtype]).extend(flat.tolist())
    return proto

"""Tensors to and from JSON and TensorProto, by TensorFlow Serving's rules.

Reading JSON goes two ways. The fast one flattens a value level by level and checks all leaves at
once. When it meets anything wrong, `_first_fault` walks the value again in the protocol's own order
and names the first fault in the protocol's words; speed does not matter there.

Arrays of strings are numpy object arrays of `bytes`.
"""

import base64
import functools
import itertools
import json
import math
import re
from array import array as packed
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import orjson
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2

from serving.errors import Code, ServingError, invalid_argument
from serving.json_text import shown

Arrays = dict[str, np.ndarray]

MAX_RANK = 64  # numpy's limit
TEXT_BYTES = 32  # that a text of a tensor takes beside itself
BAD_BASE64 = "Unable to base64 decode"
# As Abseil reads it: white space is passed over, padding is all there or not at all, of = or dots.
BASE64 = re.compile(r"([A-Za-z0-9+/]*)([=.]*)")
NO_SPACE = dict.fromkeys(map(ord, " \t\n\v\f\r"))

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


# ---------------------------------------------------------------- JSON -> tensors


def is_base64_object(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64_object(value)


def _has_object(rows: list[Any]) -> bool:
    return dict in set(map(type, rows)) and any(map(_is_object, rows))


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
        return _from_rows(body, dtypes), True
    if "inputs" in body:
        return _from_columns(body["inputs"], dtypes), False
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def _from_rows(body: Mapping[str, Any], dtypes: Mapping[str, int]) -> Arrays:
    rows = body["instances"]
    if not isinstance(rows, list):
        raise invalid_argument(f"{shown(body)} Expecting 'instances' to be an list/array")
    if not rows:
        raise invalid_argument(f"{shown(body)} No values in 'instances' array")
    try:
        if _is_object(rows[0]):
            if all(type(row) is dict and row.keys() == dtypes.keys() for row in rows):
                return {a: _to_array([row[a] for row in rows], dtypes[a]) for a in dtypes}
        elif len(dtypes) == 1 and not _has_object(rows):
            ((alias, dtype),) = dtypes.items()
            return {alias: _to_array(rows, dtype)}
    except Fault:
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
                return invalid_argument(
                    f"{failed}{key} of 'instances' list. Error: {error.code.name}: {error.message}"
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
        except Fault:
            _check_value(inputs[alias], _shape_of(inputs[alias]), dtype)
            raise AssertionError(f"refused without a fault: {shown(inputs[alias])}") from None
    return arrays


class Fault(Exception):
    """The fast way does not fit; the slow walk finds out what to tell."""


def _to_array(value: Any, dtype: int) -> np.ndarray:
    """The tensor of a nested list, or `Fault`."""
    shape = _shape_of(value)
    leaves = [value]
    for size in shape:
        if not all(type(row) is list and len(row) == size for row in leaves):
            raise Fault
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
    if dtype == types_pb2.DT_STRING:
        array = np.empty(len(leaves), dtype=object)
        array[:] = _encoded(leaves)
        return array
    if dtype in FLOATS:
        doubles = _packed("d", leaves)
        with np.errstate(over="ignore"):  # beyond float32 is infinity, as in a C++ cast
            return doubles.astype(tf.as_dtype(dtype).as_numpy_dtype)
    if dtype == types_pb2.DT_BOOL and set(map(type, leaves)) == {bool}:
        return np.array(leaves, dtype=bool)
    if dtype in INTEGER_RANGES:
        low, high = INTEGER_RANGES[dtype]
        wide = _packed("Q" if low == 0 else "q", leaves)
        if wide.min() >= low and wide.max() <= high:
            return wide.astype(tf.as_dtype(dtype).as_numpy_dtype)
    raise Fault


def _packed(typecode: str, leaves: list[Any]) -> np.ndarray:
    """Numbers as C has them. Faster than to look at every leaf's type: the conversion refuses all
    others but true and false, which can only be found where a 0 or a 1 has come out.
    """
    try:
        numbers = np.frombuffer(packed(typecode, leaves), typecode)
    except (TypeError, OverflowError) as error:
        raise Fault from error
    suspects = np.flatnonzero((numbers == 0) | (numbers == 1)).tolist()
    if any(type(leaves[i]) is bool for i in suspects):
        raise Fault
    return numbers


def _encoded(leaves: list[Any]) -> list[bytes]:
    try:
        return list(map(str.encode, leaves))
    except (TypeError, UnicodeEncodeError):  # base64 among them, or bytes that were no UTF-8
        return list(map(to_bytes, leaves))


def to_bytes(leaf: Any) -> bytes:
    """What a string input is given: a text, or an object of base64. Raises Fault for others."""
    if isinstance(leaf, str):
        return leaf.encode("utf-8", errors="surrogateescape")
    if not is_base64_object(leaf):
        raise Fault
    text = leaf["b64"]
    match = BASE64.fullmatch(text) or BASE64.fullmatch(text.translate(NO_SPACE))
    if not match:
        raise Fault
    digits, padding = match.groups()
    missing = -len(digits) % 4
    if missing == 3 or len(padding) not in (0, missing):
        raise Fault
    return base64.b64decode(digits + "=" * missing)


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
    if dtype not in JSON_TYPES and not isinstance(leaf, dict):
        raise ServingError(
            Code.UNIMPLEMENTED, f"Conversion of {shown(leaf)} to type: {type_name(dtype)}"
        )
    try:
        _leaf_array([leaf], dtype)
    except Fault:
        if dtype == types_pb2.DT_STRING and is_base64_object(leaf):
            raise invalid_argument(BAD_BASE64) from None
        if dtype == types_pb2.DT_STRING and isinstance(leaf, dict):
            raise invalid_argument(
                f"{shown(leaf)} not formatted correctly for base64 data"
            ) from None
        raise invalid_argument(
            f"{shown(leaf)} Type: {json_type(leaf)} is not of expected type: {type_name(dtype)}"
        ) from None


def json_type(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "Null", True: "True", False: "False"}[value]
    names: dict[type, str] = {dict: "Object", list: "Array", str: "String"}
    return names.get(type(value), "Number")


# ---------------------------------------------------------------- tensors -> JSON


def outputs_to_json(outputs: Arrays, *, row_format: bool) -> bytes:
    """The body of a predict answer.

    Numbers are the shortest text that reads back to the same float32 or float64. NaN and infinities
    are bare words and invalid UTF-8 is passed through: not JSON for a strict reader, but the
    protocol.
    """
    if row_format:
        _check_rows(outputs)
    by_row = row_format and len(outputs) > 1
    values = {alias: _json_ready(alias, array, by_row) for alias, array in outputs.items()}
    answer: Any
    if by_row:
        columns = [_rows(value) for value in values.values()]
        answer = [dict(zip(values, row, strict=True)) for row in zip(*columns, strict=True)]
    else:
        values = {alias: numbers(value) for alias, value in values.items()}
        answer = values if len(values) > 1 else next(iter(values.values()))
    return dumps({"predictions" if row_format else "outputs": answer})


def dumps(value: Any) -> bytes:
    """JSON of plain values, numpy arrays and what `numbers` and `to_text` give."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


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


def _json_ready(alias: str, array: np.ndarray, by_row: bool) -> Any:
    """Nested lists for strings; numbers stay in numpy, which orjson writes itself."""
    dtype = tf.as_dtype(array.dtype).as_datatype_enum
    if not array.size:
        return array.tolist()  # of any type
    if dtype not in JSON_TYPES:
        raise invalid_argument(f"Failed to write JSON value for tensor type: {type_name(dtype)}")
    if dtype != types_pb2.DT_STRING:
        return np.ascontiguousarray(array) if array.ndim else array[()]
    leaves = array.ravel().tolist()
    if array.ndim == 1 and not by_row and not alias.endswith("_bytes"):
        return _list_of_texts(leaves)
    converted = np.empty(array.size, dtype=object)
    converted[:] = list(map(to_base64 if alias.endswith("_bytes") else to_text, leaves))
    return converted.reshape(array.shape).tolist()


def _rows(value: Any) -> Any:
    return value if _is_finite(value) else [numbers(row) for row in value]


def numbers(value: Any) -> Any:
    """`value` itself, or its JSON when it is an array with NaN or infinities."""
    if _is_finite(value):
        return value
    array = np.ravel(value)
    odd = array[~np.isfinite(array)]
    words = iter(np.where(np.isnan(odd), b"NaN", np.where(odd > 0, b"Infinity", b"-Infinity")))
    nulls = dumps(value)  # in place of each of them
    return orjson.Fragment(re.sub(rb"null", lambda _: next(words), nulls))


def _is_finite(value: Any) -> bool:
    is_float = isinstance(value, np.ndarray | np.generic) and value.dtype.kind == "f"
    return not is_float or bool(np.isfinite(value).all())


def _list_of_texts(texts: list[bytes]) -> Any:
    """The JSON of a list, escaped as one text: decoding and encoding each takes several times
    longer. Like `to_text`, it passes bytes on that are no UTF-8.
    """
    joined = b"\0".join(texts)
    if joined.count(b"\0") != len(texts) - 1:  # there is one inside a text, or no text at all
        return list(map(to_text, texts))
    escaped = joined.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    escaped = escaped.replace(b"\n", b"\\n").replace(b"\r", b"\\r").replace(b"\t", b"\\t")
    if np.count_nonzero(np.frombuffer(escaped, np.uint8) < 0x20) != len(texts) - 1:
        return list(map(to_text, texts))
    return orjson.Fragment(b'["' + escaped.replace(b"\0", b'","') + b'"]')


def to_text(value: bytes) -> Any:
    """A JSON string; bytes that are no UTF-8 are written as they are."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        text = json.dumps(value.decode(errors="surrogateescape"), ensure_ascii=False)
        return orjson.Fragment(text.encode(errors="surrogateescape"))


def to_base64(value: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode("ascii")}


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


@functools.cache
def datatype_of(dtype: np.dtype) -> int:
    """TensorFlow's DataType of numpy's."""
    return int(tf.as_dtype(dtype).as_datatype_enum)


@functools.lru_cache(maxsize=256)
def _shape_proto(shape: tuple[int, ...]) -> tensor_shape_pb2.TensorShapeProto:
    return tensor_shape_pb2.TensorShapeProto(
        dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in shape]
    )


def check_texts(texts: Iterable[bytes], most: int) -> None:
    """INVALID_ARGUMENT for a text of more than `most` characters."""
    for text in texts:
        if len(text) > most:  # bytes, so characters need a closer look
            length = len(text.decode(errors="replace"))
            if length > most:
                raise invalid_argument(
                    f"A text holds {length} characters; --max-characters allows {most}."
                )


def check_filled(alias: str, proto: tensor_pb2.TensorProto, most: int) -> int:
    """How many values the tensor has; INVALID_ARGUMENT when fewer were sent and so many would take
    more than `most` bytes.
    """
    count = math.prod(max(dim.size, 0) for dim in proto.tensor_shape.dim)
    field = _PROTO_FIELDS.get(proto.dtype)
    if field is None or proto.tensor_content:
        return count
    values = getattr(proto, field)
    if proto.dtype == types_pb2.DT_STRING:
        size = TEXT_BYTES + (len(values[-1]) if values else 0)
    else:
        size = tf.as_dtype(proto.dtype).size
    if len(values) < count and count * size > most:
        raise invalid_argument(
            f"The shape of tensor {alias} has {count} values, {len(values)} were sent, and filled "
            f"up they would take {count * size} bytes; --max-inflated-bytes allows {most}."
        )
    return count


def tensor_from_proto(alias: str, proto: tensor_pb2.TensorProto) -> np.ndarray:
    """Fewer values than the shape asks for are legal: the last one fills up."""
    dims = [dim.size for dim in proto.tensor_shape.dim]
    try:
        if proto.tensor_shape.unknown_rank or any(size < 0 for size in dims):
            raise ValueError(f"incomplete shape {dims}")  # numpy would guess a size
        try:
            array = tf.make_ndarray(proto)
        except OverflowError:
            array = tf.make_ndarray(_wrapped(proto))
    except (ValueError, TypeError, MemoryError, KeyError) as error:
        raise invalid_argument(f"tensor parsing error: {alias}") from error
    return np.asarray(array)


def _wrapped(proto: tensor_pb2.TensorProto) -> tensor_pb2.TensorProto:
    """With values beyond a small integer type cut to its bits, as a C++ cast does."""
    is_half = proto.dtype in (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16)
    dtype = np.dtype(np.uint16 if is_half else tf.as_dtype(proto.dtype).as_numpy_dtype)
    wrapped = tensor_pb2.TensorProto()
    wrapped.CopyFrom(proto)
    field = wrapped.half_val if is_half else wrapped.int_val
    field[:] = np.array(field, np.int64).astype(dtype).tolist()
    return wrapped


class Tensors(Mapping[str, np.ndarray]):
    """A request's tensors by alias. Each is read when it is asked for, so that what the protocol
    looks at before them comes before their faults.
    """

    def __init__(self, protos: Mapping[str, tensor_pb2.TensorProto]) -> None:
        self.protos = protos

    def __getitem__(self, alias: str) -> np.ndarray:
        return tensor_from_proto(alias, self.protos[alias])

    def __contains__(self, alias: object) -> bool:
        return alias in self.protos

    def __iter__(self) -> Iterator[str]:
        return iter(self.protos)

    def __len__(self) -> int:
        return len(self.protos)


def tensor_to_proto(array: np.ndarray, *, as_content: bool = False) -> tensor_pb2.TensorProto:
    """Values in the typed `*_val` field, one per element, as TensorFlow Serving sends them.

    With `as_content` their bytes in `tensor_content`, strings aside, which it does not hold.
    """
    dtype = datatype_of(array.dtype)
    if dtype not in _PROTO_FIELDS:
        raise ServingError(Code.UNIMPLEMENTED, f"Cannot send a tensor of type {type_name(dtype)}.")
    proto = tensor_pb2.TensorProto(dtype=dtype, tensor_shape=_shape_proto(array.shape))
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

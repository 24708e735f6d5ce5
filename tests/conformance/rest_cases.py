"""What TensorFlow Serving answers over REST. Data only."""

import gzip
import json
import re
from collections.abc import Iterator
from typing import Any

from tests.conformance.case import Case, Raw, words

HALF, TF2, MIXED, TYPES, EXAMPLES, WARM = (
    f"/v1/models/{name}"
    for name in ("half_plus_two", "half_tf2", "mixed", "types", "examples", "warm")
)
NOBODY = "/v1/models/nobody"
COLUMNS = {"words": ["a", "b"], "counts": [[1, 2], [3, 4]], "is_loud": [True, False]}
ROW = {"words": "a", "counts": [1, 2], "is_loud": True}
LATEST = "Servable not found for request: Latest(nobody)"
SEVEN = "Servable not found for request: Specific(half_plus_two, 7)"
NO_LABEL = "Unrecognized servable version label: nobody"
WRONG_METHOD = (
    "Expected {} signature method_name to be tensorflow/serving/{}. Was: tensorflow/serving/"
)
NO_PREDICT_METHOD = (
    "Expected prediction signature method_name to be one of {tensorflow/serving/predict, "
    "tensorflow/serving/classify, tensorflow/serving/regress}. Was: tensorflow/serving/another"
)
EMPTY = "JSON Parse error: The document is empty"
JSON_TYPE = {"content-type": "application/json"}
CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "POST, GET",
    "access-control-allow-headers": "Content-Type",
}
# Signature, a value that comes back, one that is refused, and the name of the type in the refusal.
TYPED = [
    ("float32", 1.5, "a", "float"),
    ("float64", 0.1, "a", "double"),
    ("int32", -5, 1.5, "int32"),
    ("int64", 2**40, 1.0, "int64"),
    ("int8", 7, "a", "int8"),
    ("uint8", 7, "a", "uint8"),
    ("int16", 7, True, "int16"),
    ("uint32", 2**32 - 1, -1, "uint32"),
    ("uint64", 2**64 - 1, -1, "uint64"),
    ("bool", True, 1, "bool"),
    ("string", "text", 1, "string"),
]


def rest_cases() -> list[Case]:
    return [
        *_targets(),
        *_status_and_metadata(),
        *_bodies(),
        *_rows_and_columns(),
        *_types(),
        *_examples(),
        *_urls(),
        *_headers(),
        *_settings(),
    ]


def _post(path: str, body: Any, answer: Any, *rows: str, status: int = 0, **more: Any) -> Case:
    """`body` is bytes, or becomes JSON. A text is the answer to what is wrong, so 400."""
    is_error = isinstance(answer, str | re.Pattern) and not isinstance(answer, Raw)
    return Case(f"POST {path}", body, status or (400 if is_error else 200), answer, rows, **more)


def _get(path: str, answer: Any, *rows: str, status: int = 200, **more: Any) -> Case:
    return Case(f"GET {path}", None, status, answer, rows, **more)


def _shown(value: Any) -> str:
    text = json.dumps(value, indent=4, ensure_ascii=False)
    on_one_line = re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text)
    return "JSON Value: " + on_one_line.replace("[ ", "[").replace(" ]", "]")


def _mistyped(value: Any, json_type: str, wanted: str) -> str:
    return f"{_shown(value)} Type: {json_type} is not of expected type: {wanted}"


def _targets() -> Iterator[Case]:
    """Which model, version and label."""
    two = {"instances": [2.0]}
    half, quarter = {"predictions": [3.0]}, {"predictions": [2.5]}
    yield _post(f"{HALF}:predict", two, quarter, headers=JSON_TYPE)
    yield _post(f"{HALF}/versions/1:predict", two, half)
    yield _post(f"{HALF}/versions/2:predict", two, quarter)
    yield _post(f"{HALF}/versions/01:predict", two, half)
    yield _post(f"{HALF}/labels/stable:predict", two, half)
    yield _post(f"{HALF}/labels/canary:predict", {"inputs": [2.0]}, {"outputs": [2.5]})
    yield _post(f"{HALF}/labels/st%61ble:predict", two, half)
    yield _post("/V1/MODELS/half_plus_two/LABELS/stable:PREDICT", two, half)
    yield _post("/v1/models/half%5Fplus%5Ftwo:predict", two, quarter)
    yield _post(f"{HALF}:predict?a=b", two, quarter)
    yield _post(f"{TF2}:predict", two, half)
    yield _post(f"{TF2}/versions/123:predict", two, half)
    yield _post(
        f"{WARM}:predict",
        {"signature_name": "total", "instances": [1.0, 2.0]},
        {"predictions": [42.0, 84.0]},
    )
    yield _post(f"{HALF}/labels/nobody:predict", two, NO_LABEL, "unknown label")
    yield _post(f"{EXAMPLES}/labels/nobody:regress", _of("", {"x": 1.0}), NO_LABEL)
    yield _post(f"{HALF}/versions/7:predict", two, SEVEN, "unknown version", status=404)
    yield _post(f"{NOBODY}:predict", two, LATEST, "unknown model, no version", status=404)
    yield _post(
        f"{NOBODY}/versions/7:predict",
        two,
        "Servable not found for request: Specific(nobody, 7)",
        status=404,
    )
    yield _post(f"{NOBODY}:regress", _of("", {"x": 4.0}), LATEST, status=404)
    for path in (
        f"{HALF}/versions/99999999999999999999:predict",
        f"{HALF}/versions/{2**63}:predict",
    ):
        yield _post(path, two, "", "version beyond int64", headers=JSON_TYPE)
    yield _get(f"{HALF}/versions/{2**63}", "", status=400, headers=JSON_TYPE)


def _status_and_metadata() -> Iterator[Case]:
    both = {"model_version_status": [_status(2), _status(1)]}
    yield _get(HALF, both, headers=JSON_TYPE)
    yield _get(f"{HALF}/versions/1", {"model_version_status": [_status(1)]})
    yield _get(f"{HALF}/labels/stable", both)
    yield _get(TF2, {"model_version_status": [_status(123)]})
    yield _get(
        NOBODY,
        "Could not find any versions of model nobody",
        "status of an unknown model",
        status=404,
    )
    yield _get(
        f"{HALF}/versions/7",
        "Could not find version 7 of model half_plus_two",
        "status of an unknown version",
        status=404,
    )
    yield _get(f"{NOBODY}/versions/7", "Could not find version 7 of model nobody", status=404)
    yield _get(f"{NOBODY}/labels/a", "Could not find any versions of model nobody", status=404)
    for path in ("/v1/models/versions/7", "/v1/models/labels/a/metadata"):
        yield _get(path, "Missing model name in request.", status=400)
    for path, version in ((HALF, 2), (f"{HALF}/versions/1", 1), (f"{HALF}/labels/stable", 1)):
        spec = {"name": "half_plus_two", "signature_name": "", "version": str(version)}
        yield _get(f"{path}/metadata", {"model_spec": spec}, headers=JSON_TYPE)
    x = _info("x:0", "DT_FLOAT", "-1", "1")
    y = _info("Add:0", "DT_FLOAT", "-1", "1")
    yield _get(
        f"{HALF}/metadata",
        _signatures(
            serving_default={
                "inputs": {"x": x},
                "outputs": {"y": y},
                "method_name": "tensorflow/serving/predict",
                "defaults": {},
            }
        ),
    )
    init = {
        "inputs": {},
        "outputs": {
            "__saved_model_init_op": {
                "dtype": "DT_INVALID",
                "name": "NoOp",
                "tensor_shape": {"dim": [], "unknown_rank": True},
            }
        },
        "method_name": "",
        "defaults": {},
    }
    x = _info("serving_default_x:0", "DT_FLOAT", "-1")
    yield _get(
        f"{TF2}/metadata",
        _signatures(
            __saved_model_init_op=init,
            serving_default={"inputs": {"x": x}, "method_name": "tensorflow/serving/predict"},
            regress_x_to_y={"outputs": {"outputs": {"dtype": "DT_FLOAT"}}},
        ),
    )
    yield _get(
        f"{EXAMPLES}/metadata",
        _signatures(
            regress_x_to_y={
                "method_name": "tensorflow/serving/regress",
                "inputs": {
                    "inputs": {
                        "dtype": "DT_STRING",
                        "tensor_shape": {"dim": [], "unknown_rank": True},
                    }
                },
            },
        ),
    )
    yield _get(f"{NOBODY}/metadata", LATEST, status=404)
    yield _get(f"{HALF}/versions/7/metadata", SEVEN, status=404)
    yield _get(f"{HALF}/labels/nobody/metadata", NO_LABEL, status=400)


def _bodies() -> Iterator[Case]:
    """From the text to the keys."""
    path = f"{HALF}:predict"
    yield _post(path, b"", EMPTY, "empty body")
    for body, text in (
        (b"{", "Missing a name for object member. at offset: 1"),
        (b"nonsense", "Invalid value. at offset: 1"),
        (b'{"instances": [1.0,]}', "Invalid value. at offset: 19"),
        (b'{"instances": [1.0}', "Missing a comma or ] after an array element. at offset: 18"),
        (b'{"instances" [1.0]}', "Missing a colon after a name of object member. at offset: 13"),
        (b'{"instances": [1.0]', "Missing a comma or } after an object member. at offset: 19"),
        (b'{"instances": ["a', "Missing a closing quotation mark in string. at offset: 17"),
        (b'{"instances": [-]}', "Invalid value. at offset: 16"),
        (b'{"instances": [1.]}', "Miss fraction part in number. at offset: 17"),
        (b"   ", "The document is empty. at offset: 3"),
    ):
        yield _post(path, body, f"JSON Parse error: {text}", "malformed JSON")
    yield _post(f"{NOBODY}:predict", b"nonsense", "JSON Parse error: Invalid value. at offset: 1")
    yield _post(path, b'{"instances": [2.0]} and more', {"predictions": [2.5]})
    yield _post(path, [], "JSON Value: [] Is not object", "top level not an object")
    yield _post(path, [1, "a"], _shown([1, "a"]) + " Is not object", "top level not an object")
    yield _post(path, 1, "JSON Value: 1 Is not object")
    yield _post(path, {}, "Missing 'inputs' or 'instances' key", "neither key")
    body: dict[str, Any] = {"instances": [1], "inputs": {"x": [1]}}
    yield _post(
        path,
        body,
        f"{_shown(body)} Not formatted correctly expecting only one of "
        "'inputs' or 'instances' keys to exist ",
        "both keys",
    )
    for body in ({"instances": 1.0}, {"instances": {"x": "é"}}):
        yield _post(
            path,
            body,
            f"{_shown(body)} Expecting 'instances' to be an list/array",
            "instances not a list",
        )
    body = {"instances": []}
    yield _post(path, body, f"{_shown(body)} No values in 'instances' array", "instances empty")
    body = {"signature_name": 5, "instances": [1]}
    yield _post(
        path,
        body,
        f"{_shown(body)} not formatted correctly. 'signature_name' key must be a string value.",
        "signature_name not a string",
    )
    yield _post(
        path,
        {"signature_name": "other", "instances": [1]},
        'Serving signature name: "other" not found in signature def',
        "unknown signature, REST predict",
    )
    yield _post(
        path, {"signature_name": "serving_default", "instances": [2]}, {"predictions": [2.5]}
    )
    yield _post(path, {"unknown": 5, "instances": [2]}, {"predictions": [2.5]})
    yield _post(
        f"{MIXED}:predict",
        {"signature_name": "no_inputs", "instances": [1]},
        "Failed to get input map for signature: no_inputs",
        "signature without inputs, REST",
    )


def _rows_and_columns() -> Iterator[Case]:
    half, mixed = f"{HALF}:predict", f"{MIXED}:predict"
    start, end = (
        "Failed to process element: {}",
        " of 'instances' list. Error: INVALID_ARGUMENT: {}",
    )
    at, at_key = f"{start}{end}".format, f"{start} key: {{}}{end}".format
    yield _post(half, {"instances": [{"x": 2}]}, {"predictions": [2.5]})
    yield _post(half, {"instances": [[2.0], [4.0]]}, {"predictions": [[2.5], [3.0]]})
    yield _post(half, {"inputs": 2.0}, {"outputs": 2.5}, needs="no batching")
    yield _post(half, {"inputs": {"x": [[2.0]]}}, {"outputs": [[2.5]]})
    yield _post(half, {"inputs": {"x": [2.0], "more": 1}}, {"outputs": [2.5]})
    yield _post(
        half,
        {"inputs": {"z": [2.0]}},
        "Missing named input: x in 'inputs' object.",
        "missing input, columns",
    )
    yield _post(
        half,
        {"instances": [{"z": 2}]},
        at_key(0, "z", "JSON object: does not have named input: z"),
        "error in a row of objects",
        "inner: unknown input",
    )
    yield _post(
        half,
        {"instances": [1.0, "a"]},
        at(1, _mistyped("a", "String", "float")),
        "error in a row",
        "inner: wrong type",
    )
    yield _post(
        half,
        {"instances": [{"x": 1.0}, {"x": None}]},
        at_key(1, "x", _mistyped(None, "Null", "float")),
        "error in a row of objects",
        "inner: wrong type",
    )
    yield _post(
        half,
        {"instances": [[1.0], [1.0, 2.0]]},
        at(1, "Expecting tensor size: 1 but got: 2"),
        "inner: rows differ in size",
    )
    yield _post(
        half,
        {"instances": [[[1.0, 2.0]], [[1.0], [2.0]]]},
        at(1, "Expecting shape [1,2] but got: [2,1]"),
        "inner: rows differ in shape",
    )
    yield _post(
        half,
        {"instances": [{"x": [1.0]}, {"x": [1.0, 2.0]}]},
        at_key(1, "x", "Expecting tensor size: 1 but got: 2"),
        "inner: rows differ in size",
    )
    yield _post(half, {"instances": [1.0, [2.0]]}, at(1, "Expecting shape [] but got: [1]"))
    yield _post(
        half,
        {"instances": [1.0, {"x": 2.0}]},
        "Expecting value/list but got object at item 1 of input list",
        "mixed rows, value first",
    )
    yield _post(
        half,
        {"instances": [{"x": 2.0}, 1.0]},
        "Expecting object but got list at item 1 of input list",
        "mixed rows, object first",
    )
    yield _post(
        half,
        {"inputs": [[1.0, 2.0], [3.0]]},
        "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
        "uneven lists",
    )
    yield _post(
        half,
        {"instances": [[[1.0, 2.0], [3.0]]]},
        at(0, "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        "uneven lists",
    )
    yield _post(
        half,
        {"inputs": [1.0, [2.0]]},
        "Encountered list at unexpected level: 1 expected < 1",
        "too deep",
    )
    yield _post(
        half,
        {"inputs": [[1.0], 2.5]},
        "JSON Value: 2.5 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
        "too shallow",
    )
    several = {"joined": "a3", "raw_bytes": {"b64": "Yf8A"}, "total": 3, "is_quiet": False}
    yield _post(mixed, {"instances": [ROW]}, {"predictions": [several]})
    yield _post(
        mixed,
        {"inputs": COLUMNS},
        {
            "outputs": {
                "joined": ["a3", "b7"],
                "raw_bytes": [{"b64": "Yf8A"}, {"b64": "Yv8A"}],
                "total": [3, 7],
                "is_quiet": [False, True],
            }
        },
    )
    yield _post(
        mixed,
        {"instances": [1.0]},
        "instances is a plain list, but expecting list of "
        "objects as multiple input tensors required as per tensorinfo_map",
        "plain rows, several inputs",
    )
    yield _post(
        mixed,
        {"inputs": [1.0]},
        "inputs is a plain value/list, but expecting an object "
        "as multiple input tensors required as per tensorinfo_map",
        "plain columns, several inputs",
    )
    yield _post(
        mixed,
        {"instances": [{**ROW, "z": 1}]},
        at_key(0, "z", "JSON object: does not have named input: z"),
    )
    yield _post(
        mixed,
        {"instances": [ROW, {"words": "a"}]},
        "Failed to process element: 1 of "
        "'instances' list. JSON object: "
        + json.dumps({"words": "a"}, indent=4)
        + " keys must be equal to: counts,is_loud,words",
        "wrong keys in a row",
    )
    yield _post(
        mixed,
        {"instances": [{**ROW, "words": 5}]},
        at_key(0, "words", _mistyped(5, "Number", "string")),
        "inner: wrong type",
    )
    yield _post(
        mixed,
        {"signature_name": "scalar", "inputs": [1, 2]},
        Raw('{"outputs":3.0}'),
        needs="no batching",
    )
    yield _post(
        mixed,
        {"signature_name": "scalar", "instances": [1, 2]},
        "Tensor name: sum has no shape information ",
        "scalar output in rows",
        needs="no batching",
    )
    yield _post(
        mixed,
        {"signature_name": "uneven", "instances": [1, 2]},
        re.compile(
            "^Tensor name: (once has inconsistent batch size: 2 expecting: 4"
            "|twice has inconsistent batch size: 4 expecting: 2)$"
        ),
        "uneven outputs in rows",
        needs="no batching",
    )
    yield _post(
        mixed,
        {"signature_name": "needs_vector", "inputs": [1.0, 2.0, 3.0]},
        re.compile(
            r"Matrix size-incompatible: In\[0\]: \[1,3\], In\[1\]: \[2,1\](.|\n)*"
            r"\{\{node Tensordot/MatMul\}\}"
        ),
        "wrong shape inside the graph",
        needs="no batching",
    )


def _types() -> Iterator[Case]:
    """Types come from the signature; how values are read and written."""
    path = f"{TYPES}:predict"

    def of(name: str, inputs: Any) -> dict[str, Any]:
        return {"signature_name": name, "inputs": inputs}

    for name, good, bad, wanted in TYPED:
        yield _post(path, of(name, [good]), Raw(f'{{"outputs":[{json.dumps(good)}]}}'))
        yield _post(path, of(name, good), {"outputs": good}, needs="no batching")
        yield _post(path, {"signature_name": name, "instances": [good]}, {"predictions": [good]})
        json_type = "True" if bad is True else "String" if bad == "a" else "Number"
        yield _post(path, of(name, [bad]), _mistyped(bad, json_type, wanted), "inner: wrong type")
    # Whole floats keep their point, integers have none; and so it is asked of the caller.
    yield _post(path, of("float32", [2, 0.1, 1e3, -0.0]), Raw('{"outputs":[2.0,0.1,1000.0,-0.0]}'))
    yield _post(
        path, of("float32", [16777216, 3.4028235e38]), {"outputs": [16777216.0, 3.4028235e38]}
    )
    yield _post(
        path, of("float64", [1, 0.1234567890123456]), Raw('{"outputs":[1.0,0.1234567890123456]}')
    )
    yield _post(
        path, of("int64", [-(2**63), 2**63 - 1]), Raw(f'{{"outputs":[{-(2**63)},{2**63 - 1}]}}')
    )
    yield _post(
        path, b'{"signature_name": "int32", "inputs": [1.0]}', _mistyped(1.0, "Number", "int32")
    )
    yield _post(
        path, b'{"signature_name": "int32", "inputs": [1e3]}', _mistyped(1000.0, "Number", "int32")
    )
    yield _post(path, of("int32", [2**31]), _mistyped(2**31, "Number", "int32"))
    yield _post(path, of("int64", [2**63]), _mistyped(2**63, "Number", "int64"))
    yield _post(path, of("int8", [300]), {"outputs": [44]})  # looked at as an int32
    yield _post(path, of("float32", [True]), _mistyped(True, "True", "float"))
    yield _post(path, of("float32", [[]]), {"outputs": [[]]})
    yield _post(
        path,
        b'{"signature_name": "float32", "inputs": [NaN, Infinity, -Infinity, Inf, 2]}',
        Raw('{"outputs":[NaN,Infinity,-Infinity,Infinity,2.0]}'),
    )
    yield _post(
        path,
        b'{"signature_name": "float64", "instances": [[NaN], [-Inf]]}',
        Raw('{"predictions":[[NaN],[-Infinity]]}'),
    )
    yield _post(f"{MIXED}:predict", of("divide", [0.0, 2.0]), Raw('{"outputs":[Infinity,0.5]}'))
    yield _post(
        path,
        b'{"signature_name": "int32", "inputs": [NaN]}',
        "JSON Value:  Type: Number is not of expected type: int32",
    )
    # Texts and bytes
    yield _post(
        path,
        of("string", ["", 'é\n"\\', "\u20ac\U0001f600", "a\0b"]),
        {"outputs": ["", 'é\n"\\', "\u20ac\U0001f600", "a\0b"]},
    )
    yield _post(
        path, of("string", [{"b64": "aGk="}, {"b64": "aGk"}, "c"]), {"outputs": ["hi", "hi", "c"]}
    )
    yield _post(
        path,
        {"signature_name": "string", "instances": [{"b64": "aGk="}, "b"]},
        {"predictions": ["hi", "b"]},
    )
    yield _post(
        path,
        {"signature_name": "string", "instances": [{"x": {"b64": "aGk="}}]},
        {"predictions": ["hi"]},
    )
    yield _post(
        path,
        {"signature_name": "string", "instances": [[{"b64": "+/8="}]]},
        Raw('{"predictions":[["\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"]]}'),
    )
    for text in ("", "aGk=", "aGk", "aG k", " aGk =\n", "aGk.", "aGl="):
        yield _post(
            path,
            of("string", {"b64": text}),
            {"outputs": "hi" if text else ""},
            needs="no batching",
        )
    for text in ("*", "-_8=", "a", "aGk==", "YQ=", "YWJj=", "aG=k", "\u00e9"):
        yield _post(path, of("string", [{"b64": text}]), "Unable to base64 decode", "bad base64")
    yield _post(
        path,
        of("string", [{"b64": 1}]),
        f"{_shown({'b64': 1})} not formatted correctly for base64 data",
        "no base64 object",
    )
    yield _post(
        path,
        of("string", [{"b64": "aGk=", "c": 1}]),
        f"{_shown({'b64': 'aGk=', 'c': 1})} not formatted correctly for base64 data",
        "no base64 object",
    )
    yield _post(
        path,
        of("float32", [{"b64": "aGk="}]),
        _mistyped({"b64": "aGk="}, "Object", "float"),
        "inner: wrong type",
    )
    yield _post(
        f"{MIXED}:predict",
        {"signature_name": "invalid_text", "inputs": ["a"]},
        words('["a\N{REPLACEMENT CHARACTER}"]'),
        status=200,
    )
    yield _post(
        path,
        of("float16", [1.0]),
        "Conversion of JSON Value: 1.0 to type: half",
        "type that JSON cannot hold, input",
        status=501,
    )
    yield _post(path, of("float16", [[]]), {"outputs": [[]]})
    yield _post(path, {"signature_name": "float16", "instances": [[]]}, {"predictions": [[]]})
    yield _post(
        path,
        {"signature_name": "float16", "instances": [1.0]},
        "Failed to process element: 0 of 'instances' list. Error: UNIMPLEMENTED: "
        "Conversion of JSON Value: 1.0 to type: half",
    )
    yield _post(
        f"{WARM}:predict",
        {"signature_name": "to_half", "inputs": [1.0]},
        "Failed to write JSON value for tensor type: half",
        "type that JSON cannot hold, output",
    )


def _examples() -> Iterator[Case]:
    """Classify and regress."""
    classify, regress = f"{EXAMPLES}:classify", f"{EXAMPLES}:regress"
    yield _post(classify, _of("classify_x_to_y", {"x": 4.0}), {"results": [[["", 4.0]]]})
    yield _post(
        classify,
        _of("classify_with_names", {"x": 4.0}, {"x": [8.0]}),
        Raw('{"results":[[["y",4.0]],[["y",6.0]]]}'),
        headers=JSON_TYPE,
    )
    yield _post(
        classify,
        {**_of("classify_with_names", {}, {"x": 8.0}), "context": {"x": 2.0}},
        {"results": [[["y", 3.0]], [["y", 6.0]]]},
    )
    yield _post(
        regress, _of("regress_x_to_y", {"x": 4.0}, {"x": 8.0}), Raw('{"results":[4.0,6.0]}')
    )
    yield _post(regress, _of("regress_x2_to_y3", {"x": 4.0, "x2": 2.0}), {"results": [4.0]})
    yield _post(
        regress,
        {**_of("regress_x_to_y", {}, {"x": 4.0}), "context": {"x": 2.0}},
        {"results": [3.0, 4.0]},
    )
    yield _post(
        f"{EXAMPLES}/versions/1:regress", _of("regress_x_to_y", {"x": [4.0]}), {"results": [4.0]}
    )
    # TensorFlow 2 calls the method of every signature predict.
    regress2, body2 = f"{TF2}:regress", _of("regress_x_to_y", {"x": 4.0})
    classify2, body3 = f"{TF2}:classify", _of("classify_x_to_y", {"x": 4.0})
    yield _post(regress2, body2, {"results": [4.0]}, needs="no method_check")
    yield _post(classify2, body3, {"results": [[["", 4.0]]]}, needs="no method_check")
    yield _post(
        regress2,
        body2,
        f"{WRONG_METHOD.format('regression', 'regress')}predict",
        needs="method_check",
    )
    yield _post(
        classify2,
        body3,
        f"{WRONG_METHOD.format('classification', 'classify')}predict",
        needs="method_check",
    )
    another = {"signature_name": "another_method", "instances": [1.0]}
    yield _post(f"{WARM}:predict", another, {"predictions": [2.0]}, needs="no method_check")
    yield _post(f"{WARM}:predict", another, NO_PREDICT_METHOD, status=500, needs="method_check")
    yield _post(
        regress,
        _of("regress_x_to_y", {"x": 4}),
        re.compile("Data type: int64 but expected type: float"),
    )
    yield _post(
        regress,
        _of("regress_x_to_y", {"x": True}),
        re.compile("Data type: int64 but expected type: float"),
    )
    yield _post(
        regress,
        _of("regress_x_to_y", {"x": "a"}),
        re.compile("Data type: string but expected type: float"),
    )
    for value, json_type in ((None, "Null"), ([[4.0]], "Array"), ({"a": 1}, "Object")):
        yield _post(
            regress,
            _of("regress_x_to_y", {"x": value}),
            f"Feature: x has element with unexpected JSON type: {json_type}",
        )
    yield _post(
        regress,
        _of("regress_x_to_y", {"x": [4.0, "a"]}),
        "Unexpected element type in feature: x expecting type: float",
    )
    yield _post(
        regress,
        _of("regress_x_to_y", {"x": [1, 1.5]}),
        "Unexpected element type in feature: x expecting type: int64",
    )
    yield _post(regress, {"examples": [1]}, "Example must be JSON object but got JSON Number")
    yield _post(regress, {"examples": [{"x": {"b64": "*"}}]}, "Unable to base64 decode")
    for path in (classify, regress):
        yield _post(
            path,
            _of("other", {"x": 4.0}),
            "No signature was found with the name: other",
            "unknown signature, classify and regress",
        )
        body: dict[str, Any] = {"signature_name": "a"}
        yield _post(
            path,
            body,
            f"{_shown(body)} When method is classify, key 'examples' is expected and was not found",
            "examples missing",
        )
        body = {"examples": 1}
        yield _post(
            path,
            body,
            f"{_shown(body)} Expecting 'examples' value to be an list/array",
            "examples not a list",
        )
        body = {"examples": []}
        yield _post(
            path, body, f"{_shown(body)} 'examples' value is an empty array", "examples empty"
        )
        yield _post(path, b"", EMPTY, "empty body")
        yield _post(
            path,
            {"signature_name": 5, "examples": [{"x": 1.0}]},
            'JSON Value: {\n    "signature_name": 5,\n    "examples": [{\n            "x": 1.0\n'
            "        }]\n} not formatted correctly. 'signature_name' key must be a string value.",
            "signature_name not a string",
        )
    # All of the JSON is read before the model is looked for.
    yield _post(
        f"{NOBODY}:classify",
        {"examples": []},
        f"{_shown({'examples': []})} 'examples' value is an empty array",
    )


def _urls() -> Iterator[Case]:
    predict = f"{HALF}:predict"
    wrong = [
        (verb, p)
        for verb in ("PUT", "DELETE", "PATCH")
        for p in (predict, HALF, f"{HALF}/metadata")
    ]
    wrong += [
        ("POST", path)
        for path in (
            f"{HALF}/",
            f"{predict}/",
            f"{HALF}:guess",
            "/v1/",
            "/v1/nonsense",
            HALF,
            f"{HALF}/metadata",
            f"{HALF}/versions/1/labels/stable:predict",
            f"{HALF}/versions/one:predict",
            f"{HALF}/labels/:predict",
        )
    ]
    wrong += [
        ("GET", path)
        for path in (
            f"{HALF}/",
            predict,
            f"{HALF}/versions/1/",
            f"{HALF}/metadata/",
            "/v1/nonsense",
            f"{HALF}/versions/one",
            f"{HALF}/versions/1/labels/stable",
        )
    ]
    for verb, path in wrong:
        body = {"instances": [1.0]} if verb == "POST" else None
        yield Case(
            f"{verb} {path}",
            body,
            400,
            f"Malformed request: {verb} {path}",
            ("no such URL or verb",),
        )
    yield _get("/nonsense", words("Not Found"), status=404)
    yield Case(f"HEAD {HALF}", None, 400, "")


def _headers() -> Iterator[Case]:
    """What a caller's headers change, and what they do not."""
    two, answer = b'{"instances": [2.0]}', {"predictions": [2.5]}
    path = f"{HALF}:predict"
    packed, is_gzip = gzip.compress(two), {"Content-Encoding": "gzip"}
    plain = {"content-encoding": None, **JSON_TYPE}
    yield _post(path, packed, answer, sent_headers=is_gzip, headers=plain)
    yield _post(path, packed, answer, sent_headers={"Content-Encoding": "x-gzip"})
    yield _post(path, two, answer, sent_headers={"Accept-Encoding": "gzip"}, headers=plain)
    yield _post(path, packed[:-9], EMPTY, sent_headers=is_gzip)
    yield _post(path, two, EMPTY, sent_headers=is_gzip)
    yield _post(path, packed, "JSON Parse error: Invalid value. at offset: 0")
    yield _post(path, two, answer, sent_headers={"Content-Type": "text/plain"})
    yield _post(
        f"{EXAMPLES}:regress",
        gzip.compress(json.dumps(_of("regress_x_to_y", {"x": 4.0})).encode()),
        {"results": [4.0]},
        sent_headers=is_gzip,
    )
    for origin, status in (
        ("https://a.example", 200),
        ("http://a", 200),
        ("ftp://a", 400),
        ("", 400),
    ):
        sent = {"Origin": origin} if origin else {}
        yield Case(f"OPTIONS {path}", None, status, "", sent_headers=sent)


def _settings() -> Iterator[Case]:
    """With the flags of `models.FEATURES`."""
    origin = {"Origin": "https://a.example"}
    yield Case(f"OPTIONS {HALF}:predict", None, 200, "", (), "cors", origin, CORS)
    yield _post(
        f"{HALF}:predict", {"instances": [2.0]}, {"predictions": [2.5]}, needs="cors", headers=CORS
    )
    yield _get(
        f"{HALF}/versions/1", {"model_version_status": [_status(1)]}, needs="cors", headers=CORS
    )
    yield _get(
        "/v1/nonsense",
        "Malformed request: GET /v1/nonsense",
        status=400,
        needs="cors",
        headers=CORS,
    )
    yield _post(
        f"{HALF}:predict",
        {"instances": [2.0]},
        {"predictions": [2.5]},
        needs="no cors",
        headers=dict.fromkeys(CORS),
    )
    page = "/monitoring/prometheus/metrics"
    for pattern in (
        "(?m)^# TYPE :tensorflow:serving:request_count counter$",
        r'(?m)^:tensorflow:serving:request_count\{model_name="half_plus_two",status="OK"\} [1-9]',
        r'(?m)^:tensorflow:serving:request_count\{model_name="nobody",status="NOT_FOUND"\} [1-9]',
        "(?m)^# TYPE :tensorflow:serving:request_latency histogram$",
        r'(?m)^:tensorflow:serving:request_latency_bucket\{model_name="half_plus_two",API="predict",'
        r'entrypoint="REST",le="10"\} \d+$',
        r'(?m)^:tensorflow:serving:request_latency_bucket\{model_name="examples",API="regress",'
        r'entrypoint="REST",le="\+Inf"\} [1-9]',
        r'(?m)^:tensorflow:serving:runtime_latency_count\{model_name="half_plus_two",API="Predict",'
        r'runtime="TF1"\} [1-9]',
        "(?m)^# TYPE :tensorflow:serving:mlmd_map gauge$",
        r'(?m)^:tensorflow:serving:mlmd_map\{model_name="warm",version="1"\} 0$',
    ):
        yield _get(
            page, re.compile(pattern), needs="metrics", headers={"content-type": "text/plain"}
        )
    yield Case(f"POST {page}", b"", 200, words("# TYPE"), needs="metrics")
    yield _get(page, words("Not Found"), status=404, needs="no metrics")
    predict = f"{TYPES}:predict"
    yield _post(
        predict,
        {"signature_name": "float32", "instances": [1.0] * 8},
        {"predictions": [1.0] * 8},
        needs="batching",
    )
    yield _post(
        predict,
        {"signature_name": "float32", "instances": [1.0] * 9},
        "Task size 9 is larger than maximum input batch size 8",
        needs="batching",
    )
    yield _post(
        predict,
        {"signature_name": "float32", "inputs": 1.0},
        "Batching Run() input tensors must have at least one dimension",
        needs="batching",
    )
    yield _post(
        f"{MIXED}:predict",
        {"inputs": {**COLUMNS, "words": ["a"]}},
        "Batching Run() input tensors must have equal 0th-dimension size",
        needs="batching",
    )
    yield _post(
        f"{MIXED}:predict",
        {"signature_name": "scalar", "inputs": [1, 2]},
        "Batched output tensor has 0 dimensions",
        needs="batching",
    )
    yield _post(
        f"{MIXED}:predict",
        {"signature_name": "uneven", "inputs": [1, 2]},
        "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension "
        "sizes of the input tensors",
        needs="batching",
    )


def _of(signature: str, *examples: dict[str, Any]) -> dict[str, Any]:
    return {"signature_name": signature, "examples": list(examples)}


def _status(version: int) -> dict[str, Any]:
    fine = {"error_code": "OK", "error_message": ""}
    return {"version": str(version), "state": "AVAILABLE", "status": fine}


def _info(name: str, dtype: str, *sizes: str) -> dict[str, Any]:
    dims = [{"size": size, "name": ""} for size in sizes]
    return {"dtype": dtype, "name": name, "tensor_shape": {"dim": dims, "unknown_rank": False}}


def _signatures(**signatures: Any) -> dict[str, Any]:
    return {"metadata": {"signature_def": {"signature_def": signatures}}}

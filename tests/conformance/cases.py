"""The requests and what TensorFlow Serving answers to them. Data only.

REST: verb, path, body, status, answer. gRPC: method, fields of the request, code, answer.
An answer that is a string is the exact text of the error, a compiled pattern is searched for in
it, anything else is the value (numbers within 1e-5), an object's further keys are not looked at,
and None is not looked at.
"""

import re
from typing import Any

HALF, MIXED, TYPES, EXAMPLES = (
    f"/v1/models/{n}" for n in ("half_plus_two", "mixed", "types", "examples")
)
COLUMNS = {"words": ["a", "b"], "counts": [[1, 2], [3, 4]], "is_loud": [True, False]}
ROW = {"words": "a", "counts": [1, 2], "is_loud": True}
LATEST = "Servable not found for request: Latest(nobody)"
SEVEN = "Servable not found for request: Specific(half_plus_two, 7)"
NO_LABEL = "Unrecognized servable version label: nobody"


def _text(words: str) -> re.Pattern[str]:
    return re.compile(re.escape(words))


def _rest() -> list[tuple[str, str, Any, int, Any]]:
    predict = f"{HALF}:predict"
    cases: list[tuple[str, str, Any, int, Any]] = [
        # which model, version, label
        ("POST", predict, {"instances": [2.0]}, 200, {"predictions": [2.5]}),
        ("POST", f"{HALF}/versions/1:predict", {"instances": [2.0]}, 200, {"predictions": [3.0]}),
        ("POST", f"{HALF}/versions/2:predict", {"instances": [2.0]}, 200, {"predictions": [2.5]}),
        ("POST", f"{HALF}/versions/01:predict", {"instances": [2.0]}, 200, {"predictions": [3.0]}),
        ("POST", f"{HALF}/labels/stable:predict", {"instances": [2.0]}, 200, {"predictions": [3]}),
        ("POST", f"{HALF}/labels/canary:predict", {"inputs": [2.0]}, 200, {"outputs": [2.5]}),
        ("POST", f"{HALF}/labels/nobody:predict", {"instances": [2.0]}, 400, NO_LABEL),
        ("POST", f"{HALF}/versions/7:predict", {"instances": [2.0]}, 404, SEVEN),
        ("POST", "/v1/models/nobody:predict", {"instances": [2.0]}, 404, LATEST),
        ("POST", "/V1/MODELS/half_plus_two:PREDICT", {"instances": [2]}, 200, None),
        ("POST", "/v1/models/half%5Fplus%5Ftwo:predict", {"instances": [2]}, 200, None),
        ("POST", f"{predict}?a=b", {"instances": [2]}, 200, None),
        ("POST", f"{HALF}/versions/99999999999999999999:predict", {"instances": [2]}, 400, None),
        ("GET", "/v1/models/nobody", None, 404, "Could not find any versions of model nobody"),
        ("GET", f"{HALF}/versions/7", None, 404, "Could not find version 7 of model half_plus_two"),
        ("GET", "/v1/models/nobody/metadata", None, 404, LATEST),
        ("GET", f"{HALF}/versions/7/metadata", None, 404, SEVEN),
        ("GET", f"{HALF}/labels/nobody/metadata", None, 400, NO_LABEL),
        ("GET", HALF, None, 200, {"model_version_status": [_status(2), _status(1)]}),
        ("GET", f"{HALF}/versions/1", None, 200, {"model_version_status": [_status(1)]}),
        (
            "GET",
            f"{HALF}/labels/stable",
            None,
            200,
            {"model_version_status": [_status(2), _status(1)]},
        ),
        ("GET", f"{HALF}/metadata", None, 200, {"model_spec": _spec(2)}),
        ("GET", f"{HALF}/versions/1/metadata", None, 200, {"model_spec": _spec(1)}),
        ("GET", f"{HALF}/labels/stable/metadata", None, 200, {"model_spec": _spec(1)}),
        (
            "GET",
            f"{HALF}/metadata",
            None,
            200,
            {
                "metadata": {
                    "signature_def": {
                        "signature_def": {
                            "serving_default": {
                                "inputs": {
                                    "x": {
                                        "dtype": "DT_FLOAT",
                                        "name": "x:0",
                                        "tensor_shape": {
                                            "dim": [
                                                {"size": "-1", "name": ""},
                                                {"size": "1", "name": ""},
                                            ],
                                            "unknown_rank": False,
                                        },
                                    }
                                },
                                "method_name": "tensorflow/serving/predict",
                                "defaults": {},
                            }
                        }
                    }
                }
            },
        ),
        # bodies
        ("POST", predict, b"", 400, "JSON Parse error: The document is empty"),
        ("POST", predict, b"{", 400, _text("JSON Parse error: Missing a name for object member.")),
        ("POST", predict, b"nonsense", 400, _text("JSON Parse error: Invalid value. at offset: ")),
        ("POST", "/v1/models/nobody:predict", b"nonsense", 400, _text("JSON Parse error:")),
        ("POST", predict, b'{"instances": [2.0]} and more', 200, {"predictions": [2.5]}),
        ("POST", predict, b'{"instances": [NaN, Infinity, -Infinity]}', 200, None),
        ("POST", predict, [], 400, "JSON Value: [] Is not object"),
        ("POST", predict, 1, 400, "JSON Value: 1 Is not object"),
        ("POST", predict, {}, 400, "Missing 'inputs' or 'instances' key"),
        (
            "POST",
            predict,
            {"instances": [1], "inputs": [1]},
            400,
            _text("Not formatted correctly expecting only one of 'inputs' or 'instances' keys to"),
        ),
        ("POST", predict, {"instances": 1.0}, 400, _text("Expecting 'instances' to be an list/")),
        ("POST", predict, {"instances": []}, 400, _text("No values in 'instances' array")),
        (
            "POST",
            predict,
            {"signature_name": 5, "instances": [1]},
            400,
            _text("not formatted correctly. 'signature_name' key must be a string value."),
        ),
        (
            "POST",
            predict,
            {"signature_name": "other", "instances": [1]},
            400,
            'Serving signature name: "other" not found in signature def',
        ),
        ("POST", predict, {"signature_name": "serving_default", "instances": [2]}, 200, None),
        ("POST", predict, {"unknown": 5, "instances": [2]}, 200, {"predictions": [2.5]}),
        (
            "POST",
            f"{MIXED}:predict",
            {"signature_name": "no_inputs", "instances": [1]},
            400,
            "Failed to get input map for signature: no_inputs",
        ),
        # rows and columns
        ("POST", predict, {"instances": [{"x": 2}]}, 200, {"predictions": [2.5]}),
        ("POST", predict, {"instances": [[2.0], [4.0]]}, 200, {"predictions": [[2.5], [3.0]]}),
        ("POST", predict, {"inputs": 2.0}, 200, {"outputs": 2.5}),
        ("POST", predict, {"inputs": {"x": [[2.0]]}}, 200, {"outputs": [[2.5]]}),
        ("POST", predict, {"inputs": {"x": [2.0], "more": 1}}, 200, {"outputs": [2.5]}),
        (
            "POST",
            predict,
            {"inputs": {"z": [2.0]}},
            400,
            "Missing named input: x in 'inputs' object.",
        ),
        (
            "POST",
            predict,
            {"instances": [{"z": 2}]},
            400,
            "Failed to process element: 0 key: z of 'instances' list. Error: INVALID_ARGUMENT: "
            "JSON object: does not have named input: z",
        ),
        (
            "POST",
            predict,
            {"instances": [[1.0], [1.0, 2.0]]},
            400,
            _text("Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "),
        ),
        ("POST", predict, {"instances": [1.0, [2.0]]}, 400, None),
        (
            "POST",
            predict,
            {"instances": [1.0, {"x": 2.0}]},
            400,
            "Expecting value/list but got object at item 1 of input list",
        ),
        (
            "POST",
            predict,
            {"instances": [{"x": 2.0}, 1.0]},
            400,
            "Expecting object but got list at item 1 of input list",
        ),
        (
            "POST",
            predict,
            {"inputs": [[1.0, 2.0], [3.0]]},
            400,
            "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
        ),
        (
            "POST",
            f"{MIXED}:predict",
            {"instances": [ROW]},
            200,
            {
                "predictions": [
                    {"joined": "a3", "raw_bytes": {"b64": "Yf8A"}, "total": 3, "is_quiet": False}
                ]
            },
        ),
        (
            "POST",
            f"{MIXED}:predict",
            {"inputs": COLUMNS},
            200,
            {"outputs": {"joined": ["a3", "b7"], "total": [3, 7], "is_quiet": [False, True]}},
        ),
        (
            "POST",
            f"{MIXED}:predict",
            {"instances": [1.0]},
            400,
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map",
        ),
        (
            "POST",
            f"{MIXED}:predict",
            {"inputs": [1.0]},
            400,
            "inputs is a plain value/list, but expecting an object as multiple input tensors "
            "required as per tensorinfo_map",
        ),
        (
            "POST",
            f"{MIXED}:predict",
            {"instances": [{**ROW, "z": 1}]},
            400,
            _text("JSON object: does not have named input: z"),
        ),
        (
            "POST",
            f"{MIXED}:predict",
            {"instances": [{"words": "a"}]},
            400,
            _text("must be equal to:"),
        ),
        (
            "POST",
            f"{MIXED}:predict",
            {"instances": [{**ROW, "words": 5}]},
            400,
            _text("key: words of 'instances' list."),
        ),
        (
            "POST",
            f"{MIXED}:predict",
            {"signature_name": "scalar", "inputs": [1, 2]},
            200,
            {"outputs": 3.0},
        ),
        (
            "POST",
            f"{MIXED}:predict",
            {"signature_name": "scalar", "instances": [1, 2]},
            400,
            "Tensor name: sum has no shape information ",
        ),
        (
            "POST",
            f"{MIXED}:predict",
            {"signature_name": "uneven", "instances": [1, 2]},
            400,
            _text("has inconsistent batch size: "),
        ),
        ("POST", f"{MIXED}:predict", {"signature_name": "divide", "inputs": [0.0]}, 200, None),
        # classify and regress
        (
            "POST",
            f"{EXAMPLES}:classify",
            _examples("classify_x_to_y", {"x": 4.0}),
            200,
            {"results": [[["", 4.0]]]},
        ),
        (
            "POST",
            f"{EXAMPLES}:classify",
            _examples("classify_with_names", {"x": 4.0}),
            200,
            {"results": [[["y", 4.0]]]},
        ),
        (
            "POST",
            f"{EXAMPLES}:regress",
            _examples("regress_x_to_y", {"x": 4.0}, {"x": 8.0}),
            200,
            {"results": [4.0, 6.0]},
        ),
        (
            "POST",
            f"{EXAMPLES}:regress",
            _examples("regress_x2_to_y3", {"x": 4.0, "x2": 2.0}),
            200,
            {"results": [4.0]},
        ),
        (
            "POST",
            f"{EXAMPLES}:regress",
            {
                "signature_name": "regress_x_to_y",
                "context": {"x": 2.0},
                "examples": [{}, {"x": 4.0}],
            },
            200,
            {"results": [3.0, 4.0]},
        ),
        (
            "POST",
            f"{EXAMPLES}:regress",
            _examples("regress_x_to_y", {"x": [4.0]}),
            200,
            {"results": [4.0]},
        ),
        ("POST", f"{EXAMPLES}:regress", _examples("regress_x_to_y", {"x": 4}), 400, None),
        ("POST", f"{EXAMPLES}:regress", _examples("regress_x_to_y", {"x": None}), 400, None),
        (
            "POST",
            f"{EXAMPLES}:regress",
            _examples("other", {"x": 4.0}),
            400,
            "No signature was found with the name: other",
        ),
        ("POST", "/v1/models/nobody:regress", _examples("", {"x": 4.0}), 404, LATEST),
    ]
    for method in ("classify", "regress"):
        path = f"{EXAMPLES}:{method}"
        cases += [
            (
                "POST",
                path,
                {},
                400,
                _text("When method is classify, key 'examples' is expected and was not found"),
            ),
            (
                "POST",
                path,
                {"examples": 1},
                400,
                _text("Expecting 'examples' value to be an list/array"),
            ),
            ("POST", path, {"examples": []}, 400, _text("'examples' value is an empty array")),
            ("POST", path, b"", 400, "JSON Parse error: The document is empty"),
        ]
    malformed = "Malformed request: {} {}".format
    for verb in ("PUT", "DELETE", "PATCH"):
        for path in (predict, HALF, f"{HALF}/metadata"):
            cases.append((verb, path, None, 400, malformed(verb, path)))
    for path in (
        f"{HALF}/",
        f"{HALF}:predict/",
        f"{HALF}:guess",
        "/v1/",
        "/v1/nonsense",
        HALF,
        f"{HALF}/versions/1/labels/stable:predict",
        f"{HALF}/versions/one:predict",
    ):
        cases.append(("POST", path, {"instances": [1]}, 400, malformed("POST", path)))
    for path in (f"{HALF}/", predict, f"{HALF}/versions/1/", f"{HALF}/metadata/", "/v1/nonsense"):
        cases.append(("GET", path, None, 400, malformed("GET", path)))
    cases.append(("GET", "/nonsense", None, 404, None))
    for name, good, bad, kind in TYPED:
        body = {"signature_name": name, "inputs": good}
        cases.append(("POST", f"{TYPES}:predict", body, 200, {"outputs": good}))
        body = {"signature_name": name, "instances": [good]}
        cases.append(("POST", f"{TYPES}:predict", body, 200, {"predictions": [good]}))
        body = {"signature_name": name, "inputs": bad}
        cases.append(("POST", f"{TYPES}:predict", body, 400, _text(f"expected type: {kind}")))
    b64 = {"signature_name": "string", "inputs": [{"b64": "aGk="}]}
    cases.append(("POST", f"{TYPES}:predict", b64, 200, {"outputs": ["hi"]}))
    b64 = {"signature_name": "string", "inputs": [{"b64": "*"}]}
    cases.append(("POST", f"{TYPES}:predict", b64, 400, _text("Unable to base64 decode")))
    half = {"signature_name": "float16", "inputs": [1.0]}
    cases.append(("POST", f"{TYPES}:predict", half, 501, None))
    return cases


def _status(version: int) -> dict[str, Any]:
    fine = {"error_code": "OK", "error_message": ""}
    return {"version": str(version), "state": "AVAILABLE", "status": fine}


def _spec(version: int) -> dict[str, str]:
    return {"name": "half_plus_two", "signature_name": "", "version": str(version)}


def _examples(signature: str, *examples: dict[str, Any]) -> dict[str, Any]:
    return {"signature_name": signature, "examples": list(examples)}


# Signature, a value that comes back, one that is refused, and the name of the type in the refusal.
TYPED = [
    ("float32", 1.5, "a", "float"),
    ("float64", 0.1, "a", "double"),
    ("int32", -5, 1.5, "int32"),
    ("int64", 2**40, 1.0, "int64"),
    ("int8", 7, "a", "int8"),
    ("uint8", 7, "a", "uint8"),
    ("int16", 7, True, "int16"),
    ("bool", True, 1, "bool"),
    ("string", "text", 1, "string"),
]


def _grpc() -> list[tuple[str, dict[str, Any], str, Any]]:
    def half(**fields: Any) -> dict[str, Any]:
        return {"name": "half_plus_two", "inputs": {"x": ("float32", [2.0])}, **fields}

    def examples(signature: str, **fields: Any) -> dict[str, Any]:
        return {"name": "examples", "signature_name": signature, "examples": [{"x": 4.0}], **fields}

    cases: list[tuple[str, dict[str, Any], str, Any]] = [
        ("Predict", half(), "OK", {"version": 2, "signature_name": "serving_default", "y": [2.5]}),
        ("Predict", half(version=1), "OK", {"version": 1, "y": [3.0]}),
        ("Predict", half(label="stable"), "OK", {"version": 1, "y": [3.0]}),
        ("Predict", half(label="canary"), "OK", {"version": 2, "y": [2.5]}),
        ("Predict", half(output_filter=["y"]), "OK", {"y": [2.5]}),
        ("Predict", half(label="nobody"), "INVALID_ARGUMENT", NO_LABEL),
        ("Predict", half(version=7), "NOT_FOUND", SEVEN),
        ("Predict", half(name="nobody"), "NOT_FOUND", LATEST),
        ("Predict", half(name=""), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        ("Predict", {}, "INVALID_ARGUMENT", "Missing ModelSpec"),
        (
            "Predict",
            half(signature_name="other"),
            "FAILED_PRECONDITION",
            'Serving signature key "other" not found.',
        ),
        (
            "Predict",
            half(inputs={}),
            "INVALID_ARGUMENT",
            _text("input size does not match signature: 0!=1 len({}) != len({x})."),
        ),
        ("Predict", half(inputs={"z": ("float32", [1.0])}), "INVALID_ARGUMENT", None),
        (
            "Predict",
            half(inputs={"x": ("int32", [1])}),
            "INVALID_ARGUMENT",
            _text("to be float but int32 is provided"),
        ),
        (
            "Predict",
            half(output_filter=["z"]),
            "INVALID_ARGUMENT",
            "output tensor alias not found in signature: z Outputs expected to be in the set {y}.",
        ),
        (
            "Predict",
            half(output_filter=["y", "y"]),
            "INVALID_ARGUMENT",
            "duplicate output tensor alias: y",
        ),
        ("Classify", examples("classify_x_to_y"), "OK", {"scores": [4.0]}),
        ("Classify", examples("classify_with_names"), "OK", {"scores": [4.0], "labels": ["y"]}),
        ("Regress", examples("regress_x_to_y"), "OK", {"values": [4.0]}),
        ("Regress", examples("regress_x2_to_y3"), "OK", {"values": [3.0]}),
    ]
    for method in ("Classify", "Regress"):
        cases += [
            (
                method,
                examples("other"),
                "INVALID_ARGUMENT",
                "No signature was found with the name: other",
            ),
            (
                method,
                {**examples("regress_x_to_y"), "examples": []},
                "INVALID_ARGUMENT",
                "Input is empty.",
            ),
            (method, examples("", name="nobody"), "NOT_FOUND", LATEST),
            (method, {}, "INVALID_ARGUMENT", "Missing ModelSpec"),
        ]
    cases += [
        ("GetModelStatus", {"name": "half_plus_two"}, "OK", {"states": [[2, 30], [1, 30]]}),
        ("GetModelStatus", {"name": "half_plus_two", "version": 1}, "OK", {"states": [[1, 30]]}),
        (
            "GetModelStatus",
            {"name": "nobody"},
            "NOT_FOUND",
            "Could not find any versions of model nobody",
        ),
        (
            "GetModelStatus",
            {"name": "half_plus_two", "version": 7},
            "NOT_FOUND",
            "Could not find version 7 of model half_plus_two",
        ),
        (
            "GetModelMetadata",
            {"name": "half_plus_two", "metadata_field": ["signature_def"]},
            "OK",
            {"version": 2},
        ),
        (
            "GetModelMetadata",
            {"name": "half_plus_two", "label": "stable", "metadata_field": ["signature_def"]},
            "OK",
            {"version": 1},
        ),
        (
            "GetModelMetadata",
            {"name": "half_plus_two"},
            "INVALID_ARGUMENT",
            "GetModelMetadataRequest must specify at least one metadata_field",
        ),
        (
            "GetModelMetadata",
            {"name": "half_plus_two", "metadata_field": ["z"]},
            "INVALID_ARGUMENT",
            "Metadata field z is not supported",
        ),
        (
            "GetModelMetadata",
            {"name": "nobody", "metadata_field": ["signature_def"]},
            "NOT_FOUND",
            LATEST,
        ),
        (
            "HandleReloadConfigRequest",
            {},
            "INVALID_ARGUMENT",
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
            "ModelConfigList is currently supported",
        ),
    ]
    for name, good, _, _ in TYPED:
        value = good.encode() if isinstance(good, str) else good
        fields = {"name": "types", "signature_name": name, "inputs": {"x": (name, [value])}}
        cases.append(("Predict", fields, "OK", {"y": [good]}))
    return cases


REST, GRPC = _rest(), _grpc()

"""What TensorFlow Serving answers over gRPC. Data only; `run.py` makes the messages.

Inputs are (type, values), or a TensorProto as text. Of an answer: outputs by alias as values,
"fields" the one of a TensorProto that they came in and how many values it held, and so on.
"""

import re
from collections.abc import Iterator
from typing import Any

from tests.conformance.case import Case, words
from tests.conformance.models import config_text
from tests.conformance.rest_cases import (
    LATEST,
    NO_LABEL,
    NO_PREDICT_METHOD,
    SEVEN,
    TYPED,
    WRONG_METHOD,
)

CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
X = {"x": ("float32", [2.0])}
NO_MODEL_LIST = (
    "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is "
    "currently supported"
)
FOLDER = "{folder}"  # of the models, as the server sees it


def grpc_cases() -> list[Case]:
    return [*_predict(), *_tensors(), *_examples(), *_multi_inference(), *_models(), *_reload()]


def _call(
    method: str, fields: dict[str, Any], answer: Any, *rows: str, code: str = "", needs: str = ""
) -> Case:
    is_error = isinstance(answer, str | re.Pattern)
    return Case(
        method, fields, code or ("INVALID_ARGUMENT" if is_error else "OK"), answer, rows, needs
    )


def _half(**fields: Any) -> dict[str, Any]:
    return {"name": "half_plus_two", "inputs": X, **fields}


def _predict() -> Iterator[Case]:
    default = "serving_default"
    yield _call(
        "Predict",
        _half(),
        {"version": 2, "signature_name": default, "y": [2.5], "fields": {"y": ["float_val", 1]}},
    )
    yield _call("Predict", _half(version=1), {"version": 1, "y": [3.0]})
    yield _call("Predict", _half(label="stable"), {"version": 1, "y": [3.0]})
    yield _call("Predict", _half(label="canary"), {"version": 2, "y": [2.5]})
    yield _call("Predict", _half(signature_name=default), {"signature_name": default, "y": [2.5]})
    yield _call("Predict", _half(output_filter=["y"]), {"y": [2.5]})
    yield _call(
        "Predict",
        _half(inputs={"x": ("float32", [[2.0]] * 3)}),
        {"y": [[2.5]] * 3, "fields": {"y": ["float_val", 3]}},
    )
    yield _call("Predict", {"name": "half_tf2", "inputs": X}, {"version": 123, "y": [3.0]})
    yield _call("Predict", {"name": "warm", "signature_name": "total", "inputs": X}, {"y": [84.0]})
    yield _call("Predict", _half(label="nobody"), NO_LABEL, "unknown label")
    yield _call("Predict", _half(version=7), SEVEN, "unknown version", code="NOT_FOUND")
    yield _call(
        "Predict", _half(name="nobody"), LATEST, "unknown model, no version", code="NOT_FOUND"
    )
    yield _call("Predict", _half(name=""), "ModelSpec has no name specified.")
    yield _call("Predict", {}, "Missing ModelSpec")
    yield _call(
        "Predict",
        _half(signature_name="other"),
        'Serving signature key "other" not found.',
        "unknown signature, gRPC Predict",
        code="FAILED_PRECONDITION",
    )
    size = "input size does not match signature: {}!={} len({{{}}}) != len({{{}}}). "
    extra = "Sent extra: {{{}}}. Missing but required: {{{}}}."
    yield _call("Predict", _half(inputs={}), (size + extra).format(0, 1, "", "x", "", "x"))
    yield _call(
        "Predict",
        _half(inputs={**X, "z": ("float32", [1.0])}),
        (size + extra).format(2, 1, "x,z", "x", "z", ""),
    )
    yield _call(
        "Predict",
        _half(inputs={"z": ("float32", [1.0])}),
        words(
            "Signature input alias: x(feed name: x:0) not found in request and no default value "
            "provided."
        ),
    )
    yield _call(
        "Predict",
        _half(inputs={"x": ("int32", [1])}),
        words("Expects arg[0] to be float but int32 is provided"),
    )
    yield _call(
        "Predict",
        _half(inputs={"x": ("string", [b"a"])}),
        words("Expects arg[0] to be float but string is provided"),
    )
    filtered = (
        "output tensor alias not found in signature: {} Outputs expected to be in the set {{{}}}."
    )
    yield _call("Predict", _half(output_filter=["z"]), filtered.format("z", "y"))
    for aliases in (["y", "y"], ["y", "y", "z"]):
        yield _call("Predict", _half(output_filter=aliases), "duplicate output tensor alias: y")
    # What comes before what.
    broken = "dtype: DT_INVALID"
    yield _call(
        "Predict",
        _half(signature_name="other", inputs={"x": broken}),
        'Serving signature key "other" not found.',
        code="FAILED_PRECONDITION",
    )
    yield _call(
        "Predict",
        _half(inputs={"x": broken, "z": broken}),
        (size + extra).format(2, 1, "x,z", "x", "z", ""),
    )
    yield _call("Predict", _half(inputs={"z": broken}), words("Signature input alias: x"))
    yield _call(
        "Predict", _half(inputs={"x": broken}, output_filter=["z"]), "tensor parsing error: x"
    )
    yield _call(
        "Predict",
        _half(inputs={"x": ("int32", [1])}, output_filter=["z"]),
        filtered.format("z", "y"),
    )
    yield _call(
        "Predict",
        {"name": "half_tf2", "signature_name": "__saved_model_init_op"},
        words("FetchOutputs NoOp:0: output index too large, must be < 0"),
        needs="no method_check",
    )
    yield _call(
        "Predict",
        _half(output_filter=["z" * 2000]),
        filtered.format("z" * 2000, "y")[:1024] + "...TRUNCATED",
    )
    mixed = {
        "words": ("string", [b"a"]),
        "counts": ("int32", [[1, 2]]),
        "is_loud": ("bool", [True]),
    }
    yield _call(
        "Predict",
        {"name": "mixed", "inputs": mixed},
        {
            "joined": ["a3"],
            "total": [3],
            "is_quiet": [False],
            "fields": {
                "joined": ["string_val", 1],
                "total": ["int_val", 1],
                "is_quiet": ["bool_val", 1],
                "raw_bytes": ["string_val", 1],
            },
        },
    )
    yield _call(
        "Predict",
        {"name": "mixed", "inputs": mixed, "output_filter": ["total"]},
        {"outputs": ["total"], "total": [3]},
    )
    yield _call(
        "Predict",
        {"name": "mixed", "signature_name": "scalar", "inputs": X},
        {"sum": 2.0, "has_shapes": True},
        needs="no batching",
    )
    yield _call(
        "Predict",
        {"name": "mixed", "signature_name": "no_inputs"},
        {"seven": [7]},
        needs="no batching",
    )
    # By default any signature may be called.
    yield _call(
        "Predict",
        {
            "name": "examples",
            "signature_name": "regress_x_to_y",
            "inputs": {"inputs": ("string", [])},
        },
        {"outputs": []},
        needs="no batching",
    )


def _tensors() -> Iterator[Case]:
    def of(name: str, proto: Any) -> dict[str, Any]:
        return {"name": "types", "signature_name": name, "inputs": {"x": proto}}

    fields = {
        "float32": "float_val",
        "float64": "double_val",
        "int64": "int64_val",
        "bool": "bool_val",
        "uint32": "uint32_val",
        "uint64": "uint64_val",
        "string": "string_val",
    }
    for name, good, _, _ in TYPED:
        value = good.encode() if isinstance(good, str) else good
        yield _call(
            "Predict",
            of(name, (name, [value])),
            {"y": [good], "fields": {"y": [fields.get(name, "int_val"), 1]}},
        )
    yield _call(
        "Predict",
        of("float16", ("float16", [1.5, -2.0])),
        {"y": [1.5, -2.0], "fields": {"y": ["half_val", 2]}},
    )
    yield _call(
        "Predict", of("float32", ("float32", [float("inf"), 1.0])), {"y": [float("inf"), 1.0]}
    )
    yield _call(
        "Predict", of("int32", ("int32", [7] * 5)), {"y": [7] * 5, "fields": {"y": ["int_val", 5]}}
    )
    shape = "tensor_shape { dim { size: 3 } }"
    three = [1.0, 2.0, 3.0]
    for proto, found in (
        (f"dtype: DT_FLOAT {shape} float_val: [1, 2, 3]", three),
        (f"dtype: DT_FLOAT {shape} float_val: [1, 2]", [1.0, 2.0, 2.0]),  # the last one fills up
        (f"dtype: DT_FLOAT {shape} float_val: 5", [5.0] * 3),
        (rf'dtype: DT_FLOAT {shape} tensor_content: "\000\000\200?\000\000\000@\000\000@@"', three),
        ("dtype: DT_FLOAT tensor_shape { dim { size: 0 } }", []),
    ):
        yield _call("Predict", of("float32", proto), {"y": found})
    yield _call(
        "Predict",
        of(
            "int64",
            r"dtype: DT_INT64 tensor_shape { dim { size: 1 } } "
            r'tensor_content: "\002\000\000\000\000\000\000\000"',
        ),
        {"y": [2], "fields": {"y": ["int64_val", 1]}},
    )
    yield _call(
        "Predict",
        of("string", f'dtype: DT_STRING {shape} string_val: ["a", "b"]'),
        {"y": ["a", "b", "b"]},
    )
    # Cut to the type's bits, as C++ does.
    for name, dtype, field, found in (
        ("int8", "DT_INT8", "int_val: [300, -129]", [44, 127, 127]),
        ("uint8", "DT_UINT8", "int_val: -1", [255] * 3),
        ("int16", "DT_INT16", "int_val: [32768, 1, 2]", [-32768, 1, 2]),
        ("float16", "DT_HALF", "half_val: [80896]", [1.0] * 3),
    ):
        yield _call("Predict", of(name, f"dtype: {dtype} {shape} {field}"), {"y": found})
    for proto in (
        "dtype: DT_RESOURCE",
        "dtype: DT_VARIANT",
        "dtype: DT_FLOAT_REF float_val: 1",
        "dtype: DT_FLOAT tensor_shape { unknown_rank: true } float_val: 1",
        f'dtype: DT_FLOAT {shape} tensor_content: "abc"',
        f"dtype: DT_FLOAT {shape} float_val: [1, 2, 3, 4]",
        "dtype: DT_FLOAT tensor_shape { dim { size: -1 } } float_val: 1",
        "dtype: DT_INVALID float_val: 1",
    ):
        yield _call("Predict", of("float32", proto), "tensor parsing error: x")


def _of(signature: str, *examples: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": "examples", "signature_name": signature, "examples": list(examples), **fields}


def _examples() -> Iterator[Case]:
    x = {"x": 4.0}
    yield _call(
        "Classify",
        _of("classify_x_to_y", x),
        {"scores": [4.0], "labels": [""], "version": 1, "signature_name": "classify_x_to_y"},
    )
    yield _call(
        "Classify",
        _of("classify_with_names", x, {"x": 8.0}),
        {"scores": [4.0, 6.0], "labels": ["y", "y"]},
    )
    yield _call(
        "Regress",
        _of("regress_x_to_y", x),
        {"values": [4.0], "version": 1, "signature_name": "regress_x_to_y"},
    )
    yield _call("Regress", _of("regress_x2_to_y3", x), {"values": [3.0]})
    yield _call(
        "Regress", _of("regress_x_to_y", {}, {"x": 8.0}, context={"x": 2.0}), {"values": [3.0, 6.0]}
    )
    yield _call(
        "Classify",
        _of("classify_with_names", {}, {"x": 8.0}, context={"x": 2.0}),
        {"scores": [3.0, 6.0], "labels": ["y", "y"]},
    )
    # TensorFlow 2 calls the method of every signature predict.
    no, yes = "no method_check", "method_check"
    regress = _of("regress_x_to_y", x, name="half_tf2")
    classify = _of("classify_x_to_y", x, name="half_tf2")
    wrong_regress = f"{WRONG_METHOD.format('regression', 'regress')}predict"
    wrong_classify = f"{WRONG_METHOD.format('classification', 'classify')}predict"
    yield _call("Regress", regress, {"values": [4.0], "version": 123}, needs=no)
    yield _call("Classify", classify, {"scores": [4.0]}, needs=no)
    yield _call("Regress", regress, wrong_regress, needs=yes)
    yield _call("Classify", classify, wrong_classify, needs=yes)
    task = {"tasks": [("half_tf2", "regress_x_to_y", REGRESS)], "examples": [x]}
    yield _call("MultiInference", task, wrong_regress, needs=yes)
    another = {"name": "warm", "signature_name": "another_method", "inputs": X}
    yield _call("Predict", another, {"y": [3.0]}, needs=no)
    yield _call("Predict", another, NO_PREDICT_METHOD, code="INTERNAL", needs=yes)
    yield _call(
        "Regress",
        _of("regress_x_to_y", {"x": 4}),
        words("Data type: int64 but expected type: float"),
    )
    for method in ("Classify", "Regress"):
        yield _call(
            method,
            _of("other", x),
            "No signature was found with the name: other",
            "unknown signature, classify and regress",
        )
        yield _call(method, _of(f"{method.lower()}_x_to_y"), "Input is empty.")
        yield _call(method, _of("other"), "No signature was found with the name: other")
        yield _call(method, _of(f"{method.lower()}_x_to_y", context={"x": 2.0}), "Input is empty.")
        yield _call(method, _of("", x, name="nobody"), LATEST, code="NOT_FOUND")
        yield _call(method, _of("", x, name=""), "ModelSpec has no name specified.")
        yield _call(method, {}, "Missing ModelSpec")


def _multi_inference() -> Iterator[Case]:
    def of(*tasks: tuple[str, str, str], **fields: Any) -> dict[str, Any]:
        return {"tasks": tasks, "examples": [{"x": 4.0}], **fields}

    name = "MultiInference"
    classify, regress = (
        ("examples", "classify_x_to_y", CLASSIFY),
        ("examples", "regress_x_to_y", REGRESS),
    )
    other = ("examples", "regress_x2_to_y3", REGRESS)
    yield _call(name, of(regress), {"results": [["regress_x_to_y", 1, [4.0]]]})
    yield _call(
        name,
        of(classify, regress, other),
        {
            "results": [
                ["classify_x_to_y", 1, [["", 4.0]]],
                ["regress_x_to_y", 1, [4.0]],
                ["regress_x2_to_y3", 1, [3.0]],
            ]
        },
    )
    yield _call(
        name,
        of(classify, regress, examples=[{}], context={"x": 2.0}),
        {"results": [["classify_x_to_y", 1, [["", 3.0]]], ["regress_x_to_y", 1, [3.0]]]},
    )
    # TensorFlow 2 gives every signature a tensor of its own.
    tf2 = [("half_tf2", "regress_x_to_y", REGRESS), ("half_tf2", "classify_x_to_y", CLASSIFY)]
    yield _call(
        name,
        of(*tf2),
        {"results": [["regress_x_to_y", 123, [4.0]], ["classify_x_to_y", 123, [["", 4.0]]]]},
        needs="no method_check",
    )
    yield _call(name, of(regress, regress), "Duplicate evaluation of signature: regress_x_to_y")
    yield _call(
        name,
        of(regress, ("half_tf2", "regress_x_to_y", REGRESS)),
        "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
    )
    yield _call(
        name,
        of(regress, ("", "regress_x_to_y", REGRESS)),
        "Found ModelSpec with an empty model name.",
    )
    yield _call(
        name,
        of(("examples", "other", REGRESS)),
        "Requested signature not found in model graph: other",
    )
    yield _call(
        name,
        of(("examples", "regress_x_to_y", "tensorflow/serving/predict")),
        "Unsupported signature method_name: tensorflow/serving/predict",
        code="UNIMPLEMENTED",
    )
    yield _call(name, of(("nobody", "regress_x_to_y", REGRESS)), LATEST, code="NOT_FOUND")
    yield _call(name, of(regress, examples=[]), "Input is empty.")
    yield _call(
        name,
        of(("examples", "other", REGRESS), examples=[]),
        "Requested signature not found in model graph: other",
    )
    yield _call(name, of(), "ModelSpec has no name specified.")


def _models() -> Iterator[Case]:
    status, metadata = "GetModelStatus", "GetModelMetadata"
    half = {"name": "half_plus_two"}
    fields = {"metadata_field": ["signature_def"]}
    yield _call(status, half, {"states": [[2, 30, 0], [1, 30, 0]], "has_status": True})
    yield _call(status, {**half, "version": 1}, {"states": [[1, 30, 0]]})
    yield _call(status, {**half, "label": "stable"}, {"states": [[2, 30, 0], [1, 30, 0]]})
    yield _call(
        status,
        {"name": "nobody"},
        "Could not find any versions of model nobody",
        "status of an unknown model",
        code="NOT_FOUND",
    )
    yield _call(
        status,
        {**half, "version": 7},
        "Could not find version 7 of model half_plus_two",
        "status of an unknown version",
        code="NOT_FOUND",
    )
    yield _call(
        status,
        {"name": "nobody", "version": 7},
        "Could not find version 7 of model nobody",
        code="NOT_FOUND",
    )
    yield _call(status, {"name": ""}, "Could not find any versions of model ", code="NOT_FOUND")
    yield _call(status, {}, "Missing ModelSpec")
    signature = {
        "serving_default": {
            "method_name": "tensorflow/serving/predict",
            "inputs": {
                "x": {
                    "name": "x:0",
                    "dtype": "DT_FLOAT",
                    "tensor_shape": {"dim": [{"size": "-1"}, {"size": "1"}]},
                }
            },
        }
    }
    yield _call(
        metadata, {**half, **fields}, {"version": 2, "signature_name": "", "signatures": signature}
    )
    yield _call(metadata, {**half, **fields, "label": "stable"}, {"version": 1})
    yield _call(
        metadata,
        {"name": "half_tf2", **fields},
        {
            "version": 123,
            "signatures": {
                "__saved_model_init_op": {"outputs": {"__saved_model_init_op": {"name": "NoOp"}}},
                "regress_x_to_y": {"outputs": {"outputs": {"dtype": "DT_FLOAT"}}},
            },
        },
    )
    for name in ("half_plus_two", "nobody", ""):
        yield _call(
            metadata,
            {"name": name},
            "GetModelMetadataRequest must specify at least one metadata_field",
        )
    yield _call(metadata, {"name": "", **fields}, "ModelSpec has no name specified.")
    yield _call(metadata, {**half, "metadata_field": ["z"]}, "Metadata field z is not supported")
    yield _call(metadata, {"name": "nobody", **fields}, LATEST, code="NOT_FOUND")
    yield _call(metadata, {**half, **fields, "version": 7}, SEVEN, code="NOT_FOUND")
    yield _call(metadata, {"metadata_field": ["signature_def"]}, "Missing ModelSpec")


def _reload() -> Iterator[Case]:
    """In this order: the last one puts the configuration back."""
    name = "HandleReloadConfigRequest"
    yield _call(name, {}, NO_MODEL_LIST)
    models = config_text(FOLDER)

    def changed(old: str, new: str, answer: Any, code: str = "") -> Case:
        assert old in models, old
        return _call(name, {"config": models.replace(old, new)}, answer, code=code, needs="reload")

    yield changed(
        '"warm"',
        '"half_plus_two"',
        "Illegal to list model half_plus_two multiple times in config list",
    )
    yield changed(
        f'"{FOLDER}/warm"',
        '"warm"',
        "Expected model warm to have an absolute path or URI; got base_path()=warm",
    )
    yield changed(
        'name: "warm", base_path: "{folder}/warm", model_platform: "tensorflow"',
        'name: "warm", base_path: "{folder}/warm", model_platform: "another"',
        "Illegal to change a model's platform. For model warm platform was tensorflow and new "
        "platform requested is another",
    )
    late_elsewhere = config_text(FOLDER, "late").replace(
        '{folder}/late", model_platform: "tensorflow"', '{folder}/late", model_platform: "another"'
    )
    yield _call(
        name,
        {"config": late_elsewhere},
        "Model late requests unsupported platform another",
        needs="reload",
    )
    yield changed(
        "value: 1",
        "value: 9",
        "Request to assign label to version 9 of model half_plus_two, which is "
        "not currently available for inference",
        "FAILED_PRECONDITION",
    )
    late = {"name": "late", "inputs": X}
    yield _call(
        "Predict",
        late,
        "Servable not found for request: Latest(late)",
        code="NOT_FOUND",
        needs="reload",
    )
    counter = "/tensorflow/serving/request_count"
    yield _call(
        name,
        {"config": config_text(FOLDER, "late"), "metric_names": [counter]},
        {"code": 0, "metrics": [[counter, 0]]},
        needs="reload",
    )
    yield _call("Predict", late, {"version": 5, "y": [8.0]}, needs="reload")
    yield changed("value: 1", "value: 2", {"code": 0})
    yield _call("Predict", _half(label="stable"), {"version": 2, "y": [2.5]}, needs="reload")
    yield _call(name, {"config": models}, {"code": 0}, needs="reload")
    yield _call("Predict", _half(label="stable"), {"version": 1, "y": [3.0]}, needs="reload")

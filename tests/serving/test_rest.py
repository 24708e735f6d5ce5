"""The protocol's texts and codes, case by case, and what good answers look like."""

import base64
import gzip
import json
import math
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient
from toy_exports import MODELS

from serving.config import ServerConfig
from serving.door import Door
from serving.repository import Readiness, State
from serving.rest import create_app
from serving.service import Service

MIXED_ROW = {"words": "a", "counts": [1, 2], "is_loud": True}
THREE_INPUTS = "counts,is_loud,words"


def post(rest, path, body, **headers):
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    return rest.post(path, content=content, headers=headers)


def predict(rest, model, body, **headers):
    return post(rest, f"/v1/models/{model}:predict", body, **headers)


def error_of(response):
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    return response.json()["error"]


# ---------------------------------------------------------------- good answers


def test_one_output_is_the_values_alone(rest):
    response = predict(rest, "half_plus_two", {"instances": [1.0, 2, 5.0]})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {"predictions": [2.5, 3.0, 4.5]}


def test_several_outputs_make_row_objects(rest):
    row = {"words": "hé", "counts": [1, 2], "is_loud": False}
    assert predict(rest, "mixed", {"instances": [row, MIXED_ROW]}).json() == {
        "predictions": [
            {
                "joined": "hé3",
                "raw_bytes": {"b64": base64.b64encode("hé".encode() + b"\xff\x00").decode()},
                "total": 3,
                "is_quiet": True,
            },
            {
                "joined": "a3",
                "raw_bytes": {"b64": base64.b64encode(b"a\xff\x00").decode()},
                "total": 3,
                "is_quiet": False,
            },
        ]
    }


def test_columns_make_one_object_and_ignore_more_keys(rest):
    columns = {"words": ["x"], "counts": [[4, 5]], "is_loud": [True], "unknown": 1}
    answer = predict(rest, "mixed", {"inputs": columns}).json()["outputs"]
    assert answer["joined"] == ["x9"]
    assert answer["total"] == [9]


def test_a_plain_column_for_a_single_input(rest):
    assert predict(rest, "half_plus_two", {"inputs": [[2.0], [4.0]]}).json() == {
        "outputs": [[3.0], [4.0]]
    }


def test_a_scalar_output_needs_columns(rest):
    body = {"signature_name": "scalar", "inputs": [1, 2.5]}
    assert predict(rest, "mixed", body).json() == {"outputs": 3.5}
    body = {"signature_name": "scalar_text", "inputs": ["a", "b"]}
    assert predict(rest, "mixed", body).json() == {"outputs": "ab"}


def test_shapes_are_left_to_the_graph(rest):
    """The signature and its placeholder say (n, 1); TensorFlow Serving takes (n) all the same."""
    assert predict(rest, "half_plus_two", {"inputs": 2.0}).json() == {"outputs": 3.0}


def test_a_version_in_the_path(rest):
    response = post(rest, "/v1/models/half_plus_two/versions/3:predict", {"instances": [0.0]})
    assert response.json() == {"predictions": [2.0]}


def test_paths_are_blind_to_case_and_to_the_query(rest):
    response = post(rest, "/V1/Models/half_plus_two/Versions/03:predict?x=1", {"instances": [0]})
    assert response.json() == {"predictions": [2.0]}


def test_names_are_decoded_after_the_path_is_matched(rest):
    assert post(rest, "/v1/models/half%5Fplus%5Ftwo:predict", {"instances": [0]}).status_code == 200
    response = post(rest, "/v1/models/half%2Fplus:predict", {"instances": [0]})
    assert error_of(response) == "Servable not found for request: Latest(half/plus)"


def test_a_gzip_body_is_unpacked(rest):
    body = gzip.compress(json.dumps({"instances": [2]}).encode())
    response = predict(rest, "half_plus_two", body, **{"Content-Encoding": "gzip"})
    assert response.json() == {"predictions": [3.0]}


@pytest.mark.parametrize(
    "body",
    [b"no gzip", gzip.compress(b'{"instances": [2]}')[:-5]],
    ids=["text", "cut short"],  # the bytes hold the time, and test names must not change
)
def test_a_broken_gzip_body_counts_as_empty(rest, body):
    response = predict(rest, "half_plus_two", body, **{"Content-Encoding": "gzip"})
    assert error_of(response) == "JSON Parse error: The document is empty"


def test_not_a_number_goes_in_and_out(rest):
    body = '{"signature_name": "float32", "instances": [NaN, Infinity, -Infinity, Inf, -Inf, 0.1]}'
    response = predict(rest, "types", body)
    values = json.loads(response.text)["predictions"]
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf, math.inf, -math.inf, 0.1]
    assert "NaN" in response.text and "-Infinity" in response.text


def test_inf_inside_a_string_stays_text(rest):
    body = '{"signature_name": "string", "instances": ["Inf \\" Inf"], "x": Inf}'
    assert predict(rest, "types", body).json() == {"predictions": ['Inf " Inf']}


def test_what_follows_the_first_value_is_ignored(rest):
    response = predict(rest, "half_plus_two", '  {"instances": [2]} trailing')
    assert response.json() == {"predictions": [3.0]}


def test_float32_is_printed_without_float64_digits(rest):
    text = predict(rest, "types", {"signature_name": "float32", "instances": [0.1, 1e-7, 3]}).text
    assert json.loads(text) == {"predictions": [0.1, 1e-7, 3.0]}
    assert "3.0" in text


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("float64", [0.1, 1e300, 3.0]),
        ("int8", [-128, 127]),
        ("uint8", [0, 255]),
        ("int16", [-5]),
        ("int32", [-(2**31), 2**31 - 1]),
        ("int64", [-(2**63), 2**63 - 1]),
        ("uint32", [0, 2**32 - 1]),
        ("uint64", [0, 2**64 - 1]),
        ("bool", [True, False]),
        ("string", ["", "文本", "\u0000", "😀"]),
        ("float32", []),
        ("int32", [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]),
    ],
)
def test_every_type_comes_back(rest, dtype, values):
    body = {"signature_name": dtype, "inputs": values}
    assert predict(rest, "types", body).json() == {"outputs": values}


def test_small_integers_are_checked_as_int32_only(rest):
    assert predict(rest, "types", {"signature_name": "int8", "inputs": [300]}).json() == {
        "outputs": [44]
    }


@pytest.mark.parametrize("encoded", ["5paH", "YQ==", "YQ"])
def test_base64_is_bytes_with_or_without_padding(rest, encoded):
    body = {"signature_name": "string", "instances": [{"b64": encoded}]}
    expected = base64.b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    assert predict(rest, "types", body).json() == {"predictions": [expected]}


def test_invalid_utf8_passes_through_both_ways(rest):
    raw = b'{"signature_name": "string", "instances": ["a\xffb"]}'
    assert b'"a\xffb"' in predict(rest, "types", raw).content
    body = {"signature_name": "invalid_text", "instances": ["文"]}
    assert '"文'.encode() + b'\xff"' in predict(rest, "mixed", body).content


# ---------------------------------------------------------------- errors of predict

VALUE = "JSON Value: "
PARSE = "JSON Parse error: "
CASES = {
    "unknown model": ("no", {"instances": [1]}, 404, "Servable not found for request: Latest(no)"),
    "bad JSON goes before an unknown model": ("no", "{", 400, PARSE + "Missing a name for object "
                                              "member. at offset: 1"),
    "missing keys come after an unknown model": (
        "no", {}, 404, "Servable not found for request: Latest(no)"),
    "unknown signature": (
        "mixed", {"signature_name": "nope", "instances": [1]}, 400,
        'Serving signature name: "nope" not found in signature def'),
    "signature without inputs": (
        "mixed", {"signature_name": "no_inputs", "instances": [1]}, 400,
        "Failed to get input map for signature: no_inputs"),
    "empty body": ("mixed", "", 400, PARSE + "The document is empty"),
    "blank body": ("mixed", " \n", 400, PARSE + "The document is empty. at offset: 2"),
    "invalid value": ("mixed", '{"é": nil}', 400, PARSE + "Invalid value. at offset: 8"),
    "no colon": ("mixed", '{"a" 1}', 400, PARSE + "Missing a colon after a name of object member. "
                 "at offset: 5"),
    "no comma in an object": ("mixed", '{"a": [1] "b"}', 400, PARSE + "Missing a comma or } after "
                              "an object member. at offset: 10"),
    "no comma in a list": ("mixed", '{"a": [1 2]}', 400, PARSE + "Missing a comma or ] after an "
                           "array element. at offset: 9"),
    "open string": ("mixed", '{"a', 400, PARSE + "Missing a closing quotation mark in string. "
                    "at offset: 3"),
    "bad escape": ("mixed", '{"\\x": 1}', 400, PARSE + "Invalid escape character in string. "
                   "at offset: 2"),
    "lone surrogate": ("types", '{"signature_name": "string", "instances": ["\\ud83d x"]}', 400,
                       PARSE + "The surrogate pair in string is invalid. at offset: 44"),
    "low surrogate first": ("types", '{"instances": ["\\ude00"]}', 400,
                            PARSE + "The surrogate pair in string is invalid. at offset: 16"),
    "not an object": ("mixed", "[1, 2]", 400, VALUE + "[1, 2] Is not object"),
    "signature_name is no string": (
        "mixed", {"signature_name": 5}, 400,
        VALUE + '{\n    "signature_name": 5\n} not formatted correctly. '
        "'signature_name' key must be a string value."),
    "neither key": ("mixed", {"x": 1}, 400, "Missing 'inputs' or 'instances' key"),
    "both keys": (
        "mixed", {"inputs": 1, "instances": 2}, 400,
        VALUE + '{\n    "inputs": 1,\n    "instances": 2\n} Not formatted correctly expecting only '
        "one of 'inputs' or 'instances' keys to exist "),
    "instances is no list": ("mixed", {"instances": 5}, 400,
                             VALUE + '{\n    "instances": 5\n} '
                             "Expecting 'instances' to be an list/array"),
    "instances is empty": ("mixed", {"instances": []}, 400,
                           VALUE + '{\n    "instances": []\n} '
                           "No values in 'instances' array"),
    "plain rows for several inputs": (
        "mixed", {"instances": [1]}, 400,
        "instances is a plain list, but expecting list of objects as multiple input tensors "
        "required as per tensorinfo_map"),
    "plain columns for several inputs": (
        "mixed", {"inputs": [1]}, 400,
        "inputs is a plain value/list, but expecting an object as multiple input tensors required "
        "as per tensorinfo_map"),
    "missing column": ("mixed", {"inputs": {"words": ["a"], "counts": [[1, 2]]}}, 400,
                       "Missing named input: is_loud in 'inputs' object."),
    "missing key in a row": (
        "mixed", {"instances": [MIXED_ROW, {"words": "b"}]}, 400,
        "Failed to process element: 1 of 'instances' list. JSON object: {\n    \"words\": \"b\"\n} "
        f"keys must be equal to: {THREE_INPUTS}"),
    "unknown key in a row": (
        "mixed", {"instances": [MIXED_ROW | {"zz": 1}]}, 400,
        "Failed to process element: 0 key: zz of 'instances' list. Error: INVALID_ARGUMENT: "
        "JSON object: does not have named input: zz"),
    "wrong type in a row": (
        "half_plus_two", {"instances": [1.0, "x"]}, 400,
        "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
        'JSON Value: "x" Type: String is not of expected type: float'),
    "wrong type in a row of objects": (
        "mixed", {"instances": [MIXED_ROW | {"counts": [1, None]}]}, 400,
        "Failed to process element: 0 key: counts of 'instances' list. Error: INVALID_ARGUMENT: "
        "JSON Value: null Type: Null is not of expected type: int32"),
    "float for an integer": ("types", {"signature_name": "int32", "inputs": [1, 1.0]}, 400,
                             "JSON Value: 1.0 Type: Number is not of expected type: int32"),
    "exponent for an integer": ("types", '{"signature_name": "int64", "inputs": 1e3}', 400,
                                "JSON Value: 1000.0 Type: Number is not of expected type: int64"),
    "integer out of range": ("types", {"signature_name": "int8", "inputs": 2**31}, 400,
                             "JSON Value: 2147483648 Type: Number is not of expected type: int8"),
    "negative for unsigned": ("types", {"signature_name": "uint32", "inputs": -1}, 400,
                              "JSON Value: -1 Type: Number is not of expected type: uint32"),
    "integer for bool": ("types", {"signature_name": "bool", "inputs": 1}, 400,
                         "JSON Value: 1 Type: Number is not of expected type: bool"),
    "bool for integer": ("types", {"signature_name": "int32", "inputs": True}, 400,
                         "JSON Value: true Type: True is not of expected type: int32"),
    "bool for float": ("types", {"signature_name": "float32", "inputs": False}, 400,
                       "JSON Value: false Type: False is not of expected type: float"),
    "number for string": ("types", {"signature_name": "string", "inputs": 1}, 400,
                          "JSON Value: 1 Type: Number is not of expected type: string"),
    "base64 for a float": (
        "types", {"signature_name": "float32", "inputs": {"b64": "YQ=="}}, 400,
        'JSON Value: {\n    "b64": "YQ=="\n} Type: Object is not of expected type: float'),
    "half": ("types", {"signature_name": "float16", "inputs": 1.0}, 501,
             "Conversion of JSON Value: 1.0 to type: half"),
    "half in a row": (
        "types", {"signature_name": "float16", "instances": [1.0]}, 400,
        "Failed to process element: 0 of 'instances' list. Error: UNIMPLEMENTED: "
        "Conversion of JSON Value: 1.0 to type: half"),
    "rows differ in size": (
        "types", {"signature_name": "int32", "instances": [[1, 2], [3]]}, 400,
        "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
        "Expecting tensor size: 2 but got: 1"),
    "rows differ in shape": (
        "types", {"signature_name": "int32", "instances": [[1, 2], [[3, 4]]]}, 400,
        "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
        "Expecting shape [2] but got: [1,2]"),
    "uneven lists": ("types", {"signature_name": "int32", "inputs": [[1, 2], [3]]}, 400,
                     "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
    "too deep": ("types", {"signature_name": "int32", "inputs": [1, [2]]}, 400,
                 "Encountered list at unexpected level: 1 expected < 1"),
    "too shallow": (
        "types", {"signature_name": "int32", "inputs": [[1], 2]}, 400,
        "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
    "list among objects": (
        "mixed", {"instances": [MIXED_ROW, [1]]}, 400,
        "Expecting object but got list at item 1 of input list"),
    "object among values": (
        "half_plus_two", {"instances": [1.0, {"x": 1.0}]}, 400,
        "Expecting value/list but got object at item 1 of input list"),
    "web-safe base64": (
        "types", {"signature_name": "string", "inputs": {"b64": "-_-_"}}, 400,
        "Unable to base64 decode"),
    "another object for a string": (
        "types", {"signature_name": "string", "inputs": {"b64": 1}}, 400,
        "Missing named input: x in 'inputs' object."),
    "another object in a list of strings": (
        "types", {"signature_name": "string", "inputs": ["a", {"b64": 1}]}, 400,
        'JSON Value: {\n    "b64": 1\n} not formatted correctly for base64 data'),
    "object for half": (
        "types", {"signature_name": "float16", "inputs": [{"a": 1}]}, 400,
        'JSON Value: {\n    "a": 1\n} Type: Object is not of expected type: half'),
    "scalar output in rows": (
        "mixed", {"signature_name": "scalar", "instances": [1.0]}, 400,
        "Tensor name: sum has no shape information "),
    "outputs differ in batch": (
        "mixed", {"signature_name": "uneven", "instances": [1.0]}, 400,
        "Tensor name: twice has inconsistent batch size: 2 expecting: 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_predict_error(rest, case):
    model, body, status, text = CASES[case]
    response = predict(rest, model, body)
    assert (response.status_code, error_of(response)) == (status, text)


def test_unknown_version_and_label(rest):
    response = post(rest, "/v1/models/mixed/versions/9:predict", {"instances": [1]})
    assert response.status_code == 404
    assert error_of(response) == "Servable not found for request: Specific(mixed, 9)"
    response = post(rest, "/v1/models/mixed/labels/stable:predict", {"instances": [1]})
    assert response.status_code == 400
    assert error_of(response) == "Unrecognized servable version label: stable"


def test_a_shape_the_graph_refuses_is_a_400_with_the_ops_text(rest):
    body = {"signature_name": "needs_vector", "inputs": [[1.0, 2.0, 3.0]]}
    response = predict(rest, "mixed", body)
    assert response.status_code == 400
    assert "Matrix size-incompatible" in error_of(response)


def test_error_texts_show_the_beginning_of_a_value(rest):
    response = predict(rest, "mixed", json.dumps(["x" * 100] * 10_000))
    assert (
        error_of(response)
        == f'JSON Value: ["{"x" * 100}", "{"x" * 100}", "{"x" * 100}" Is not object'
    )


@pytest.mark.parametrize(
    "body",
    [
        "[" * 100_000,
        '{"instances": ' + "[" * 900 + "]" * 900 + "}",
        '{"instances": ' + '{"a":' * 900 + "1" + "}" * 900 + "}",
        '{"instances": [' + "9" * 10_000 + "]}",
        '{"instances": [1' + "0" * 400 + "]}",
    ],
)
def test_absurd_bodies_are_client_errors(rest, body):
    assert predict(rest, "half_plus_two", body).status_code == 400


# ---------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("GET", "/v1/models/mixed:predict"),
        ("POST", "/v1/models/mixed"),
        ("PUT", "/v1/models/mixed:predict"),
        ("DELETE", "/v1/models/mixed"),
        ("PATCH", "/v1/models/mixed"),
        ("GET", "/v1/models/mixed/"),
        ("POST", "/v1/models/mixed:explain"),
        ("POST", "/v1/models/mixed/versions/3/labels/a:predict"),
        ("GET", "/v1/models/mixed/versions/three"),
        ("GET", "/v1/"),
        ("GET", "/v1/model/mixed"),
    ],
)
def test_malformed_request(rest, verb, path):
    response = rest.request(verb, path)
    assert response.status_code == 400
    assert error_of(response) == f"Malformed request: {verb} {path}"


def test_head_is_malformed_too(rest):
    assert rest.head("/v1/models/mixed").status_code == 400


def test_missing_model_name(rest):
    response = rest.get("/v1/models/versions/3")
    assert (response.status_code, error_of(response)) == (400, "Missing model name in request.")


def test_the_list_of_models(rest):
    models = rest.get("/v1/models").json()["models"]
    assert [model["name"] for model in models] == sorted(MODELS)
    classifier = {
        "name": "classifier",
        "versions": [{"version": "3", "state": "AVAILABLE"}],
        "labels": {},
        "state": "AVAILABLE",
    }
    assert classifier in models


def test_outside_v1_is_a_page_not_json(rest):
    response = rest.get("/nothing")
    assert response.status_code == 404
    assert response.headers["content-type"].startswith("text/html")


def test_a_version_beyond_int64_is_an_empty_400(rest):
    for number in (2**63, 10**30):
        response = rest.get(f"/v1/models/mixed/versions/{number}")
        assert (response.status_code, response.content) == (400, b"")


def test_preflight(rest):
    response = rest.options("/v1/models/mixed:predict", headers={"Origin": "http://a.example"})
    assert (response.status_code, response.content) == (200, b"")
    assert rest.options("/v1/models/mixed:predict").status_code == 400


# ---------------------------------------------------------------- status, metadata, health


def test_status(rest):
    expected = {
        "model_version_status": [
            {
                "version": "3",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }
    for path in ("mixed", "mixed/versions/3", "mixed/labels/any"):
        assert rest.get(f"/v1/models/{path}").json() == expected


def test_status_of_the_unknown(rest):
    response = rest.get("/v1/models/no")
    assert response.status_code == 404
    assert error_of(response) == "Could not find any versions of model no"
    response = rest.get("/v1/models/mixed/versions/4")
    assert response.status_code == 404
    assert error_of(response) == "Could not find version 4 of model mixed"


def test_metadata(rest):
    answer = rest.get("/v1/models/half_plus_two/metadata").json()
    assert answer["model_spec"] == {
        "name": "half_plus_two",
        "signature_name": "",
        "version": "3",
    }
    signature = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
    x = signature["inputs"]["x"]
    assert x["dtype"] == "DT_FLOAT"
    assert x["tensor_shape"] == {
        "dim": [{"size": "-1", "name": ""}, {"size": "1", "name": ""}],
        "unknown_rank": False,
    }
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["defaults"] == {}
    assert rest.get("/v1/models/half_plus_two/versions/3/metadata").json() == answer


def test_metadata_shows_the_init_op_of_a_keras_style_export(rest):
    answer = rest.get("/v1/models/classifier/metadata").json()
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert set(signatures) == {"serving_default", "__saved_model_init_op"}


def test_an_error_tells_version_and_time_too(repository):
    service = Service(repository)
    with TestClient(Door(create_app(service), service, ServerConfig())) as client:
        body = {"inputs": {"words": ["a", "b"], "counts": [[1, 2]], "is_loud": [True]}}
        failed = client.post("/v1/models/mixed:predict", json=body)
        unknown = client.post("/v1/models/nobody:predict", json=body)
    assert failed.status_code == 400 and failed.headers["x-model-version"] == "3"
    assert not failed.headers["server-timing"].startswith("parse;dur=0.000")
    assert unknown.status_code == 404 and "x-model-version" not in unknown.headers


def test_health_and_readiness(rest):
    assert rest.get("/healthz").status_code == 200
    response = rest.get("/readyz")
    assert response.status_code == 200
    assert response.json()["status"] == "ready"
    assert {"name": "mixed", "version": 3, "state": "AVAILABLE"} in response.json()["models"]
    for path in ("/healthz", "/readyz"):
        refused = rest.post(path)
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("state", "status"), [("LOADING", "loading"), ("START", "loading"), ("END", "failed")]
)
def test_readiness_tells_a_failed_load_from_one_under_way(state, status):
    models = [Readiness("bad", 1, State[state])]
    repository = SimpleNamespace(readiness=lambda: (False, models))
    app = create_app(SimpleNamespace(repository=repository, is_draining=False))
    response = TestClient(app).get("/readyz")
    assert (response.status_code, response.json()["status"]) == (503, status)


def test_a_bug_of_ours_is_a_plain_500_with_the_traceback_in_the_log(rest, monkeypatch, caplog):
    monkeypatch.setattr("serving.json_text.parse", lambda body, max_depth: 1 / 0)
    response = predict(rest, "mixed", {})
    assert response.status_code == 500
    assert "division" not in error_of(response)
    assert "ZeroDivisionError" in caplog.text

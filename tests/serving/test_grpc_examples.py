"""Classify, Regress and MultiInference over gRPC."""

import pytest
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    regression_pb2,
)
from test_grpc_server import refused
from toy_exports import example

from serving import inference


def filled(request, signature="", model="examples", examples=(), context=None):
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    request.input.CopyFrom(input_of(examples, context))
    return request


def input_of(examples, context=None):
    found = input_pb2.Input()
    if context is not None:
        found.example_list_with_context.context.ParseFromString(context)
        target = found.example_list_with_context.examples
    else:
        target = found.example_list.examples
    for serialized in examples:
        target.add().ParseFromString(serialized)
    return found


def classification(*args, **kwargs):
    return filled(classification_pb2.ClassificationRequest(), *args, **kwargs)


def regression(*args, **kwargs):
    return filled(regression_pb2.RegressionRequest(), *args, **kwargs)


TWO = [example(x=2.0), example(x=4.0)]


def test_classify_gives_scores_and_where_there_are_any_labels(stubs):
    request = classification("classify_x_to_y", examples=TWO)
    response = stubs.prediction.Classify(request, timeout=10)
    found = [[(c.label, c.score) for c in row.classes] for row in response.result.classifications]
    assert found == [[("", 3.0)], [("", 4.0)]]
    assert response.model_spec.version.value == 3
    assert response.model_spec.signature_name == "classify_x_to_y"
    request = classification("classify_with_names", examples=TWO)
    response = stubs.prediction.Classify(request, timeout=10)
    assert [row.classes[0].label for row in response.result.classifications] == ["y", "y"]


def test_regress_gives_a_number_an_example(stubs):
    response = stubs.prediction.Regress(regression("regress_x_to_y", examples=TWO), timeout=10)
    assert [r.value for r in response.result.regressions] == [3.0, 4.0]


def test_a_context_stands_before_every_example_and_gives_way_to_it(stubs):
    request = regression(
        "regress_x_to_y", examples=[example(), example(x=4.0)], context=example(x=2.0)
    )
    response = stubs.prediction.Regress(request, timeout=10)
    assert [r.value for r in response.result.regressions] == [3.0, 4.0]


def test_examples_must_be_there(stubs):
    expected = ("INVALID_ARGUMENT", "Input is empty.")
    assert refused(stubs.prediction.Classify, classification("classify_x_to_y")) == expected
    empty = regression("regress_x_to_y", context=example(x=1.0))
    assert refused(stubs.prediction.Regress, empty) == expected


def test_an_unknown_signature_is_named_before_the_examples_are_looked_at(stubs):
    assert refused(stubs.prediction.Classify, classification("no")) == (
        "INVALID_ARGUMENT",
        "No signature was found with the name: no",
    )


def test_a_model_must_be_named(stubs):
    request = classification_pb2.ClassificationRequest()
    assert refused(stubs.prediction.Classify, request)[1] == "Missing ModelSpec"
    request.model_spec.signature_name = "classify_x_to_y"
    assert refused(stubs.prediction.Classify, request)[1] == "ModelSpec has no name specified."
    request.model_spec.name = "nowhere"
    assert refused(stubs.prediction.Classify, request) == (
        "NOT_FOUND",
        "Servable not found for request: Latest(nowhere)",
    )


def multi(*tasks, examples=TWO):
    request = inference_pb2.MultiInferenceRequest(input=input_of(examples))
    for model, signature, method in tasks:
        task = request.tasks.add(method_name=method)
        task.model_spec.name, task.model_spec.signature_name = model, signature
    return request


CLASSIFY = ("examples", "classify_x_to_y", inference.CLASSIFY_METHOD)
REGRESS = ("examples", "regress_x_to_y", inference.REGRESS_METHOD)


def test_multi_inference_answers_every_task_in_order(stubs):
    response = stubs.prediction.MultiInference(multi(REGRESS, CLASSIFY), timeout=10)
    first, second = response.results
    assert [r.value for r in first.regression_result.regressions] == [3.0, 4.0]
    assert second.classification_result.classifications[1].classes[0].score == 4.0
    assert [r.model_spec.signature_name for r in response.results] == [REGRESS[1], CLASSIFY[1]]
    assert {r.model_spec.version.value for r in response.results} == {3}


@pytest.mark.parametrize(
    ("tasks", "code", "text"),
    [
        ((), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        (
            (REGRESS, ("", "classify_x_to_y", inference.CLASSIFY_METHOD)),
            "INVALID_ARGUMENT",
            "Found ModelSpec with an empty model name.",
        ),
        (
            (REGRESS, ("mixed", "classify_x_to_y", inference.CLASSIFY_METHOD)),
            "INVALID_ARGUMENT",
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
        (
            (REGRESS, REGRESS),
            "INVALID_ARGUMENT",
            "Duplicate evaluation of signature: regress_x_to_y",
        ),
        (
            (("examples", "no", inference.REGRESS_METHOD),),
            "INVALID_ARGUMENT",
            "Requested signature not found in model graph: no",
        ),
        (
            (("examples", "regress_x_to_y", "tensorflow/serving/predict"),),
            "UNIMPLEMENTED",
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
    ],
)
def test_multi_inference_refuses(stubs, tasks, code, text):
    assert refused(stubs.prediction.MultiInference, multi(*tasks)) == (code, text)

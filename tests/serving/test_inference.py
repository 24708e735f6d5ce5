"""Classify, regress and several at once: what a signature must have, and what comes back."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import inference_pb2, input_pb2
from toy_exports import example

from serving import inference
from serving.errors import Code, ServingError

CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"


class FakeServable:
    """Gives the same outputs whatever it is asked; remembers the last inputs."""

    version = 7

    def __init__(self, method=CLASSIFY, inputs=("inputs",), **outputs):
        signature = meta_graph_pb2.SignatureDef(method_name=method)
        for alias in inputs:
            signature.inputs[alias].name = f"{alias}:0"
        for alias in outputs:
            signature.outputs[alias].name = f"{alias}:0"
        self.signatures = {"serving_default": signature}
        self.outputs = outputs

    def run(self, signature_name, inputs, output_filter, **_):
        self.inputs = inputs
        return {alias: self.outputs[alias] for alias in output_filter}


def strings(rows):
    return np.array(rows, object)


def floats(rows):
    return np.array(rows, np.float32)


def refused(run, servable, num_examples=1, **options):
    with pytest.raises(ServingError) as caught:
        run(servable, "", [b"e"] * num_examples, **options)
    return caught.value


def test_classes_and_scores():
    servable = FakeServable(classes=strings([[b"a", b"b"]]), scores=floats([[0.25, 0.75]]))
    result = inference.classify(servable, "", [b"e"])
    (row,) = result.classifications
    assert [(c.label, c.score) for c in row.classes] == [("a", 0.25), ("b", 0.75)]
    assert servable.inputs["inputs"].tolist() == [b"e"]
    result = inference.classify(FakeServable(scores=floats([[0.5]])), "", [b"e"])
    assert [(c.label, c.score) for c in result.classifications[0].classes] == [("", 0.5)]
    result = inference.classify(FakeServable(classes=strings([[b"\xff"]])), "", [b"e"])
    assert [(c.label, c.score) for c in result.classifications[0].classes] == [("\ufffd", 0.0)]
    # Not one class each: still an entry for each example.
    result = inference.classify(FakeServable(scores=floats([[], []])), "", [b"e"] * 2)
    assert [len(row.classes) for row in result.classifications] == [0, 0]


def test_values_may_have_a_dimension_more():
    for values in ([1.5, 2.5], [[1.5], [2.5]]):
        servable = FakeServable(REGRESS, outputs=floats(values))
        result = inference.regress(servable, "", [b"e"] * 2)
        assert [regression.value for regression in result.regressions] == [1.5, 2.5]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (
            {"scores": floats([0.5])},
            "Expected Tensor shape: [batch_size num_classes] but got [1]",
        ),
        (
            {"scores": np.array([[0.5]])},
            "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE",
        ),
        (
            {"classes": floats([[0.5]])},
            "Expected classes Tensor of DT_STRING. Got: DT_FLOAT",
        ),
        (
            {"scores": floats([[0.5], [0.5]])},
            "Expected scores output batch size of 1. Got: 2",
        ),
        (
            {"classes": strings([[b"a"]]), "scores": floats([[0.5, 0.5]])},
            "Tensors class and score should match in dim_size(1). Got 1 vs. 2",
        ),
    ],
)
def test_outputs_that_are_no_classification(outputs, message):
    error = refused(inference.classify, FakeServable(**outputs))
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            floats([[1, 2]]),
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            "[1,2]",
        ),
        (floats([1, 2]), "Input batch size did not match output batch size: 1 vs. 2"),
        (np.array([1]), "Expected output Tensor of DT_FLOAT.  Got: DT_INT64"),
    ],
)
def test_outputs_that_are_no_regression(values, message):
    error = refused(inference.regress, FakeServable(REGRESS, outputs=values))
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, message)


def test_signatures_that_do_not_fit():
    ones = floats([[1]])
    classify, regress = inference.classify, inference.regress
    for run, servable, code, message in (
        (
            classify,
            FakeServable(inputs=("inputs", "more"), scores=ones),
            Code.INVALID_ARGUMENT,
            "Expected one input Tensor.",
        ),
        (
            classify,
            FakeServable(inputs=("x",), scores=ones),
            Code.FAILED_PRECONDITION,
            "No classification inputs found in SignatureDef: ",
        ),
        (
            classify,
            FakeServable(a=ones, b=ones, c=ones),
            Code.INVALID_ARGUMENT,
            "Expected one or two output Tensors, found 3",
        ),
        (
            classify,
            FakeServable(y=ones),
            Code.FAILED_PRECONDITION,
            'Expected classification signature outputs to contain at least one of "classes" or '
            '"scores". Signature was: ',
        ),
        (
            regress,
            FakeServable(REGRESS, y=ones),
            Code.FAILED_PRECONDITION,
            "No regression outputs found in SignatureDef: ",
        ),
        (
            regress,
            FakeServable(REGRESS, outputs=ones, more=ones),
            Code.INVALID_ARGUMENT,
            "Expected one output Tensor.",
        ),
    ):
        error = refused(run, servable)
        assert error.code is code
        assert error.message.startswith(message)
    with pytest.raises(ServingError, match="No signature was found with the name: spam"):
        classify(FakeServable(scores=ones), "spam", [b"e"])


def test_the_method_name_counts_only_when_asked_for():
    servable = FakeServable("tensorflow/serving/predict", scores=floats([[1]]))
    assert inference.classify(servable, "", [b"e"]).classifications
    error = refused(inference.classify, servable, check_method_name=True)
    assert error.message == (
        f"Expected classification signature method_name to be {CLASSIFY}. "
        "Was: tensorflow/serving/predict"
    )


def test_examples_stand_behind_their_context():
    message = input_pb2.Input()
    assert inference.examples_of(message) == []
    one, context = (tf.train.Example.FromString(example(**f)) for f in ({"x": 1.0}, {"y": 2.0}))
    message.example_list_with_context.context.CopyFrom(context)
    message.example_list_with_context.examples.append(one)
    (joined,) = inference.examples_of(message)
    assert set(tf.train.Example.FromString(joined).features.feature) == {"x", "y"}


def test_several_signatures_must_go_together():
    servable = FakeServable(scores=floats([[0.5]]))
    servable.signatures["other"] = meta_graph_pb2.SignatureDef()
    servable.signatures["other"].CopyFrom(servable.signatures["serving_default"])

    def task(name="m", signature="", method=CLASSIFY):
        made = inference_pb2.InferenceTask(method_name=method)
        made.model_spec.name, made.model_spec.signature_name = name, signature
        return made

    response = inference.multi_inference(servable, [task(), task(signature="other")], [b"e"])
    first, second = response.results
    assert first.model_spec.signature_name == "serving_default"
    assert second.model_spec.version.value == 7
    assert second.classification_result.classifications[0].classes[0].score == 0.5

    # A signature of TensorFlow 2 has a tensor of its own for the examples.
    servable.signatures["other"].inputs["inputs"].name = "elsewhere:0"
    assert inference.multi_inference(servable, [task(), task(signature="other")], [b"e"])
    for tasks, message in (
        ([task("")], "Found ModelSpec with an empty model name."),
        (
            [task(), task("n")],
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
        ([task(), task()], "Duplicate evaluation of signature: serving_default"),
        ([task(signature="none")], "Requested signature not found in model graph: none"),
        (
            [task(method="tensorflow/serving/predict")],
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
    ):
        with pytest.raises(ServingError) as caught:
            inference.multi_inference(servable, tasks, [])  # which comes last
        assert caught.value.message == message
    with pytest.raises(ServingError, match=r"^Input is empty\.$"):
        inference.multi_inference(servable, [task()], [])

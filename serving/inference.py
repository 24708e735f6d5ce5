"""The protocol's kinds of inference over `servable.run`: predict, classify, regress and several.

Needs no more of a servable than `signatures` and `run`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    predict_pb2,
    regression_pb2,
)

from model.signatures import SERVING_DEFAULT
from serving.codec import Arrays, Tensors
from serving.errors import Code, ServingError, invalid_argument
from serving.timing import Timing

INPUTS = "inputs"  # alias of the examples
CLASSES, SCORES = "classes", "scores"
OUTPUTS = "outputs"  # alias of a regression's values
PREDICT_METHOD = "tensorflow/serving/predict"
CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"


def examples_of(message: input_pb2.Input) -> list[bytes]:
    """The examples of a request, each behind its context."""
    kind = message.WhichOneof("kind")
    examples, context = [], b""
    if kind == "example_list":
        examples = list(message.example_list.examples)
    elif kind == "example_list_with_context":
        examples = list(message.example_list_with_context.examples)
        context = message.example_list_with_context.context.SerializeToString()
    return [context + example.SerializeToString() for example in examples]


def check_predict_method(servable: Any, signature_name: str) -> None:
    """Raises INTERNAL, as TensorFlow Serving does, for a signature that is for something else; one
    that is not there is no fault here.
    """
    signature = servable.signatures.get(signature_name or SERVING_DEFAULT)
    allowed = (PREDICT_METHOD, CLASSIFY_METHOD, REGRESS_METHOD)
    if signature is not None and signature.method_name not in allowed:
        raise ServingError(
            Code.INTERNAL,
            "Expected prediction signature method_name to be one of {"
            + ", ".join(allowed)
            + f"}}. Was: {signature.method_name}",
        )


def predict(
    servable: Any,
    request: predict_pb2.PredictRequest,
    *,
    timeout: float | None = None,
    timing: Timing | None = None,
) -> Arrays:
    """The outputs by alias; which model the request names is the caller's matter."""
    return servable.run(
        request.model_spec.signature_name,
        Tensors(request.inputs),
        list(request.output_filter),
        timeout=timeout,
        timing=timing,
    )


def classify(
    servable: Any,
    signature_name: str,
    examples: Sequence[bytes],
    *,
    timeout: float | None = None,
    timing: Timing | None = None,
    check_method_name: bool = False,
) -> classification_pb2.ClassificationResult:
    """Classes and scores of each example; `timeout` in seconds.

    Raises INVALID_ARGUMENT or FAILED_PRECONDITION for a signature that cannot classify.
    """
    signature = _signature(servable, signature_name)
    aliases = _classification_outputs(signature, check_method_name)
    outputs = servable.run(signature_name, _fed(examples), aliases, timeout=timeout, timing=timing)
    return _classifications(outputs.get(CLASSES), outputs.get(SCORES), len(examples))


def regress(
    servable: Any,
    signature_name: str,
    examples: Sequence[bytes],
    *,
    timeout: float | None = None,
    timing: Timing | None = None,
    check_method_name: bool = False,
) -> regression_pb2.RegressionResult:
    """A value for each example; `timeout` in seconds.

    Raises INVALID_ARGUMENT or FAILED_PRECONDITION for a signature that cannot regress.
    """
    signature = _signature(servable, signature_name)
    _check_regression(signature, check_method_name)
    outputs = servable.run(
        signature_name, _fed(examples), [OUTPUTS], timeout=timeout, timing=timing
    )
    return _regressions(outputs[OUTPUTS], len(examples))


def multi_inference(
    servable: Any,
    tasks: Sequence[inference_pb2.InferenceTask],
    examples: Sequence[bytes],
    *,
    timeout: float | None = None,
    timing: Timing | None = None,
    check_method_name: bool = False,
) -> inference_pb2.MultiInferenceResponse:
    """Several signatures of one model on the same examples, each in a run of its own. All tasks are
    checked before any runs.

    Raises as `classify` and `regress` do, UNIMPLEMENTED for another method, INVALID_ARGUMENT for
    tasks that do not go together.
    """
    names: list[str] = []
    for task in tasks:
        if not task.model_spec.name:
            raise invalid_argument("Found ModelSpec with an empty model name.")
        if task.model_spec.name != tasks[0].model_spec.name:
            raise invalid_argument(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        name = task.model_spec.signature_name or SERVING_DEFAULT
        if name in names:
            raise invalid_argument(f"Duplicate evaluation of signature: {name}")
        names.append(name)
        signature = servable.signatures.get(name)
        if signature is None:
            raise invalid_argument(f"Requested signature not found in model graph: {name}")
        if task.method_name == CLASSIFY_METHOD:
            _classification_outputs(signature, check_method_name)
        elif task.method_name == REGRESS_METHOD:
            _check_regression(signature, check_method_name)
        else:
            raise ServingError(
                Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}"
            )
    response = inference_pb2.MultiInferenceResponse()
    for task, name in zip(tasks, names, strict=True):
        result = response.results.add()
        result.model_spec.name, result.model_spec.signature_name = task.model_spec.name, name
        result.model_spec.version.value = servable.version
        if task.method_name == CLASSIFY_METHOD:
            result.classification_result.CopyFrom(
                classify(servable, name, examples, timeout=timeout, timing=timing)
            )
        else:
            result.regression_result.CopyFrom(
                regress(servable, name, examples, timeout=timeout, timing=timing)
            )
    return response


def _signature(servable: Any, name: str) -> meta_graph_pb2.SignatureDef:
    name = name or SERVING_DEFAULT
    signature = servable.signatures.get(name)
    if signature is None:
        raise invalid_argument(f"No signature was found with the name: {name}")
    return signature


def _check_method(signature: meta_graph_pb2.SignatureDef, kind: str, method: str) -> None:
    if signature.method_name != method:
        raise invalid_argument(
            f"Expected {kind} signature method_name to be {method}. Was: {signature.method_name}"
        )


def _check_input(signature: meta_graph_pb2.SignatureDef, kind: str) -> None:
    if INPUTS not in signature.inputs:
        raise ServingError(
            Code.FAILED_PRECONDITION, f"No {kind} inputs found in SignatureDef: {signature}"
        )


def _classification_outputs(
    signature: meta_graph_pb2.SignatureDef, check_method_name: bool
) -> list[str]:
    if check_method_name:
        _check_method(signature, "classification", CLASSIFY_METHOD)
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid_argument(
            f"Expected one or two output Tensors, found {len(signature.outputs)}"
        )
    _check_input(signature, "classification")
    aliases = [alias for alias in (CLASSES, SCORES) if alias in signature.outputs]
    if not aliases:
        raise ServingError(
            Code.FAILED_PRECONDITION,
            "Expected classification signature outputs to contain at least one of "
            f'"{CLASSES}" or "{SCORES}". Signature was: {signature}',
        )
    return aliases


def _check_regression(signature: meta_graph_pb2.SignatureDef, check_method_name: bool) -> None:
    if check_method_name:
        _check_method(signature, "regression", REGRESS_METHOD)
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid_argument("Expected one output Tensor.")
    _check_input(signature, "regression")
    if OUTPUTS not in signature.outputs:
        raise ServingError(
            Code.FAILED_PRECONDITION,
            f"No regression outputs found in SignatureDef: {signature}",
        )


def _fed(examples: Sequence[bytes]) -> Arrays:
    if not examples:
        raise invalid_argument("Input is empty.")
    return {INPUTS: np.array(examples, object)}


def _classifications(
    classes: np.ndarray | None, scores: np.ndarray | None, num_examples: int
) -> classification_pb2.ClassificationResult:
    for name, dtype, kind, array in (
        (CLASSES, "DT_STRING", object, classes),
        (SCORES, "DT_FLOAT", np.float32, scores),
    ):
        if array is None:
            continue
        if array.ndim != 2:
            raise invalid_argument(
                f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}"
            )
        if array.dtype != kind:
            raise invalid_argument(f"Expected {name} Tensor of {dtype}. Got: {_dtype(array)}")
        if len(array) != num_examples:
            raise invalid_argument(
                f"Expected {name} output batch size of {num_examples}. Got: {len(array)}"
            )
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise invalid_argument(
            "Tensors class and score should match in dim_size(1). Got "
            f"{classes.shape[1]} vs. {scores.shape[1]}"
        )
    labels = None if classes is None else classes.tolist()
    values = None if scores is None else scores.tolist()
    result = classification_pb2.ClassificationResult()
    for i in range(num_examples):
        entries = result.classifications.add().classes
        for k in range(len((labels or values or [])[i])):
            entry = entries.add()
            if labels:
                entry.label = labels[i][k].decode(errors="replace")
            if values:
                entry.score = values[i][k]
    return result


def _regressions(values: np.ndarray, num_examples: int) -> regression_pb2.RegressionResult:
    if not (values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1)):
        raise invalid_argument(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{_shape(values)}"
        )
    if len(values) != num_examples:
        raise invalid_argument(
            f"Input batch size did not match output batch size: {num_examples} vs. {len(values)}"
        )
    if values.dtype != np.float32:
        raise invalid_argument(f"Expected output Tensor of DT_FLOAT.  Got: {_dtype(values)}")
    result = regression_pb2.RegressionResult()
    for value in values.ravel().tolist():
        result.regressions.add(value=value)
    return result


def _shape(array: np.ndarray) -> str:
    return "[" + ",".join(str(size) for size in array.shape) + "]"


def _dtype(array: np.ndarray) -> str:
    return types_pb2.DataType.Name(tf.as_dtype(array.dtype).as_datatype_enum)

"""One loaded version: warm-up, defaults of a signature, what a load must refuse."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2
from toy_exports import gate_model, scale_model

from model.signatures import WARMUP_FILE
from serving import servable
from serving.errors import Code, ServingError


def write_warmup(path, records):
    file = path / WARMUP_FILE
    file.parent.mkdir(parents=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for record in records:
            writer.write(record.SerializeToString())


def predict_record(**inputs):
    record = prediction_log_pb2.PredictionLog()
    request = record.predict_log.request
    request.model_spec.name = "any name"
    for alias, value in inputs.items():
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
    return record


def load_error(path):
    with pytest.raises(ServingError) as caught:
        servable.load("m", 1, path)
    return caught.value


def test_warmup_requests_run_while_loading(tmp_path):
    path = gate_model(tmp_path / "1")
    mark = tmp_path / "mark"
    (tmp_path / "leave").touch()
    write_warmup(path, [predict_record(entry=[str(mark)], leave=[str(tmp_path / "leave")])])
    servable.load("m", 1, path).close()
    assert mark.exists()


def test_a_failing_warmup_fails_the_load(tmp_path):
    path = scale_model(tmp_path / "1")
    write_warmup(path, [predict_record(x=np.array([1], np.int32))])
    assert load_error(path).message == "Expects arg[0] to be float but int32 is provided"


def test_broken_warmup_is_data_loss(tmp_path):
    path = scale_model(tmp_path / "1")
    write_warmup(path, [predict_record(x=[1.0])])
    file = path / WARMUP_FILE
    file.write_bytes(file.read_bytes()[:-3])
    error = load_error(path)
    assert error.code is Code.DATA_LOSS
    assert error.message.endswith("Please verify your warmup data is in TFRecord format.")


def test_more_than_a_thousand_warmup_records_are_refused(tmp_path):
    path = scale_model(tmp_path / "1")
    write_warmup(path, [predict_record(x=[1.0])] * 1001)
    assert load_error(path).code is Code.INVALID_ARGUMENT


def test_streamed_warmup_records_are_refused_and_classify_ones_skipped_aloud(tmp_path, caplog):
    path = scale_model(tmp_path / "1")
    record = prediction_log_pb2.PredictionLog()
    record.classify_log.SetInParent()
    write_warmup(path, [record])
    servable.load("m", 1, path).close()
    assert "classify_log" in caplog.text

    path = scale_model(tmp_path / "2")
    record.session_run_log.SetInParent()
    write_warmup(path, [record])
    assert load_error(path).code is Code.UNIMPLEMENTED


def test_a_signature_default_stands_in_for_a_missing_input(tmp_path):
    path = scale_model(tmp_path / "1")
    file = path / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    signature = saved.meta_graphs[0].signature_def["serving_default"]
    signature.defaults["x"].CopyFrom(tf.make_tensor_proto([6.0]))
    file.write_bytes(saved.SerializeToString())
    loaded = servable.load("m", 1, path)
    assert loaded.run("", {})["y"].tolist() == [5.0]
    assert loaded.run("", {"x": np.array([2.0], np.float32)})["y"].tolist() == [3.0]
    loaded.close()


def test_two_outputs_of_one_tensor(tmp_path):
    path = scale_model(tmp_path / "1")
    file = path / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    signature = saved.meta_graphs[0].signature_def["serving_default"]
    signature.outputs["again"].CopyFrom(signature.outputs["y"])
    file.write_bytes(saved.SerializeToString())
    loaded = servable.load("m", 1, path)
    outputs = loaded.run("", {"x": np.array([2.0], np.float32)})
    assert {alias: array.tolist() for alias, array in outputs.items()} == {
        "again": [3.0],
        "y": [3.0],
    }
    loaded.close()

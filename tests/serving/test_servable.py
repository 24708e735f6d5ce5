"""One loaded version: warm-up, defaults of a signature, what a load must refuse."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2
from toy_exports import example, examples_model, gate_model, save_graph, scale_model, v1

from model.signatures import WARMUP_FILE
from serving import metrics, servable
from serving.config import ConfigError, ModelConfig, ServerConfig
from serving.errors import Code, ServingError
from serving.timing import Timing


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


def inference_records(example_bytes):
    """A record of each kind that takes tf.Examples."""
    example = tf.train.Example.FromString(example_bytes)
    classify, regress, several = (prediction_log_pb2.PredictionLog() for _ in range(3))
    classify.classify_log.request.model_spec.signature_name = "classify_x_to_y"
    classify.classify_log.request.input.example_list.examples.append(example)
    regress.regress_log.request.model_spec.signature_name = "regress_x_to_y"
    regress.regress_log.request.input.example_list.examples.append(example)
    request = several.multi_inference_log.request
    for method in ("classify", "regress"):
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = "any name", f"{method}_x_to_y"
    request.input.example_list.examples.append(example)
    return [classify, regress, several]


def test_warmup_replays_every_kind_as_often_as_it_is_told(tmp_path, monkeypatch):
    path = examples_model(tmp_path / "1")
    write_warmup(path, [predict_record(x=[[2.0]]), *inference_records(example(x=2.0))])
    runs = []
    run = servable.Servable.run

    def counted(self, signature_name, *args, **kwargs):
        runs.append(signature_name)
        return run(self, signature_name, *args, **kwargs)

    monkeypatch.setattr(servable.Servable, "run", counted)
    servable.load("m", 1, path, config=ServerConfig(num_request_iterations_for_warmup=2)).close()
    classify, regress = "classify_x_to_y", "regress_x_to_y"
    assert runs == ["", "", classify, classify, regress, regress, *[classify, regress] * 2]
    runs.clear()
    servable.load("m", 1, path, config=ServerConfig(enable_model_warmup=False)).close()
    assert not runs
    assert f'model_warmup_records_read{{model_path="{path}",status="OK"}} 4' in metrics.page()


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_failing_record_of_any_kind_fails_the_load(tmp_path, kind):
    path = examples_model(tmp_path / "1")
    write_warmup(path, [inference_records(example(y=2.0))[kind]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="Feature: x"):
        servable.load("m", 1, path)


def test_streamed_warmup_records_are_refused(tmp_path):
    path = scale_model(tmp_path / "1")
    record = prediction_log_pb2.PredictionLog()
    record.session_run_log.SetInParent()
    write_warmup(path, [record])
    assert load_error(path).code is Code.UNIMPLEMENTED


def test_a_record_that_is_no_prediction_log_is_named(tmp_path):
    path = scale_model(tmp_path / "1")
    file = path / WARMUP_FILE
    file.parent.mkdir(parents=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        writer.write(b"\xff")
    error = load_error(path)
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message.startswith("Failed to parse warmup record: ")


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


def strings(*values):
    return np.array(values, object)


def test_tensorflow_1_graphs_with_reference_variables_and_parsed_examples(tmp_path):
    loaded = servable.load("m", 1, examples_model(tmp_path / "1"))
    examples = strings(example(x=2.0, x2=1.0), example(x=4.0))
    assert loaded.run("", {"x": np.array([[2.0]], np.float32)})["y"].tolist() == [[3.0]]
    regressed = loaded.run("regress_x2_to_y3", {"inputs": examples})
    assert regressed["outputs"].tolist() == [[3.5], [3.0]]
    classified = loaded.run("classify_with_names", {"inputs": examples})
    assert classified["scores"].tolist() == [[3.0], [4.0]]
    assert classified["classes"].tolist() == [[b"y"], [b"y"]]
    single = loaded.run("single", {"inputs": np.array(example(x=6.0), object)})
    assert single["y"].tolist() == [5.0]
    assert loaded.signatures["regress_x_to_y"].method_name == "tensorflow/serving/regress"
    with pytest.raises(ServingError, match="Could not parse example") as caught:
        loaded.run("regress_x_to_y", {"inputs": strings(b"\xff quoted by the error")})
    assert caught.value.code is Code.INVALID_ARGUMENT
    with pytest.raises(tf.errors.InvalidArgumentError, match="Could not parse example"):
        loaded.run("regress_x_to_y", {"inputs": strings(b"no example")})
    loaded.close()


def test_shapes_are_left_to_the_graph(tmp_path):
    loaded = servable.load("m", 1, scale_model(tmp_path / "1"))
    assert loaded.run("", {"x": np.array([2.0, 4.0], np.float32)})["y"].tolist() == [3.0, 4.0]
    assert loaded.run("", {"x": np.array(2.0, np.float32)})["y"].tolist() == 3.0
    loaded.close()


def test_a_run_ends_at_its_own_time_limit(tmp_path):
    loaded = servable.load("m", 1, gate_model(tmp_path / "1"))
    leave = tmp_path / "leave"
    files = {"entry": tmp_path / "entry", "leave": leave}
    inputs = {alias: strings(str(file).encode()) for alias, file in files.items()}
    with pytest.raises(tf.errors.DeadlineExceededError):
        loaded.run("", inputs, timeout=0.05)
    with pytest.raises(ServingError) as caught:
        loaded.run("", inputs, timeout=-1.0)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    leave.touch()
    timing = Timing()
    assert loaded.run("", inputs, timeout=60.0, timing=timing)["passed"].all()
    assert timing.compute > 0
    assert (timing.version, timing.signature, timing.batch_rows) == (1, "serving_default", 0)
    loaded.close()


def test_the_meta_graph_is_chosen_by_tags(tmp_path):
    def build():
        x = v1.placeholder(tf.float32, None, "x")
        return {"serving_default": ({"x": x}, {"y": x + 1.0})}

    path = save_graph(tmp_path / "1", build, tags=["serve", "gpu"])
    loaded = servable.load("m", 1, path, config=ServerConfig(saved_model_tags="gpu,serve"))
    assert loaded.run("", {"x": np.array([1.0], np.float32)})["y"].tolist() == [2.0]
    loaded.close()
    error = load_error(path)
    assert error.code is Code.NOT_FOUND
    assert error.message.startswith(
        "Could not find meta graph def matching supplied tags: { serve }."
    )


def test_folders_without_a_sound_graph(tmp_path):
    empty, broken = tmp_path / "1", tmp_path / "2"
    empty.mkdir()
    broken.mkdir()
    (broken / "saved_model.pb").write_bytes(b"no graph")
    error = load_error(empty)
    assert error.code is Code.NOT_FOUND
    assert error.message == (
        "Could not find SavedModel .pb or .pbtxt at supplied export directory path: "
        f"{empty}. Check that the directory exists and that you have the right permissions for "
        "accessing it."
    )
    error = load_error(broken)
    assert error.code is Code.DATA_LOSS
    assert error.message == f"Can't parse {broken / 'saved_model.pb'} as binary proto"


def test_operations_of_small_models_have_one_thread_unless_somebody_says_otherwise(tmp_path):
    def threads(**config):
        return servable._session_config(ServerConfig(**config)).intra_op_parallelism_threads

    weights = tmp_path / "m" / "1" / "variables" / "variables.data-00000-of-00001"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"")
    model = ModelConfig("m", tmp_path / "m")
    assert threads(models=(model,)) == threads(exports=tmp_path) == 1
    assert threads(models=(model,), tensorflow_intra_op_parallelism=3) == 3
    assert threads() == 0
    with weights.open("r+b") as file:
        file.truncate(servable.SMALL_MODEL + 1)  # a hole, not so many bytes
    assert threads(models=(model,)) == threads(exports=tmp_path) == 0


def test_session_settings(tmp_path):
    file = tmp_path / "session.config"
    file.write_text("inter_op_parallelism_threads: 3 allow_soft_placement: true")
    settings = servable._session_config(
        ServerConfig(tensorflow_session_config_file=file, tensorflow_intra_op_parallelism=2)
    )
    assert settings.inter_op_parallelism_threads == 3
    assert settings.intra_op_parallelism_threads == 2
    assert settings.allow_soft_placement
    settings = servable._session_config(
        ServerConfig(tensorflow_session_parallelism=4, per_process_gpu_memory_fraction=0.5)
    )
    assert settings.inter_op_parallelism_threads == settings.intra_op_parallelism_threads == 4
    assert settings.gpu_options.per_process_gpu_memory_fraction == 0.5
    file.write_text("no_such_field: 1")
    with pytest.raises(ConfigError, match="--tensorflow_session_config_file"):
        servable.loader(ServerConfig(tensorflow_session_config_file=file))

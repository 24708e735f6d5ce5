"""Writes the models that the cases ask for: `python -m tests.conformance.models FOLDER`.

half_plus_two has versions 1 and 2 (a quarter plus two) and the labels stable and canary, half_tf2
is by TensorFlow 2, warm sums up what is added and comes with a warm-up request that adds 42, late
is in no configuration until a reload asks for it. The server is started with the flags that are
printed; those of `FEATURES` are for the cases that need them.
"""

import sys
from pathlib import Path

import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from tests.serving import toy_exports

v1 = tf.compat.v1
MODELS = ("half_plus_two", "half_tf2", "examples", "mixed", "types", "warm")
MAX_BATCH_SIZE = 8
BATCHING = f"max_batch_size {{ value: {MAX_BATCH_SIZE} }} num_batch_threads {{ value: 2 }}\n"
MONITORING = "prometheus_config { enable: true }\n"
CONFIG = """model_config_list {{
  config {{
    name: "half_plus_two", base_path: "{folder}/half_plus_two", model_platform: "tensorflow"
    model_version_policy {{ all {{}} }}
    version_labels {{ key: "stable" value: 1 }}
    version_labels {{ key: "canary" value: 2 }}
  }}
{others}
}}
"""
ENTRY = '  config {{ name: "{name}", base_path: "{folder}/{name}", model_platform: "tensorflow" }}'
# What a case may need, and the flags that give it to a server.
FEATURES = {
    "method_check": "--enable_signature_method_name_check",
    "cors": "--rest_api_enable_cors_support",
    "metrics": "--monitoring_config_file={folder}/monitoring.config",
    "batching": "--enable_batching --batching_parameters_file={folder}/batching.config",
}


def config_text(folder: Path | str, *more: str) -> str:
    """The text-format ModelServerConfig of the models in `folder`, and of those in `more`."""
    others = [ENTRY.format(name=name, folder=folder) for name in (*MODELS[1:], *more)]
    return CONFIG.format(folder=folder, others="\n".join(others))


def flags(folder: Path, *features: str) -> list[str]:
    """What to start a server with, so that it passes the cases that need `features`."""
    given = [
        f"--model_config_file={folder}/models.config",
        "--allow_version_labels_for_unavailable_models",
    ]
    return given + [w.format(folder=folder) for f in features for w in FEATURES[f].split()]


class _Half(tf.Module):
    """Half plus two by TensorFlow 2: variables, functions, examples parsed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = tf.Variable(0.5), tf.Variable(2.0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def predict(self, x):
        return {"y": self.a * x + self.b}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def regress(self, inputs):
        parsed = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([1], tf.float32)})
        return {"outputs": self.a * parsed["x"] + self.b}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def classify(self, inputs):
        return {"scores": self.regress(inputs)["outputs"]}


def half_tf2(path: Path) -> None:
    module = _Half()
    signatures = {
        "serving_default": module.predict,
        "regress_x_to_y": module.regress,
        "classify_x_to_y": module.classify,
    }
    tf.saved_model.save(module, str(path), signatures=signatures)


def warm(path: Path) -> None:
    def build() -> toy_exports.Signatures:
        total = v1.Variable(0.0, use_resource=True, name="total")
        x = v1.placeholder(tf.float32, [None], "x")
        added = tf.fill(tf.shape(x), tf.identity(total.assign_add(tf.reduce_sum(x))))
        return {
            "add": ({"x": x}, {"y": added}),
            "total": ({"x": x}, {"y": x * total}),
            "another_method": ({"x": x}, {"y": x + 1.0}, "tensorflow/serving/another"),
            "to_half": ({"x": x}, {"y": tf.cast(x, tf.half)}),
        }

    toy_exports.save_graph(path, build)
    record = prediction_log_pb2.PredictionLog()
    request = record.predict_log.request
    request.model_spec.name, request.model_spec.signature_name = "another", "add"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([40.0, 2.0]))
    file = path / "assets.extra" / "tf_serving_warmup_requests"
    file.parent.mkdir()
    with tf.io.TFRecordWriter(str(file)) as writer:
        writer.write(record.SerializeToString())
    (file.parent / "mlmd_uuid").write_text("a key of ML Metadata", encoding="utf-8")


def write(folder: Path) -> None:
    """The models and the files that the flags name."""
    toy_exports.scale_model(folder / "half_plus_two" / "1", 0.5)
    toy_exports.scale_model(folder / "half_plus_two" / "2", 0.25)
    toy_exports.scale_model(folder / "late" / "5", 3.0)
    half_tf2(folder / "half_tf2" / "00000123")
    toy_exports.examples_model(folder / "examples" / "1")
    toy_exports.mixed_model(folder / "mixed" / "1")
    toy_exports.types_model(folder / "types" / "1")
    warm(folder / "warm" / "1")
    for name, text in (
        ("models.config", config_text(folder.resolve())),
        ("batching.config", BATCHING),
        ("monitoring.config", MONITORING),
    ):
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    write(path)
    print(*flags(path, *FEATURES), sep="\n")

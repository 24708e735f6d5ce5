"""Small SavedModels with every kind of signature the server must cope with."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import tensorflow as tf

v1 = tf.compat.v1
# Inputs, outputs and, where it is not predict, the method.
Signatures = dict[str, tuple]

LABELS = ["negative", "positive", "neutral"]
IDENTITY_TYPES = [
    tf.float32,
    tf.float64,
    tf.int8,
    tf.uint8,
    tf.int16,
    tf.int32,
    tf.int64,
    tf.uint32,
    tf.uint64,
    tf.bool,
    tf.string,
    tf.float16,
]


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {condition}")
        time.sleep(0.01)


def save_graph(
    path: Path, build: Callable[[], Signatures], tags: Sequence[str] = ("serve",)
) -> Path:
    """Writes a SavedModel in the manner of TensorFlow 1: a graph, a session, a builder."""
    with tf.Graph().as_default(), v1.Session() as session:
        signatures = build()
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(
            session,
            list(tags),
            signature_def_map={name: _signature(*parts) for name, parts in signatures.items()},
        )
        builder.save()
    return path


def _signature(
    inputs: dict[str, tf.Tensor],
    outputs: dict[str, tf.Tensor],
    method: str = "tensorflow/serving/predict",
):
    info = v1.saved_model.build_tensor_info
    return v1.saved_model.build_signature_def(
        {alias: info(tensor) for alias, tensor in inputs.items()},
        {alias: info(tensor) for alias, tensor in outputs.items()},
        method,
    )


def scale_model(path: Path, factor: float = 0.5) -> Path:
    """y = factor * x + 2. The signature says (n, 1); the graph takes any shape."""

    def build() -> Signatures:
        x = v1.placeholder(tf.float32, [None, 1], "x")
        y = tf.add(v1.get_variable("factor", initializer=factor) * x, 2.0)
        return {"serving_default": ({"x": x}, {"y": y})}

    return save_graph(path, build)


def example(**features: float | int | bytes) -> bytes:
    """A serialised tf.Example of single values."""
    lists = {
        float: lambda value: tf.train.Feature(float_list=tf.train.FloatList(value=[value])),
        int: lambda value: tf.train.Feature(int64_list=tf.train.Int64List(value=[value])),
        bytes: lambda value: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value])),
    }
    feature = {name: lists[type(value)](value) for name, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def examples_model(path: Path) -> Path:
    """Half plus two as in 2017: reference variables, tf.Examples parsed in the graph."""

    def build() -> Signatures:
        a = v1.Variable(0.5, use_resource=False, name="a")
        b = v1.Variable(2.0, use_resource=False, name="b")
        c = v1.Variable(3.0, use_resource=False, name="c")
        serialized = v1.placeholder(tf.string, None, "tf_example")
        features = {
            "x": tf.io.FixedLenFeature([1], tf.float32),
            "x2": tf.io.FixedLenFeature([1], tf.float32, default_value=[0.0]),
        }
        parsed = v1.parse_example(serialized, features)
        x = tf.identity(parsed["x"], "x")
        y, y3 = a * x + b, a * parsed["x2"] + c
        class_name = tf.fill(tf.shape(y), "y")
        one = v1.placeholder(tf.string, [], "one_example")
        single = tf.io.parse_single_example(one, {"x": tf.io.FixedLenFeature([1], tf.float32)})
        classify, regress = (f"tensorflow/serving/{kind}" for kind in ("classify", "regress"))
        return {
            "serving_default": ({"x": x}, {"y": y}),
            "classify_x_to_y": ({"inputs": serialized}, {"scores": y}, classify),
            "classify_with_names": (
                {"inputs": serialized},
                {"scores": y, "classes": class_name},
                classify,
            ),
            "regress_x_to_y": ({"inputs": serialized}, {"outputs": y}, regress),
            "regress_x2_to_y3": ({"inputs": serialized}, {"outputs": y3}, regress),
            "single": ({"inputs": one}, {"y": a * single["x"] + b}),
        }

    return save_graph(path, build)


def mixed_model(path: Path) -> Path:
    """Several inputs and outputs, and outputs that rows cannot hold."""

    def build() -> Signatures:
        words = v1.placeholder(tf.string, [None], "words")
        counts = v1.placeholder(tf.int32, [None, 2], "counts")
        is_loud = v1.placeholder(tf.bool, [None], "is_loud")
        repeated = tf.strings.join([words, tf.strings.as_string(tf.reduce_sum(counts, -1))])
        raw_bytes = tf.strings.join([words, tf.constant(b"\xff\x00")])
        x = v1.placeholder(tf.float32, None, "x")
        return {
            "serving_default": (
                {"words": words, "counts": counts, "is_loud": is_loud},
                {
                    "joined": repeated,
                    "raw_bytes": raw_bytes,
                    "total": tf.reduce_sum(counts, -1),
                    "is_quiet": tf.logical_not(is_loud),
                },
            ),
            "scalar": ({"x": x}, {"sum": tf.reduce_sum(x)}),
            "uneven": ({"x": x}, {"once": tf.identity(x), "twice": tf.concat([x, x], 0)}),
            "divide": ({"x": x}, {"y": 1.0 / x}),
            "invalid_text": ({"words": words}, {"text": tf.strings.join([words, b"\xff"])}),
            "scalar_text": ({"words": words}, {"text": tf.strings.reduce_join(words)}),
            "needs_vector": ({"x": x}, {"y": tf.tensordot(x, tf.constant([1.0, 2.0]), 1)}),
            "no_inputs": ({}, {"seven": tf.constant([7])}),
        }

    return save_graph(path, build)


def busy_model(path: Path) -> Path:
    """y = x, after a while of matrix products: little to read and much to do."""

    def build() -> Signatures:
        x = v1.placeholder(tf.float32, [None], "x")
        matrix = v1.get_variable("matrix", initializer=tf.eye(256))
        power = tf.reduce_sum(x) * tf.ones([256, 256])
        for _ in range(40):
            power = tf.matmul(power, matrix)
        many = tf.tile(x[:, None], [1, 2**22])
        return {
            "serving_default": ({"x": x}, {"y": x + 0.0 * power[0, 0]}),
            "wide": ({"x": x}, {"y": many}),  # 20 MB of JSON a row
        }

    return save_graph(path, build)


def types_model(path: Path) -> Path:
    """One identity signature per type, named after it."""

    def build() -> Signatures:
        signatures = {}
        for dtype in IDENTITY_TYPES:
            x = v1.placeholder(dtype, None, f"x_{dtype.name}")
            signatures[dtype.name] = ({"x": x}, {"y": tf.identity(x)})
        return signatures

    return save_graph(path, build)


def gate_model(path: Path) -> Path:
    """Creates the file `entry` when it runs, and finishes when the file `leave` is there."""

    def build() -> Signatures:
        entry = v1.placeholder(tf.string, [1], "entry")
        leave = v1.placeholder(tf.string, [1], "leave")

        def is_closed(turn: tf.Tensor) -> tf.Tensor:
            # Named anew each turn, or the optimizer would look only once.
            nothing = tf.strings.substr(tf.strings.as_string(turn), 0, 0)
            return tf.equal(tf.size(tf.io.matching_files(tf.strings.join([leave[0], nothing]))), 0)

        with tf.control_dependencies([tf.io.write_file(entry[0], "")]):
            start = tf.identity(tf.constant(0))
        (turns,) = tf.while_loop(is_closed, lambda turn: turn + 1, [start])
        passed = tf.stack([turns]) >= 0
        return {"serving_default": ({"entry": entry, "leave": leave}, {"passed": passed})}

    return save_graph(path, build)


class _Classifier(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def classify(self, text):
        is_good = tf.cast(tf.strings.regex_full_match(text, ".*good.*"), tf.float32)
        scores = tf.stack(
            [0.8 - 0.7 * is_good, 0.1 + 0.7 * is_good, tf.fill(tf.shape(text), 0.1)], 1
        )
        labels = tf.tile(tf.constant([LABELS]), [tf.shape(text)[0], 1])
        return {
            "label": tf.gather(tf.constant(LABELS), tf.argmax(scores, 1)),
            "scores": scores,
            "labels": labels,
        }


class _Generator(tf.Module):
    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="prompt"),
            tf.TensorSpec([None], tf.int32, name="max_tokens"),
            tf.TensorSpec([None], tf.float32, name="temperature"),
            tf.TensorSpec([None], tf.int32, name="top_k"),
            tf.TensorSpec([None], tf.float32, name="top_p"),
            tf.TensorSpec([None], tf.int32, name="seed"),
        ]
    )
    def generate(self, prompt, max_tokens, temperature, top_k, top_p, seed):
        settings = [temperature, tf.cast(top_k, tf.float32), top_p, tf.cast(seed, tf.float32)]
        shown = [tf.strings.as_string(value, precision=2) for value in settings]
        return {
            "text": tf.strings.join([prompt, *shown], " "),
            "num_tokens": max_tokens,
            "finish_reason": tf.fill(tf.shape(prompt), "length"),
        }


def classifier_model(path: Path) -> Path:
    module = _Classifier()
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.classify})
    return path


def generator_model(path: Path) -> Path:
    module = _Generator()
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.generate})
    return path


MODELS = {
    "classifier": classifier_model,
    "generator": generator_model,
    "examples": examples_model,
    "half_plus_two": scale_model,
    "mixed": mixed_model,
    "types": types_model,
    "gate": gate_model,
    "busy": busy_model,
}

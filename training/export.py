"""Writes what a server loads: strings in, answers out, tokenizer and labels inside the graph.

`<exports>/<name>/<version>/` is a SavedModel of plain ops, with warm-up requests and a manifest.
It is written beside and renamed into place, so no server ever sees half of it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from model import signatures
from model.version_check import check_answer, check_files, check_graph
from training.classification import Classifier
from training.language_model import LanguageModel
from training.run import load_run
from training.runs import RESULTS_FILE, newest_export, read_config, read_json, write_json
from training.vectors.learner import WordVectorModel

logger = logging.getLogger(__name__)

_GOLDEN_TEXTS = [
    "I would buy it again tomorrow.",
    "It broke after two days, and nobody answered my letters.",
    "今天的菜很好吃，下次还来。",
    "Ｆｕｌｌ　ｗｉｄｔｈ, 'quotes', émigré & 😀\n",
    "",
]
_GOLDEN_PROMPTS = ["Once there was a little fox", "从前有一只小猫", ""]
_TEXT_INPUT = tf.TensorSpec([None], tf.string, name=signatures.TEXT)
Endpoints = dict[str, Any]  # a tf.function with an input signature, by the name of the signature
_PACKAGES = ("tensorflow", "tensorflow-text", "keras", "numpy")


def export_run(folder: Path, exports: Path, weights: str = signatures.WEIGHTS_FLOAT32) -> Path:
    """Exports the best weights of the run in `folder` as the next version; returns its folder.

    `weights` says how the matrices of a language model are stored. Raises ValueError for a network
    that has them in float32 only.

    Raises OSError when it cannot be written, as on a full disk; then nothing of it is left, and
    earlier versions are as before.
    """
    learner: Any = load_run(folder)
    config = read_config(folder)
    if isinstance(learner, WordVectorModel):
        raise ValueError(f"{config.name} trains word vectors, which are not served.")
    if weights != signatures.WEIGHTS_FLOAT32:
        if not isinstance(learner, LanguageModel):
            raise ValueError(
                f"weights={weights} is for language models; {config.name} is none. "
                "Export it with weights=float32."
            )
        learner.store_weights(weights)
    if not (folder / RESULTS_FILE).is_file():
        logger.warning(f"{folder} is not finished: its best weights so far are exported.")
    results = read_json(folder / RESULTS_FILE) if (folder / RESULTS_FILE).is_file() else {}
    return export_learner(learner, exports, run=folder.name, results=results)


def export_learner(
    learner: Any, exports: Path, *, run: str = "", results: Mapping[str, Any] | None = None
) -> Path:
    """As `export_run`, a classifier or language model as it is in memory.

    `run` and the `results` of the run go into the manifest.
    """
    config, results = learner.config, results or {}
    base = exports / config.name
    newest = newest_export(exports, config.name)
    version = int(newest.name) + 1 if newest else 1
    target, beside = base / str(version), base / f".{version}.part"
    shutil.rmtree(beside, ignore_errors=True)  # what an interrupted export left
    base.mkdir(parents=True, exist_ok=True)
    try:
        is_classifier = isinstance(learner, Classifier)
        kind = learner.target.kind if is_classifier else signatures.GENERATOR
        endpoints = _endpoints(learner)
        golden = _golden(learner, endpoints)
        _write_saved_model(learner, endpoints, beside)
        _write_warmup(endpoints, golden, config.name, beside / signatures.WARMUP_FILE)
        manifest = {
            "format": 1,
            "name": config.name,
            "version": version,
            "kind": kind,
            "run": run,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "labels": list(getattr(learner, "label_names", ())),
            **({"temperature": learner.temperature} if is_classifier else {}),  # of the scores
            **({} if is_classifier else learner.sizes),
            "signatures": _describe(endpoints),
            "config": _without_paths(config.to_dict()),
            "metrics": {
                split: _figures(results.get(split, {})) for split in ("validation", "test")
            },
            "versions": {"python": platform.python_version()}
            | {package: installed_version(package) for package in _PACKAGES},
            "files": {
                str(path.relative_to(beside)): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in sorted(beside.rglob("*"))
                if path.is_file()
            },
            "golden": golden,
        }
        write_json(beside / signatures.MANIFEST_FILE, manifest)
        check_files(beside, manifest)
        check_graph(beside)
        _check_golden(beside, golden)
        os.rename(beside, target)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        if isinstance(error, OSError | tf.errors.OpError):
            raise OSError(
                f"The export to {target} could not be written, and nothing of it is left; earlier "
                f"versions are as before. Is the disk full? ({str(error).splitlines()[0]})"
            ) from error
        raise
    return target


def _write_saved_model(
    learner: Classifier | LanguageModel, endpoints: Endpoints, path: Path
) -> None:
    # Not the model itself: TensorFlow would write every variable under a second name that only its
    # object loader finds, and a session, which is what serves, would not run. Nor a tf.function,
    # which is traced again when it is written. Gradients are for whoever trains it.
    functions = {name: function.get_concrete_function() for name, function in endpoints.items()}
    root = tf.Module()
    variables = {v.ref(): v for function in functions.values() for v in function.variables}
    root.variables_read = list(variables.values())
    root.tables = [
        part
        for resource in learner.resources
        for part in tf.train.TrackableView(resource).descendants()
        if isinstance(part, tf.saved_model.experimental.TrackableResource)
    ]
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(root, str(path), signatures=functions, options=options)


def _endpoints(learner: Classifier | LanguageModel) -> Endpoints:
    """The function of each signature, traced once: for the golden answers and for the export."""
    if isinstance(learner, LanguageModel):
        return learner.endpoints

    def classify(text):
        logits = learner.logits_in_graph(text)  # (B, num_labels)
        return learner.target.outputs(logits, learner.temperature)

    return {signatures.SERVING_DEFAULT: tf.function(classify, input_signature=[_TEXT_INPUT])}


def _golden(learner: Classifier | LanguageModel, endpoints: Endpoints) -> list[dict]:
    """Inputs and the in-process answers to them for each signature, as plain JSON by alias."""
    if isinstance(learner, Classifier):
        outputs = {alias: _plain(array) for alias, array in learner.answer(_GOLDEN_TEXTS).items()}
        # The export's function has not run yet, and untraced nothing could be saved.
        endpoints[signatures.SERVING_DEFAULT].get_concrete_function()
        return [_golden_of(signatures.SERVING_DEFAULT, {signatures.TEXT: _GOLDEN_TEXTS}, outputs)]
    golden = []
    for name, inputs in learner.examples(_GOLDEN_PROMPTS).items():
        answer = endpoints[name](*inputs.values())
        # Of two tokens that are as likely another processor may put the other one first; and JSON
        # holds no half characters.
        left_out = (signatures.TOP_TOKENS, signatures.TOP_LOGPROBS, signatures.TEXT_BYTES)
        outputs = {a: _plain(x.numpy()) for a, x in answer.items() if a not in left_out}
        plain = {alias: _plain(x.numpy()) for alias, x in inputs.items()}
        golden.append(_golden_of(name, plain, outputs))
    return golden


def _golden_of(name: str, inputs: dict, outputs: dict) -> dict:
    return {"signature_name": name, "inputs": inputs, "outputs": outputs}


def _plain(array: np.ndarray) -> list:
    """JSON values: strings are bytes in an array of TensorFlow."""
    is_text = array.dtype == object
    return (np.vectorize(bytes.decode, otypes=[object])(array) if is_text else array).tolist()


def _check_golden(path: Path, golden: list[dict]) -> None:
    """Asks what was written in a session, which is what serves, for the in-process answers."""
    settings = tf.compat.v1.ConfigProto()
    settings.graph_options.rewrite_options.disable_tfg_optimizer = True  # as in the server
    with tf.Graph().as_default(), tf.compat.v1.Session(config=settings) as session:
        meta_graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(path))
        feeds: dict[str, list] = {}
        fetches = []
        for item in golden:
            signature = meta_graph.signature_def[item["signature_name"]]
            feeds |= {signature.inputs[a].name: values for a, values in item["inputs"].items()}
            fetches.append({alias: info.name for alias, info in signature.outputs.items()})
        # All in one run: for each set of outputs a session goes through the whole graph anew.
        for item, answer in zip(golden, session.run(fetches, feeds), strict=True):
            check_answer(item, {alias: array.tolist() for alias, array in answer.items()})


def _describe(endpoints: Endpoints) -> dict:
    """The names of inputs and outputs of each signature."""
    described = {}
    for name, function in endpoints.items():
        graph = function.get_concrete_function()
        inputs = [spec.name for spec in graph.structured_input_signature[0]]
        described[name] = {"inputs": sorted(inputs), "outputs": sorted(graph.structured_outputs)}
    return described


def _write_warmup(endpoints: Endpoints, golden: list[dict], name: str, path: Path) -> None:
    """The golden inputs as one request and their first row as another: two batch sizes each."""
    path.parent.mkdir(parents=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for item in golden:
            specs = endpoints[item["signature_name"]].input_signature
            dtypes = {spec.name: spec.dtype for spec in specs}
            for num_rows in (len(next(iter(item["inputs"].values()))), 1):
                request = predict_pb2.PredictRequest()
                request.model_spec.name = name
                request.model_spec.signature_name = item["signature_name"]
                for alias, values in item["inputs"].items():
                    tensor = tf.make_tensor_proto(values[:num_rows], dtypes[alias])
                    request.inputs[alias].CopyFrom(tensor)
                log = prediction_log_pb2.PredictionLog(
                    predict_log=prediction_log_pb2.PredictLog(request=request)
                )
                writer.write(log.SerializeToString())


def _figures(metrics: dict) -> dict:
    """The single numbers of a report, without its tables."""
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def _without_paths(config: dict) -> dict:
    """A user's files by their names alone: an export tells nothing of the machine it is from."""
    dataset = {
        key: Path(value).name if key.endswith("path") and value else value
        for key, value in config["dataset"].items()
    }
    tokenizer = config["tokenizer"]
    if tokenizer.get("preset"):
        tokenizer = tokenizer | {"preset": Path(tokenizer["preset"]).name}
    vectors = config["vectors"] and Path(config["vectors"]).name
    return config | {"dataset": dataset, "tokenizer": tokenizer, "vectors": vectors}

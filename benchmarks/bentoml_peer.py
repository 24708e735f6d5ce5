"""A peer of benchmarks/serving.py: one SavedModel behind BentoML.

VERSION_FOLDER=... MAX_BATCH_SIZE=... bentoml serve benchmarks/bentoml_peer.py:Classifier

Needs bentoml, tensorflow and tensorflow-text, nothing of this repository. Takes the JSON of the
model server and gives its rows.
"""

import os

import bentoml
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the ops of the tokenizer

SIZE = int(os.environ["MAX_BATCH_SIZE"])
BATCHING = {"batchable": True, "max_batch_size": SIZE} if SIZE > 1 else {}


@bentoml.service(workers=1, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Classifier:
    def __init__(self):
        path = os.environ["VERSION_FOLDER"]
        self.classify = tf.saved_model.load(path).signatures["serving_default"]

    @bentoml.api(route="/predict", **BATCHING)
    def predict(self, instances: list[str]) -> list[dict]:
        outputs = self.classify(text=tf.constant(instances))
        columns = {name: self._plain(tensor.numpy()) for name, tensor in outputs.items()}
        return [
            {name: column[i] for name, column in columns.items()} for i in range(len(instances))
        ]

    @staticmethod
    def _plain(array):
        if array.dtype != object:
            return array.tolist()
        if array.ndim == 1:
            return [word.decode() for word in array]
        return [[word.decode() for word in row] for row in array]

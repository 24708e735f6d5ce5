"""The peer of benchmarks/serving.py: one SavedModel behind LitServe.

python benchmarks/litserve_peer.py VERSION_FOLDER PORT MAX_BATCH_SIZE

Needs litserve, tensorflow and tensorflow-text, nothing of this repository. Takes and gives the JSON
of the model server for one text.
"""

import sys

import litserve
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the ops of the tokenizer


class Classifier(litserve.LitAPI):
    def setup(self, device):
        self.classify = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]

    def decode_request(self, request):
        return request["instances"][0]

    def batch(self, inputs):
        return inputs

    def unbatch(self, output):
        return output

    def predict(self, texts):
        is_batched = isinstance(texts, list)
        outputs = self.classify(text=tf.constant(texts if is_batched else [texts]))
        columns = {name: tensor.numpy() for name, tensor in outputs.items()}
        rows = [
            {name: self._plain(column[i]) for name, column in columns.items()}
            for i in range(len(columns["label"]))
        ]
        return rows if is_batched else rows[0]

    @staticmethod
    def _plain(value):
        if isinstance(value, bytes):
            return value.decode()
        return [word.decode() for word in value] if value.dtype == object else value.tolist()

    def encode_response(self, output):
        return {"predictions": [output]}


if __name__ == "__main__":
    size = int(sys.argv[3])
    # Waits for nothing: a batch is what is there, as in the server it is compared with.
    api = Classifier(max_batch_size=size, batch_timeout=0.0 if size == 1 else 0.002)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        port=int(sys.argv[2]), host="127.0.0.1", generate_client_file=False, log_level="error"
    )

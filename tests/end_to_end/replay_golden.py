"""replay_golden.py VERSION_FOLDER...: an export answers as the model did that it was made from.

Loads through a session, as TensorFlow Serving does, in a process that knows nothing of this
project, and compares with the manifest's golden answers: numbers within 1e-5, texts exactly.
Works in any TensorFlow that has the ops; exits with 1 when an answer differs.
"""

import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401 - registers the ops that tokenizers are made of

TOLERANCE = 1e-5


def differences(folder):
    """Sentences about every golden answer that came out differently."""
    with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], folder)
        for golden in manifest["golden"]:
            signature = graph.signature_def[golden["signature_name"]]
            feeds = {signature.inputs[k].name: v for k, v in golden["inputs"].items()}
            if missing := golden["outputs"].keys() - signature.outputs.keys():
                yield f"outputs lack {sorted(missing)}"
                continue
            fetches = {k: signature.outputs[k].name for k in golden["outputs"]}
            for alias, got in session.run(fetches, feeds).items():
                expected = np.array(golden["outputs"][alias])
                if got.dtype == object:
                    got = np.vectorize(bytes.decode, otypes=[object])(got)
                    is_equal = got.tolist() == expected.tolist()
                else:
                    is_equal = np.allclose(got, expected, rtol=0, atol=TOLERANCE)
                if not is_equal:
                    yield f"{alias} is {got.tolist()}, not {expected.tolist()}"


def main(folders):
    if not folders:
        sys.exit("replay_golden.py: no version folder given")
    failed = False
    for folder in folders:
        found = list(differences(folder))
        failed = failed or bool(found)
        print(f"TensorFlow {tf.__version__}  {folder}  {'; '.join(found) or 'equal'}")
    own = [name for name in sys.modules if name.split(".")[0] in ("model", "training", "serving")]
    if own:
        sys.exit(f"replay_golden.py: this process must not know the project, but has {own}")
    sys.exit(failed)


if __name__ == "__main__":
    main(sys.argv[1:])

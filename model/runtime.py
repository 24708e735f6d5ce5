"""TensorFlow, started without the half page it writes while starting."""

import os
import sys
import tempfile

_NOISE = ("I0000", "WARNING: All log messages before absl")


def import_tensorflow() -> int:
    """Imports TensorFlow and TensorFlow Text; returns the number of GPUs.

    Some of what TensorFlow writes comes before any log level is read, so standard error itself is
    held back meanwhile. What is more than information is passed on afterwards. TensorFlow Text
    registers the ops of graphs with a tokenizer inside.
    """
    # Fatal only: what goes wrong in an op is raised as an exception, while the error level is full
    # of remarks such as oneDNN's on integer types.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    real_stderr = os.dup(2)
    gpus: list = []
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            import tensorflow as tf
            import tensorflow_text  # noqa: F401

            gpus = tf.config.list_physical_devices("GPU")
        finally:
            os.dup2(real_stderr, 2)
            os.close(real_stderr)
            held_back.seek(0)
            for line in held_back.read().decode(errors="replace").splitlines():
                # Without a GPU, the complaint about its driver says nothing new.
                if not line.startswith(_NOISE) and (gpus or "cuInit" not in line):
                    print(line, file=sys.stderr)
    tf.get_logger().setLevel("ERROR")  # its deprecation notes are for authors of graphs
    return len(gpus)

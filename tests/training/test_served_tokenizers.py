"""A server that has only TensorFlow and TensorFlow Text gives the ids and texts of training."""

import json

import keras
import pytest
import tensorflow as tf
from test_export import PYTHON_OPS, TEXT_OPS, core_ops, saved_model

from model import signatures
from model.config import TOKENIZER_CONFIGS
from model.tokenizers import train_tokenizer
from serving import servable
from training.config import RunConfig
from training.export import export_run
from training.run import fit_run, load_run

CORPUS = ["The cat sat on the mat.\n", "猫在睡觉, 漢語 and a dog. 👍", "a story, told again"] * 8
TEXTS = ["The cat", "", "ＡＢ　漢語 ’s", "a\0b", "zz" * 99, "👨\u200d👩"]
TEXTS = [*(text.encode() for text in TEXTS), b"cut \xe7\x8c half\xff"]


def ops_of(folder):
    (graph,) = saved_model(folder).meta_graphs
    functions = graph.graph_def.library.function
    nodes = [*graph.graph_def.node, *(node for f in functions for node in f.node_def)]
    return {node.op for node in nodes} - {f.signature.name for f in functions}


def run(folder, inputs):
    served = servable.load("model", 1, folder)
    answer = served.run(signatures.SERVING_DEFAULT, inputs)
    served.close()
    return answer


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TOKENIZER_CONFIGS if name != "preset"])
def test_a_session_gives_the_ids_of_training_by_ops_of_the_stock_server(name, tmp_path):
    settings = {"simplify": True} if name != "bytes" else {}
    settings |= {"vocabulary_size": 310} if name == "sentencepiece" else {}
    tokenizer = train_tokenizer(CORPUS, TOKENIZER_CONFIGS[name](**settings))
    archive = keras.export.ExportArchive()
    archive.track(tokenizer)
    archive.add_endpoint(
        signatures.SERVING_DEFAULT,
        lambda text: {"ids": tokenizer(text).to_tensor()},
        [tf.TensorSpec([None], tf.string, name="text")],
    )
    archive.write_out(str(tmp_path / "1"), verbose=False)
    expected = tokenizer(tf.constant(TEXTS)).to_tensor().numpy()
    served = run(tmp_path / "1", {"text": tf.constant(TEXTS).numpy()})
    assert served["ids"].tolist() == expected.tolist()
    assert ops_of(tmp_path / "1") <= (core_ops() - PYTHON_OPS) | set(TEXT_OPS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model"), [("byte_bpe", "transformer_decoder"), ("bytes", "recurrent_language_model")]
)
def test_a_decoder_of_bytes_is_trained_exported_and_served(name, model, tmp_path):
    (tmp_path / "corpus.txt").write_text("\n\n".join(f"{t} {i}" for i, t in enumerate(CORPUS)))
    network = {
        "transformer_decoder": {"width": 8, "num_heads": 2, "inner_width": 8},
        "recurrent_language_model": {"embedding_size": 8, "units": 8},
    }
    config = RunConfig.from_dict(
        {
            "name": "bytes",
            "dataset": {"name": "file", "path": str(tmp_path / "corpus.txt")},
            "tokenizer": {"name": name, "max_tokens": 3},  # which a generator does not heed
            "model": {"name": model, "num_layers": 1, "context_length": 48} | network[model],
            "batch_size": 4,
            "max_updates": 3,
        }
    )
    folder, outcome = fit_run(config, tmp_path / "runs")
    assert outcome.reason == "finished"
    learner = load_run(folder)
    assert max(map(len, learner.encoded(["the cat sat"]))) > 5
    exported = export_run(folder, tmp_path / "exports")
    golden, *_ = json.loads((exported / signatures.MANIFEST_FILE).read_text())["golden"]
    types = [spec.dtype.as_numpy_dtype for spec in learner.generate.input_signature]
    asked = [golden["inputs"][name] for name in signatures.GENERATOR_INPUTS]
    # Prompts of any bytes beside them change no other row, and noise is shown as UTF-8.
    asked[0] = [*asked[0], *TEXTS]
    for i, setting in enumerate([20, 1.0, 0, 1.0, 7], 1):
        asked[i] = [*asked[i], *[setting] * len(TEXTS)]
    columns = [
        tf.constant(column, dtype).numpy() for column, dtype in zip(asked, types, strict=True)
    ]
    answer = run(exported, dict(zip(signatures.GENERATOR_INPUTS, columns, strict=True)))
    texts = [text.decode() for text in answer[signatures.TEXT]]
    assert texts[: -len(TEXTS)] == golden["outputs"][signatures.TEXT]
    assert "\ufffd" in "".join(texts)
    assert answer[signatures.NUM_TOKENS][-len(TEXTS) :].max() == 20
    assert ops_of(exported) <= (core_ops() - PYTHON_OPS) | set(TEXT_OPS)

"""What is exported is what was trained, whole, portable, and silent about where it was made."""

import functools
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from model import signatures
from training.runs import newest_export

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("sentiment", "topics", "stories")

# TensorFlow Text's ops as the stock server registers them (its SUPPORTED_TENSORFLOW_OPS).
TEXT_OPS = """
CaseFoldUTF8 NormalizeUTF8 NormalizeUTF8WithOffsetsMap FindSourceOffsets FastBertNormalize
TFText>Utf8Binarize RegexSplitWithOffsets WhitespaceTokenizeWithOffsets
TFText>WhitespaceTokenizeWithOffsetsV2 UnicodeScriptTokenizeWithOffsets
TFText>ByteSplitWithOffsets TFText>ByteSplitByOffsets SplitMergeTokenizeWithOffsets
TokenizerFromLogits WordpieceTokenizeWithOffsets FastWordpieceTokenizeWithOffsets
TFText>FastWordpieceDetokenize SentencepieceOp SentencepieceTokenizeOp
SentencepieceTokenizeWithOffsetsOp SentencepieceDetokenizeOp SentencepieceVocabSizeOp
SentencepieceIdToStringOp SentencepieceStringToIdOp TFText>FastSentencepieceTokenize
TFText>FastSentencepieceDetokenize PhraseTokenize TFText>PhraseDetokenize TFText>NgramsStringJoin
TFText>RoundRobinTrim TFText>RoundRobinGenerateMasks TFText>BoiseTagsToOffsets
TFText>OffsetsToBoiseTags SentenceFragments SentenceFragmentsV2 ConstrainedSequence
MaxSpanningTree RougeL
""".split()
# Registered in Python processes, but Python is what they call.
PYTHON_OPS = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}


@functools.cache
def core_ops():
    """Names of the ops that TensorFlow itself registers, asked before TensorFlow Text is there."""
    code = (
        "from tensorflow.python.framework import op_def_registry as r\n"
        "from tensorflow.python.client import pywrap_tf_session as s\n"
        "from tensorflow.core.framework import op_def_pb2 as p\n"
        "ops = p.OpList(); ops.ParseFromString(s.TF_GetBuffer(s.TF_GetAllOpList()))\n"
        "print(' '.join(op.name for op in ops.op))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


def saved_model(folder):
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((folder / "saved_model.pb").read_bytes())
    return proto


@pytest.fixture(scope="module")
def exported(trained_exports):
    return {name: newest_export(trained_exports, name) for name in MODELS}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_only_ops_of_the_stock_server(exported, name):
    allowed = (core_ops() - PYTHON_OPS) | set(TEXT_OPS)
    (graph,) = saved_model(exported[name]).meta_graphs
    nodes = list(graph.graph_def.node)
    for function in graph.graph_def.library.function:
        nodes += function.node_def
    functions = {function.signature.name for function in graph.graph_def.library.function}
    used = {node.op for node in nodes} - functions
    assert len(used) > 20
    assert used <= allowed, sorted(used - allowed)
    # XLA is off in the stock server; a function that asks for it fails there.
    compiled = [
        function.signature.name
        for function in graph.graph_def.library.function
        if function.attr["_XlaMustCompile"].b
    ]
    assert not compiled


@pytest.mark.slow
def test_served_answers_are_the_models_answers_in_a_process_that_knows_nothing(exported):
    script = ROOT / "tests" / "end_to_end" / "replay_golden.py"
    done = subprocess.run(
        [sys.executable, str(script), *map(str, exported.values())],
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("equal") == len(MODELS)


@pytest.mark.slow
def test_replaying_notices_another_answer(exported, tmp_path):
    copy = tmp_path / "1"
    shutil.copytree(exported["topics"], copy)
    manifest = json.loads((copy / signatures.MANIFEST_FILE).read_text())
    manifest["golden"][0]["outputs"][signatures.SCORES][0][0] += 1e-3
    (copy / signatures.MANIFEST_FILE).write_text(json.dumps(manifest))
    script = ROOT / "tests" / "end_to_end" / "replay_golden.py"
    done = subprocess.run([sys.executable, str(script), str(copy)], capture_output=True, text=True)
    assert done.returncode == 1 and "scores is" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_signatures_are_the_contract(exported, name):
    (graph,) = saved_model(exported[name]).meta_graphs
    signature = graph.signature_def[signatures.SERVING_DEFAULT]
    inputs, outputs = (
        (signatures.GENERATOR_INPUTS, signatures.GENERATOR_OUTPUTS)
        if name == "stories"
        else (signatures.CLASSIFIER_INPUTS, signatures.CLASSIFIER_OUTPUTS)
    )
    assert set(signature.inputs) == set(inputs)
    assert set(signature.outputs) == set(outputs)
    for tensor in signature.inputs.values():
        assert [dim.size for dim in tensor.tensor_shape.dim] == [-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_manifest_names_every_file_with_its_hash(exported, name):
    folder = exported[name]
    manifest = json.loads((folder / signatures.MANIFEST_FILE).read_text(encoding="utf-8"))
    files = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != signatures.MANIFEST_FILE
    }
    assert manifest["files"] == files
    assert signatures.WARMUP_FILE in files
    assert manifest["name"] == name and manifest["version"] == int(folder.name)
    assert manifest["metrics"]["test"]["loss"] > 0
    assert (name == "stories") == (manifest["kind"] == signatures.GENERATOR)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_warmup_requests_are_what_the_server_replays(exported, name):
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    records = tf.data.TFRecordDataset(str(exported[name] / signatures.WARMUP_FILE))
    rows = {}
    for record in records:
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        assert request.model_spec.name == name
        sizes = {tensor.tensor_shape.dim[0].size for tensor in request.inputs.values()}
        assert len(sizes) == 1
        rows.setdefault(request.model_spec.signature_name, []).extend(sizes)
    assert signatures.SERVING_DEFAULT in rows
    assert (signatures.NEXT_TOKENS in rows) == (name == "stories")
    assert all(len(sizes) == 2 and min(sizes) == 1 < max(sizes) for sizes in rows.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_an_export_holds_no_optimizer_and_no_path_of_the_machine(exported, name, trained_folder):
    import tensorflow as tf

    names = [
        entry
        for entry, _ in tf.train.list_variables(str(exported[name] / "variables" / "variables"))
    ]
    assert not [entry for entry in names if re.search("adam|momentum|velocity|slot", entry.lower())]
    for path in exported[name].rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for place in (trained_folder, Path.home(), ROOT):
                if len(str(place)) > 5:
                    assert str(place).encode() not in content, f"{path} names {place}"


@pytest.mark.slow
def test_versions_count_up_and_half_an_export_is_never_seen(trained_folder, tmp_path, monkeypatch):
    from training import export

    run = next((trained_folder / "runs").glob("topics-*"))
    first = export.export_run(run, tmp_path)
    (tmp_path / "topics" / "1.bak").mkdir()
    shutil.copytree(first, tmp_path / "topics" / "00000007")
    second = export.export_run(run, tmp_path)
    assert (first.name, second.name) == ("1", "8")

    def fails(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(export, "_write_warmup", fails)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match="No space left"):
        export.export_run(run, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_full_disk_is_named_and_leaves_the_earlier_versions(trained_folder, tmp_path):
    """Files may hold 200 kB, as if there were no more room; the weights alone are larger."""
    import resource

    exports = tmp_path / "exports"
    shutil.copytree(trained_folder / "exports" / "topics", exports / "topics")
    before = {file: file.read_bytes() for file in (exports / "topics").rglob("*") if file.is_file()}
    command = [sys.executable, "-m", "training", "export", "topics", "--exports", str(exports)]
    done = subprocess.run(
        [*command, "--runs", str(trained_folder / "runs")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "could not be written, and nothing of it is left" in line and "Is the disk full?" in line
    assert str(exports / "topics" / "2") in line
    after = {file: file.read_bytes() for file in (exports / "topics").rglob("*") if file.is_file()}
    assert after == before
    assert [child.name for child in (exports / "topics").iterdir()] == ["1"]

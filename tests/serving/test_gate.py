"""What the gate lets in, and that it names what it keeps out."""

import hashlib
import json
import shutil

import pytest
import tensorflow as tf
from toy_exports import MODELS, classifier_model, gate_model, save_graph, v1, wait_until

from model.version_check import MAX_MANIFEST_BYTES, VersionError, check_answer, check_graph
from serving import flags, gate, servable
from serving.config import ServerConfig
from serving.errors import Code, ServingError
from serving.repository import Repository

TEXTS = ["good", "bad"]


def write_manifest(folder, outputs):
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    golden = {"signature_name": "serving_default", "inputs": {"text": TEXTS}, "outputs": outputs}
    (folder / "manifest.json").write_text(json.dumps({"files": files, "golden": [golden]}))


def text_of(value):
    return value.decode() if isinstance(value, bytes) else value


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A version with a manifest; read only."""
    folder = classifier_model(tmp_path_factory.mktemp("whole") / "1")
    loaded = servable.load("m", 1, folder)
    answer = loaded.run("serving_default", {"text": tf.constant(TEXTS).numpy()})
    loaded.close()
    outputs = {alias: tf.nest.map_structure(text_of, a.tolist()) for alias, a in answer.items()}
    write_manifest(folder, outputs)
    return folder


@pytest.fixture
def version(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "exports" / "m" / "1")


def change_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder, **options):
    with pytest.raises(ServingError) as caught:
        gate.check(folder, **({"allow_foreign": False} | options))
    assert caught.value.code is Code.FAILED_PRECONDITION
    return caught.value.message


def test_a_whole_version_is_loaded(version):
    servable.loader(ServerConfig())("m", 1, version).close()


def flip(folder):
    path = folder / "saved_model.pb"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def link(folder):
    path = folder / "saved_model.pb"
    path.rename(folder.parent / "elsewhere")
    path.symlink_to(folder.parent / "elsewhere")


def link_folder(folder):
    (folder / "variables").rename(folder.parent / "elsewhere")
    (folder / "variables").symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("tamper", "text"),
    [
        (flip, "saved_model.pb is not as its sha256"),
        (lambda f: (f / "saved_model.pb").unlink(), "Missing of the manifest's files: saved_model"),
        (lambda f: (f / "assets" / "more").write_text(""), "Not in the manifest: assets/more"),
        (link, "saved_model.pb is a symbolic link"),
        (link_folder, "variables is a symbolic link"),
        (lambda f: change_manifest(f, files={"../x": "0"}), "names '../x', outside"),
        (lambda f: change_manifest(f, files={"/etc/passwd": "0"}), "names '/etc/passwd', outside"),
        (lambda f: change_manifest(f, files=[]), 'needs "files"'),
        (lambda f: change_manifest(f, golden=[]), 'needs "golden"'),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is not JSON"),
        (lambda f: (f / "manifest.json").write_text("[" * 99_999), "manifest.json is not JSON"),
        (
            lambda f: (f / "manifest.json").write_text(" " * (MAX_MANIFEST_BYTES + 1)),
            f"at most {MAX_MANIFEST_BYTES} are read",
        ),
        (lambda f: (f / "manifest.json").unlink(), "start with --allow-foreign"),
    ],
)
def test_a_tampered_version_is_refused_by_name(version, tamper, text):
    tamper(version)
    assert text in refusal(version)


def test_another_answer_than_the_golden_one_is_refused(version):
    [golden] = json.loads((version / "manifest.json").read_text())["golden"]
    alias = next(a for a, v in golden["outputs"].items() if isinstance(v[0], list))
    row = golden["outputs"][alias][0]
    row[0] = row[0] + 1e-3 if isinstance(row[0], float) else row[0] + "x"
    change_manifest(version, golden=[golden])
    with pytest.raises(
        ServingError, match=f"Output '{alias}'.* is not the golden answer"
    ) as caught:
        servable.loader(ServerConfig())("m", 1, version)
    assert caught.value.code is Code.FAILED_PRECONDITION


def test_golden_numbers_may_differ_by_their_last_bits():
    def check(wanted, got):
        check_answer({"signature_name": "s", "outputs": {"y": wanted}}, {"y": got})

    check([[1.0, 2.0]], [[1.0 + 9e-6, 2.0]])
    check(["é"], ["é".encode()])
    for got in ([[1.0 + 3e-5, 2.0]], [[1.0]], [1.0, 2.0], [[float("nan"), 2.0]], [[b"1.0", 2.0]]):
        with pytest.raises(VersionError):
            check([[1.0, 2.0]], got)


def test_the_old_version_goes_on_and_status_says_why(version, tmp_path):
    repository = Repository(
        config := ServerConfig(exports=tmp_path / "exports", file_system_poll_wait_seconds=0.05),
        servable.loader(config),
    )
    repository.start()
    try:
        wait_until(lambda: repository.readiness()[0])
        beside = shutil.copytree(version, tmp_path / "beside")
        flip(beside)
        beside.rename(version.parent / "2")
        wait_until(lambda: any(error for _, _, error in repository.statuses("m")))
        [(number, _, error)] = [status for status in repository.statuses("m") if status[2]]
        assert number == 2 and "saved_model.pb" in str(error)
        with repository.acquire("m") as found:
            assert found.version == 1
    finally:
        assert repository.stop(10)


# ------------------------------------------------------------ ops


class _Module(tf.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function


def save_function(path, function):
    module = _Module(tf.function(function, input_signature=[tf.TensorSpec([None], tf.string, "x")]))
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.function})
    return path


def reads(x):
    return {"y": tf.map_fn(tf.io.read_file, x)}


def writes(x):
    with tf.control_dependencies([tf.io.write_file("/tmp/never", "x")]):
        return {"y": tf.identity(x)}


def calls(x):
    return {"y": tf.numpy_function(lambda v: v, [x], tf.string)}


def restores(x):
    [y] = tf.raw_ops.RestoreV2(
        prefix=x[0], tensor_names=["w"], shape_and_slices=[""], dtypes=[tf.float32]
    )
    return {"y": y}


def prints(x):
    with tf.control_dependencies([tf.print(x, output_stream="file:///tmp/never")]):
        return {"y": tf.identity(x)}


def records(x):
    dataset = tf.raw_ops.TFRecordDataset(filenames=x, compression_type="", buffer_size=0)
    [y] = tf.raw_ops.DatasetToSingleElement(
        dataset=dataset, output_types=[tf.string], output_shapes=[[]]
    )
    return {"y": y}


def fills(x):
    table = tf.raw_ops.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64)
    fill = tf.raw_ops.InitializeTableFromTextFileV2(
        table_handle=table, filename=x[0], key_index=-2, value_index=-1
    )
    with tf.control_dependencies([fill]):
        return {"y": tf.identity(x)}


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (reads, "ReadFile"),
        (writes, "WriteFile"),
        (calls, "PyFunc"),
        (restores, "RestoreV2"),
        (prints, "PrintV2"),
        (records, "TFRecordDataset"),
        (fills, "InitializeTableFromTextFileV2"),
    ],
)
def test_a_graph_that_leaves_the_process_is_refused_by_its_op(tmp_path, function, op):
    text = refusal(save_function(tmp_path / "1", function), allow_foreign=True)
    assert f"op {op}" in text and "--allow-ops=" in text


def test_functions_nobody_calls_are_looked_at_too(tmp_path):
    path = tmp_path / "1"
    module = _Module(tf.function(reads, input_signature=[tf.TensorSpec([None], tf.string)]))
    good = tf.function(lambda x: {"y": x}, input_signature=[tf.TensorSpec([None], tf.string, "x")])
    tf.saved_model.save(module, str(path), signatures={"serving_default": good})
    assert "ReadFile" in refusal(path, allow_foreign=True)


def test_ops_that_are_trusted_are_let_through(tmp_path):
    path = gate_model(tmp_path / "1")
    assert "MatchingFiles" in refusal(path, allow_foreign=True, allow_ops=("WriteFile",))
    assert gate.check(path, allow_foreign=True, allow_ops=("WriteFile", "MatchingFiles")) is None


def test_a_restore_of_the_saver_is_fine_but_not_in_a_signature(tmp_path):
    def build():
        x = v1.placeholder(tf.string, [], "x")
        [y] = tf.raw_ops.RestoreV2(
            prefix=x, tensor_names=["w"], shape_and_slices=[""], dtypes=[tf.float32]
        )
        v1.get_variable("w", initializer=1.0)
        return {"serving_default": ({"x": x}, {"y": y})}

    assert "RestoreV2" in refusal(save_graph(tmp_path / "1", build), allow_foreign=True)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "gate"])
def test_graphs_that_only_compute_pass(exports, name):
    check_graph(exports / name / "3")


def test_a_table_from_an_asset_of_the_version_passes(tmp_path):
    words = tmp_path / "words"
    words.write_text("good\nbad\n")
    module = tf.Module()
    module.table = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            str(words), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, -1
        ),
        -1,
    )
    look_up = tf.function(
        lambda x: {"y": module.table.lookup(x)},
        input_signature=[tf.TensorSpec([None], tf.string, "x")],
    )
    module.look_up = look_up
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"serving_default": look_up})
    check_graph(tmp_path / "1")


def test_the_environment_allows_foreign_models(monkeypatch):
    assert not flags.parse([]).config.allow_foreign
    monkeypatch.setenv("STEPWISE_ALLOW_FOREIGN", "1")
    assert flags.parse([]).config.allow_foreign
    assert not flags.parse(["--allow-foreign=false"]).config.allow_foreign

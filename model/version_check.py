"""What a version folder must be before anybody sees it: whole, and a graph that only computes.

Training asks before it renames an export into place, serving before it loads one. Plain Python
and TensorFlow's protocol buffers: no layer, no weight, no session.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import DecodeError
from tensorflow.core.framework import graph_pb2, node_def_pb2, op_def_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow.python.client import pywrap_tf_session

from model.signatures import MANIFEST_FILE

MAX_MANIFEST_BYTES = 16 * 2**20
MAX_FILES = 10_000
TOLERANCE = 1e-5  # of golden numbers, absolute and relative
_CHUNK_BYTES = 2**20

Nodes = dict[str, node_def_pb2.NodeDef]

# Whatever touches a file, a socket, Python or another process is stateful to TensorFlow, but for
# the few below. So a stateful op runs only if it is listed here, and a new one is refused.
_STATEFUL = re.compile(
    "|".join(
        (
            # Calls and control flow: the functions they name are walked themselves.
            r"_?If|Case|_?While|StatefulPartitionedCall|XlaLaunch|XlaCallModule|XlaWhile|XlaIf",
            r"_Arg|_Retval|Assert|Print|CheckNumerics(V2)?|GuaranteeConst|Timestamp|DeviceIndex",
            # Variables and their updates, in memory.
            r"Variable(V2|Shape)?|TemporaryVariable|DestroyTemporaryVariable|VarHandleOp",
            r"_?VarHandlesOp|_?ReadVariablesOp|ReadVariableOp|VarIsInitializedOp|DestroyResourceOp",
            r"Assign(Add|Sub)?VariableOp|DisableCopyOnRead|Empty|DeepCopy|IsTensorFloat32Enabled",
            r"Resource(Gather|GatherNd|Scatter\w+|Apply\w+|SparseApply\w+|CountUpTo)",
            r"ResourceStridedSliceAssign|ResourceConditionalAccumulator|ResourceAccumulator\w+",
            # Tables, arrays, stacks and queues, in memory.
            r"(Anonymous)?(Mutable(Dense)?)?HashTable(OfTensors)?(V2)?|LookupTable\w+",
            r"InitializeTable(V2)?|InitializeTableFromTextFileV2|TensorArray\w*|Stack\w*",
            r"(FIFO|PaddingFIFO|Priority|RandomShuffle)Queue(V2)?|Queue\w+|Barrier\w*",
            r"MutexV2|MutexLock|ConsumeMutexLock|Stage|Unstage|Stage(Peek|Size|Clear)",
            # Random numbers.
            r"Random(Uniform|UniformInt|StandardNormal|Gamma|Poisson|PoissonV2|Shuffle|Crop)",
            r"(Parameterized)?TruncatedNormal|Multinomial|Stateful(Uniform|Standard|Truncated)\w*",
            r"StatefulRandomBinomial|StatelessRandomGetAlg|RngSkip|RngReadAndSkip",
            r"NonDeterministicInts|SampleDistortedBoundingBox(V2)?",
            r"(Uniform|LogUniform|LearnedUnigram|ThreadUnsafeUnigram|All)CandidateSampler",
            # Kernels that keep a scratch space.
            r"CudnnRNN\w*|BoostedTrees\w+|IsBoostedTrees\w+",
            # Tokenizers; a sentencepiece model is a constant of the graph.
            r"Sentencepiece\w+|WordpieceTokenizeWithOffsets",
            # Checked further below.
            r"PrintV2|Save(V2|Slices)?|Restore(V2|Slice)?|MergeV2Checkpoints",
        )
    )
)
# Stateless to TensorFlow all the same, and outside the graph.
_OUTSIDE = {
    r"ReadFile|MatchingFiles|GenerateVocabRemapping|ImmutableConst": "reads files",
    r"PyFuncStateless": "calls Python",
    r"\w*(Dataset|Iterator|Reader)\w*": "reads data from outside the request",
    r"Debug\w+": "writes tensors to a file or an address",
    r"\w*(Collective|Nccl|Rpc|RemoteFused)\w*|_?(Host)?(Send|Recv)": "talks to other processes",
}
_REASONS = {
    r"\w*PyFunc\w*": "calls Python",
    r"\w*(Write|Writer|ToTFRecord|Dump|SaveDataset|DistributedSave)\w*": "writes files",
    r"\w*(Reader|Load|Restore|RecordInput|Skipgram|FixedUnigram)\w*": "reads files",
    r"\w*(Send|Recv|Rpc|RemoteCall|Collective|Nccl|TPU|DataService)\w*": "talks to other processes",
}
_CHECKPOINT = frozenset(
    ("Save", "SaveV2", "SaveSlices", "Restore", "RestoreV2", "RestoreSlice", "MergeV2Checkpoints")
)
_TABLE_FILE = ("InitializeTableFromTextFile", "InitializeTableFromTextFileV2")
_PROTO = ("DecodeProtoV2", "EncodeProto")


class VersionError(ValueError):
    """A version that must not be served; names the file or the op and says what to do."""


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of the version in `folder`, or None where there is none."""
    path = folder / MANIFEST_FILE
    if not path.is_symlink() and not path.exists():
        return None
    if path.is_symlink() or not path.is_file():
        raise VersionError(f"{MANIFEST_FILE} must be a plain file. {_AGAIN}")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise VersionError(
            f"{MANIFEST_FILE} holds {path.stat().st_size} bytes, at most {MAX_MANIFEST_BYTES} are "
            f"read. {_AGAIN}"
        )
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise VersionError(f"{MANIFEST_FILE} is not JSON: {error}. {_AGAIN}") from error
    files, golden = (
        (manifest.get("files"), manifest.get("golden"))
        if isinstance(manifest, dict)
        else (None, None)
    )
    if not isinstance(files, dict) or not all(isinstance(v, str) for v in files.values()):
        raise VersionError(f'{MANIFEST_FILE} needs "files": a sha256 by file name. {_AGAIN}')
    if not isinstance(golden, list) or not golden or not all(map(_is_golden, golden)):
        raise VersionError(
            f'{MANIFEST_FILE} needs "golden": a list of signature_name, inputs, outputs. {_AGAIN}'
        )
    return manifest


_AGAIN = "Export or copy the version again."


def _is_golden(item: object) -> bool:
    return (
        isinstance(item, dict)
        and isinstance(item.get("signature_name"), str)
        and all(isinstance(item.get(key), dict) and item[key] for key in ("inputs", "outputs"))
        and all(isinstance(v, list) for key in ("inputs", "outputs") for v in item[key].values())
    )


def check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raises VersionError unless `folder` holds the manifest's files, bit for bit, and no other."""
    wanted: dict[str, str] = manifest["files"]
    for name in wanted:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name or str(parts) != name:
            raise VersionError(f"{MANIFEST_FILE} names {name!r}, outside the version. {_AGAIN}")
    found = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    found.pop(MANIFEST_FILE, None)
    if missing := sorted(wanted.keys() - found.keys()):
        raise VersionError(f"Missing of the manifest's files: {_some(missing)}. {_AGAIN}")
    if extra := sorted(found.keys() - wanted.keys()):
        raise VersionError(f"Not in the manifest: {_some(extra)}. Remove them or export again.")
    for name, path in found.items():
        if _sha256(path) != wanted[name]:
            raise VersionError(f"{name} is not as its sha256 in the manifest says. {_AGAIN}")


def _files(folder: Path) -> Iterator[Path]:
    for i, path in enumerate(folder.rglob("*")):
        if path.is_symlink():
            raise VersionError(
                f"{path.relative_to(folder)} is a symbolic link. Copy the file it points to."
            )
        if i >= MAX_FILES:
            raise VersionError(f"More than {MAX_FILES} files in a version. {_AGAIN}")
        if not path.is_dir():
            yield path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def check_graph(folder: Path, allowed: Iterable[str] = ()) -> None:
    """Raises VersionError if a graph of the SavedModel could do more than compute.

    Every node of every meta graph and of its functions is looked at. `allowed` names ops to let
    through all the same. A SavedModel that is not there or cannot be parsed is left to TensorFlow,
    which has words of its own for that; so are ops that this process does not know.
    """
    saved_model = saved_model_pb2.SavedModel()
    binary, text = folder / "saved_model.pb", folder / "saved_model.pbtxt"
    try:
        if binary.exists():
            saved_model.ParseFromString(binary.read_bytes())
        elif text.exists():
            text_format.Parse(text.read_text(encoding="utf-8"), saved_model)
    except (DecodeError, text_format.ParseError, UnicodeDecodeError):
        return
    stateful = {op.name: op.is_stateful for op in _registered_ops()}
    for meta_graph in saved_model.meta_graphs:
        _MetaGraph(meta_graph, stateful, frozenset(allowed)).check()


def _registered_ops() -> Iterable[op_def_pb2.OpDef]:
    buffer = pywrap_tf_session.TF_GetAllOpList()
    ops = op_def_pb2.OpList()
    try:
        ops.ParseFromString(pywrap_tf_session.TF_GetBuffer(buffer))
    finally:
        pywrap_tf_session.TF_DeleteBuffer(buffer)
    return ops.op


class _MetaGraph:
    def __init__(
        self,
        meta_graph: meta_graph_pb2.MetaGraphDef,
        stateful: Mapping[str, bool],
        allowed: frozenset[str],
    ) -> None:
        self._meta_graph = meta_graph
        self._stateful = stateful
        self._allowed = allowed
        graph: graph_pb2.GraphDef = meta_graph.graph_def
        self._nodes: Nodes = {node.name: node for node in graph.node}
        self._functions = {f.signature.name: f for f in graph.library.function}
        self._assets = set()
        for asset in meta_graph.asset_file_def:
            path = PurePosixPath(asset.filename)
            if path.is_absolute() or ".." in path.parts:
                raise VersionError(f"Asset {asset.filename!r} lies outside the version. {_AGAIN}")
            self._assets.add(asset.tensor_info.name.partition(":")[0])

    def check(self) -> None:
        # What a signature or the start runs, and what only the saver may.
        nodes, functions = self._reached()
        for name, node in self._nodes.items():
            self._check_node(node, self._nodes, "", name in nodes)
        for function in self._functions.values():
            name = function.signature.name
            body = {node.name: node for node in function.node_def}
            for node in function.node_def:
                self._check_node(node, body, name, name in functions)

    def _reached(self) -> tuple[set[str], set[str]]:
        meta_graph = self._meta_graph
        nodes: list[str] = []
        for signature in meta_graph.signature_def.values():
            for info in (*signature.inputs.values(), *signature.outputs.values()):
                names = [info.name, *(part.name for part in info.composite_tensor.components)]
                sparse = info.coo_sparse
                names += [
                    sparse.values_tensor_name,
                    sparse.indices_tensor_name,
                    sparse.dense_shape_tensor_name,
                ]
                nodes += [_node_name(name) for name in names if name]
        for key in ("legacy_init_op", "saved_model_main_op", "saved_model_train_op"):
            nodes += map(_node_name, meta_graph.collection_def[key].node_list.value)
        seen: set[str] = set()
        functions: set[str] = set()
        while nodes:
            name = nodes.pop()
            if name in seen or name not in self._nodes:
                continue
            seen.add(name)
            nodes += map(_node_name, self._nodes[name].input)
            self._add_functions(self._nodes[name], functions)
        return seen, functions

    def _add_functions(self, node: node_def_pb2.NodeDef, functions: set[str]) -> None:
        waiting = [node]
        while waiting:
            for name in _called(waiting.pop()):
                if name in self._functions and name not in functions:
                    functions.add(name)
                    waiting += self._functions[name].node_def

    def _check_node(
        self, node: node_def_pb2.NodeDef, body: Nodes, function: str, is_reached: bool
    ) -> None:
        op = node.op
        if op in self._allowed or op in self._functions or op not in self._stateful:
            return
        if reason := _reason(op, self._stateful[op]):
            raise _refused(op, reason, node, function)
        if op == "PrintV2" and node.attr["output_stream"].s.startswith(b"file:"):
            raise _refused(op, "writes files", node, function)
        if op in _CHECKPOINT and is_reached:
            raise _refused(op, "reads or writes checkpoints in a signature", node, function)
        if op in _PROTO:
            source = node.attr["descriptor_source"].s
            if source and not source.startswith((b"local://", b"bytes://")):
                raise _refused(op, "reads a file of descriptors", node, function)
        if op in _TABLE_FILE and not self._is_asset(node.input[1], body, function, set()):
            raise _refused(op, "reads a file that is no asset of the version", node, function)

    def _is_asset(
        self, tensor: str, body: Nodes, function: str, seen: set[tuple[str, str]]
    ) -> bool:
        """Whether `tensor` can only be the name of an asset, wherever the function is called."""
        name = _node_name(tensor)
        if (function, name) in seen:
            return False
        seen = {*seen, (function, name)}
        if name in body:
            node = body[name]
            if node.op in ("Identity", "StopGradient"):
                return self._is_asset(node.input[0], body, function, seen)
            if not function and node.op == "ReadVariableOp":
                return self._holds_asset(_node_name(node.input[0]), seen)
            is_fixed = node.op in ("Const", "Placeholder")  # the loader feeds assets by name
            return not function and is_fixed and name in self._assets
        if not function:
            return False
        arguments = [arg.name for arg in self._functions[function].signature.input_arg]
        if name not in arguments:
            return False
        bodies = [("", self._nodes)] + [
            (f.signature.name, {node.name: node for node in f.node_def})
            for f in self._functions.values()
        ]
        index = arguments.index(name)
        for caller, nodes in bodies:
            for node in nodes.values():
                if function not in _called(node):
                    continue
                # Other ways to call shift the arguments; such a file is refused.
                is_plain = node.op in ("PartitionedCall", "StatefulPartitionedCall", function)
                inputs = [value for value in node.input if not value.startswith("^")]
                if not is_plain or not self._is_asset(inputs[index], nodes, caller, seen):
                    return False
        return True

    def _holds_asset(self, variable: str, seen: set[tuple[str, str]]) -> bool:
        """Whether all that the main graph puts into `variable` are names of assets."""
        users = [n for n in self._nodes.values() if variable in map(_node_name, n.input)]
        known = ("ReadVariableOp", "VarIsInitializedOp", "AssignVariableOp")
        if variable not in self._nodes or any(node.op not in known for node in users):
            return False
        values = [node.input[1] for node in users if node.op == "AssignVariableOp"]
        return all(self._is_asset(value, self._nodes, "", seen) for value in values)


def _called(node: node_def_pb2.NodeDef) -> Iterator[str]:
    yield node.op
    for value in node.attr.values():
        if value.func.name:
            yield value.func.name
        for function in value.list.func:
            yield function.name


def _node_name(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]


def _reason(op: str, is_stateful: bool) -> str:
    """Why `op` may not run, or nothing."""
    for pattern, reason in _OUTSIDE.items():
        if re.fullmatch(pattern, op):
            return reason
    if not is_stateful or _STATEFUL.fullmatch(op):
        return ""
    for pattern, reason in _REASONS.items():
        if re.fullmatch(pattern, op):
            return reason
    return "keeps state that is not on the list of allowed ops"


def _refused(op: str, reason: str, node: node_def_pb2.NodeDef, function: str) -> VersionError:
    place = f"node {node.name!r}" + (f" of function {function!r}" if function else "")
    return VersionError(
        f"The graph {reason}: op {op}, {place}. Export the model without it, or, if you trust "
        f"whoever made it, start with --allow-ops={op}."
    )


def check_answer(golden: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """Raises VersionError if `answer`, nested lists by alias, is not the golden one.

    Numbers within 1e-5, absolute or relative; strings and everything else equal.
    """
    for alias, wanted in golden["outputs"].items():
        if alias not in answer:
            raise VersionError(f"Golden output {alias!r} is not in the signature. {_AGAIN}")
        if not _is_close(wanted, answer[alias]):
            raise VersionError(
                f"Output {alias!r} of signature {golden['signature_name']!r} is not the golden "
                f"answer of {MANIFEST_FILE}: another TensorFlow or a damaged export? {_AGAIN}"
            )


def _is_close(wanted: Any, got: Any) -> bool:
    if isinstance(wanted, list):
        return (
            isinstance(got, list) and len(got) == len(wanted) and all(map(_is_close, wanted, got))
        )
    if isinstance(got, bytes):
        return isinstance(wanted, str) and wanted.encode() == got
    if isinstance(wanted, float) and isinstance(got, int | float):
        both_nan = math.isnan(wanted) and math.isnan(got)
        return both_nan or math.isclose(wanted, got, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return type(wanted) is type(got) and wanted == got

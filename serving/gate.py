"""What stands between a folder on disk and a version that callers reach.

Before the graph is loaded `check` looks at the files and the ops; after the warm-up `check_golden`
asks the loaded version for the answers it must give. What fails is said in the version's status.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from model.signatures import MANIFEST_FILE
from model.version_check import (
    VersionError,
    check_answer,
    check_files,
    check_graph,
    read_manifest,
)
from serving.errors import VersionRefused

if TYPE_CHECKING:
    from serving.servable import Servable


def check(
    path: Path, *, allow_foreign: bool, allow_ops: tuple[str, ...] = ()
) -> dict[str, Any] | None:
    """The manifest of the version in `path`, None for a foreign one that may be served.

    Raises VersionRefused that names the file or op and says what to do.
    """
    try:
        manifest = read_manifest(path)
        if manifest:
            check_files(path, manifest)
        elif not allow_foreign:
            raise VersionError(
                f"{path} has no {MANIFEST_FILE}, so nobody says what it should hold. Export it "
                "with `python -m training export`, or start with --allow-foreign."
            )
        check_graph(path, allow_ops)
    except VersionError as error:
        raise VersionRefused(str(error)) from error
    return manifest


def check_golden(servable: Servable, manifest: dict[str, Any]) -> None:
    """Raises VersionRefused unless `servable` gives the manifest's answers."""
    for golden in manifest["golden"]:
        signature = servable.signatures.get(golden["signature_name"])
        try:
            if signature is None or signature.inputs.keys() != golden["inputs"].keys():
                raise VersionError(
                    f"{MANIFEST_FILE} has a golden request that no signature takes: "
                    f"{golden['signature_name']!r}. Export the version again."
                )
            inputs = {}
            for alias, values in golden["inputs"].items():
                dtype = tf.as_dtype(signature.inputs[alias].dtype)
                rows = [v.encode() if isinstance(v, str) else v for v in values]
                inputs[alias] = np.array(rows, dtype=dtype.as_numpy_dtype)
            outputs = servable.run(golden["signature_name"], inputs)
            check_answer(golden, {alias: array.tolist() for alias, array in outputs.items()})
        except VersionError as error:
            raise VersionRefused(str(error)) from error

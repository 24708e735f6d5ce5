"""The folder of a run: where it is, what is in it, how it is found again.

`runs/<name>-<digest>/` holds `config.json`, the tokenizer, `labels.json`, `checkpoints/`,
`metrics.jsonl`, `tensorboard/`, `stages.json` and, once fitted, `results.json`. The digest follows
from settings and data, so the same command finds the same folder and goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from training.config import RunConfig
from training.datasets.catalogue import fingerprint
from training.datasets.download import sha256_of
from training.recipes import recipe

CONFIG_FILE, LABELS_FILE, RESULTS_FILE = "config.json", "labels.json", "results.json"
ENSEMBLE_FILE = "ensemble.json"  # {folder of a member, inside: its weight, ...}
STAGES_FILE = "stages.json"  # of each finished stage, how it went
SCALE_FILE = "scale.json"  # of target=number: mean and standard deviation of what is learned
CALIBRATION_FILE = "calibration.json"  # the temperature of the scores, once training is over


def run_folder(runs: Path, config: RunConfig) -> Path:
    """Where the run of `config` lives; needs the data's files for their fingerprint."""
    return runs / f"{config.name}-{config.digest(fingerprints(config))}"


def fingerprints(config: RunConfig) -> str:
    """Of all that a run reads besides its settings: data, vectors, the runs it is taught by."""
    used = [stage.dataset for stage in config.stages] + [stage.mixture for stage in config.stages]
    data = [fingerprint(dataset) for dataset in used if dataset]
    if config.vectors:
        try:
            data.append(sha256_of(Path(config.vectors)))
        except OSError as error:
            raise ValueError(
                f"vectors={config.vectors} cannot be read: {error.strerror}."
            ) from error
    teachers = [recipe(stage.teacher) for stage in config.stages if stage.teacher]
    data += [_preset_fingerprint(path)] if (path := getattr(config.tokenizer, "preset", "")) else []
    return " ".join([*data, *(run_folder(Path(), teacher).name for teacher in teachers)])


def _preset_fingerprint(preset: str) -> str:
    """A sha256 of a preset's files; of one that is named and no folder, of the name."""
    files = sorted(path for path in Path(preset).rglob("*") if path.is_file())
    parts = [f"{path.relative_to(preset)} {sha256_of(path)}" for path in files] or [preset]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def find_run(runs: Path, run: str) -> Path:
    """The folder that `run` names: a path, a folder's name in `runs`, or the start of one.

    Of several the one last finished is taken, or last begun if none is. Raises FileNotFoundError
    listing the runs there are.
    """
    for candidate in (Path(run), runs / run):
        if (candidate / CONFIG_FILE).is_file():
            return candidate
    folders = sorted(path.parent for path in runs.glob(f"*/{CONFIG_FILE}"))
    matches = [f for f in folders if f.name.rpartition("-")[0] == run] or [
        f for f in folders if f.name.startswith(run)
    ]
    if not matches:
        known = ", ".join(folder.name for folder in folders) or "none yet"
        raise FileNotFoundError(
            f"No run {run!r} in {runs}/ (runs there: {known}). Fit one first, for example: "
            "python -m training fit sentiment"
        )
    finished = [folder for folder in matches if (folder / RESULTS_FILE).is_file()]
    if finished:
        return max(finished, key=lambda folder: (folder / RESULTS_FILE).stat().st_mtime)
    return max(matches, key=lambda folder: (folder / CONFIG_FILE).stat().st_mtime)


def newest_export(exports: Path, name: str) -> Path | None:
    """The version folder of export `name` with the highest number, if there is one."""
    versions = [path for path in (exports / name).glob("*") if path.name.isdecimal()]
    return max(versions, key=lambda path: int(path.name), default=None)


def read_config(folder: Path) -> RunConfig:
    path = folder / CONFIG_FILE if folder.is_dir() else folder
    try:
        return RunConfig.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Written beside and renamed into place: a reader never sees half of it."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)

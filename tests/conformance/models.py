"""Writes the models that the cases ask for: `python -m tests.conformance.models FOLDER`.

half_plus_two has versions 1 and 2 (a quarter plus two) and the labels stable and canary; the server
is started on the file `models.config` with --allow_version_labels_for_unavailable_models.
"""

import sys
from pathlib import Path

from tests.serving import toy_exports

CONFIG = """model_config_list {{
  config {{
    name: "half_plus_two", base_path: "{folder}/half_plus_two", model_platform: "tensorflow"
    model_version_policy {{ all {{}} }}
    version_labels {{ key: "stable" value: 1 }}
    version_labels {{ key: "canary" value: 2 }}
  }}
  config {{ name: "examples", base_path: "{folder}/examples", model_platform: "tensorflow" }}
  config {{ name: "mixed", base_path: "{folder}/mixed", model_platform: "tensorflow" }}
  config {{ name: "types", base_path: "{folder}/types", model_platform: "tensorflow" }}
}}
"""


def write(folder: Path) -> Path:
    """The file of the models' configuration."""
    toy_exports.scale_model(folder / "half_plus_two" / "1", 0.5)
    toy_exports.scale_model(folder / "half_plus_two" / "2", 0.25)
    toy_exports.examples_model(folder / "examples" / "1")
    toy_exports.mixed_model(folder / "mixed" / "1")
    toy_exports.types_model(folder / "types" / "1")
    config = folder / "models.config"
    config.write_text(CONFIG.format(folder=folder.resolve()), encoding="utf-8")
    return config


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))

"""What the device decides, and that it is decided once."""

import json
from types import SimpleNamespace

import pytest

from model import runtime
from training import hardware
from training.config import RunConfig, override
from training.hardware import Gpu, by_device, compiles_for, find_gpus, use_threads
from training.recipes import RECIPES, recipe

AMPERE, TURING, AMD = Gpu("A100", (8, 0)), Gpu("T4", (7, 5)), Gpu("MI300", None)
PACKED = ["packing=packed"]


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_without_a_gpu_a_recipe_is_what_it_says(name):
    assert by_device(recipe(name), [], gpus=[]) == recipe(name)


@pytest.mark.parametrize(
    ("gpus", "precision"),
    [
        ([], "float32"),
        ([AMPERE], "mixed_bfloat16"),
        ([Gpu("H100", (9, 0)), AMPERE], "mixed_bfloat16"),
        ([AMPERE, TURING], "float32"),
        ([TURING], "float32"),
        ([AMD], "float32"),
    ],
)
def test_layers_compute_in_what_every_device_has(gpus, precision):
    assert by_device(recipe("shakespeare"), [], gpus=gpus).precision == precision


def test_what_is_typed_is_not_decided():
    typed = ["precision=float32", "xla=false", *PACKED]
    changed = by_device(recipe("shakespeare"), typed, gpus=[AMPERE])
    assert changed == override(recipe("shakespeare"), typed)
    both = by_device(recipe("shakespeare"), ["precision=float32", "precision=auto"], gpus=[AMPERE])
    assert both.precision == "mixed_bfloat16"  # the last word counts


def test_what_was_decided_is_written_and_stays_on_another_machine():
    begun = by_device(recipe("shakespeare"), PACKED, gpus=[AMPERE])
    assert (begun.precision, begun.xla) == ("mixed_bfloat16", True)
    assert (begun.to_dict()["precision"], begun.to_dict()["xla"]) == ("mixed_bfloat16", True)
    read = RunConfig.from_dict(json.loads(json.dumps(begun.to_dict())))
    gone_on = by_device(read, [], is_new=False, gpus=[])
    assert gone_on == read and gone_on.digest("data") == begun.digest("data")
    anew = by_device(read, ["precision=auto", "xla=auto"], is_new=False, gpus=[])
    assert (anew.precision, anew.xla) == ("float32", False)
    assert anew.digest("data") != begun.digest("data")


@pytest.mark.parametrize(
    ("settings", "gpus", "num_replicas", "compiles"),
    [
        (PACKED, [AMPERE], None, True),
        (PACKED, [TURING], None, True),
        (PACKED, [], None, False),
        (PACKED, [AMPERE, AMPERE], None, False),  # MirroredStrategy
        (PACKED, [AMPERE, AMPERE], 1, True),
        ([], [AMPERE], None, False),  # rows of many lengths
        ([*PACKED, "max_updates=9", "batch_size=linear(2, 4)"], [AMPERE], None, False),
        ([*PACKED, "max_tokens=linear(8, 64)"], [AMPERE], None, False),
    ],
)
def test_xla_compiles_batches_of_one_shape_on_one_gpu(settings, gpus, num_replicas, compiles):
    changed = by_device(recipe("shakespeare"), settings, gpus=gpus, num_replicas=num_replicas)
    assert changed.xla is compiles


def test_processes_are_not_compiled(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{}")
    assert compiles_for(override(recipe("shakespeare"), PACKED), [AMPERE]) is False


def test_tensorflow_is_not_imported_where_there_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "import_tensorflow", lambda: pytest.fail("imported"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert find_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(hardware, "Path", lambda path: tmp_path)
    assert find_gpus() == []


def test_gpus_are_those_that_tensorflow_sees(monkeypatch, tmp_path):
    import tensorflow as tf

    (tmp_path / "nvidia0").touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware, "Path", lambda path: tmp_path)
    details = {"a": {"device_name": "A100", "compute_capability": (8, 0)}, "b": {}}
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a", "b"])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", details.__getitem__)
    assert find_gpus() == [AMPERE, Gpu("GPU", None)]


def test_several_gpus_are_replicas_without_being_asked(monkeypatch):
    """GPUs that are not there: what is made of them is recorded."""
    import tensorflow as tf

    from training.devices import choose_replicas

    made = []

    def mirrored(devices):
        made.append(devices)
        return SimpleNamespace(num_replicas_in_sync=len(devices))

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a", "b"])
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", mirrored)
    changed = by_device(recipe("shakespeare"), PACKED, gpus=[AMPERE, AMPERE])
    assert choose_replicas(changed).num == 2 and made == [["GPU:0", "GPU:1"]]
    assert choose_replicas(changed, 1).strategy is None
    private = override(recipe("sentiment"), ["strategy=dp_sgd(sgd)"])
    assert choose_replicas(private).strategy is None  # one of them, which is said


THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


@pytest.mark.parametrize(
    ("name", "num_cores", "driver", "already", "expected"),
    [
        ("shakespeare_nanogpt", 2, False, None, ("1", "2")),
        ("sentiment_transformer", 4, False, None, ("1", "4")),
        ("shakespeare_nanogpt", 1, False, None, (None, None)),
        ("shakespeare_nanogpt", 16, False, None, (None, None)),  # not measured
        ("shakespeare_nanogpt", 2, True, None, (None, None)),
        ("shakespeare_nanogpt", 2, False, "3", ("3", None)),  # as the user said
        ("sentiment", 2, False, None, (None, None)),
    ],
)
def test_narrow_transformers_run_operations_side_by_side(
    name, num_cores, driver, already, expected, monkeypatch
):
    for variable in THREADS:
        monkeypatch.setenv(variable, "")  # so that what is set here is undone
        monkeypatch.delenv(variable)
    if already:
        monkeypatch.setenv(THREADS[0], already)
    monkeypatch.setattr(hardware.os, "cpu_count", lambda: num_cores)
    monkeypatch.setattr(hardware, "_has_gpu_driver", lambda: driver)
    use_threads(recipe(name))
    assert tuple(hardware.os.environ.get(variable) for variable in THREADS) == expected


def test_wide_transformers_keep_threads_inside_an_operation(monkeypatch):
    for variable in THREADS:
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    monkeypatch.setattr(hardware.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(hardware, "_has_gpu_driver", lambda: False)
    use_threads(override(recipe("shakespeare_nanogpt"), ["model.width=384"]))
    assert not set(THREADS) & hardware.os.environ.keys()

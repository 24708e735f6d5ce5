"""Versions of one network share what is compiled, and nothing else."""

import gc
import shutil
import threading
import weakref

import numpy as np
import pytest
import tensorflow as tf

from serving import programs
from serving.decoder import Decoder, Text
from serving.writing import Request

pytestmark = pytest.mark.xdist_group("tiny_writer")

PROMPT = [1, 9, 8, 7]


def decoder_of(folder):  # with the steps of `test_engine.py`, which are compiled in this process
    return Decoder(folder, num_slots=1, max_steps=8, chunk=8, progress=lambda text: None)


def greedy(decoder):
    text = Text(Request(prompt="", temperature=0.0), PROMPT, np.zeros([32], np.float32), 8)
    staged, first = decoder.read(decoder.empty(len(PROMPT)), text, 0, len(PROMPT))
    text.written += first.tokens[:, 0].tolist()
    decoder.put(0, staged, text)
    return text.written + decoder.write(1, 4).tokens[:, 0].tolist()


@pytest.fixture(scope="module")
def other(writer_exports, tmp_path_factory):
    """The same network with other weights: all of them the other way round."""
    folder = tmp_path_factory.mktemp("other") / "1"
    shutil.copytree(writer_exports / "writer" / "1", folder)
    prefix = str(folder / "variables" / "variables")
    reader = tf.train.load_checkpoint(prefix)
    names = sorted(reader.get_variable_to_shape_map())
    kinds = reader.get_variable_to_dtype_map()
    values = [reader.get_tensor(name) for name in names]
    turned = [
        value[..., ::-1] if kinds[name].is_floating and value.ndim else value
        for name, value in zip(names, values, strict=True)
    ]
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(v, kinds[n]) for n, v in zip(names, turned, strict=True)],
    )
    return folder


def test_a_version_takes_the_functions_of_the_one_before_and_no_weights(writer_exports, other):
    path = writer_exports / "writer" / "1"
    first, second = decoder_of(path), decoder_of(other)
    assert second._step.name == first._step.name and second._read.name == first._read.name
    ours, theirs = greedy(first), greedy(second)
    assert ours != theirs
    assert greedy(first) == ours  # while the other one is there
    held = weakref.ref(first)
    first.close()
    assert greedy(second) == theirs
    del first
    gc.collect()
    assert held() is None
    assert greedy(decoder_of(path)) == ours


def test_settings_that_are_traced_are_not_shared(writer_exports):
    loaded = tf.saved_model.load(str(writer_exports / "writer" / "1"))
    decode = loaded.signatures["decode"]
    assert programs.programs_of(decode, 1, 8) is programs.programs_of(decode, 1, 8)
    assert programs.programs_of(decode, 1, 8) is not programs.programs_of(decode, 1, 7)


def test_a_closed_decoder_holds_no_weights(writer_exports):
    decoder = decoder_of(writer_exports / "writer" / "1")
    variables = [*decoder._decode.variables, *decoder._cache]
    assert all(tf.size(variable.read_value()) > 0 for variable in variables)
    decoder.close()
    sizes = [
        tf.size(tf.raw_ops.ReadVariableOp(resource=one.handle, dtype=one.dtype))
        for one in variables
    ]
    assert len(sizes) > 10 and not any(sizes)


def test_an_export_may_not_say_how_many_rows_its_logits_have(writer_exports, monkeypatch):
    """As those that were made otherwise do: tracing, which is what would fail, is enough."""
    decoder = decoder_of(writer_exports / "writer" / "1")
    decode = decoder._decode

    def vague(**inputs):
        outputs = decode(**inputs)
        shape = [None, outputs["logits"].shape[-1]]
        hidden = tf.raw_ops.PlaceholderWithDefault(input=outputs["logits"], shape=shape)
        return outputs | {"logits": hidden}

    monkeypatch.setattr(decoder, "_decode", vague)
    assert decoder._functions().keys() >= {"step", "read"}
    monkeypatch.undo()
    decoder.close()


def concrete(python):
    return tf.function(python).get_concrete_function(tf.TensorSpec([None, 2], tf.float32))


def inner(factor):
    @tf.function
    def times(x):
        return x * factor

    return times


def test_a_fingerprint_is_of_what_is_computed_not_of_names():
    def named(name, factor, order=1):
        times = inner(factor)

        def python(x):
            with tf.name_scope(name):
                return times(x) - tf.sin(x) if order > 0 else tf.sin(x) - times(x)

        return programs.fingerprint(concrete(python))

    assert named("a", 2.0) == named("b", 2.0)
    assert named("a", 3.0) != named("a", 2.0)  # within a function that is called
    assert named("a", 2.0, order=-1) != named("a", 2.0)


def test_who_comes_second_waits_and_may_leave(monkeypatch):
    monkeypatch.setattr(programs, "WAIT_SECONDS", 0.01)
    shared, told = programs.Programs(), []

    def leave():
        told.append("waits")
        raise KeyError("not wanted any more")

    def second():
        with pytest.raises(KeyError), shared.compiling(leave):
            told.append("entered")

    with shared.compiling(leave):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert told == ["waits"]
    with shared.compiling(leave):  # nobody holds it any more
        pass

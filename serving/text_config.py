"""Text-format settings files of tensorflow_model_server whose messages its pip package lacks.

Only names and types matter to the text format; the field numbers here are our own.
"""

import functools
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf import wrappers_pb2 as wrappers

from serving.config import ConfigError

_PACKAGE = "tensorflow.serving"
_SCALARS = {
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
}
_MESSAGES = {
    "PrometheusConfig": {"enable": "bool", "path": "string"},
    "MonitoringConfig": {"prometheus_config": f"{_PACKAGE}.PrometheusConfig"},
    "SSLConfig": {
        "server_key": "string",
        "server_cert": "string",
        "custom_ca": "string",
        "client_verify": "bool",
    },
    "BatchingParameters": {
        "max_batch_size": "google.protobuf.Int64Value",
        "batch_timeout_micros": "google.protobuf.Int64Value",
        "max_enqueued_batches": "google.protobuf.Int64Value",
        "num_batch_threads": "google.protobuf.Int64Value",
        "thread_pool_name": "google.protobuf.StringValue",
        "allowed_batch_sizes": "repeated int64",
        "pad_variable_length_inputs": "bool",
        "enable_large_batch_splitting": "google.protobuf.BoolValue",
        "max_execution_batch_size": "google.protobuf.Int64Value",
    },
}


@functools.cache
def _pool() -> descriptor_pool.DescriptorPool:
    """A pool of its own: the process may hold the real messages under the same names."""
    field_type = descriptor_pb2.FieldDescriptorProto
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(
        name="stepwise/text_config.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=[wrappers.DESCRIPTOR.name],
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), start=1):
            label = field_type.LABEL_REPEATED if "repeated" in kind else field_type.LABEL_OPTIONAL
            kind = kind.removeprefix("repeated ")
            added = message.field.add(name=field, number=number, label=label)
            if kind in _SCALARS:
                added.type = _SCALARS[kind]
            else:
                added.type, added.type_name = field_type.TYPE_MESSAGE, f".{kind}"
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def read(flag: str, path: Path, name: str) -> Any:
    """The message `tensorflow.serving.<name>` in a text-format file that `flag` names.

    Raises ConfigError when the file cannot be read or holds anything else.
    """
    message = message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{_PACKAGE}.{name}"))()
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), message)
    except OSError as error:
        raise ConfigError(f"{flag}={path} cannot be read: {error}") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"Invalid protobuf file: '{path}' of {flag} should hold a text-format "
            f"{_PACKAGE}.{name}: {error}"
        ) from error

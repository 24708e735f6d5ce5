"""`python -m serving`: serves exported models over TensorFlow Serving's REST and gRPC API."""

import importlib.metadata
import logging
import sys
from collections.abc import Sequence

from serving import flags, logs
from serving.config import ConfigError
from serving.errors import ServingError
from serving.launcher import PROTOCOL_VERSION, launch

log = logging.getLogger("serving")

EXIT_FAILURE = 255  # what tensorflow_model_server ends with, too


def main(arguments: Sequence[str] | None = None) -> int:
    logs.configure("text")
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in ("promote", "rollback"):
        from serving.promote import main as move

        return move(arguments)
    if arguments and arguments[0] == "generate":
        from serving.generate import main as generate

        return generate(arguments[1:])
    if {"-h", "--help"} & set(arguments):
        print(flags.usage(), end="")
        return 0
    try:
        line = flags.parse(arguments)
        logs.configure(line.config.log_format)
        if line.config.version:
            print(f"TensorFlow ModelServer: {PROTOCOL_VERSION}+stepwise")
            print(f"TensorFlow Library: {_tensorflow_version()}")
            return 0
        if line.unknown:
            for argument in line.unknown:
                print(f"unknown argument: {argument}")
            print(flags.usage(), end="", flush=True)
        if line.ignored:
            log.info("Accepted and without effect in this server: %s", ", ".join(line.ignored))
        return launch(line.config)
    except flags.UsageError as error:
        print(flags.usage(), end="", flush=True)
        print(f"{error}.", file=sys.stderr)  # last, or nobody would see it above all the flags
    except ConfigError as error:
        _say_failed("INVALID_ARGUMENT", str(error))
    except ServingError as error:
        _say_failed(error.code.name, error.message)
    return EXIT_FAILURE


def _say_failed(status: str, message: str) -> None:
    # On stderr for people and logs; the stock line, for scripts, on stdout. A terminal
    # shows both, so there the second is enough.
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        log.error(message)
    print(f"Failed to start server. Error: {status}: {message}", flush=True)


def _tensorflow_version() -> str:
    for package in ("tensorflow", "tensorflow-cpu", "tensorflow-macos"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


if __name__ == "__main__":
    sys.exit(main())

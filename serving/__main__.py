"""`python -m serving`: serves exported models over TensorFlow Serving's REST and gRPC API."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from serving.config import ENGINES, ConfigError, ModelConfig, ServerConfig
from serving.launcher import launch

EXAMPLES = """\
examples:
  python -m serving                                     every model in exports/
  python -m serving --exports runs/exports --models a,b
  python -m serving --model_name sentiment --model_base_path /srv/sentiment
  python -m serving --engine docker                     in the tensorflow/serving image
"""


def parser() -> argparse.ArgumentParser:
    defaults = ServerConfig()
    p = argparse.ArgumentParser(
        prog="python -m serving",
        description="Serves exported models over TensorFlow Serving's REST and gRPC API.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = p.add_argument_group("what to serve")
    what.add_argument(
        "--exports",
        type=Path,
        metavar="DIR",
        help="each folder in DIR that holds a numbered version folder is a model; "
        f"later ones are picked up (default: {defaults.exports})",
    )
    what.add_argument("--models", metavar="A,B", help="of --exports, only these")
    what.add_argument("--model_name", metavar="NAME", help="name of a single model")
    what.add_argument(
        "--model_base_path", type=Path, metavar="DIR", help="its folder, with version folders"
    )
    what.add_argument(
        "--model_config_file", type=Path, metavar="FILE", help="a text-format ModelServerConfig"
    )

    where = p.add_argument_group("where")
    where.add_argument("--host", default=defaults.host, help="address (default: %(default)s)")
    where.add_argument(
        "--port", type=int, default=defaults.port, help="gRPC; 0 is off (default: %(default)s)"
    )
    where.add_argument(
        "--rest_api_port",
        type=int,
        default=defaults.rest_api_port,
        help="REST; 0 is off (default: %(default)s)",
    )

    how = p.add_argument_group("how")
    how.add_argument(
        "--engine",
        choices=ENGINES,
        default=defaults.engine,
        help="auto is tensorflow_model_server if it is on the PATH, else the embedded server",
    )
    how.add_argument(
        "--file_system_poll_wait_seconds",
        type=float,
        default=defaults.file_system_poll_wait_seconds,
        metavar="S",
        help="how often new versions are looked for; 0 is once (default: %(default)g)",
    )
    how.add_argument(
        "--max_num_load_retries",
        type=int,
        default=defaults.max_num_load_retries,
        metavar="N",
        help="further tries after a failed load (default: %(default)s)",
    )
    how.add_argument(
        "--load_retry_interval_micros",
        type=int,
        default=round(defaults.load_retry_interval_seconds * 1e6),
        metavar="US",
        help="pause between those tries (default: %(default)s, one minute)",
    )
    how.add_argument(
        "--drain-seconds",
        type=float,
        default=defaults.drain_seconds,
        metavar="S",
        help="how long running requests may take after a stop signal (default: %(default)g)",
    )
    return p


def read_config(arguments: Sequence[str]) -> ServerConfig:
    """The settings of a command line. Raises ConfigError for those that contradict each other."""
    args = parser().parse_args(arguments)
    single = args.model_base_path is not None
    chosen = [
        flag
        for flag, is_given in (
            ("--exports", args.exports is not None),
            ("--model_base_path", single),
            ("--model_config_file", args.model_config_file is not None),
        )
        if is_given
    ]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} cannot go together; give one of them")
    if args.model_name is not None and not single:
        raise ConfigError("--model_name needs --model_base_path beside it")
    if args.models is not None and chosen not in ([], ["--exports"]):
        raise ConfigError(f"--models chooses among --exports; leave {chosen[0]} out")
    defaults = ServerConfig()
    models = (ModelConfig(args.model_name or "default", args.model_base_path),) if single else ()
    only = tuple(name.strip() for name in (args.models or "").split(",") if name.strip())
    return ServerConfig(
        host=args.host,
        port=args.port,
        rest_api_port=args.rest_api_port,
        model_config_file=args.model_config_file,
        models=models,
        exports=args.exports or defaults.exports,
        only_models=only,
        file_system_poll_wait_seconds=args.file_system_poll_wait_seconds,
        max_num_load_retries=args.max_num_load_retries,
        load_retry_interval_seconds=args.load_retry_interval_micros / 1e6,
        drain_seconds=args.drain_seconds,
        engine=args.engine,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("serving").setLevel(logging.INFO)
    try:
        return launch(read_config(sys.argv[1:] if arguments is None else arguments))
    except ConfigError as error:
        print(f"Cannot start: {error}.", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""`python -m serving generate MODEL PROMPT`: text in the terminal as it is written.

Without a server, on the export itself; with `--url`, on a server that runs.
"""

import argparse
import asyncio
import contextlib
import io
import os
import random
import signal
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from serving.config import ConfigError, ServerConfig, discover_models, version_folders
from serving.errors import as_serving_error

if TYPE_CHECKING:
    from serving.writing import Request

EXIT_FAILURE, EXIT_INTERRUPTED = 1, 130
_CLEAR = "\r\033[K"  # the line of a terminal


class Part(NamedTuple):
    """What was written since the part before; the last one says why it ended."""

    text: str
    num_tokens: int  # of the answer so far
    finish_reason: str | None
    num_prompt: int  # tokens that are read
    num_truncated: int  # tokens of the prompt before them


Parts = Generator[Part, None, None]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m serving generate",
        description="Writes on from a prompt, into the terminal, as it comes. No server is needed.",
    )
    made.add_argument("model", help="its name, a folder of --exports")
    made.add_argument("prompt", help="what the text begins with; - reads standard input")
    made.add_argument("--exports", type=Path, default=ServerConfig.exports, help="%(default)s")
    made.add_argument("--version", type=int, help="the newest")
    made.add_argument("--allow-foreign", action="store_true", help="models without a manifest, too")
    made.add_argument("--url", help="ask this server instead, as http://127.0.0.1:8501")
    made.add_argument("--max-tokens", type=int, default=200, help="%(default)s")
    made.add_argument("--temperature", type=float, default=0.8, help="%(default)s; 0 is greedy")
    made.add_argument("--top-k", type=int, default=0, help="%(default)s, which is off")
    made.add_argument("--top-p", type=float, default=0.95, help="%(default)s; 1 is off")
    made.add_argument("--min-p", type=float, default=0.0, help="%(default)s, which is off")
    made.add_argument(
        "--repetition-penalty", type=float, default=1.0, help="%(default)s, which is off"
    )
    made.add_argument("--presence-penalty", type=float, default=0.0, help="%(default)s")
    made.add_argument("--frequency-penalty", type=float, default=0.0, help="%(default)s")
    made.add_argument("--seed", type=int, help="by chance; the last line tells it")
    made.add_argument("--stop", action="append", default=[], help="ends the text; may be repeated")
    made.add_argument("--echo", action="store_true", help="begin with the prompt")
    return made


def main(arguments: Sequence[str]) -> int:
    """Runs the command line behind `generate`; returns the exit code."""
    options = parser().parse_args(arguments)
    for stream in (sys.stdin, sys.stdout):  # what the terminal cannot read or show is no error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    if options.seed is None:
        options.seed = random.getrandbits(31)
    settings = {
        name: getattr(options, name)
        for name in (
            "max_tokens",
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
            "seed",
        )
    }
    settings["stop"] = options.stop
    try:
        with contextlib.closing(_parts(options, prompt, settings)) as parts:
            return _print(parts, prompt if options.echo else "", options)
    except BrokenPipeError:  # whoever reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ConfigError as error:
        print(f"{error}.", file=sys.stderr)
    except Exception as error:
        known = as_serving_error(error)
        if known is None:
            raise
        print(known.message, file=sys.stderr)
    return EXIT_FAILURE


def _print(parts: Parts, beginning: str, options: argparse.Namespace) -> int:
    began = time.perf_counter()
    first, num_first, count, reason, is_interrupted = 0.0, 0, 0, None, False
    has_begun = False
    _tell_meanwhile(f"{'Asking for' if options.url else 'Loading'} {options.model} ...")
    try:
        for part in parts:
            text = part.text
            if not has_begun:
                _tell_meanwhile("")
                _tell_of_the_prompt(part)
                text = beginning + text
            count, reason, has_begun = part.num_tokens, part.finish_reason or reason, True
            if count and not num_first:
                first, num_first = time.perf_counter(), count
            sys.stdout.write(text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        is_interrupted = True
    finally:
        if not has_begun:
            _tell_meanwhile("")
    if has_begun:
        sys.stdout.write("\n")
        sys.stdout.flush()
    now = time.perf_counter()
    if is_interrupted:
        reason = "interrupted"
    told = [f"{count} tokens"]
    if num_first:
        told.append(f"the first after {first - began:.2f} s")
    if count > num_first and now > first:
        told.append(f"then {(count - num_first) / (now - first):.0f} a second")
    print(f"[{', '.join([*told, str(reason), f'seed {options.seed}'])}]", file=sys.stderr)
    return EXIT_INTERRUPTED if is_interrupted else 0


def _tell_of_the_prompt(part: Part) -> None:
    if part.num_truncated:
        print(
            f"[of {part.num_prompt + part.num_truncated} tokens of the prompt the last "
            f"{part.num_prompt} are read: beside the answer there is room for no more]",
            file=sys.stderr,
        )


def _tell_meanwhile(text: str) -> None:
    """A line that the next one takes away, for whoever sits in front of it."""
    if sys.stderr.isatty():
        sys.stderr.write(_CLEAR + text)
        sys.stderr.flush()


@contextlib.contextmanager
def _leaving_at_once() -> Iterator[None]:
    """Ctrl-C in the middle of an import of TensorFlow would come out as any error."""

    def leave(number: int, frame: object) -> None:
        if sys.stdout.isatty():
            os.write(1, b"\n")
        os._exit(EXIT_INTERRUPTED)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _parts(options: argparse.Namespace, prompt: str, settings: dict[str, Any]) -> Parts:
    from serving.writing import Request, stop_strings

    settings["stop"] = stop_strings(settings["stop"])
    request = Request(prompt=prompt, **settings)  # wrong settings are told at once, in one way
    if options.url:
        for name, default in (
            ("version", None),
            ("allow_foreign", False),
            ("exports", ServerConfig.exports),
        ):
            if getattr(options, name) != default:
                raise ConfigError(
                    f"--{name.replace('_', '-')} is for the exports of this machine, and with "
                    "--url the server's newest version writes. Leave one of the two out"
                )
        return _by_server(options.url, options.model, prompt, settings)
    return _here(options, prompt, request)


def _by_server(url: str, model: str, prompt: str, settings: dict[str, Any]) -> Parts:
    try:
        from serving.client import Client, ClientError
    except ImportError as error:
        raise ConfigError("--url needs httpx; install it with: pip install httpx") from error
    try:
        with Client(url) as client:
            for part in client.write(model, prompt, **settings):
                yield Part(
                    part.text,
                    part.num_tokens or 0,
                    part.finish_reason,
                    part.num_prompt_tokens or 0,
                    part.num_truncated_tokens,
                )
    except ClientError as error:
        raise ConfigError(str(error).removesuffix(".")) from error


def _here(options: argparse.Namespace, prompt: str, request: "Request") -> Parts:
    folder = _version_folder(options.exports, options.model, options.version)
    from model.runtime import import_tensorflow

    with _leaving_at_once():
        import_tensorflow()
        from serving import gate, servable
        from serving.next_tokens import NextTokensWriter

    gate.check(folder, allow_foreign=options.allow_foreign)
    # Warm-up and golden answers are for those who come later: here one text is wanted, and soon.
    config = ServerConfig(exports=options.exports, enable_model_warmup=False)
    loaded = servable.load(options.model, int(folder.name), folder, config=config)
    try:
        with asyncio.Runner() as runner:
            writer = NextTokensWriter(loaded)
            (whole,) = runner.run(writer.tokenize([prompt]))
            pieces = writer.write(request)
            count = 0
            try:
                while True:
                    piece = runner.run(anext(pieces, None))
                    if piece is None:
                        return
                    count += len(piece.tokens)
                    size = piece.num_prompt_tokens
                    unread = whole.num_tokens - size
                    yield Part(piece.text, count, piece.finish_reason, size, unread)
            finally:
                runner.run(pieces.aclose())
    finally:
        loaded.close()


def _version_folder(exports: Path, model: str, version: int | None) -> Path:
    """Raises ConfigError where there is none."""
    known = {found.name: found.base_path for found in discover_models(exports)}
    if not known:
        raise ConfigError(
            f"--exports: {exports.resolve()} holds no models; make one with `python -m training`, "
            "or name another folder"
        )
    if model not in known:
        raise ConfigError(
            f"{exports.resolve()} holds no model named {model!r}; it holds: {', '.join(known)}"
        )
    versions = version_folders(known[model])
    if version is not None and version not in versions:
        numbers = ", ".join(map(str, sorted(versions)))
        raise ConfigError(f"--version: {model} has no version {version}; it has: {numbers}")
    return versions[max(versions) if version is None else version]

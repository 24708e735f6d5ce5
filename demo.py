"""make demo: trains the recipes that are not trained yet, serves them, starts the pages.

The three rooms meet here only as processes: each can be started alone with the same commands.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

PYTHON = [sys.executable, "-m"]
MONITORING = "deploy/kubernetes/monitoring.config"
STARTING_SECONDS = 120
STOPPING_SECONDS = 15


class Stopped(Exception):
    """Ctrl-C, or the terminal was closed."""


def main() -> int:
    options, training_options = parse()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    children: list[tuple[str, subprocess.Popen]] = []
    try:
        began = time.monotonic()
        check_ports(options)  # before anything that takes minutes
        places = ["--runs", options.runs, "--exports", options.exports]
        training = start("training", *places, "all", *options.recipes, *training_options)
        children.append(("training", training))
        if code := run_to_its_end(training):
            return code
        children.clear()
        print(f"\nStarting the server and the pages ({time.monotonic() - began:.0f} s so far) ...")
        server = f"http://127.0.0.1:{options.rest_port}"
        pages = f"http://127.0.0.1:{options.ui_port}"
        children.append(("the model server", start("serving", *serving_options(options))))
        models = ",".join(options.recipes)
        ui_options = ["--server", server, "--models", models, "--port", str(options.ui_port)]
        children.append(("the pages", start("ui", *ui_options)))
        for name in options.recipes:
            wait_for(f"{server}/v1/models/{name}", '"AVAILABLE"', children)
        wait_for(f"{pages}/_stcore/health", "ok", children)
        print(ADVICE.format(pages=pages, server=server, model=options.recipes[0]), flush=True)
        while True:
            check(children)
            time.sleep(0.5)
    except Stopped:
        print("\nStopping ...", flush=True)
        return 0
    except RuntimeError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    finally:
        stop(children)


ADVICE = """
Stepwise is up.
  Pages         {pages}
  Model server  {server}   (TensorFlow Serving's REST API)

Try:
  * type a sentence of your own on the page Sentiment, in English or Chinese
  * let the page Generate tell a story, and look at the page Engine meanwhile
  * curl -d '{{"instances": ["What a lovely day"]}}' {server}/v1/models/{model}:predict
Ctrl-C stops everything."""


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Other options, such as --data or --set, go to python -m training all.",
        usage="demo.py [RECIPE ...] [options]",
        allow_abbrev=False,  # a shortened option of training's must not be taken for one of ours
    )
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--exports", default="exports")
    parser.add_argument("--engine", default="auto", help="of python -m serving (%(default)s)")
    parser.add_argument("--rest-port", type=int, default=8501)
    parser.add_argument("--grpc-port", type=int, default=8500)
    parser.add_argument("--ui-port", type=int, default=8502)
    words = sys.argv[1:]
    # Recipes come first, so that the value of an option that is handed on is not taken for one.
    count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    options, handed_on = parser.parse_known_args(words[count:])
    options.recipes = words[:count] or ["sentiment", "topics", "stories"]
    return options, handed_on


def serving_options(options: argparse.Namespace) -> list[str]:
    return [
        *("--exports", options.exports, "--models", ",".join(options.recipes)),
        *("--engine", options.engine),
        *("--monitoring_config_file", MONITORING),  # for the page Engine
        *("--rest_api_port", str(options.rest_port), "--port", str(options.grpc_port)),
    ]


def check_ports(options: argparse.Namespace) -> None:
    """Raises RuntimeError naming the first port that cannot be listened on."""
    for name in ("rest_port", "grpc_port", "ui_port"):
        port, option = getattr(options, name), "--" + name.replace("_", "-")
        with socket.socket() as probe:
            # As servers do it: a port whose last connections still linger counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except (OSError, OverflowError) as error:
                raise RuntimeError(
                    f"port {port} cannot be used ({getattr(error, 'strerror', error)}). Stop the "
                    f"program that has it, or choose another with {option}."
                ) from error


def run_to_its_end(process: subprocess.Popen) -> int:
    """The exit code, as shells count. Each stop is handed on once: training saves at the first."""
    while True:
        try:
            code = process.wait()
            return code if code >= 0 else 128 - code
        except Stopped:
            process.send_signal(signal.SIGINT)


def start(room: str, *options: str) -> subprocess.Popen:
    """In a session of its own: Ctrl-C reaches this process alone, which then stops them in turn."""
    return subprocess.Popen([*PYTHON, room, *options], start_new_session=True)


def wait_for(url: str, text: str, children: list[tuple[str, subprocess.Popen]]) -> None:
    """Until `url` answers with `text`; raises RuntimeError when that takes too long."""
    deadline = time.monotonic() + STARTING_SECONDS
    while time.monotonic() < deadline:
        check(children)
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                body = answer.read().decode()
            if text in body:
                return
            if '"END"' in body:  # a version that could not be loaded, with its reason
                raise RuntimeError(f"{url} says: {body}")
        except (urllib.error.URLError, OSError):
            pass  # not up yet
        time.sleep(0.1)
    raise RuntimeError(f"{url} did not come up within {STARTING_SECONDS} s.")


def check(children: list[tuple[str, subprocess.Popen]]) -> None:
    for name, process in children:
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with code {process.returncode}; see above.")


def stop(children: list[tuple[str, subprocess.Popen]]) -> None:
    """The pages first, so that nobody sees a server go."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for _, process in reversed(children):
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(STOPPING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def _stop(number: int, frame: object) -> None:
    raise Stopped


if __name__ == "__main__":
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    sys.exit(main())

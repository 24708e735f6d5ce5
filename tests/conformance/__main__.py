"""`python -m tests.conformance http://HOST:8501 HOST:8500 ...`: every difference of these servers.

They have the models of `python -m tests.conformance.models FOLDER`.
"""

import argparse
import sys

from tests.conformance.models import FEATURES
from tests.conformance.run import ask, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument(
        "addresses",
        nargs="+",
        metavar="ADDRESS",
        help="URL of a REST port, HOST:PORT of a gRPC one",
    )
    parser.add_argument(
        "--with",
        dest="features",
        default="",
        metavar="A,B",
        help=f"what they were started with: {', '.join(FEATURES)}",
    )
    parser.add_argument(
        "--folder",
        default="",
        help="of the models as the servers see it; then they are reloaded, too",
    )
    options = parser.parse_args()
    features = [word for word in options.features.split(",") if word]
    for word in features:
        if word not in FEATURES:
            parser.error(f"--with takes {', '.join(FEATURES)}. Received: {word!r}")
    found = [a for address in options.addresses for a in ask(address, features, options.folder)]
    print(table(found))
    return 0 if all(answer.is_as_expected for answer in found) else 1


if __name__ == "__main__":
    sys.exit(main())

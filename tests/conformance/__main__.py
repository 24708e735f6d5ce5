"""`python -m tests.conformance --rest http://HOST:8501 --grpc HOST:8500`: every difference.

The server has the models of `python -m tests.conformance.models FOLDER`.
"""

import argparse
import sys

from tests.conformance.cases import GRPC, REST
from tests.conformance.run import differences


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--rest", default="", help="URL of the REST port")
    parser.add_argument("--grpc", default="", help="HOST:PORT of the gRPC port")
    options = parser.parse_args()
    if not (options.rest or options.grpc):
        parser.error("give --rest, --grpc or both")
    found = differences(options.rest, options.grpc)
    for case, expected, received in found:
        print(f"{case}\n    expected {expected}\n    received {received}")
    total = (len(REST) if options.rest else 0) + (len(GRPC) if options.grpc else 0)
    print(f"{total} requests, {len(found)} differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

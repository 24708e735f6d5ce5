"""Where the time of one request went, for response headers and histograms."""

from dataclasses import dataclass


@dataclass
class Timing:
    """Seconds of one request. Whoever runs a stage adds to it; a stage that was not run stays 0."""

    parse: float = 0.0  # of JSON or protobuf
    queue: float = 0.0  # waiting for a thread or a batch
    compute: float = 0.0  # inside the session
    serialize: float = 0.0  # of the answer
    batch_rows: int = 0  # rows of the batch that the request was computed in; 0: not batched
    version: int = 0  # that answered
    signature: str = ""  # that was run, by its effective name

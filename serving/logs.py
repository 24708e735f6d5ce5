"""Log lines: as text for people, or one JSON object a line. Neither holds a caller's texts."""

import json
import logging
import sys
from datetime import UTC, datetime

from serving.config import ConfigError

FORMATS = ("text", "json")


class JsonLines(logging.Formatter):
    """time (RFC 3339, UTC), level, logger, message, and what a record has besides as `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(log_format: str) -> None:
    """Sends all logs to standard error. Requests are logged one by one as JSON only.

    A log that cannot be written, on a full disk for one, is lost; the server goes on. Raises
    ConfigError for an unknown format.
    """
    if log_format not in FORMATS:
        raise ConfigError(
            f"--log-format must be one of {', '.join(FORMATS)}. Received: {log_format!r}"
        )
    logging.raiseExceptions = False
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(JsonLines())
    else:
        pattern = "%(asctime)s %(levelname)-7s %(message)s"
        handler.setFormatter(logging.Formatter(pattern, datefmt="%H:%M:%S"))
    root = logging.getLogger()
    for earlier in [h for h in root.handlers if getattr(h, "is_ours", False)]:
        root.removeHandler(earlier)
    handler.is_ours = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    logging.getLogger("serving").setLevel(logging.INFO)
    is_json = log_format == "json"
    logging.getLogger("serving.access").setLevel(logging.INFO if is_json else logging.WARNING)

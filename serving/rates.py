"""How often a caller may ask, by the `limits` library."""

import time

from serving.config import ConfigError, ServerConfig


class RateLimit:
    """A moving window for each caller. Raises ConfigError for a limit that cannot be read."""

    def __init__(self, limit: str) -> None:
        import limits

        try:
            self._limit = limits.parse(limit)
        except ValueError as error:
            raise ConfigError(
                f"--rate-limit takes a number for a time, as 100/minute. Received: {limit!r}"
            ) from error
        self._window = limits.strategies.MovingWindowRateLimiter(limits.storage.MemoryStorage())

    @classmethod
    def from_config(cls, config: ServerConfig) -> "RateLimit | None":
        return cls(config.rate_limit) if config.rate_limit else None

    def wait(self, caller: str) -> float:
        """Seconds until `caller` may ask again; 0: this request is counted and may go on."""
        if self._window.hit(self._limit, caller):
            return 0.0
        reset = self._window.get_window_stats(self._limit, caller).reset_time
        return max(reset - time.time(), 1.0)

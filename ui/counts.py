"""What the server counts of the texts it writes, out of the page that Prometheus reads."""

import math
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

OURS = ":stepwise:serving:"

# Histograms of each model, microseconds.
FIRST_TOKEN, NEXT_TOKEN = "time_to_first_token", "time_between_tokens"
WAIT_FOR_READING = "generation_queue_latency"
# Counters of each model.
ROWS, PADDED_ROWS = "generation_rows", "generation_padded_rows"
PROMPT_TOKENS, CACHED_TOKENS = "prompt_tokens", "cached_tokens"
# A histogram of each model of which the sum and the count are needed: texts in a step.
BATCH = "generation_batch_size"
# Values of the whole server.
STREAMS, WAITING = "streams", "generation_waiting"
SLOTS, FREE_SLOTS = "generation_slots", "generation_free_slots"
CACHE_BYTES, PREFIX_BYTES = "generation_cache_bytes", "generation_prefix_cache_bytes"

NAMES = (
    *(FIRST_TOKEN, NEXT_TOKEN, WAIT_FOR_READING, BATCH),
    *(ROWS, PADDED_ROWS, PROMPT_TOKENS, CACHED_TOKENS),
    *(STREAMS, WAITING, SLOTS, FREE_SLOTS, CACHE_BYTES, PREFIX_BYTES),
)


@dataclass(frozen=True)
class Counts:
    """One look. `at` is a clock's seconds.

    `values` holds (name, model) -> number, the sum and the count of a histogram by its name and
    `_sum` or `_count`, and the model is "" where there is none; `buckets` holds
    (name, model) -> {upper limit: how many were at most this}. `is_ours` tells our server from
    another that shows metrics.
    """

    at: float
    is_ours: bool = False
    values: dict[tuple[str, str], float] = field(default_factory=dict)
    buckets: dict[tuple[str, str], dict[float, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, page: str, at: float) -> "Counts":
        """Raises ValueError for what is not in Prometheus' text format."""
        found = cls(at, is_ours=f"# TYPE {OURS}" in page)
        for family in text_string_to_metric_families(page):
            if family.name not in {OURS + name for name in NAMES}:
                continue
            for sample in family.samples:
                name = sample.name.removeprefix(OURS)
                key = (name.removesuffix("_total"), sample.labels.get("model_name", ""))
                if name.endswith("_bucket"):
                    buckets = found.buckets.setdefault((name.removesuffix("_bucket"), key[1]), {})
                    buckets[float(sample.labels["le"])] = sample.value
                else:
                    found.values[key] = sample.value
        return found

    def total(self, *names: str) -> float:
        """Of all models together, 0 where nothing was counted."""
        return sum(value for (name, _), value in self.values.items() if name in names)

    @property
    def num_tokens(self) -> float:
        """Tokens that have come, those of texts that are not done included."""
        return self.total(f"{FIRST_TOKEN}_count", f"{NEXT_TOKEN}_count")

    @property
    def num_taken(self) -> float:
        return self.total(SLOTS) - self.total(FREE_SLOTS)

    @property
    def models(self) -> list[str]:
        """Of which text has come piece by piece."""
        return sorted(model for name, model in self.buckets if name == FIRST_TOKEN)

    def begins_anew(self, before: "Counts") -> bool:
        """Whether the server was started again since `before`: counters never fall."""
        return any(
            self.buckets.get(key, {}).get(math.inf, 0) < buckets[math.inf]
            for key, buckets in before.buckets.items()
        )

    def quantile(
        self, name: str, model: str, q: float, since: "Counts | None" = None
    ) -> float | None:
        """Of a histogram, linear within a bucket, as Prometheus' `histogram_quantile` has it.

        `since` leaves out what was counted by then. None without any; the last limit for what lies
        above it.
        """
        before = since.buckets.get((name, model), {}) if since else {}
        counts = [
            (limit, count - before.get(limit, 0))
            for limit, count in sorted(self.buckets.get((name, model), {}).items())
        ]
        if not counts or not counts[-1][1]:
            return None
        rank = q * counts[-1][1]
        lower, below = 0.0, 0.0
        for limit, count in counts:
            if count >= rank and count > below:
                if math.isinf(limit):
                    return lower
                return lower + (limit - lower) * (rank - below) / (count - below)
            lower, below = limit, count
        return lower


@dataclass(frozen=True)
class Rates:
    """What happened between two looks. None: nothing of the kind did, so there is no mean."""

    tokens: float  # a second
    rows: float | None  # texts in a step
    used: float | None  # of the rows that were computed

    @classmethod
    def between(cls, before: Counts, after: Counts) -> "Rates":
        def grown(*names: str) -> float:
            return after.total(*names) - before.total(*names)

        seconds, steps, padded = after.at - before.at, grown(f"{BATCH}_count"), grown(PADDED_ROWS)
        return cls(
            tokens=(after.num_tokens - before.num_tokens) / seconds,
            rows=grown(f"{BATCH}_sum") / steps if steps else None,
            used=grown(ROWS) / padded if padded else None,
        )


class History:
    """The looks since the page was opened, the newest `length` of them, and the first.

    It begins anew where the server does, and after `patience` seconds without a look, in which
    another page was open.
    """

    def __init__(self, length: int, patience: float) -> None:
        self.looks: list[Counts] = []
        self.rates: list[Rates] = []  # from each look to the next
        self.first: Counts | None = None
        self._length, self._patience = length, patience

    def add(self, counts: Counts) -> None:
        """One that is there already is left out."""
        last = self.looks[-1] if self.looks else None
        if last and counts.at <= last.at:
            return
        if last is None or counts.at - last.at > self._patience or counts.begins_anew(last):
            self.looks, self.rates, self.first = [], [], counts
        elif last:
            self.rates.append(Rates.between(last, counts))
        self.looks.append(counts)
        del self.looks[: -self._length], self.rates[: -self._length]

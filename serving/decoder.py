"""A language model's compiled steps and its cache: the XLA build of an export.

The export's plain `decode` is wrapped in functions compiled by XLA here, over caches that belong to
this process. Everything is compiled when it is made, for few shapes: B rows, S slots of the cache,
T tokens of a prompt. Axes as in `model/attention.py`.

One thread at a time, but for what says otherwise.
"""

import concurrent.futures
import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from model import signatures as s
from model.samplers import Options, penalized, sample, uniforms_of
from model.tokenizers import END
from serving.programs import forget, programs_of
from serving.writing import Request

log = logging.getLogger(__name__)

Staged = tuple[tf.Tensor, ...]
"""What one text has left in the cache: the tensors of `cache_names`, (1, K, S, H) each."""

LEAST_SLOTS = 64  # of a cache: a smaller one costs as much
NUM_LENGTHS = 3  # sizes of the cache of the texts that are written; each costs compilations
READ_SIZES = 2  # a whole chunk, or a half of it
# Columns of what a row brings besides its tokens; of one that reads the first two are how many
# tokens there are and where they stand.
_TOKEN, _LENGTH, _LEFT = range(3)


@dataclass(eq=False)
class Text:
    """A text that is written, as far as it is known."""

    request: Request  # whose settings it has
    prompt: Sequence[int]  # BEGIN and what follows
    draws: np.ndarray  # its random numbers, float32 (context length,)
    max_tokens: int  # for which the context has room behind the prompt
    written: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Written:
    """What a call wrote. Rows are those of the batch, the first axis the steps."""

    tokens: np.ndarray  # int32 (K, B), END where the network ended the text
    num_tokens: np.ndarray  # int32 (B,), without END
    hit_end: np.ndarray  # bool (B,)
    logprobs: np.ndarray  # float32 (K, B); zeros, as the next two, if nobody asked for them
    top_tokens: np.ndarray  # int32 (K, B, NUM_TOP)
    top_logprobs: np.ndarray  # float32 (K, B, NUM_TOP)
    batch_size: int  # rows computed
    num_steps: int  # computed


class Decoder:
    """Reads prompts and writes tokens, each row with its own settings and random numbers.

    Rows 0 to n - 1 are those that write. The cache is as large as they need, rounded up to one of
    few sizes, and is copied when that changes; so most calls change it in its place.
    """

    def __init__(
        self,
        path: Path,
        *,
        num_slots: int,
        max_steps: int,
        chunk: int,
        progress: Callable[[str], None] = log.info,
    ) -> None:
        """Loads the export in `path` and compiles for every shape, which takes a while.

        Raises ValueError when it has no `decode`.
        """
        start = time.perf_counter()
        # That gradients of ours are not in the file says nothing: nothing is trained here.
        logging.getLogger("absl").setLevel(logging.ERROR)
        loaded = tf.saved_model.load(str(path))
        if s.DECODE not in loaded.signatures or s.NEXT_TOKENS not in loaded.signatures:
            raise ValueError(
                f"The engine needs the signatures {s.DECODE} and {s.NEXT_TOKENS}. "
                f"Received: {', '.join(sorted(loaded.signatures))}"
            )
        self._loaded = loaded  # whose weights the functions read
        self._decode = loaded.signatures[s.DECODE]
        inputs = self._decode.structured_input_signature[1]
        self._names = s.cache_names(sum(name.startswith("key_") for name in inputs))
        self.specs = [inputs[name] for name in self._names]
        tokens = loaded.signatures[s.NEXT_TOKENS].structured_input_signature[1][s.TOKENS]
        self.context_length: int = tokens.shape[1]
        self.vocabulary_size: int = self._decode.structured_outputs[s.LOGITS].shape[-1]
        self.num_slots, self.max_steps, self.chunk = num_slots, max_steps, chunk
        self.bytes_per_token = sum(
            spec.shape[1] * spec.shape[3] * spec.dtype.size for spec in self.specs
        )
        sizes = sizes_up_to(num_slots, 1, num_slots.bit_length() + 1)
        # As a row costs nearly as much as the others, three quarters, too: the widest step is long.
        self.batch_sizes = sorted({*sizes, max(3 * num_slots // 4, 1)})
        self.lengths = sizes_up_to(self.context_length, LEAST_SLOTS, NUM_LENGTHS)
        self.read_sizes = sizes_up_to(min(chunk, self.context_length), 16, READ_SIZES)
        self._cache = [
            tf.Variable(
                tf.zeros([1, spec.shape[1], self.lengths[0], spec.shape[3]], spec.dtype),
                shape=[None, spec.shape[1], None, spec.shape[3]],
                trainable=False,
                name=name,
            )
            for name, spec in zip(self._names, self.specs, strict=True)
        ]
        self._size = (1, self.lengths[0])
        self._zeros = {
            slots: tuple(
                tf.zeros([1, spec.shape[1], slots, spec.shape[3]], spec.dtype)
                for spec in self.specs
            )
            for slots in self.lengths
        }
        self._tokens = np.zeros([num_slots, self.context_length + 1], np.int32)
        self._whole = np.zeros([num_slots, 5], np.int32)
        self._fractions = np.zeros([num_slots, 6], np.float32)
        self._draws = np.zeros([num_slots, self.context_length + max_steps], np.float32)
        self._num_written = np.zeros([num_slots], np.int32)
        self._wants_logprobs = np.zeros([num_slots], bool)
        programs = programs_of(self._decode, self.context_length, max_steps)
        waits = functools.partial(progress, "waits for a network like it that is compiled")
        try:
            with programs.compiling(waits):
                captures = [*self._decode.captured_inputs, *(one.handle for one in self._cache)]
                functions = programs.over(captures, self._functions)
                self._step, self._read = functions["step"], functions["read"]
                self._put, self._move = functions["put"], functions["move"]
                self._change_size, self._draw = functions["change_size"], functions["draw"]
                self._compile(progress, start)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives back the memory of weights and cache. Nothing may be read or written any more."""
        forget([*self._decode.variables, *self._cache])

    # ------------------------------------------------------------ reading

    def empty(self, num_tokens: int, blocks: Sequence[np.ndarray] = ()) -> Staged:
        """Room for `num_tokens`, of which `blocks` of `values` are there already. Any thread."""
        slots = rounded(num_tokens, self.lengths)
        if not blocks:
            return self._zeros[slots]
        staged = []
        for i, spec in enumerate(self.specs):
            array = np.zeros([1, spec.shape[1], slots, spec.shape[3]], spec.dtype.as_numpy_dtype)
            start = 0
            for block in blocks:
                array[0, :, start : start + block.shape[2]] = block[i]
                start += block.shape[2]
            staged.append(tf.constant(array))
        return tuple(staged)

    def read(
        self, staged: Staged, text: Text, start: int, count: int
    ) -> tuple[Staged, Written | None]:
        """`staged` with `count` tokens of the prompt, at most `chunk`, from `start` on; where the
        prompt ends with them, also the first token of the answer, as a call of one row and one
        step. Any thread, also while another one writes."""
        slots, size = int(staged[0].shape[2]), len(text.prompt)
        tokens = np.zeros([1, min(rounded(count, self.read_sizes), slots)], np.int32)
        tokens[0, :count] = text.prompt[start : start + count]
        is_last = start + count == size
        prompt = np.zeros([1, slots], np.int32)
        prompt[0, :size] = text.prompt
        whole = np.array([[count, start, is_last, text.request.top_k, size]], np.int32)
        fractions = np.array([[*_fractions(text.request), text.draws[0]]], np.float32)
        wants_logprobs = text.request.logprobs is not None
        outputs = self._read(
            *map(tf.constant, (tokens, whole, fractions, prompt, wants_logprobs)), *staged
        )
        staged = tuple(outputs[4:])
        if not is_last:
            return staged, None
        token, logprobs, top_tokens, top_logprobs = (x.numpy()[None] for x in outputs[:4])
        hit_end = token[0] == END
        num_tokens = (~hit_end).astype(np.int32)
        written = Written(token, num_tokens, hit_end, logprobs, top_tokens, top_logprobs, 1, 1)
        return staged, written

    def values(self, staged: Staged) -> Callable[[int, int], np.ndarray]:
        """Gives what tokens start to end left, for `empty`: (tensors, K, end - start, H)."""
        arrays: list[np.ndarray] = []

        def between(start: int, end: int) -> np.ndarray:
            if not arrays:  # copied once, and only if it is asked for
                arrays.extend(tensor.numpy() for tensor in staged)
            return np.stack([array[0, :, start:end] for array in arrays])

        return between

    def draws(self, seed: int) -> np.ndarray:
        """The random numbers of a text, float32 (context length,). Any thread."""
        return self._draw(tf.constant(seed)).numpy()

    # ------------------------------------------------------------ rows

    def put(self, row: int, staged: Staged, text: Text) -> None:
        """Lets a text write in a row; all of its tokens but the last are read into `staged`."""
        tokens, num_written = [*text.prompt, *text.written], len(text.written)
        count = len(tokens)
        B, S = self._size
        self._resize(max(row + 1, B), max(count, S))
        self._put(tf.constant(row), *staged)
        self._tokens[row] = 0
        self._tokens[row, :count] = tokens
        left = text.max_tokens - num_written
        self._whole[row] = (tokens[-1], count - 1, left, text.request.top_k, len(text.prompt))
        self._fractions[row] = _fractions(text.request)
        self._draws[row, : self.context_length] = text.draws
        self._num_written[row] = num_written
        self._wants_logprobs[row] = text.request.logprobs is not None

    def move(self, source: int, target: int) -> None:
        self._move(tf.constant(source), tf.constant(target))
        for state in self._state():
            state[target] = state[source]

    def take(self, row: int) -> Staged:
        """What a row has left in the cache, to be `put` into one again."""
        slots = rounded(int(self._whole[row, _LENGTH]) + 1, self.lengths)
        return tuple(variable.read_value()[row : row + 1, :, :slots] for variable in self._cache)

    def reset(self) -> None:
        """Forgets all rows, as after a call that failed halfway."""
        self._size = (1, self.lengths[0])
        for variable, spec in zip(self._cache, self.specs, strict=True):
            shape = [1, spec.shape[1], self.lengths[0], spec.shape[3]]
            variable.assign(tf.zeros(shape, spec.dtype))

    def write(self, num_rows: int, num_steps: int) -> Written:
        """Up to `num_steps`, at most `max_steps`, tokens in each of the first `num_rows` rows.

        A row that reaches its end, or as many tokens as it has left, writes no more; the call ends
        early when all rows have.
        """
        lengths, left = self._whole[:num_rows, _LENGTH], self._whole[:num_rows, _LEFT]
        longest = int(np.max(lengths + np.minimum(left, num_steps)))
        B, _ = self._resize(num_rows, longest)
        outputs = self._step(*self.inputs(num_rows, num_steps))
        steps, tokens, num_tokens, hit_end, logprobs, top_tokens, top_logprobs = (
            output.numpy() for output in outputs
        )
        self._remember(num_rows, tokens, num_tokens)
        return Written(
            tokens, num_tokens, hit_end, logprobs, top_tokens, top_logprobs, B, int(steps)
        )

    def inputs(self, num_rows: int, num_steps: int) -> tuple[tf.Tensor, ...]:
        """Of `write_steps`, for the cache and the rows as they are."""
        B, S = self._size
        whole = self._whole[:B].copy()
        whole[num_rows:] = 0  # nothing is left to write there
        draws = self._draws[np.arange(B)[:, None], self._next(B)]
        return (
            tf.constant(whole),
            tf.constant(np.concatenate([self._fractions[:B], draws], axis=1)),
            tf.constant(self._tokens[:B, : S + 1]),
            tf.constant(num_steps),
            tf.constant(bool(self._wants_logprobs[:num_rows].any())),
        )

    def _next(self, B: int) -> np.ndarray:
        places = self._num_written[:B, None] + np.arange(self.max_steps)
        return np.minimum(places, self._draws.shape[1] - 1)

    def _remember(self, num_rows: int, tokens: np.ndarray, num_tokens: np.ndarray) -> None:
        for row in range(num_rows):
            count, length = int(num_tokens[row]), int(self._whole[row, _LENGTH])
            if count:
                self._tokens[row, length + 1 : length + 1 + count] = tokens[:count, row]
                self._whole[row, _TOKEN] = tokens[count - 1, row]
                self._whole[row, _LENGTH] += count
                self._whole[row, _LEFT] -= count
                self._num_written[row] += count

    @property
    def num_bytes(self) -> int:
        """Of the cache of those who write, at present."""
        return self._size[0] * self._size[1] * self.bytes_per_token

    def _state(self) -> tuple[np.ndarray, ...]:
        return (
            self._tokens,
            self._whole,
            self._fractions,
            self._draws,
            self._num_written,
            self._wants_logprobs,
        )

    def _resize(self, num_rows: int, num_tokens: int) -> tuple[int, int]:
        """Gives the cache room for so many rows and tokens, and takes what is more."""
        size = rounded(num_rows, self.batch_sizes), rounded(num_tokens, self.lengths)
        if size != self._size:
            self._change_size(tf.constant(size[0]), tf.constant(size[1]))
            self._size = size
        return size

    # ------------------------------------------------------------ what is compiled

    def _functions(self) -> dict[str, Any]:
        """Traced over this decoder's weights and cache."""
        ints, floats = tf.int32, tf.float32
        one, flag = tf.TensorSpec([], ints), tf.TensorSpec([], tf.bool)
        # Rows are unknown also where there is one, as an export may say no more of its outputs.
        tokens, rows = tf.TensorSpec([None, None], ints), tf.TensorSpec([None, 5], ints)
        staged = [
            tf.TensorSpec([1, spec.shape[1], None, spec.shape[3]], spec.dtype)
            for spec in self.specs
        ]
        return {
            "step": _function(
                self.write_steps,
                rows,
                tf.TensorSpec([None, 6 + self.max_steps], floats),
                tokens,
                one,
                flag,
            ),
            "read": _function(
                self._read_chunk,
                tokens,
                rows,
                tf.TensorSpec([None, 7], floats),
                tokens,
                flag,
                *staged,
            ),
            # Compiled, too: any other op after a compiled one copies all of a variable first, and a
            # thread that calls eight ops in turn waits eight times for the one of the event loop.
            "put": _function(self._put_row, one, *staged),
            "move": _function(self._move_row, one, one),
            # Not compiled, which would be for every pair of sizes.
            "change_size": _function(self._copy_into_size, one, one, jit_compile=False),
            "draw": _function(
                lambda seed: uniforms_of(seed, self.context_length), one, jit_compile=False
            ),
        }

    def _put_row(self, row, *staged):  # type: ignore[no-untyped-def]
        for variable, tensor in zip(self._cache, staged, strict=True):
            more = tf.shape(variable)[2] - tf.shape(tensor)[2]
            tensor = tf.pad(tensor, [[0, 0], [0, 0], [0, more], [0, 0]])
            variable.assign(tf.tensor_scatter_nd_update(variable, row[None, None], tensor))

    def _move_row(self, source, target):  # type: ignore[no-untyped-def]
        for variable in self._cache:
            # Not `[source]`, which XLA compiles anew for each number.
            row = tf.gather(variable.read_value(), source[None])
            variable.assign(tf.tensor_scatter_nd_update(variable, target[None, None], row))

    def _copy_into_size(self, num_rows, num_slots):  # type: ignore[no-untyped-def]
        for variable in self._cache:
            kept = variable.read_value()[:num_rows, :, :num_slots]
            rows, slots = num_rows - tf.shape(kept)[0], num_slots - tf.shape(kept)[2]
            variable.assign(tf.pad(kept, [[0, rows], [0, 0], [0, slots], [0, 0]]))

    def _read_chunk(self, tokens, whole, fractions, text, wants_logprobs, *staged):  # type: ignore[no-untyped-def]
        """A part of a prompt and, where something is left to write, the token behind it."""
        logits, staged = self.decoded(tokens, whole[:, _TOKEN], whole[:, _LENGTH], staged)
        choose, look = self._choosing(whole, fractions, wants_logprobs)

        def first() -> Any:
            token = choose(logits, text, fractions[:, -1])
            return token, *look(logits, token)

        nothing = tf.zeros([1], tf.int32), *self._no_notes(1)
        return *tf.cond(whole[0, _LEFT] > 0, first, lambda: nothing), *staged

    def decoded(self, tokens, num_tokens, position, cache):  # type: ignore[no-untyped-def]
        outputs = self._decode(
            **{s.TOKENS: tokens, s.NUM_TOKENS: num_tokens, s.POSITION: position},
            **dict(zip(self._names, cache, strict=True)),
        )
        return outputs[s.LOGITS], [outputs[name] for name in self._names]

    def _no_notes(self, *rows: Any) -> tuple[tf.Tensor, ...]:
        """What is told of tokens whose probabilities nobody asked for."""
        top = min(s.NUM_TOP, self.vocabulary_size)
        return tf.zeros(rows), tf.zeros([*rows, top], tf.int32), tf.zeros([*rows, top])

    def _choosing(self, whole, fractions, wants_logprobs):  # type: ignore[no-untyped-def]
        """How B rows with these settings choose their next token, and what is told of it."""
        _, _, left, top_k, num_prompt = tf.unstack(whole, axis=1)
        temperature, top_p, min_p, *penalties = tf.unstack(fractions[:, :6], axis=1)
        options = Options(None, None, *penalties)
        is_off = (penalties[0] == 1.0) & (penalties[1] == 0.0) & (penalties[2] == 0.0)
        is_penalized = tf.reduce_any(~is_off & (left > 0))

        def choose(logits: Any, text: Any, uniform: Any) -> Any:
            def lowered() -> Any:
                place = tf.range(tf.shape(text)[1])[None, :]
                answer = tf.where(place >= num_prompt[:, None], text, 0)
                return penalized(logits, text, answer, options)

            logits = tf.cond(is_penalized, lowered, lambda: logits)
            index = tf.range(self.vocabulary_size)
            logits = tf.where(index < END, tf.float32.min, logits)  # never written
            return sample(logits, uniform, temperature, top_k, top_p, min_p)

        def look(logits: Any, token: Any) -> Any:
            def found() -> Any:
                everything = tf.nn.log_softmax(logits)
                top = min(s.NUM_TOP, self.vocabulary_size)
                best, tokens = tf.math.top_k(everything, k=top)
                return tf.gather(everything, token, batch_dims=1), tokens, best

            nothing = self._no_notes(tf.shape(token)[0])
            return tf.cond(wants_logprobs, found, lambda: nothing)

        return choose, look

    def write_steps(self, whole, fractions, text, num_steps, wants_logprobs):  # type: ignore[no-untyped-def]
        """The loop over steps, in a graph; inputs are those that `inputs` gives, B rows each."""
        token, length, left, _, _ = tf.unstack(whole, axis=1)
        draws = fractions[:, 6:]
        choose, look = self._choosing(whole, fractions, wants_logprobs)
        B, T = tf.shape(text)[0], tf.shape(text)[1]
        rows = tf.range(B)

        def one_step(step: Any, token: Any, length: Any, text: Any, *state: Any) -> Any:
            num_tokens, is_finished, hit_end, outputs, cache = state
            # A finished row goes on in place, at most in the last slot: nobody reads it again.
            logits, cache = self.decoded(token[:, None], tf.ones_like(token), length, cache)
            token = choose(logits, text, tf.gather(draws, step, axis=1))
            new = (token, *look(logits, token))
            outputs = [
                tf.tensor_scatter_nd_update(y, [[step]], x[None])
                for y, x in zip(outputs, new, strict=True)
            ]
            ends = ~is_finished & (token == END)
            hit_end, is_finished = hit_end | ends, is_finished | ends
            num_tokens += tf.cast(~is_finished, tf.int32)
            is_finished |= num_tokens >= left
            length = tf.minimum(length + 1, T - 1)
            text = tf.tensor_scatter_nd_update(text, tf.stack([rows, length], 1), token)
            state = (num_tokens, is_finished, hit_end, outputs, cache)
            return step + 1, token, length, text, *state

        def goes_on(step: Any, *state: Any) -> Any:
            is_finished = state[4]
            return (step < num_steps) & ~tf.reduce_all(is_finished)

        outputs = [tf.zeros([self.max_steps, B], tf.int32), *self._no_notes(self.max_steps, B)]
        none = tf.zeros([B], tf.bool)
        cache = [variable.read_value() for variable in self._cache]
        step, _, _, _, num_tokens, _, hit_end, outputs, cache = tf.while_loop(
            goes_on,
            one_step,
            (0, token, length, text, tf.zeros_like(token), left <= 0, none, outputs, cache),
        )
        for variable, tensor in zip(self._cache, cache, strict=True):
            variable.assign(tensor)
        tokens, *notes = outputs
        return step, tokens, num_tokens, hit_end, *notes

    def _compile(self, progress: Callable[[str], None], start: float) -> None:
        reads = sorted({(min(T, S), S) for S in self.lengths for T in self.read_sizes})
        writes = [(B, S) for S in self.lengths for B in self.batch_sizes]
        progress(
            f"loaded in {time.perf_counter() - start:.1f} s; "
            f"compiling {len(reads) + len(writes)} shapes of its steps"
        )
        start = time.perf_counter()

        def nothing(prompt: Sequence[int]) -> Text:
            return Text(Request(prompt=""), prompt, np.zeros([self.context_length]), 1)

        def compile_reads() -> None:
            for T, S in reads:
                self.read(self.empty(S), nothing([0] * S), 0, T)

        with concurrent.futures.ThreadPoolExecutor(1) as beside:
            reading = beside.submit(compile_reads)
            for i, (B, S) in enumerate(writes):
                self._resize(B, S)
                self._step(
                    tf.zeros([B, 5], tf.int32),
                    tf.zeros([B, 6 + self.max_steps]),
                    tf.zeros([B, S + 1], tf.int32),
                    tf.constant(1),
                    tf.constant(False),
                )
                self.move(0, 0)
                for slots in self.lengths[: self.lengths.index(S) + 1]:
                    self._put(tf.constant(0), *self.empty(slots))
                if (i + 1) % len(self.batch_sizes) == 0:
                    progress(
                        f"{i + 1} of {len(writes)} shapes of writing compiled, "
                        f"{time.perf_counter() - start:.1f} s"
                    )
            reading.result()
        progress(f"ready to write, {time.perf_counter() - start:.1f} s")
        self.draws(0)
        self.put(0, self.empty(1), nothing([0]))
        self.take(0)
        self.reset()


def _function(
    python: Callable[..., Any], *signature: tf.TensorSpec, jit_compile: bool = True
) -> Callable[..., Any]:
    """Traced at once, so always in the same order: names are a part of the keys of XLA's cache.

    A concrete function costs a third of a millisecond less at each call than `tf.function`, which
    finds it anew: as much as a step of a small network with few rows.
    """
    function = tf.function(
        python, input_signature=signature, autograph=False, jit_compile=jit_compile
    )
    return function.get_concrete_function()


def _fractions(request: Request) -> tuple[float, ...]:
    """What a row brings besides its whole numbers and its draws."""
    return (
        request.temperature,
        request.top_p,
        request.min_p,
        request.repetition_penalty,
        request.presence_penalty,
        request.frequency_penalty,
    )


def sizes_up_to(most: int, least: int, count: int) -> list[int]:
    """At most `count` sizes, each twice the one before, none below `least` but `most`.

    >>> sizes_up_to(256, 64, 3)
    [64, 128, 256]
    >>> sizes_up_to(6, 1, 4)
    [1, 2, 4, 6]
    """
    sizes = [most]
    power = 1
    while power * 2 < most:
        power *= 2
    while len(sizes) < count and power >= least and power > 0:
        sizes.append(power)
        power //= 2
    return sorted(set(sizes))


def rounded(size: int, sizes: Sequence[int]) -> int:
    """The smallest of `sizes` that holds `size`."""
    return next(one for one in sizes if one >= size)

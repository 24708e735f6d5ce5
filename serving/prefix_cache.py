"""Keys and values of beginnings of prompts, so that what many prompts begin with is read once.

A tree of blocks: each holds what a fixed number of tokens left in the cache, which depends on all
tokens in front of them, so a block is found by its tokens below the block before it (as
RadixAttention shares beginnings; Zheng et al., 2024). numpy and plain Python; one thread at a time.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

Tokens = tuple[int, ...]


@dataclass(eq=False)
class _Block:
    tokens: Tokens
    values: np.ndarray | None  # None in the root alone
    parent: "_Block | None" = None
    children: "dict[Tokens, _Block]" = field(default_factory=dict)


class PrefixCache:
    """At most `max_bytes` of values; what was not used for longest is thrown away first."""

    def __init__(self, max_bytes: int, block: int = 16) -> None:
        self.max_bytes, self.block = max_bytes, block
        self.num_bytes = 0
        self._root = _Block((), None)
        # Oldest first. A block is always newer than those below it, so the oldest has none.
        self._blocks: OrderedDict[_Block, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def find(self, tokens: Sequence[int]) -> list[np.ndarray]:
        """The values of the longest known beginning, of `block` tokens each, in their order."""
        path = self._path(tokens)
        self._touch(path)
        return [block.values for block in path if block.values is not None]

    def put(self, tokens: Sequence[int], values: Callable[[int, int], np.ndarray]) -> None:
        """Keeps a beginning: all whole blocks of `tokens`.

        `values(start, end)` gives those of tokens start to end and is asked for new blocks only.
        """
        path = self._path(tokens)
        parent = path[-1] if path else self._root
        for start in range(len(path) * self.block, len(tokens) - self.block + 1, self.block):
            end = start + self.block
            block = _Block(tuple(tokens[start:end]), values(start, end), parent)
            size = _size(block)
            self._touch(path)
            if not self._make_room(size, keep=len(path)):
                break
            parent.children[block.tokens] = block
            self.num_bytes += size
            path.append(block)
            parent = block
        self._touch(path)

    def _path(self, tokens: Sequence[int]) -> list[_Block]:
        path, block = [], self._root
        for start in range(0, len(tokens) - self.block + 1, self.block):
            child = block.children.get(tuple(tokens[start : start + self.block]))
            if child is None:
                break
            path.append(child)
            block = child
        return path

    def _touch(self, path: list[_Block]) -> None:
        for block in reversed(path):
            self._blocks[block] = None
            self._blocks.move_to_end(block)

    def _make_room(self, size: int, keep: int) -> bool:
        """Whether `size` bytes fit in, once all but the `keep` newest blocks may have gone."""
        while self.num_bytes + size > self.max_bytes:
            if len(self._blocks) <= keep:
                return False
            oldest, _ = self._blocks.popitem(last=False)
            self.num_bytes -= _size(oldest)
            if oldest.parent is not None:
                del oldest.parent.children[oldest.tokens]
        return True


def _size(block: _Block) -> int:
    return 0 if block.values is None else block.values.nbytes

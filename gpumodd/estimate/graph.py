"""How much memory a computation needs when its intermediate results share one buffer.

Owns the placement rules of ggml's graph allocator, because fragmentation is a large part of what a compute buffer is:
inputs first; each result takes the smallest hole that holds it; what nobody needs any more leaves a hole; a result
may take the place of its own operand where the operation allows that. Knows sizes only, no model.
"""

from bisect import insort
from dataclasses import dataclass

ALIGNMENT = 32


@dataclass(slots=True)
class _Node:
    size: int
    sources: tuple[int, ...]
    in_place: bool
    kept: bool = False  # something refers to it to the end
    part: bool = False  # lies inside of its source
    users: int = 0
    offset: int = -1  # -1: has no memory


class Graph:
    """Results in the order in which they are computed; each is known by a number."""

    def __init__(self) -> None:
        self._nodes: list[_Node] = []

    def entry(self, size: int) -> int:
        """An input: it has memory from the start to the end, for the graph may be run again."""
        return self.result(size, kept=True)

    def result(self, size: int, *sources: int, in_place: bool = False, kept: bool = False) -> int:
        """What is computed from these; `in_place`: it may overwrite one of them that has the same size."""
        for source in sources:
            self._nodes[source].users += 1
        return self._add(_Node(size, sources, in_place, kept))

    def part(self, size: int, source: int) -> int:
        """Some of a result, without a copy: who uses it uses the whole."""
        self._nodes[source].users += 1
        return self._add(_Node(size, (source,), in_place=False, part=True))

    def _add(self, node: _Node) -> int:
        node.size = -(-node.size // ALIGNMENT) * ALIGNMENT
        self._nodes.append(node)
        return len(self._nodes) - 1

    def changed(self, source: int, *others: int) -> int:
        """The same, after an operation that can overwrite it: a norm, an activation, a sum."""
        return self.result(self._nodes[source].size, source, *others, in_place=True)

    def copy(self, source: int, *others: int) -> int:
        """The same size again, computed from this by an operation that cannot overwrite it."""
        return self.result(self._nodes[source].size, source, *others)

    def peak(self) -> int:
        """The bytes the buffer needs."""
        heap = _Heap()
        left = [node.users for node in self._nodes]
        for place in self._entries():
            self._nodes[place].offset = heap.take(self._nodes[place].size)
        for node in self._nodes:
            if node.sources and not node.part:
                self._place(node, left, heap)
                for source in node.sources:
                    self._used(source, left, heap)
        return heap.peak

    def _used(self, place: int, left: list[int], heap: "_Heap") -> None:
        """One use less is to come; after the last one there is room."""
        left[place] -= 1
        node = self._nodes[place]
        if left[place] or node.kept:
            return
        if node.part:
            self._used(node.sources[0], left, heap)
        elif node.offset >= 0:
            heap.give(node.offset, node.size)
            node.offset = -1

    def _entries(self) -> list[int]:
        """The inputs, in the order of their first use."""
        order = dict.fromkeys(source for node in self._nodes for source in node.sources)
        return [place for place in order if not self._nodes[place].sources]

    def _place(self, node: _Node, left: list[int], heap: "_Heap") -> None:
        if node.size == 0:
            return
        for source in node.sources if node.in_place else ():
            used = self._nodes[source]
            if left[source] == 1 and used.size == node.size and used.offset >= 0 and not used.kept:
                node.offset, used.offset = used.offset, -1
                return
        node.offset = heap.take(node.size)


class _Heap:
    """An endless buffer with holes in it."""

    def __init__(self) -> None:
        self.peak = 0
        self._end = 0
        self._holes: list[tuple[int, int]] = []  # offset and size, by offset; all below the end

    def take(self, size: int) -> int:
        fitting = [(room, -offset) for offset, room in self._holes if room >= size]
        if not fitting:
            self._end += size
            self.peak = max(self.peak, self._end)
            return self._end - size
        room, offset = min(fitting)  # of equal holes the last one
        self._holes.remove((-offset, room))
        if room > size:
            insort(self._holes, (size - offset, room - size))
        return -offset

    def give(self, offset: int, size: int) -> None:
        for hole in self._holes:
            if hole[0] + hole[1] == offset or offset + size == hole[0]:
                self._holes.remove(hole)
                self.give(min(offset, hole[0]), size + hole[1])
                return
        if offset + size == self._end:
            self._end = offset
        else:
            insort(self._holes, (offset, size))

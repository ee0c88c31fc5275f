"""One micro-batch on its way through a model: the graph of its results, and how large they are.

Owns the operations that all layers are made of, and which of them write over their operand. ggml lets many, but norms
and what is scaled by their weights, and rotations, are computed by fused kernels and get memory of their own.
"""

from dataclasses import dataclass, field

from gpumodd.estimate.cache import F32, Cells
from gpumodd.estimate.dimensions import Dimensions, Layer
from gpumodd.estimate.graph import Graph


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What is computed at once. A result is a number that the graph knows."""

    graph: Graph
    model: Dimensions
    layout: Cells
    tokens: int
    flash: bool
    coarse_keys: bool = False  # what a coarse type stores is rotated first, so that no single number sticks out
    coarse_values: bool = False
    masks: dict[bool, int] = field(default_factory=dict)  # who may look at whom: by whether there is a window
    looked_up: list[int] = field(default_factory=list)  # what is added in each layer, if anything is

    def wide(self, width: int) -> int:
        """The size of this many numbers for every token."""
        return width * self.tokens * F32

    def project(self, width: int, *sources: int) -> int:
        """A result of this many numbers for every token, such as a product with a matrix."""
        return self.graph.result(self.wide(width), *sources)

    def stored(self, *sources: int) -> None:
        """Something that is written into a cache: needs nothing, and these no longer than until then."""
        self.graph.result(0, *sources)

    def norm(self, x: int) -> int:
        return self.graph.copy(self.graph.copy(x))

    def normed(self, layer: Layer, name: str, x: int) -> int:
        """The same, if the layer has this norm."""
        return self.norm(x) if name in layer.parts else x

    def positioned(self, layer: Layer, x: int) -> int:
        """Rotated by position, where the model does that."""
        return self.graph.copy(x) if layer.rotary else x

    def add(self, x: int, y: int) -> int:
        return self.graph.changed(x, y)

    def activated(self, x: int) -> int:
        return self.graph.changed(x)

    def output(self, x: int) -> int:
        """Brought back to the width of the residual stream."""
        return self.project(self.model.embedding, x)

"""What the structure of a circuit is certified to be, and which queries that makes exact."""

from dataclasses import dataclass

from .blocks import Blocks

__all__ = ["Properties", "properties_of"]


@dataclass(frozen=True)
class Properties:
    """The structure of a smooth and decomposable circuit.

    Attributes:
        nodes, edges: of the circuit, unit by unit.
        overlap: why it is not certified to be deterministic; None where it is (MAP, entropy, any power).
        crossing: why it is not structured decomposable, naming two products that divide the same variables
            differently; None where it is (whole powers, products with circuits of the same division).
    """

    nodes: int
    edges: int
    overlap: str | None
    crossing: str | None

    @property
    def deterministic(self) -> bool:
        return self.overlap is None

    @property
    def structured(self) -> bool:
        return self.crossing is None

    def __str__(self) -> str:
        notes = [
            "deterministic" if self.deterministic else f"not certified to be deterministic: {self.overlap}",
            "structured decomposable" if self.structured else f"not structured decomposable: {self.crossing}",
        ]
        return f"{self.nodes} nodes, {self.edges} edges; smooth; decomposable; " + "; ".join(notes)


def properties_of(circuit: Blocks, overlap: str | None) -> Properties:
    """The properties of a circuit that has passed the checks for smoothness and decomposability.

    Arguments:
        circuit: its blocks.
        overlap: why it is not certified to be deterministic.
    """
    nodes = edges = 0
    crossing = None
    divided: dict[frozenset[int], tuple[str, frozenset[frozenset[int]]]] = {}
    for block in circuit.blocks:
        nodes += block.units
        below = [circuit.blocks[c].units for c in block.children]
        edges += block.units * (len(below) if block.kind == "product" else sum(below))
        if block.kind == "product" and len(below) > 1:
            division = frozenset(circuit.blocks[c].scope for c in block.children)
            name, first = divided.setdefault(block.scope, (block.name, division))
            if first != division and crossing is None:
                crossing = f"products {name!r} and {block.name!r} divide the same variables differently"
    return Properties(nodes, edges, overlap, crossing)

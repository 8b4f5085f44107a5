"""Blocks of a quantized Program, found in its graph: what is reconstructed together.

A block is a convex set of nodes: no path leaves it and comes back, so blocks can be run one after the other. What
belongs together is found by form, not by names:

closure   everything between a state and its next value: a gate and what it gates are never parted
diamond   everything between a value that several nodes read and the node where all their paths meet again: residual
          blocks, squeeze and excite, parallel branches
chain     layers in a row, each the only reader of the one before

each only as far as it stays within a number of layers. Long skips of a U-Net are diamonds too large; they are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import networkx as nx
from torch import fx

from vqc.learning.layers import DEQUANTIZES, QUANTIZES
from vqc.program import Program


@dataclass(frozen=True)
class Block:
    """Nodes in graph order; `layers` the quantized ones; `kinds` why they stand together.

    `inputs`: activations read from outside (earlier blocks, placeholders). `outputs`: nodes others read, results and
    next states included. `states`: state placeholder -> node of its next value, of states that live wholly inside.
    """

    nodes: tuple[fx.Node, ...]
    layers: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    states: dict[fx.Node, fx.Node] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its layers, first to last; without a layer, its first node."""
        names = [n.name for n in self.layers or self.nodes[:1]]
        return names[0] if len(names) == 1 else f"{names[0]}..{names[-1]} ({len(names)})"


@dataclass(frozen=True)
class Partition:
    """All nodes of a Program's graph in blocks, in an order in which they can run; and what could not be isolated."""

    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()


def partition(program: Program, quantized: Iterable[fx.Node], max_layers: int = 6) -> Partition:
    """The blocks of a quantized Program (valid between `quantize` and `lower-integer`).

    `quantized`: the layer nodes that learn. `max_layers`: how many of them a block may hold.
    """
    layers = set(quantized)
    graph, order = _activations(program)
    home = _Homes(graph, layers, max_layers)
    notes = []
    for s in program.states:
        place = program.node(s.input)
        after = program.result_nodes[s.output]
        inside = _between(graph, place, after) - {place}
        if inside and not home.merge(inside, "closure"):
            count = len(inside & layers)
            notes.append(f"the update of state {s.name} cannot be isolated: {count} layers lie between it and its next "
                         f"value, a block holds {max_layers}; its value is taken from a rollout")  # fmt: skip
    for fork, join in _diamonds(graph, order):
        home.merge(_between(graph, fork, join) - {fork}, "diamond")
    for n in order:
        if n in layers:
            _chain(graph, n, layers, home)
    return Partition(tuple(_blocks(program, graph, order, layers, home)), tuple(notes))


def _activations(program: Program) -> tuple[nx.DiGraph, list[fx.Node]]:
    """The graph of nodes that depend on inputs or states, and its nodes in order."""
    graph: nx.DiGraph = nx.DiGraph()
    live: set[fx.Node] = {n for n in program.graph.nodes if n.op == "placeholder"}
    order = []
    for n in program.graph.nodes:
        if n.op == "placeholder":
            graph.add_node(n)
        elif n.op == "call_function":
            sources = [a for a in n.all_input_nodes if a in live]
            if sources:
                live.add(n)
                order.append(n)
                graph.add_node(n)
                graph.add_edges_from((a, n) for a in sources)
    return graph, order


def _between(graph: nx.DiGraph, first: fx.Node, last: fx.Node) -> set[fx.Node]:
    """Nodes on a path from `first` to `last`, both included; empty when there is none."""
    if first not in graph or last not in graph:
        return set()
    found = (nx.descendants(graph, first) | {first}) & (nx.ancestors(graph, last) | {last})
    return found if first in found and last in found else set()


class _Homes:
    """Which set a node belongs to; sets only grow, and stay convex and within their number of layers."""

    def __init__(self, graph: nx.DiGraph, layers: set[fx.Node], limit: int):
        self.graph, self.layers, self.limit = graph, layers, limit
        self.of: dict[fx.Node, frozenset[fx.Node]] = {}
        self.kinds: dict[frozenset[fx.Node], tuple[str, ...]] = {}

    def merge(self, nodes: set[fx.Node], kind: str) -> bool:
        """Put nodes in one set, with the sets they are in and all that lies between; False when that is too much."""
        whole = {m for n in nodes for m in self.of.get(n, (n,))}
        if len(whole & self.layers) > self.limit:
            return False
        whole = self._convex(whole)
        if len(whole & self.layers) > self.limit:
            return False
        kinds = {k for n in whole if n in self.of for k in self.kinds[self.of[n]]}
        made = frozenset(whole)
        self.kinds[made] = tuple(sorted(kinds | {kind}))
        for n in whole:
            self.of[n] = made
        return True

    def _convex(self, nodes: set[fx.Node]) -> set[fx.Node]:
        while True:
            below = set().union(*(nx.descendants(self.graph, n) for n in nodes))
            above = set().union(*(nx.ancestors(self.graph, n) for n in nodes))
            grown = nodes | {n for n in below & above if self.graph.in_degree(n)}
            grown = {m for n in grown for m in self.of.get(n, (n,))}
            if grown == nodes:
                return nodes
            nodes = grown


def _diamonds(graph: nx.DiGraph, order: list[fx.Node]) -> list[tuple[fx.Node, fx.Node]]:
    """(fork, join) pairs, smallest first: where all paths from a node with several readers meet again."""
    reverse = graph.reverse()
    end = object()
    for n in graph.nodes:
        if graph.out_degree(n) == 0:
            reverse.add_edge(end, n)
    meets = nx.immediate_dominators(reverse, end)
    position = {n: i for i, n in enumerate(order)}
    found = [
        (n, meets[n]) for n in graph.nodes
        if graph.out_degree(n) > 1 and meets.get(n, end) is not end and meets[n] in position
    ]  # fmt: skip
    return sorted(found, key=lambda pair: position[pair[1]] - position.get(pair[0], -1))


def _chain(graph: nx.DiGraph, layer: fx.Node, layers: set[fx.Node], home: _Homes) -> None:
    """Take a layer to the set of the layer before it, when nothing but it reads what comes from there."""
    n = layer
    while True:
        sources = list(graph.predecessors(n))
        if len(sources) != 1 or graph.in_degree(sources[0]) == 0:
            return
        (n,) = sources
        if graph.out_degree(n) != 1:
            return
        if n in layers or n in home.of:
            home.merge({n, layer}, "chain")
            return


def _numbered(graph: nx.DiGraph, order: list[fx.Node], home: _Homes) -> dict[fx.Node, int]:
    """Every node's place in an order of sets and single nodes that respects every edge.

    Two convex sets may still wait for each other; then the larger one falls apart.
    """
    groups: dict[fx.Node, frozenset[fx.Node]] = dict(home.of)
    while True:
        whole: nx.DiGraph = nx.DiGraph()
        of = {n: groups.get(n, frozenset({n})) for n in order}
        whole.add_nodes_from(of.values())
        whole.add_edges_from((of[a], of[n]) for n in order for a in graph.predecessors(n) if a in of and of[a] != of[n])
        knots = [k for k in nx.strongly_connected_components(whole) if len(k) > 1]
        if not knots:
            break
        for knot in knots:
            for n in max(knot, key=len):
                groups.pop(n, None)
    position = {n: i for i, n in enumerate(order)}
    first = {group: min(position[n] for n in group) for group in whole.nodes}
    sequence = list(nx.lexicographical_topological_sort(whole, key=first.__getitem__))
    number = {group: i for i, group in enumerate(sequence)}
    home.of = groups
    return {n: number[of[n]] for n in order}


def _blocks(
    program: Program, graph: nx.DiGraph, order: list[fx.Node], layers: set[fx.Node], home: _Homes
) -> list[Block]:
    """The sets as blocks. A node in no set goes with its latest producer: a resize, a concat, a gate's product.

    But what stands between there and a layer's quantizer is learned with the layer, and what no layer feeds (a picture
    made smaller) waits for its first reader.
    """
    number = _numbered(graph, order, home)
    fixed = {n for n in order if n in layers or n in home.of}
    fed: set[fx.Node] = set()  # below a layer
    late: set[fx.Node] = set()
    for n in order:
        sources = list(graph.predecessors(n))
        if n in fixed or any(a in fed for a in sources):
            fed.add(n)
        if n not in fixed and (n not in fed or n.target in (*QUANTIZES, *DEQUANTIZES) or any(a in late for a in sources
                                                                                        if a in fed)):  # fmt: skip
            late.add(n)
    block_of: dict[fx.Node, int] = {}
    for n in order:
        if n in fixed:
            block_of[n] = number[n]
        elif n not in late:
            block_of[n] = max(block_of[a] for a in graph.predecessors(n) if a in fed and a in block_of)
    for n in reversed(order):
        if n in late:
            readers = [block_of[u] for u in graph.successors(n)]
            block_of[n] = min(readers, default=number[n])
    needed = _constant_parts(program, set(order))
    position = {n: i for i, n in enumerate(program.graph.nodes)}
    made = []
    for b in sorted(set(block_of.values())):
        inside = [n for n in order if block_of[n] == b]
        whole = set(inside).union(*(needed(n) for n in inside))
        made.append(_block(program, sorted(whole, key=position.__getitem__), inside, graph, layers, home))
    return made


def _constant_parts(program: Program, live: set[fx.Node]) -> Callable[[fx.Node], set[fx.Node]]:
    """For a node, the calls it needs that depend on no input: the weight and what dequantizes it."""

    def needed(n: fx.Node) -> set[fx.Node]:
        found: set[fx.Node] = set()
        todo = [n]
        while todo:
            for a in todo.pop().all_input_nodes:
                if a.op == "call_function" and a not in live and a not in found:
                    found.add(a)
                    todo.append(a)
        return found

    return needed


def _block(program: Program, nodes: list[fx.Node], live: list[fx.Node], graph: nx.DiGraph, layers: set[fx.Node],
           home: _Homes) -> Block:  # fmt: skip
    inside = set(live)
    inputs = dict.fromkeys(a for n in live for a in graph.predecessors(n) if a not in inside)
    results = set(program.result_nodes)
    outputs = [n for n in live if n in results or any(u not in inside for u in graph.successors(n))]
    states = {}
    for s in program.states:
        place, after = program.node(s.input), program.result_nodes[s.output]
        if after in inside and place in inputs and all(u in inside for u in graph.successors(place)):
            states[place] = after
    kinds = {k for n in live if n in home.of for k in home.kinds[home.of[n]]}
    return Block(tuple(nodes), tuple(n for n in live if n in layers), tuple(inputs), tuple(outputs), states,
                 tuple(sorted(kinds)))  # fmt: skip

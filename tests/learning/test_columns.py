"""A layer's matrix times its columns is the layer, for every kind of layer, and the matrix view goes there and back."""

import pytest
import torch
from handmade import Hand, aten, run

from vqc.learning.columns import Columns

CONV, BACK = aten.conv2d, aten.conv_transpose2d.input
KINDS = {
    "plain": (CONV, (2, 3, 9, 8), (4, 3, 3, 3), [None, [1, 1], [1, 1]]),
    "strided": (CONV, (1, 3, 9, 8), (4, 3, 3, 2), [None, [2, 3], [1, 0]]),
    "dilated": (CONV, (1, 2, 12, 11), (4, 2, 3, 3), [None, [1, 1], [2, 1], [2, 3]]),
    "grouped": (CONV, (1, 6, 7, 7), (4, 3, 3, 3), [None, [1, 1], [1, 1], [1, 1], 2]),
    "depthwise": (CONV, (2, 5, 7, 7), (5, 1, 5, 5), [None, [2, 2], [2, 2], [1, 1], 5]),
    "unbatched": (CONV, (3, 7, 7), (4, 3, 3, 3), [None, [1, 1], [1, 1]]),
    "transposed": (BACK, (2, 4, 5, 6), (4, 3, 4, 4), [None, [2, 2], [1, 1]]),
    "transposed odd": (BACK, (1, 4, 5, 6), (4, 3, 3, 2), [None, [3, 2], [1, 0], [2, 1], 1, [1, 2]]),
    "transposed cropped": (BACK, (1, 2, 7, 7), (2, 3, 2, 2), [None, [1, 1], [2, 2]]),
    "transposed grouped": (BACK, (1, 6, 4, 5), (6, 2, 4, 4), [None, [2, 2], [1, 1], [0, 0], 3]),
    "linear": (aten.linear, (2, 5, 7), (4, 7), [None]),
}


def layer(kind):
    op, x, w, rest = KINDS[kind]
    h = Hand()
    node = h(op, h.input("x", *x), h.const("w", h.rand(*w)), *rest)
    program = h.done(node)
    return program, Columns(program.node(node.name))


@pytest.mark.parametrize("kind", KINDS)
def test_matrix_times_columns_is_the_layer(kind):
    program, columns = layer(kind)
    (y,) = run(program)
    x = program.example[0]
    matrix = columns.matrix(program.constants["w"])
    channels = y.movedim(-1 if columns.linear else y.ndim - 3, 0).flatten(1)
    assert channels.shape[1] == columns.positions
    at = torch.randperm(columns.positions)[: columns.positions - 1]
    got = torch.bmm(matrix, columns(x, at)).flatten(0, 1)
    torch.testing.assert_close(got, channels[:, at], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind):
    program, columns = layer(kind)
    w = program.constants["w"]
    assert torch.equal(columns.weight(columns.matrix(w)), w)
    channels = torch.arange(columns.groups * columns.inputs).float()
    per_input = columns.per_input(channels)
    assert per_input.shape == (columns.groups, columns.width)
    assert torch.equal(per_input[:, :: columns.taps].flatten(), channels)

"""Operations and bytes against counts by hand."""

from __future__ import annotations

import pytest
import torch
from handmade import Hand

import vqc
from vqc.accounting import account, mask_densities
from vqc.errors import InputError
from vqc.models.bivm import BiVM

aten, v = torch.ops.aten, torch.ops.vqc
STATES = {"r1": 2, "r2": 3, "r3": 4, "r4": 5}


def test_a_program_by_hand():
    h = Hand()
    x = h.input("x", 1, 3, 8, 10)
    y = h(aten.conv2d, x, h.const("w", h.rand(20, 3, 3, 3)), h.const("b", h.rand(20)), [1, 1], [1, 1])
    s = h(v.binarize, y, h.const("tau", torch.zeros(1)))
    mask = h(aten.gt.Scalar, h.input("m", 1, 1, 8, 10), 0)
    signs = h.const("u", (1 - 2 * (h.rand(5, 20, 3, 3) < 0)).to(torch.int8))
    scale = h.const("scale", h.rand(5))
    z = h(v.masked_bconv2d, s, signs, scale, None, mask, [1, 1], [1, 1], [1, 1])
    d = h(v.bconv2d, s, h.const("q", torch.ones(5, 20, 1, 1, dtype=torch.int8)), scale, None, [1, 1], [0, 0], [1, 1])
    flat = h(aten.reshape, h(aten.add.Tensor, z, d), [5, 80])
    program = h.done(h(aten.linear, flat, h.const("l", h.rand(7, 80))))
    found = account(program, 0.25)
    conv, masked, dense, linear = 80 * 20 * 27, 80 * 5 * 180, 80 * 5 * 20, 5 * 7 * 80
    assert [w.macs for w in found.layers] == [conv, masked, dense, linear]
    assert found.macs("float") == conv + linear and found.macs("binary") == masked + dense
    assert found.operations == conv + linear + (masked / 4 + dense) / 64
    assert found.bytes_of == {"float": 4 * (20 * 27 + 20 + 1 + 5 + 7 * 80), "integer": 0, "binary": 113 + 13}
    assert account(program).operations == conv + linear + (masked + dense) / 64
    assert found.rows()[-1] == {"numbers": "all", "layers": "4", "M operations": "0.05", "weights MB": "0.005"}
    with pytest.raises(InputError, match="mask gt, of density 2"):
        account(program, 2)
    with pytest.raises(InputError, match="of density None"):
        account(program, {"other": 0.5})
    steps = [(torch.zeros(1, 3, 8, 10), torch.tensor([1.0, -1, -1, -1, -1] * 16).view(1, 1, 8, 10))] * 2
    shares = mask_densities(program, [steps])
    assert shares == {"gt": pytest.approx(0.2)}
    assert account(program, shares).operations == pytest.approx(conv + linear + (masked * 0.2 + dense) / 64)


def test_integers_count_by_their_bits():
    h = Hand()
    x = h.input("x", 1, 4, 6, 6, dtype=torch.uint8)
    w = h.const("w", torch.ones(3, 4, 1, 1, dtype=torch.int8))
    z = h.const("z", torch.zeros(1, dtype=torch.int32))
    y = h(v.qconv2d, x, w, h.const("s", torch.ones(3)), None, z, [1, 1], [0, 0], [1, 1], 1)
    found = account(h.done(y))
    assert found.operations == found.macs("integer") == 36 * 12
    assert found.bytes_of == {"float": 12, "integer": 12 + 4, "binary": 0}


@pytest.fixture(scope="module")
def bivm():
    """At width 1 and the papers' size; shapes alone count, so nothing has to be trained."""
    torch.manual_seed(0)
    model = BiVM().eval()
    args = (torch.rand(1, 3, 288, 512),)
    return vqc.capture(model, args, states=STATES, known_ranges={"src": (0, 1)})


def test_bivm_as_the_papers_count(bivm):
    """Table V: encoder 3.407 G binary and 15.9 M float; the whole in 0.72 MB; 0.511 G computed densely."""
    lowered = vqc.apply(bivm, "xnor")
    training = account(vqc.apply(bivm, "canonicalize,fold-constants,canonicalize"))
    found = account(lowered)
    places = {n.name: n.meta.get("module", "") for n in lowered.calls}
    encoder = [w for w in found.layers if places[w.node].startswith("backbone")]
    assert sum(w.macs for w in encoder if w.kind == "binary") == 3_406_823_424
    assert [w.macs for w in encoder if w.kind == "float"] == [15_925_248]
    assert found.macs("binary") == training.macs("binary")
    assert found.macs("float") == training.macs("float")
    refiner = 24 * 16 + 16 * 16  # no part of a program whose picture is not made smaller first
    assert found.bytes_of["binary"] * 8 == training.bytes_of["binary"] * 8 == 4_217_584 - refiner
    assert found.bytes <= 720_000
    assert found.operations == pytest.approx(0.511e9, rel=2e-3)
    masked = [w for w in found.layers if w.mask]
    assert len(masked) == 11 and len({w.mask for w in masked}) == 4
    assert account(lowered, 0.5).operations == pytest.approx(0.318e9, rel=1e-2)
    assert account(lowered, 0.24).operations == pytest.approx(0.2176e9, rel=1e-2)

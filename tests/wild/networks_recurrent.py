"""Recurrent cells, library layers with fast paths, hidden state on the module, and odd shapes of results."""

# ruff: noqa: E501 - a layer a line reads better here

from __future__ import annotations

import collections
import functools
import logging

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree
from wild_kit import Case, Registry, registrar

CASES: Registry = {}
case = registrar(CASES)


class ConvLSTMCell(nn.Module):
    def __init__(self, i: int, hidden: int) -> None:
        super().__init__()
        self.hidden_dim, self.conv = hidden, nn.Conv2d(i + hidden, 4 * hidden, 3, padding=1)

    def forward(self, x, cur_state):
        h, c = cur_state
        cc_i, cc_f, cc_o, cc_g = torch.split(self.conv(torch.cat([x, h], dim=1)), self.hidden_dim, dim=1)
        c_next = torch.sigmoid(cc_f) * c + torch.sigmoid(cc_i) * torch.tanh(cc_g)
        return torch.sigmoid(cc_o) * torch.tanh(c_next), c_next

    def init_hidden(self, b, size):
        return tuple(torch.zeros(b, self.hidden_dim, *size, device=self.conv.weight.device) for _ in range(2))


class ConvLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([ConvLSTMCell(3, 4), ConvLSTMCell(4, 5)])

    def forward(self, x, hidden_state=None):
        b, t, _, h, w = x.size()
        if hidden_state is not None:
            raise ValueError("stateful runs are not offered")
        hidden_state = [cell.init_hidden(b, (h, w)) for cell in self.cells]
        outputs, last, cur = [], [], x
        for i, cell in enumerate(self.cells):
            hc, inner = hidden_state[i], []
            for ti in range(t):
                hc = cell(x=cur[:, ti, :, :, :], cur_state=hc)
                inner.append(hc[0])
            cur = torch.stack(inner, dim=1)
            outputs.append(cur)
            last.append(list(hc))
        return outputs[-1:], last[-1:]


@case
def conv_lstm() -> Case:
    return ConvLSTM(), (torch.rand(1, 3, 3, 6, 8),)


class LibraryLayers(nn.Module):
    """Frame features through LSTM, GRU, a transformer encoder's fast path and pooled attention."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ELU(), nn.AdaptiveMaxPool2d((2, 2)), nn.Flatten()
        )
        self.lstm = nn.LSTM(32, 8, num_layers=2, batch_first=True, bidirectional=True, dropout=0.1)
        self.gru, self.rnn = nn.GRU(16, 8), nn.GRUCell(8, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8))
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.query, self.head = nn.Parameter(torch.randn(1, 3, 8)), nn.Linear(8, 4)

    def forward(self, x):
        b, t = x.shape[:2]
        f = self.cnn(x.flatten(0, 1)).view(b, t, -1)
        self.lstm.flatten_parameters()
        f, (hn, cn) = self.lstm(f)
        g, last = self.gru(f.transpose(0, 1))
        h = torch.zeros(b, 8)
        for step in g:
            h = self.rnn(step, h)
        e = self.encoder(g.transpose(0, 1))
        causal = nn.Transformer.generate_square_subsequent_mask(3)
        d = self.decoder(self.query.expand(b, -1, -1), e, tgt_mask=causal)
        return F.log_softmax(self.head(d + h[:, None]), -1), (hn, cn), last


@case
def library_layers() -> Case:
    return LibraryLayers(), (torch.rand(2, 3, 3, 8, 8),)


class Remembers(nn.Module):
    """Streaming: the hidden state, a frame counter and a cache live on the module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.frame = nn.Conv2d(6, 4, 3, padding=1), None, 0
        self.register_buffer("average", torch.zeros(1, 1, 6, 8))
        self.fifo = [torch.zeros(1, 3, 6, 8) for _ in range(2)]

    def reset(self):
        self.hidden = None

    def forward(self, x):
        oldest = self.fifo.pop(0)
        self.fifo.append(x)
        if self.hidden is None:
            self.hidden = torch.zeros_like(x[:, :1]).expand(-1, 4, -1, -1)
        y = torch.tanh(self.conv(torch.cat([x, oldest], 1)) + self.hidden)
        self.hidden = y
        self.average.mul_(0.9).add_(0.1 * y.mean(1, keepdim=True))
        return y * self.average


@case
def remembers() -> Case:
    return Remembers(), (torch.rand(1, 3, 6, 8),)


class ModelOutput(collections.OrderedDict):
    """A result that is both a mapping and has attributes, as model hubs return it."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


pytree.register_pytree_node(
    ModelOutput, lambda d: (list(d.values()), list(d)), lambda v, k: ModelOutput(zip(k, v, strict=True)),
    serialized_type_name="wild.ModelOutput",
)  # fmt: skip


class OddResults(nn.Module):
    """The same tensor twice, views of inputs, numbers, None, a constant, nested lists."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.register_buffer("grid", torch.arange(4.0))
        self.logger, self.calls = logging.getLogger("wild"), collections.Counter()

    def forward(self, x, extra=None, *, flag=False):
        self.logger.info("input of %s", x.shape)
        self.calls["forward"] += 1
        y = self.conv(x)
        z = y.unflatten(1, (2, 2)).transpose(0, 1)
        return ModelOutput(
            y=y, again=y, view=x[:, 1:], same=x, grid=self.grid, size=tuple(x.shape), scale=0.5, ok=True, text="a", none=None,
            frames=[[z[i], z[i].amax(dim=(-1, -2))] for i in range(2)], index=y.flatten(1).argmax(1), mask=y > 0,
            empty=y[:, :0], long=x.mul(255).to(torch.uint8).long(),
        )  # fmt: skip


@case
def odd_results() -> Case:
    return OddResults(), (torch.rand(1, 3, 4, 6),)


def rearranged(x, h):
    """(b c) (h1 h) w -> b c h1 (h w), the way rearranging libraries lower their patterns."""
    b, c, H, w = x.shape
    return functools.reduce(
        lambda t, f: f(t), [lambda t: t.reshape(b, c, H // h, h, w), lambda t: t.permute(0, 2, 3, 4, 1)], x
    )


class Mixed(nn.Module):
    """In-place slices on views, advanced indexing, integer arithmetic on frames, sorting, triangular masks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate"), nn.Linear(4, 4)
        self.register_buffer("idx", torch.tensor([2, 0, 1]), persistent=False)

    def forward(self, frames: torch.Tensor, times: torch.Tensor):
        x = frames.float().div_(255.0)[:, self.idx]
        x[:, :, ::2, 1::2] *= 0.5
        x[0, 0].fill_(0.25)
        x[..., -1] = x[..., 0].clone()
        y = rearranged(self.conv(x), 2)
        y = self.mix(y) @ torch.tril(torch.ones(4, 4))
        y[y < 0] = 0.1
        y.masked_fill_(torch.isnan(y), 0.0)
        s, order = torch.sort(y.flatten(1), dim=1, descending=True)
        near = torch.gather(y.flatten(1), 1, order[:, :5])
        w = torch.bucketize(times, torch.linspace(0, 1, 5)).clamp(max=3)
        onehot = F.one_hot(w, 4).to(y.dtype)
        total = torch.cumsum(onehot, 0).logsumexp(-1) + torch.diff(s)[:, :1].abs().sum()
        pooled = F.fold(F.unfold(x, 2, stride=2), x.shape[-2:], 2, stride=2).std(dim=(2, 3), unbiased=False)
        flow = F.affine_grid(torch.eye(2, 3)[None] * times.mean(), [1, 3, 4, 4], align_corners=False)
        picked = F.grid_sample(x[:1], flow, mode="nearest", padding_mode="reflection", align_corners=False)
        return (
            near,
            total,
            pooled,
            picked,
            torch.einsum("b...c,c->b...", y, self.idx.new_ones(4).float()),
            torch.var_mean(x, 1),
        )


@case
def mixed_indexing() -> Case:
    return Mixed(), (torch.randint(0, 255, (2, 3, 4, 6), dtype=torch.uint8), torch.rand(3))

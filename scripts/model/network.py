"""A Llama as llama.cpp reads it; parameters carry the names that they have in a GGUF."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """The sizes of a network."""

    vocabulary: int
    width: int = 128
    layers: int = 3
    heads: int = 4
    hidden: int = 352
    context: int = 4096
    rope_base: float = 10_000.0
    epsilon: float = 1e-5

    @property
    def head(self) -> int:
        """The width of one attention head."""
        return self.width // self.heads


class Block(nn.Module):
    """Attention, then a gated feed-forward layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attn_norm = nn.RMSNorm(shape.width, eps=shape.epsilon)
        self.attn_q = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_k = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_v = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_output = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.width, eps=shape.epsilon)
        self.ffn_gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        """One layer over a batch of sequences."""
        h = self.attn_norm(x)
        q, k, v = (self._split(layer(h)) for layer in (self.attn_q, self.attn_k, self.attn_v))
        mixed = F.scaled_dot_product_attention(_rotate(q, turn), _rotate(k, turn), v, is_causal=True)
        x = x + self.attn_output(mixed.transpose(1, 2).flatten(2))
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Llama(nn.Module):
    """Tokens to logits; the embedding is also the output layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, eps=shape.epsilon)
        self.apply(_initialize)

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits of each next token."""
        turn = _turns(self.shape, tokens.shape[1])
        x = self.token_embd(tokens)
        for block in self.blk:
            x = block(x, turn)
        return F.linear(self.output_norm(x), self.token_embd.weight)


def _turns(shape: Shape, length: int) -> Tensor:
    """The angle of each pair of features at each position, as complex numbers."""
    rates = shape.rope_base ** (-torch.arange(0, shape.head, 2) / shape.head)
    angles = torch.outer(torch.arange(length), rates)
    return torch.polar(torch.ones_like(angles), angles)


def _rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Rotate neighbouring features, the pairing that llama.cpp expects of this architecture."""
    pairs = torch.view_as_complex(x.unflatten(3, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(3)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.04)

"""The step of `golden` in eager PyTorch, as the original writes it: the peer of the timing."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from speed import golden


class Attention(nn.Module):
    """Attention over tokens within channel groups, which share their weights; queries and keys are normed before."""

    def __init__(self, width: int, group: int, heads: int) -> None:
        super().__init__()
        self.group, self.heads = group, heads
        self.query_norm, self.key_norm = (nn.RMSNorm(group, eps=1e-6) for _ in range(2))
        self.query, self.key, self.value, self.out = (nn.Linear(group, group) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        y = x.view(batch, tokens, -1, self.group).transpose(1, 2).reshape(-1, tokens, self.group)
        parts = self.query(self.query_norm(y)), self.key(self.key_norm(y)), self.value(y)
        split = [part.view(len(y), tokens, self.heads, -1).transpose(1, 2) for part in parts]
        mixed = functional.scaled_dot_product_attention(*split).transpose(1, 2).reshape(y.shape)
        mixed = self.out(mixed).view(batch, -1, tokens, self.group).transpose(1, 2)
        return mixed.reshape(batch, tokens, width)


class Layer(nn.Module):
    """Pre-norm: residual attention, then residual MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, golden.GROUP, golden.HEADS)
        hidden = int(width * golden.RATIO)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.mlp(x)


class Operator(nn.Module):
    """The U-shaped operator: tokens are halved on the way down and interpolated on the way up."""

    def __init__(self) -> None:
        super().__init__()
        width, latent, depths = golden.WIDTH, golden.LATENT, golden.DEPTHS

        def layers(depth: int) -> nn.Sequential:
            return nn.Sequential(*(Layer(width) for _ in range(depth)))

        self.embed = nn.Sequential(nn.Linear(1, latent), nn.SiLU(), nn.Linear(latent, latent))
        self.to_latent = nn.Linear(latent, latent)
        self.entrance = nn.Linear(latent, width)
        self.down, self.up = (nn.ModuleList(layers(depth) for depth in depths[:-1]) for _ in range(2))
        self.lower, self.skip = (nn.ModuleList(nn.Linear(width, width) for _ in depths[:-1]) for _ in range(2))
        self.bottom = layers(depths[-1])
        self.exit = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, latent))
        self.norm = nn.LayerNorm(latent)

    def forward(self, z: torch.Tensor, dt: torch.Tensor) -> torch.Tensor:
        x = self.entrance(z + self.to_latent(self.embed(dt))[:, None])
        skips = []
        for layers, lower in zip(self.down, self.lower, strict=True):
            x = layers(x)
            skips.append(x)
            x = lower(x.unflatten(1, (-1, 2)).mean(2))
        x = self.bottom(x)
        for layers, skip, saved in zip(self.up, self.skip, reversed(skips), strict=True):
            x = functional.interpolate(x.transpose(1, 2), saved.shape[1], mode="linear").transpose(1, 2)
            x = layers(x + skip(saved))
        return z + self.norm(self.exit(x))


def torch_step(device: str) -> golden.Step:
    """Forward, backward, clip, AdamW, all eager."""
    torch.manual_seed(0)
    before, after = (torch.from_numpy(part).to(device) for part in golden.latents())
    dt = torch.full((golden.BATCH, 1), 0.1, device=device)
    model = Operator().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=golden.RATE, weight_decay=golden.DECAY)

    def run() -> Any:
        optimizer.zero_grad()
        functional.mse_loss(model(before, dt), after).backward()
        nn.utils.clip_grad_norm_(model.parameters(), golden.CLIP)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run

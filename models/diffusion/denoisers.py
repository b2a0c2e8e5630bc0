"""Denoisers: networks that say which noise is in z_t, and what the grey levels under it are."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ppl_dgm.distributions import DiscretisedNormal
from ppl_dgm.errors import ProgramError

from .schedules import NoiseSchedule

__all__ = ["DENOISERS", "LevelDenoiser", "NoiseDenoiser", "TimedNetwork"]


class TimedNetwork(nn.Module):
    """A residual network of a vector and a time, shared by all steps.

    Arguments:
        inputs, outputs: sizes of the vector and of what comes out.
        hidden: units of each layer.
        blocks: residual blocks h + W_2 dropout(silu(W_1 norm(h) + V e(time))), e = sines and cosines of the
            time.
        dropout: probability of dropping a hidden unit while learning.
    """

    frequencies: Tensor

    def __init__(self, inputs: int, outputs: int, hidden: int, blocks: int, dropout: float, waves: int = 16) -> None:
        super().__init__()
        self.register_buffer(
            "frequencies", 0.5 * torch.exp(torch.linspace(0, math.log(1000.0), waves)), persistent=False
        )
        self.first = nn.Linear(inputs, hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(blocks))
        self.into = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(blocks))
        self.times = nn.ModuleList(nn.Linear(2 * waves, hidden) for _ in range(blocks))
        self.back = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(blocks))
        self.final_norm = nn.LayerNorm(hidden)
        self.last = nn.Linear(hidden, outputs)
        nn.init.zeros_(self.last.weight)  # an untrained network says the same of every input
        nn.init.zeros_(self.last.bias)
        self.dropout = dropout

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        """z [batch, inputs], time [batch] in [0, 1] -> [batch, outputs]."""
        angles = time[:, None] * self.frequencies
        e = torch.cat([angles.sin(), angles.cos()], -1)  # [batch, 2 waves]
        h = self.first(z)
        for norm, into, of_time, back in zip(self.norms, self.into, self.times, self.back, strict=True):
            h = h + back(self._drop(silu(into(norm(h)) + of_time(e))))
        return self.last(self._drop(self.final_norm(h)))

    def _drop(self, h: Tensor) -> Tensor:
        return nn.functional.dropout(h, self.dropout, self.training) if self.dropout else h


class LevelDenoiser(nn.Module):
    """eps-hat from a posterior over grey levels: what the chain's own noise leaves possible, times what a
    network believes.

        p(x_d = v | z_t) ~ N(z_{t,d}; sqrt(alpha-bar_t) u_v, 1 - alpha-bar_t) exp(phi(v) . network_d(z_t, t)),
        eps-hat = (z_t - sqrt(alpha-bar_t) E[u]) / sqrt(1 - alpha-bar_t).

    u_v is the level v on [-1, 1]; phi holds two low cosines of v and the indicators of both ends, so that the
    belief is smooth over ordered levels apart from black and white. The Gaussian factor is exact, so that the
    network need only learn what the other pixels say about this one, and no precision is lost where the noise
    is smaller than a level.

    Arguments:
        observed: D.
        values: V.
        schedule: the chain's noise schedule.
        hidden, blocks, dropout: see `TimedNetwork`.
    """

    levels: Tensor
    features: Tensor

    def __init__(
        self, observed: int, values: int, schedule: NoiseSchedule, hidden: int, blocks: int, dropout: float
    ) -> None:
        super().__init__()
        unit = torch.linspace(0, 1, values)
        ends = [2.0 * (unit == 0), 2.0 * (unit == 1)]
        features = torch.stack([torch.cos(math.pi * unit), torch.cos(2 * math.pi * unit), *ends])
        self.register_buffer("levels", 2 * unit - 1, persistent=False)  # [V]
        self.register_buffer("features", features, persistent=False)  # [4, V]
        self.observed = observed
        self.network = TimedNetwork(observed, observed * len(features), hidden, blocks, dropout)

    def forward(self, z: Tensor, t: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
        """eps-hat [batch, D] and ln p(x_d = v | z_t) [batch, D, V]."""
        root_signal, root_noise = schedule.root_signal[t, None, None], schedule.root_noise[t, None, None]
        believed = (
            self.network(z, t / schedule.steps).unflatten(-1, (self.observed, -1)) @ self.features
        )  # [batch, D, V]
        distance = (z[..., None] - root_signal * self.levels) / root_noise
        logits = torch.log_softmax(believed - 0.5 * distance**2, -1)
        expected = logits.exp() @ self.levels  # E[u], [batch, D]
        noise = (z - root_signal[..., 0] * expected) / root_noise[..., 0]
        return noise, logits

    def decoder(self, features: Tensor) -> dist.TorchDistribution:
        """p(x | z_1), from what `forward` gave for t = 1."""
        return dist.Categorical(logits=features).to_event(1)


class NoiseDenoiser(nn.Module):
    """eps-hat straight from a network, as in the DDPM paper; x | z_1 is a normal variable over the cells of
    the grey levels.

    The network also sees sines and cosines of z_t with periods of 2 to 16 grey levels, without which it
    cannot tell neighbouring levels apart (Kingma et al., 2021). The decoder's mean is the denoised z_1; its
    scale is one learned number, in grey levels.

    Arguments: see `LevelDenoiser`.
    """

    rates: Tensor

    def __init__(
        self, observed: int, values: int, schedule: NoiseSchedule, hidden: int, blocks: int, dropout: float
    ) -> None:
        super().__init__()
        self.values = values
        rates = 0.5 * math.pi * (values - 1) * 2.0 ** -torch.arange(4)
        self.register_buffer("rates", rates, persistent=False)
        self.network = TimedNetwork(observed * (1 + 2 * len(rates)), observed, hidden, blocks, dropout)
        left = (
            float(schedule.root_noise[1] / schedule.root_signal[1]) * (values - 1) / 2
        )  # the noise in z_1, in grey levels
        self.log_scale = nn.Parameter(torch.tensor(math.log(left)))

    def forward(self, z: Tensor, t: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
        """eps-hat [batch, D] and the denoised z_t, in grey levels, [batch, D]."""
        angles = (z[..., None] * self.rates).flatten(-2)
        noise = self.network(torch.cat([z, angles.sin(), angles.cos()], -1), t / schedule.steps)
        return noise, (schedule.denoised(z, t, noise) + 1) * ((self.values - 1) / 2)

    def decoder(self, features: Tensor) -> dist.TorchDistribution:
        """p(x | z_1), from what `forward` gave for t = 1."""
        return DiscretisedNormal(features, self.log_scale.exp(), self.values).to_event(1)


DENOISERS: dict[str, type[LevelDenoiser] | type[NoiseDenoiser]] = {
    "levels": LevelDenoiser,
    "noise": NoiseDenoiser,
}


def denoiser(name: str) -> type[LevelDenoiser] | type[NoiseDenoiser]:
    """The denoiser of that name.

    Raises:
        ProgramError: there is none.
    """
    if name not in DENOISERS:
        raise ProgramError(f"denoiser {name!r} is unknown; choose one of {', '.join(DENOISERS)}.")
    return DENOISERS[name]

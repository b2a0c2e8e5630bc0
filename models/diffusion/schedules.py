"""NoiseSchedule: how much noise each step of a diffusion chain adds, and the Gaussian algebra of that."""

import math

import torch
from torch import Tensor, nn

from ppl_dgm.errors import ProgramError

__all__ = ["SCHEDULES", "VARIANCES", "NoiseSchedule", "signal_fraction"]

SCHEDULES = ("log-snr", "cosine", "linear")
VARIANCES = ("posterior", "forward")


def signal_fraction(name: str, steps: int, largest: float = 4.0, smallest: float = -7.0) -> Tensor:
    """alpha-bar_t for t = 0, ..., T: the share of the data in the variance of z_t, falling from 1 to nearly
    0.

    - `linear`: beta_t rises linearly from 1e-4 to 0.02 for T = 1000, and is scaled by 1000 / T for other T
      (Ho et al., 2020);
    - `cosine`: alpha-bar_t = cos^2((t/T + s) / (1 + s) pi/2) / the same at 0, s = 0.008 (Nichol and Dhariwal,
      2021);
    - `log-snr`: ln(alpha-bar_t / (1 - alpha-bar_t)) falls linearly from `largest` at t = 1 to `smallest` at t
      = T (Kingma et al., 2021).

    Arguments:
        name: one of `SCHEDULES`.
        steps: T.
        largest, smallest: log signal-to-noise ratios, for `log-snr` only.

    Returns:
        [T + 1], float64.

    Raises:
        ProgramError: the name is unknown or there is no step.
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ProgramError(f"steps is {steps!r}; give the number of noising steps, at least 1.")
    if name == "log-snr":
        ratios = torch.linspace(largest, smallest, steps, dtype=torch.float64)
        return torch.cat([torch.ones(1, dtype=torch.float64), torch.sigmoid(ratios)])
    if name == "linear":
        beta = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * (1000 / steps)
    elif name == "cosine":
        time = torch.arange(steps + 1, dtype=torch.float64) / steps
        wave = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
        beta = 1 - wave[1:] / wave[:-1]
    else:
        raise ProgramError(f"schedule {name!r} is unknown; choose one of {', '.join(SCHEDULES)}.")
    return torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - beta.clamp(max=0.999), 0)])


class NoiseSchedule(nn.Module):
    """The numbers of a variance-preserving chain z_t | z_{t-1} ~ N(sqrt(alpha_t) z_{t-1}, beta_t I), z_0 =
    data.

    With alpha_t = 1 - beta_t and alpha-bar_t = prod_s alpha_s:

    - z_t | z_0 ~ N(sqrt(alpha-bar_t) z_0, (1 - alpha-bar_t) I);
    - z_{t-1} | z_t, z_0 is normal with variance beta-tilde_t = (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t)
      beta_t;
    - the model steps back with variance sigma_t^2, which is fixed.

    Arguments:
        signal: alpha-bar_0 = 1, ..., alpha-bar_T, strictly falling.
        variance: sigma_t^2: "posterior" (beta-tilde_t, right where the data are known) or "forward" (beta_t).

    Attributes (each [T + 1], indexed by t):
        alpha_bar, alpha, beta: as above.
        root_signal, root_noise: sqrt(alpha-bar_t) and sqrt(1 - alpha-bar_t).
        forward_mean, forward_scale: sqrt(alpha_t) and sqrt(beta_t).
        posterior_variance: beta-tilde_t; zero for t = 1.
        reverse_scale: sigma_t.
        kl_slope, kl_constant: KL[q(z_{t-1} | z_t, x) || p(z_{t-1} | z_t)] = slope_t ||eps - eps-hat||^2 +
            constant_t D nats (t >= 2).
        proposal: probabilities with which learning visits the steps, [T]; element t - 1 belongs to step t.

    Raises:
        ProgramError: the variance's name is unknown, or alpha-bar does not fall from 1.
    """

    # Buffers are what the constructor's arguments imply, so that files need not hold them.
    alpha_bar: Tensor
    alpha: Tensor
    beta: Tensor
    root_signal: Tensor
    root_noise: Tensor
    forward_mean: Tensor
    forward_scale: Tensor
    posterior_variance: Tensor
    reverse_scale: Tensor
    kl_slope: Tensor
    kl_constant: Tensor
    proposal: Tensor

    def __init__(self, signal: Tensor, variance: str = "posterior") -> None:
        super().__init__()
        if variance not in VARIANCES:
            raise ProgramError(f"variance {variance!r} is unknown; choose one of {', '.join(VARIANCES)}.")
        alpha_bar = signal.double()
        if alpha_bar.dim() != 1 or alpha_bar[0] != 1 or not (alpha_bar.diff() < 0).all() or alpha_bar[-1] <= 0:
            raise ProgramError("a noise schedule must fall strictly from alpha-bar_0 = 1 and stay positive.")
        self.steps = len(alpha_bar) - 1
        before = torch.cat([alpha_bar[:1], alpha_bar[:-1]])  # alpha-bar_{t-1}; element 0 is not used
        alpha = alpha_bar / before
        beta = 1 - alpha
        posterior = torch.cat([beta[:1], (1 - before[1:]) / (1 - alpha_bar[1:]) * beta[1:]])
        sigma2 = posterior if variance == "posterior" else beta
        slope, constant = torch.zeros_like(beta), torch.zeros_like(beta)
        later = slice(2, None)
        slope[later] = (beta**2 / (2 * sigma2 * alpha * (1 - alpha_bar)))[later]
        ratio = (posterior / sigma2)[later]
        constant[later] = 0.5 * (ratio - 1 - ratio.log())
        for name, value in {
            "alpha_bar": alpha_bar,
            "alpha": alpha,
            "beta": beta,
            "root_signal": alpha_bar.sqrt(),
            "root_noise": (1 - alpha_bar).sqrt(),
            "forward_mean": alpha.sqrt(),
            "forward_scale": beta.sqrt(),
            "posterior_variance": posterior,
            "reverse_scale": sigma2.sqrt(),
            "kl_slope": slope,
            "kl_constant": constant,
            "proposal": _proposal(slope[1:] * alpha_bar[1:], self.steps),
        }.items():
            self.register_buffer(name, value.to(torch.get_default_dtype()), persistent=False)

    def noised(self, z0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """z_t = sqrt(alpha-bar_t) z_0 + sqrt(1 - alpha-bar_t) noise; z_0 and noise [batch, D], t [batch]."""
        return self.root_signal[t, None] * z0 + self.root_noise[t, None] * noise

    def denoised(self, z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """z_0 from z_t and the noise in it: the inverse of `noised`."""
        return (z - self.root_noise[t, None] * noise) / self.root_signal[t, None]

    def reverse_mean(self, z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """mu(z_t, t) = (z_t - beta_t / sqrt(1 - alpha-bar_t) noise) / sqrt(alpha_t).

        The bar matters: some texts print sqrt(1 - alpha_t), which shrinks the samples' variance many times
            over.
        """
        return (z - (self.beta / self.root_noise)[t, None] * noise) / self.forward_mean[t, None]

    def posterior_mean(self, z: Tensor, t: Tensor, z0: Tensor) -> Tensor:
        """The mean of z_{t-1} | z_t, z_0, for t >= 2."""
        before = self.alpha_bar[t - 1, None]
        rest = 1 - self.alpha_bar[t, None]
        of_data = before.sqrt() * self.beta[t, None] / rest
        return of_data * z0 + self.forward_mean[t, None] * (1 - before) / rest * z


def _proposal(guess: Tensor, steps: int) -> Tensor:
    """How often to visit each step: mostly in proportion to its KL, were the data standard normal."""
    # such data have E||eps - eps-hat||^2 = alpha-bar_t per dimension, which is already in `guess`
    uniform = torch.full_like(guess, 1 / steps)
    if steps == 1:
        return uniform
    first = torch.zeros_like(guess)
    first[0] = 1.0  # the decoder's term, which no Gaussian guess covers
    return 0.1 * first + 0.1 * uniform + 0.8 * guess / guess.sum()

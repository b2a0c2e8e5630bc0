"""A program of your own through every verb: eight schools, non-centred. About 15 seconds; mu is about 4.4, tau about 3.6."""

import pyro
import pyro.distributions as dist
import torch

import ppl_dgm as dgm

y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])  # estimated effects of coaching
sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])  # their standard errors


def schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(sigma)):
        t = pyro.sample("t", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * t)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


print(dgm.check(schools, y, sigma))
print(dgm.card(schools, y, sigma))

prior = dgm.sample(schools, 1000, y, sigma, seed=0)
print("prior:     median |y|", prior["y"].abs().median().item())

posterior = dgm.infer(schools, y, sigma, seed=0)
print(posterior.summary(var_names=["mu", "tau"]))
print("findings: ", posterior.diagnose() or "none")
print("predicted:", posterior.predict(y, sigma, seed=0)["y"].mean(0))

method = dgm.SVI(guide="AutoMultivariateNormal", epochs=1000, batch_size=None, lr=0.01, schedule="cosine", particles=4)
fit = dgm.learn(schools, y, sigma, method=method, seed=0)
print("evidence: ", dgm.score(fit.program, y, sigma, seed=0))

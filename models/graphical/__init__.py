"""Models with a graph of their own: Bayesian networks, hidden Markov models, state spaces, topics and factors."""

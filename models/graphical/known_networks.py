"""Small Bayesian networks of the textbooks: their parents and tables of conditional probabilities."""

from typing import Any

__all__ = ["ABC", "ALARM", "SPRINKLER"]

Network = tuple[dict[str, list[str]], dict[str, Any]]

# K. Murphy (2002), after S. Russell and P. Norvig (1995): value 1 is true; wet grass is never wet without a cause.
SPRINKLER: Network = (
    {"cloudy": [], "sprinkler": ["cloudy"], "rain": ["cloudy"], "grass": ["sprinkler", "rain"]},
    {
        "cloudy": [0.5, 0.5],
        "sprinkler": [[0.5, 0.5], [0.9, 0.1]],
        "rain": [[0.8, 0.2], [0.2, 0.8]],
        "grass": [[[1.0, 0.0], [0.1, 0.9]], [[0.1, 0.9], [0.01, 0.99]]],
    },
)

# J. Pearl (1988), with the numbers of S. Russell and P. Norvig (1995).
ALARM: Network = (
    {
        "burglary": [],
        "earthquake": [],
        "alarm": ["burglary", "earthquake"],
        "john": ["alarm"],
        "mary": ["alarm"],
    },
    {
        "burglary": [0.999, 0.001],
        "earthquake": [0.998, 0.002],
        "alarm": [[[0.999, 0.001], [0.71, 0.29]], [[0.06, 0.94], [0.05, 0.95]]],
        "john": [[0.95, 0.05], [0.10, 0.90]],
        "mary": [[0.99, 0.01], [0.30, 0.70]],
    },
)

# J. Tomczak (2024), Deep Generative Modeling, 2.2, gives the graph without numbers; these are ours.
ABC: Network = (
    {"A": [], "B": [], "C": ["A", "B"]},
    {"A": [0.6, 0.4], "B": [0.3, 0.7], "C": [[[0.9, 0.1], [0.4, 0.6]], [[0.2, 0.8], [0.5, 0.5]]]},
)

"""The networks that programs use, and the likelihoods that they end in."""

from .convolutional import ConvolutionalDecoder, ConvolutionalEncoder
from .likelihoods import LIKELIHOODS, Likelihood, make_likelihood
from .mlp import ACTIVATIONS, mlp

__all__ = [
    "ACTIVATIONS",
    "LIKELIHOODS",
    "ConvolutionalDecoder",
    "ConvolutionalEncoder",
    "Likelihood",
    "make_likelihood",
    "mlp",
]

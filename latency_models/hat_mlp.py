"""The latency predictor of HAT, as a reference."""

from __future__ import annotations

from typing import Any

from sklearn.compose import TransformedTargetRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def hat_mlp(*, hidden: int = 400, layers: int = 3, epochs: int = 500, seed: int = 0) -> Any:
    """A perceptron with three hidden layers of 400 and ReLU on normalised features (Wang et al., arXiv:2005.14187, section 4.1).

    Its paper fits 2,000 measurements; from a few dozen it has little to go by.
    """
    network = MLPRegressor(
        hidden_layer_sizes=(hidden,) * layers, max_iter=epochs, early_stopping=True, n_iter_no_change=50, random_state=seed
    )
    return TransformedTargetRegressor(make_pipeline(StandardScaler(), network), transformer=StandardScaler())

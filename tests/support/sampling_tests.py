"""Whether tokens were drawn from a distribution."""

import numpy as np
import torch
from scipy import stats


def p_value(tokens: list[int], probabilities: np.ndarray) -> float:
    """Chi-square test; tokens expected less than ten times are put together."""
    counts = np.bincount(tokens, minlength=len(probabilities)).astype(float)
    expected = probabilities * len(tokens)
    group = np.where(expected < 10, 0, np.arange(1, len(expected) + 1))
    bins = np.unique(group)
    sums = [[row[group == each].sum() for each in bins] for row in (counts, expected)]
    return float(stats.chisquare(*sums).pvalue)


def softmax(row: torch.Tensor, temperature: float) -> np.ndarray:
    scaled = row.double().numpy() / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()

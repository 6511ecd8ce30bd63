"""Criteria: how much each channel of a network deserves to stay, one file for each method."""

from pruning.criteria.methods import METHODS, find_method

__all__ = ["METHODS", "find_method"]

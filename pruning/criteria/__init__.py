"""Criteria: how much each channel of a network deserves to stay, one file for each method."""

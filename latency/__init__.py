"""Knows graphs, devices and milliseconds: channel structure, profiling and latency prediction."""

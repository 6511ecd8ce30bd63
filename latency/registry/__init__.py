"""Keeps devices, search spaces, profiles, LPNets, jobs and tokens of a team: a database, and files by content."""

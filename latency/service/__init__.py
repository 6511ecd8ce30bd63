"""Answers "how many ms?" over HTTP: the registry's contents, predictions, gradients, jobs, and a page."""

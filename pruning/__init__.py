"""Prunes trained CNNs to a latency budget: gates, plans, surgery, fine-tuning, verification."""

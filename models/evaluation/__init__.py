"""Evaluation: protocols, baselines, scores and tables; what a bundle's personal heads are worth."""

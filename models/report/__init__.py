"""Reports: a training run, and what an evaluation found of it, as one HTML page."""

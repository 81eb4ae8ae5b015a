"""Hyper-parameters of the default head, for training: see `models.heads.tuning`, which needs no torch."""

from models.heads.tuning import LeftOut, Trial, accuracies, evidence, trials_of, tune, with_settings

__all__ = ["LeftOut", "Trial", "accuracies", "evidence", "trials_of", "tune", "with_settings"]

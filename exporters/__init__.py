"""From a training run to the bundle that serving loads."""

"""Users and their heads: store, calibration, resolution of a request to a head."""

"""Measurements: serving beside other servers, overload, soak, calibrations."""

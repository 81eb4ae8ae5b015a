"""Recordings of people: the file format, windows, splits that cannot leak, synthetic users and public data sets.

Import from the modules: `recordings`, `windows`, `splits`, `describe`, `synthetic`, `download`, `watch`.
"""

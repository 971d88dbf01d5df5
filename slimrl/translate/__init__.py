"""Settings files of TRL and verl as files of SlimRL, by the table in config/foreign_names.py.

    source (what a file says) -> trl, verl (what it means here) -> translation (the text of a settings file)

No file is executed: Python is read as a tree.
"""

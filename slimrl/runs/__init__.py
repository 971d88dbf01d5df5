"""The run directory is the only output and the only interface to analysis."""

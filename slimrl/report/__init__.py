"""The report of a study: tables, plots, sentences, one HTML page."""

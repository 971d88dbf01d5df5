"""The report of a study: tables, sentences, figures, and its four forms. Reads no run and decides no verdict."""

"""The terminal: the screens of a run and of a study. Nothing below the command line imports this room."""

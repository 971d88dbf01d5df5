"""What a person sees in the terminal. Nothing below the command line imports this room."""

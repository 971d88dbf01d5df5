"""The life of a run: begun or resumed, saved, stopped, finished."""

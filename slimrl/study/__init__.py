"""Studies: arms of settings times training seeds, compared with intervals. Knows no page and no screen."""

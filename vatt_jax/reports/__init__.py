"""Report page and figures of a run."""

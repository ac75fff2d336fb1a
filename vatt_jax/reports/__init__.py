"""Draws the report page and the figures of an experiment."""

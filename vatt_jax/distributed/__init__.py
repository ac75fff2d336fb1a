"""Devices and hosts: what is split over which, and how hosts agree."""

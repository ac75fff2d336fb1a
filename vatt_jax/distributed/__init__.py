"""Devices and hosts: sharding of arrays, and coordination of processes."""

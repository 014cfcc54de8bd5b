"""Dreamstill beside other libraries: a script for each, run in an environment of its own."""

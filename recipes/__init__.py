"""Recipes: one file for each published row."""

"""Recipes, their schema, and how commands read them."""

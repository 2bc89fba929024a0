"""Engines under test, one adapter each."""

"""Touchstone: an instrument for measuring LLM inference engines."""

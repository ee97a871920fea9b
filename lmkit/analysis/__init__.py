"""Measurements of what trained models have learned."""

"""Labeled pictures, one by one or in batches."""

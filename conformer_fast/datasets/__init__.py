"""Pictures, with labels or without, one by one or in batches."""

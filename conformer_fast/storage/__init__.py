"""Files that are whole at any time, hashed and locked."""

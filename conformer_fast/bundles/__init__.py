"""The verified folder that holds an engine."""

"""The engine: pure torch, without Lightning, data or reports."""

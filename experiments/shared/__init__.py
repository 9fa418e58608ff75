"""Shared parts of the scripts that reproduce tables and figures of papers."""

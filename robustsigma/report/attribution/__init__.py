"""The report of an attribution benchmark: how its result is laid out, drawn, and shown in a page and a terminal."""

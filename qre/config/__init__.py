"""Configuration: profiles and the global file, from text to validated model to stable JSON."""

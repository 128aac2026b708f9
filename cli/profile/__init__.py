"""Commands about a profile: written, normalised, up, reloaded, down, run as a daemon."""

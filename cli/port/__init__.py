"""Commands about one shared port: its loader, both ends by hand, and what a loader that was killed left behind."""

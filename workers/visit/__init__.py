"""The worker that visits Dest once, as a browser would, tells what it saw, and ends. Nothing of a tunnel is here."""

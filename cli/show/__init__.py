"""`show` and `watch`: what devices, sessions and counters are, as text and as JSON. Changes nothing."""

"""`show` and `watch`: devices, sessions and counters, as text and as JSON. Changes nothing."""

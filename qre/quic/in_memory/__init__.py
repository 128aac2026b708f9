"""Both ends joined in memory, or one alone, for plans, captures and rehearsals; sans-IO. No running tunnel
uses it."""

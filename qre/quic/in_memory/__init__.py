"""Both ends joined in memory, or one without the other, for plans, captures and rehearsals; sans-IO. No tunnel that
runs uses it.
"""

"""The privilege-dropped processes, one package a role. Workers never import each other."""

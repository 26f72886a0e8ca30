"""Models of fields on point sets: meshes and particles."""

"""Models of fields at points (meshes and particles)."""

"""Device meshes and multi-process runs: sharding, gathering, and communication between hosts."""

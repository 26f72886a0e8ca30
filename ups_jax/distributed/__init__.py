"""Device meshes and several processes: sharding, gathering, and agreement between hosts."""

"""The packaged configurations; in an installed package this folder is `ups_jax.configs`."""

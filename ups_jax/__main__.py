"""`python -m ups_jax` is the command `ups-jax`."""

from ups_jax.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())

"""Run the command `ups-jax` as `python -m ups_jax`."""

from ups_jax.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())

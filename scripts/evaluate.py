"""`ups_jax.cli.evaluate` as a script."""

from ups_jax.cli.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main())

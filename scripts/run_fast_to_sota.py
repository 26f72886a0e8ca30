"""`ups_jax.cli.pipeline` as a script."""

from ups_jax.cli.pipeline import main

if __name__ == "__main__":
    raise SystemExit(main())

"""`ups_jax.cli.convert` as a script."""

from ups_jax.cli.convert import main

if __name__ == "__main__":
    raise SystemExit(main())

"""`ups_jax.cli.inspect` as a script."""

from ups_jax.cli.inspect import main

if __name__ == "__main__":
    raise SystemExit(main())

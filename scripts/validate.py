"""`ups_jax.cli.validate` as a script."""

from ups_jax.cli.validate import main

if __name__ == "__main__":
    raise SystemExit(main())

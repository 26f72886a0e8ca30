"""`ups_jax.cli.export` as a script."""

from ups_jax.cli.export import main

if __name__ == "__main__":
    raise SystemExit(main())

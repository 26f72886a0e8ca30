"""`ups_jax.cli.train` as a script."""

from ups_jax.cli.train import main

if __name__ == "__main__":
    raise SystemExit(main())

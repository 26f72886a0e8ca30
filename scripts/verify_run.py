"""`ups_jax.cli.verify` as a script."""

from ups_jax.cli.verify import main

if __name__ == "__main__":
    raise SystemExit(main())

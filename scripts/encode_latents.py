"""`ups_jax.cli.encode` as a script."""

from ups_jax.cli.encode import main

if __name__ == "__main__":
    raise SystemExit(main())

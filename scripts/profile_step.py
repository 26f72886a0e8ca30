"""`ups_jax.cli.profile` as a script."""

from ups_jax.cli.profile import main

if __name__ == "__main__":
    raise SystemExit(main())

"""`ups_jax.cli.generate` as a script."""

from ups_jax.cli.generate import main

if __name__ == "__main__":
    raise SystemExit(main())

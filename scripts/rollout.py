"""`ups_jax.cli.rollout` as a script."""

from ups_jax.cli.rollout import main

if __name__ == "__main__":
    raise SystemExit(main())

"""`ups_jax.cli.leaderboard` as a script."""

from ups_jax.cli.leaderboard import main

if __name__ == "__main__":
    raise SystemExit(main())

"""`python -m diffusers_cg` and `accelerate launch -m diffusers_cg`: the command `diffusers-cg`."""

from diffusers_cg_cli import main


if __name__ == "__main__":
    main()

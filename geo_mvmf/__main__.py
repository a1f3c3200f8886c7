"""`python -m geo_mvmf` is `geo-mvmf`."""

from geo_mvmf.cli import main

if __name__ == "__main__":
    main(prog_name="geo-mvmf")

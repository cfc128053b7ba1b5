"""`python -m fortifai.cli`."""

from fortifai.cli.app import main

if __name__ == "__main__":
    main()

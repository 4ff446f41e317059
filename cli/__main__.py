"""``python -m geoseg_cli`` is ``geoseg``."""

from geoseg_cli.main import main

if __name__ == "__main__":
    main()

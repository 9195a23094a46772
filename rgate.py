"""Run the gateway from a checkout: python rgate.py --port 8080 --config config.yml"""

from rgate.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

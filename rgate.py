"""Run the gateway from a checkout: python rgate.py --port 8080 --config config.yml"""

from rgate.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main())

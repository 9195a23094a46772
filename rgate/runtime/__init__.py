"""A changed config, taken up while requests go on: load and check, build, start, swap, and let the old one finish.

config_file.py  where a config comes from, and the gateway that it describes
pinned.py       what cannot change without a restart
succession.py   the gateways of one process, one after the other
watching.py     who notices that the files have changed
"""

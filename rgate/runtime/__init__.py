"""One Runtime for the life of a process, and one Gateway per config.

runtime.py         Runtime: what outlives a config; start, reload, drain and stop
gateway.py         build(): the chains on one screen; Gateway: what plugins are given
reload.py          the config file, and what in it cannot change without a restart
resources.py       ResourcePool: objects of plugins that stay the same over reloads
worker_channel.py  the other worker processes
"""

"""What rgate is measured against: configuration files of other gateways, and two gateways written for this.

@PORT@ is where to listen, @BACKEND@ the backend's port, @FOLDER@ a folder of the gateway's own.
"""

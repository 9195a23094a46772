"""What stands behind the gateways: nginx for answers that cost little, bodies.py for those that read bodies or take time."""

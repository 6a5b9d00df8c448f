"""What clusters are made of: files for launchers, images and dashboards, and a check of them. Not part of any wheel."""

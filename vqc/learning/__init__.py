"""What learning passes share: numerics that know no graph, and collectors that run calibration clips through one."""

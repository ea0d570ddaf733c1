require ${@bb.utils.contains('DISTRO_FEATURES', 'osctl', '${BPN}_osctl.inc', '', d)}

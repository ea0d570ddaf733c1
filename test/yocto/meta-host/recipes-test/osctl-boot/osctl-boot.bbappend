# GRUB's modules are those of this machine.
INHIBIT_DEFAULT_DEPS = "1"
STAGING_LIBDIR = "/usr/lib"

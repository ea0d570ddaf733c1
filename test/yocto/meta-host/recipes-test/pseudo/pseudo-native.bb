SUMMARY = "In place of pseudo: whoever runs these tests is root"
LICENSE = "MIT"

INHIBIT_DEFAULT_DEPS = "1"
PROVIDES = "virtual/fakeroot-native"
S = "${UNPACKDIR}"

inherit native

do_configure[noexec] = "1"
do_compile[noexec] = "1"
do_install[noexec] = "1"

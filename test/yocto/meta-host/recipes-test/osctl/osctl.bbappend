# This machine's Go compiler makes programs for the target without cgo.
DEPENDS_GOLANG = ""
DEPENDS_GOLANG:class-target = ""
DEPENDS_GOLANG:class-native = ""
INHIBIT_DEFAULT_DEPS = "1"
GOROOT = "${HOST_GOROOT}"
GOROOT:class-native = "${HOST_GOROOT}"
GOTOOLDIR = "${HOST_GOROOT}/pkg/tool/linux_amd64"
GOTOOLDIR:class-native = "${HOST_GOROOT}/pkg/tool/linux_amd64"
export GO = "go"
# binutils of the target are those of this machine.
HOST_PREFIX = ""
TARGET_PREFIX = ""

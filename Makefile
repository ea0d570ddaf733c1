# osctl. "make demo" shows it at work, "make test" tests everything.

GO ?= go
export OSCTL_CACHE ?= $(CURDIR)/.cache

# Static, stripped and without paths of this machine: equal sources give equal
# binaries.
BUILD = CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=auto -ldflags '-s -w'
SCRIPTS = $(shell git ls-files '*.sh') .ci/run \
	images/rootfs/usr/lib/osctl/emergency images/debian/usr/lib/osctl/sshd-keygen \
	images/initramfs/watchdog images/initramfs/init-there \
	images/rescue/init images/rescue/network \
	meta-kapernikov/recipes-core/osctl-initramfs/files/init
PACKAGES = ./...

.PHONY: all osctl deps tools check lint test fuzz crash planted demo run bench yocto-modules yocto-check clean

all: osctl

osctl:
	$(BUILD) -o bin/osctl ./cmd/osctl

# deps installs the Debian packages that are missing (needs root).
deps:
	images/install-deps.sh

# tools builds containerd, nerdctl and cosign from source into the cache.
tools:
	images/tools/build.sh containerd nerdctl cosign

# check is the fast part: no root, no network beyond Go modules.
check: osctl
	test -z "$$(gofmt -l cmd pkg test images policy | tee /dev/stderr)"
	$(GO) vet $(PACKAGES)
	$(GO) test -short $(PACKAGES)

lint:
	test -z "$$(gofmt -l cmd pkg test images policy | tee /dev/stderr)"
	$(GO) vet $(PACKAGES)
	$(GO) vet -tags yocto ./test/machine
	$(GO) tool staticcheck $(PACKAGES)
	$(GO) mod tidy -diff
	shellcheck $(SCRIPTS)

# test is everything, on real parts. Three packages at a time, for most wait for something
# more than they compute; but the machines by themselves: two of them are what two cores
# emulate. The crash states tell their figures, so they come by themselves too.
test: deps tools osctl lint
	$(GO) test -p 3 -timeout 80m $$($(GO) list $(PACKAGES) | grep -v -e '/test/crash$$' -e '/test/machine$$')
	$(GO) test -timeout 80m ./test/machine
	$(GO) test -v -timeout 80m ./test/crash

# crash cuts the power in every way that the model of docs/crash-states.md permits;
# make test takes a sample of that.
crash: deps tools osctl
	OSCTL_EXHAUSTIVE=1 $(GO) test -count=1 -v -timeout 60m ./test/crash/...
	OSCTL_EXHAUSTIVE=1 $(GO) test -count=1 -v -run TestCutsInReset ./pkg/etc
	OSCTL_EXHAUSTIVE=1 $(GO) test -count=1 -v -timeout 90m -run TestGrubTable ./pkg/boot
	OSCTL_EXHAUSTIVE=1 $(GO) test -count=1 -v -timeout 3h ./test/machine

# planted switches off each check of the list and looks for the test that notices;
# make test takes a part of the list.
planted:
	OSCTL_EXHAUSTIVE=1 $(GO) test -count=1 -v -timeout 60m ./test/planted

# fuzz runs each fuzz target for a while; its seeds run with every test.
FUZZTIME ?= 30s
fuzz:
	@git grep -oE '^func Fuzz[A-Za-z]+' -- '*_test.go' | while IFS=: read -r file name; do \
		echo "$$file $${name#func }"; \
		$(GO) test -run '^$$' -fuzz "^$${name#func }\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5x "./$${file%/*}" </dev/null || exit 1; \
	done

demo: deps osctl
	images/tools/build.sh containerd nerdctl
	$(GO) run ./test/demo

run: deps osctl
	images/tools/build.sh containerd nerdctl
	$(GO) run ./test/demo -stay

bench: deps tools osctl
	$(GO) test -run '^$$' -bench . -benchtime 1x -timeout 2h ./test/bench
	$(GO) test -run '^$$' -bench Verify -benchtime 300x ./pkg/trust ./pkg/publish

# yocto-modules writes the Go modules and licences of osctl's recipe anew, after a
# change of go.mod.
yocto-modules:
	$(GO) run ./test/yocto/update

# yocto-check proves what can be proven of the Yocto layer without building an image.
# YOCTO_LAYERS names the upstream layers; YOCTO_PROOFS some of the proofs.
yocto-check: osctl
	YOCTO_LAYERS=$(YOCTO_LAYERS) test/yocto/check.sh $(YOCTO_PROOFS)

clean:
	rm -rf bin .cache
